from __future__ import annotations

import torch

from protolearn.audit.cases import CaseValues


def test_values_come_back_in_the_order_of_the_cases() -> None:
    values = CaseValues()
    for chosen in torch.randperm(20).split(6):
        values.add("cases", chosen, square=chosen.square().double())
    assert values.of("cases", "square").tolist() == [i * i for i in range(20)]
    assert values.count("train") == 0
