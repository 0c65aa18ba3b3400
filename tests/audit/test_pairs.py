"""Sums over pairs and their intervals, against tables and loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protolearn.audit.bootstrap import interval_of, resampled
from protolearn.audit.pairs import JudgedPairs, PairList, Pairs


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(seed: int = 0, cases: int = 25, prototypes: int = 4, parts: int = 3) -> tuple[Tensor, Tensor]:
    g = drawn(seed)
    counted = torch.rand(cases, prototypes, generator=g) < 0.4
    return counted, torch.rand(cases, prototypes, parts, generator=g) < 0.5


def listed(counted: Tensor, *values: Tensor, batch: int = 6) -> tuple[Pairs, tuple[Tensor, ...]]:
    gathered = PairList()
    for part in torch.arange(len(counted)).split(batch):
        gathered.add(counted[part], *(each[part] for each in values))
    return gathered.gathered(counted.shape[1])


def test_sums_are_those_of_the_table() -> None:
    counted, hits = table()
    pairs, (found,) = listed(counted, hits)
    assert len(pairs) == int(counted.sum())
    assert torch.equal(pairs.total(found), (hits & counted.unsqueeze(2)).sum(0).double())
    assert torch.equal(pairs.total(pairs.each()).squeeze(1), counted.sum(0).double())


def test_intervals_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, hits = table()
    pairs, (found,) = listed(counted, hits)

    def rate(hit: Tensor, looked: Tensor) -> Tensor:
        return (hit / looked.clamp_min(1)).amax(2).mean(1)

    whole = interval_of(
        lambda w: rate(
            torch.einsum("rn,npk->rpk", w, (hits & counted.unsqueeze(2)).double()),
            torch.einsum("rn,np->rp", w, counted.double()).unsqueeze(2),
        ),
        len(counted),
        drawn(1),
    )
    assert pairs.interval(rate, drawn(1), found, pairs.each()) == pytest.approx(whole)
    monkeypatch.setattr("protolearn.audit.pairs.chunk_rows", lambda row_bytes: 7)
    assert pairs.interval(rate, drawn(1), found, pairs.each()) == pytest.approx(whole)


def test_values_may_be_real_numbers_and_pairs_may_repeat() -> None:
    pairs = Pairs(torch.tensor([0, 1, 1]), torch.tensor([1, 1, 1]), 2, 3)
    values = torch.tensor([[0.25], [0.5], [2.0]])
    assert pairs.total(values).squeeze(1).tolist() == [0.0, 2.75, 0.0]
    weights = resampled(2, 1000, drawn())
    sums: list[Tensor] = []
    pairs.interval(lambda found: (sums.append(found), found.sum((1, 2)))[1], drawn(), values)
    got = torch.cat(sums)
    assert torch.allclose(got[:, 1, 0], weights[:, 0] * 0.25 + weights[:, 1] * 2.5)
    assert got[:, [0, 2]].eq(0).all()


def test_an_interval_may_be_put_round_a_value() -> None:
    counted, hits = table()
    pairs, (found,) = listed(counted, hits)
    free = pairs.interval(lambda hit: hit.sum((1, 2)), drawn(), found)
    centred = pairs.interval(lambda hit: hit.sum((1, 2)), drawn(), found, around=3.0)
    assert free is not None and centred is not None
    assert centred[1] - centred[0] == pytest.approx(free[1] - free[0]) and centred[0] < 3 < centred[1]


def test_one_case_and_no_pair() -> None:
    counted = torch.zeros(1, 2, dtype=torch.bool)
    pairs, (found,) = listed(counted, torch.zeros(1, 2, 3, dtype=torch.bool))
    assert len(pairs) == 0 and pairs.total(found).eq(0).all()
    assert pairs.interval(lambda hit: hit.sum((1, 2)), drawn(), found) is None


def test_one_value_a_pair_and_its_interval() -> None:
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
