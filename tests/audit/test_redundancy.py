from __future__ import annotations

import pytest
import torch

from protolearn.audit.redundancy import Use, near_pairs, same_source
from protolearn.core.bank import PrototypeBank
from protolearn.core.measures import Measure, cosine, squared_l2
from protolearn.structures import Source


def source(case: str, position: int) -> Source:
    return Source(case, case * 2, position, None, 0.0, "e", 0)


def test_prototypes_on_one_token_are_grouped() -> None:
    bank = PrototypeBank(torch.rand(5, 3), torch.eye(5))
    bank.sources = [source("a", 1), source("b", 1), source("a", 1), source("a", 2), None]
    assert same_source(bank) == [[0, 2]]
    bank.ban([2])
    assert same_source(bank) == []


@pytest.mark.parametrize("measure", [squared_l2, cosine])
def test_twins_are_found_by_any_measure(measure: Measure) -> None:
    vectors = torch.randn(40, 8)
    vectors[7] = vectors[3] + 1e-4
    bank = PrototypeBank(vectors, torch.eye(2).repeat_interleave(20, 0))
    pairs = near_pairs(bank, measure)
    assert [(p.left, p.right, p.same_owner) for p in pairs] == [(3, 7, True)]
    bank.prune([0])
    assert [(p.left, p.right) for p in near_pairs(bank, measure)] == [(3, 7)]  # ids, not rows
    bank.ban([3])
    assert near_pairs(bank, measure) == []


def test_one_prototype_has_no_twin() -> None:
    assert near_pairs(PrototypeBank(torch.rand(1, 3), torch.ones(1, 1)), squared_l2) == []


def test_use_is_counted_over_batches() -> None:
    bank = PrototypeBank(torch.rand(4, 2), torch.eye(4))
    use, whole = Use(4, top=1), Use(4, top=1)
    evidence = torch.tensor([[1.0, 2.0, 5.0, 0.5], [3.0, 1.0, 5.0, 0.7], [2.0, 4.0, 5.0, 0.1]])
    contribution = torch.tensor([[1.0, -2.0, 0.0, 0.5], [3.0, 1.0, 0.0, 0.7], [2.0, 4.0, 0.0, 0.1]])
    for b in range(3):
        use.update(evidence[b : b + 1], contribution[b : b + 1], bank.usable)
    whole.update(evidence, contribution, bank.usable)
    assert use.leading.tolist() == whole.leading.tolist() == [1, 2, 0, 0]
    torch.testing.assert_close(use.mean, evidence.mean(0))
    assert use.highest.tolist() == evidence.amax(0).tolist()
    reasons = use.dead(bank, torch.ones(1, 4))
    assert set(reasons) == {2, 3}
    assert "same in every case" in reasons[2]
    assert "never among" in reasons[3]
