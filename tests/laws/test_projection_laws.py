"""Laws of projection: what is found depends on the cases alone, not on how they were handed over."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.measures import MEASURES, Measure, cosine, squared_l2
from protolearn.core.projection import Nearest, NearestTokens, assign_distinct, impure
from protolearn.errors import DataError
from protolearn.structures import Source, Tokens

measures = st.sampled_from([squared_l2, cosine])


def cases(seed: int, count: int, steps: int = 5, dim: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens with many duplicates among them, masks, labels (-1 too) and units."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(-2, 3, (count, steps, dim), generator=g).float() + 0.1
    mask = torch.rand(count, steps, generator=g) > 0.2
    return values, mask, torch.randint(-1, 3, (count,), generator=g), torch.randint(0, 5, (count,), generator=g)


def bank(seed: int, dim: int = 3) -> PrototypeBank:
    g = torch.Generator().manual_seed(seed + 1)
    return PrototypeBank(torch.randn(6, dim, generator=g), torch.eye(3).repeat_interleave(2, 0))


def search(
    bank: PrototypeBank, measure: Measure, data: tuple[Tensor, ...], order: Tensor, batch: int, k: int, own: bool
) -> NearestTokens:
    values, mask, labels, units = data
    found = NearestTokens(bank, measure, k, own_class=own)
    for part in order.split(batch):
        found.update(Tokens(values[part], mask[part]), labels[part], part, units[part])
    return found


def same(left: Nearest, right: Nearest) -> None:
    for name in Nearest.__annotations__:
        one, two = getattr(left, name), getattr(right, name)
        if name == "vectors":
            one, two = one[left.found], two[right.found]
        assert torch.equal(one, two), name


@settings(max_examples=30)
@given(st.integers(0, 10**6), measures, st.integers(1, 4), st.booleans(), st.integers(1, 9), st.integers(1, 4))
def test_order_batches_and_processes_do_not_matter(
    seed: int, measure: Measure, k: int, own: bool, batch: int, processes: int
) -> None:
    protos, data = bank(seed), cases(seed, 11)
    whole = search(protos, measure, data, torch.arange(11), 11, k, own)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(seed))
    same(whole.result, search(protos, measure, data, order, batch, k, own).result)
    # processes pad their share with repeated cases
    shares = [torch.cat([order[i::processes], order[:1]]) for i in range(processes)]
    first, *others = [search(protos, measure, data, share, batch, k, own) for share in shares]
    first.merge([other.result for other in others])
    same(whole.result, first.result)


@settings(max_examples=30)
@given(st.integers(0, 10**6), measures, st.integers(1, 4), st.booleans())
def test_what_is_found_is_nearest_one_a_unit_and_of_the_right_class(
    seed: int, measure: Measure, k: int, own: bool
) -> None:
    protos, data = bank(seed), cases(seed, 9)
    protos.ban([4])
    values, mask, labels, units = data
    found = search(protos, measure, data, torch.arange(9), 4, k, own).result
    far_first = measure.farthest > 0
    for p in range(len(protos)):
        best: dict[int, tuple[float, int, int]] = {}
        for case in range(9):
            allowed = p != 4 and (not own or (labels[case] >= 0 and protos.ownership[p, labels[case]] > 0))
            for s in range(values.shape[1]):
                if not allowed or not mask[case, s]:
                    continue
                value = float(measure.paired(values[case, s], protos.vectors[p].detach()))
                entry = (value if far_first else -value, case, s)
                best[int(units[case])] = min(best.get(int(units[case]), (float("inf"), 0, 0)), entry)
        want = sorted(best.values())[:k]
        real = found.found[p]
        assert int(real.sum()) == len(want)
        got = found.values[p][real].tolist()
        assert got == pytest.approx([v if far_first else -v for v, _, _ in want], abs=1e-5)
        assert len(set(found.units[p][real].tolist())) == len(want)
        for c, s, vector in zip(found.cases[p][real], found.positions[p][real], found.vectors[p][real], strict=True):
            assert torch.equal(values[c, s], vector)
            assert mask[c, s]


@settings(max_examples=30)
@given(st.integers(0, 10**6), measures)
def test_projecting_twice_changes_nothing(seed: int, measure: Measure) -> None:
    protos, data = bank(seed), cases(seed, 12)
    order = torch.arange(12)
    once = search(protos, measure, data, order, 5, 1, True).result
    moved = once.found[:, 0].nonzero().squeeze(1)
    made = [Source("c", "h", 0, None, 0.0, "e")] * len(moved)
    protos.move(moved, once.vectors[moved, 0], made)
    kept = protos.vectors.detach().clone()
    again = search(protos, measure, data, order.flip(0), 3, 1, True).result
    if measure is squared_l2:
        assert again.values[moved].eq(0).all()
        assert torch.equal(again.vectors[moved, 0], kept[moved])
    else:
        assert torch.allclose(again.values[moved], torch.ones(()), atol=1e-6)
    assert [protos.sources[i] is None for i in range(len(protos))] == [
        i not in moved.tolist() for i in range(len(protos))
    ]


def test_nothing_allowed_is_not_found() -> None:
    protos = bank(0)
    found = NearestTokens(protos, squared_l2, k=2, own_class=True)
    assert not found.result.found.any()
    found.update(
        Tokens(torch.zeros(2, 1, 3), torch.tensor([[True], [False]])), torch.tensor([0, 1]), torch.tensor([5, 6])
    )
    assert found.result.found.int().tolist() == [[1, 0], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
    assert impure(found.result, protos.ownership, 1).tolist() == [False, False, True, True, True, True]


def test_nan_is_an_error_that_names_the_case() -> None:
    values = torch.zeros(2, 2, 3)
    values[1, 0, 0] = float("nan")
    found = NearestTokens(bank(0), squared_l2, own_class=False)
    with pytest.raises(DataError, match="case 17"):
        found.update(Tokens(values), torch.tensor([0, 1]), torch.tensor([16, 17]))
    hidden = torch.tensor([[True, True], [False, True]])
    found.update(Tokens(values, hidden), torch.tensor([0, 1]), torch.tensor([16, 17]))
    assert found.result.found.all()


@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 6), st.sampled_from(list(MEASURES.values())))
def test_distinct_assignment_shares_no_key_and_wastes_none(seed: int, count: int, k: int, measure: Measure) -> None:
    g = torch.Generator().manual_seed(seed)
    values = torch.rand(count, k, generator=g).sort(1, descending=measure.farthest < 0).values
    keys = torch.randint(0, 6, (count, k), generator=g)
    found = torch.arange(k) < torch.randint(0, k + 1, (count, 1), generator=g)
    blank = torch.where(found, 0, -1)
    nearest = Nearest(values, blank, blank, blank, blank, torch.zeros(count, k, 1))
    column = assign_distinct(nearest, measure, keys)
    taken = {int(p): int(keys[p, c]) for p, c in enumerate(column) if c >= 0}
    assert len(set(taken.values())) == len(taken)
    for p in range(count):
        last = int(column[p]) if column[p] >= 0 else int(found[p].sum())
        assert column[p] < 0 or found[p, column[p]]
        for c in range(last):  # whatever it did not get went to one at least as near
            holder = next(q for q, key in taken.items() if key == int(keys[p, c]))
            mine, theirs = values[p, c], values[holder, column[holder]]
            assert theirs <= mine if measure.farthest > 0 else theirs >= mine
