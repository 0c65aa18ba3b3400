from __future__ import annotations

import torch

from protolearn.audit.rows import CaseRows, JudgedPairs


def test_rows_come_back_in_the_order_of_the_cases() -> None:
    rows = CaseRows()
    order = torch.randperm(20)
    for chosen in order.split(6):
        rows.add(chosen, square=chosen.square().double())
    assert rows["square"].tolist() == [i * i for i in range(20)]


def test_pairs_and_their_interval() -> None:
    pairs = JudgedPairs(30, 3)
    assert pairs.per_prototype.isnan().all()
    assert pairs.over_cases(torch.Generator().manual_seed(0)) is None
    values = torch.arange(30) % 2 == 0
    pairs.add(torch.arange(30), torch.zeros(30, dtype=torch.long), values.double())
    pairs.add(torch.arange(30), torch.ones(30, dtype=torch.long), torch.full((30,), 0.5))
    pairs.add(torch.tensor([3]), torch.tensor([2]), torch.tensor([float("nan")]))
    assert pairs.per_prototype[:2].tolist() == [0.5, 0.5]
    assert pairs.per_prototype[2].isnan()
    assert pairs.per_case[:2].tolist() == [0.75, 0.25]
    low, high = pairs.over_cases(torch.Generator().manual_seed(0)) or (0.0, 0.0)
    assert 0.38 < low < 0.5 < high < 0.62, "half the spread of one mean of 30 coins"
