from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protolearn.audit.rows import CaseRows, JudgedPairs
from protolearn.audit.subject import Look, ModelSubject
from protolearn.audit.top_cases import TopCases, best_places
from protolearn.encoders import SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.methods import get_method


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 7))
def test_batches_and_order_change_nothing(seed: int, n: int, batch: int) -> None:
    """Scores with many ties; the last batch is smaller than n."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (10, 3), generator=g).float()
    order = torch.randperm(10, generator=g)
    whole, parts = TopCases(3, n), TopCases(3, n)
    whole.update(scores, torch.arange(10), itself=scores)
    for chosen in order.split(batch):
        parts.update(scores[chosen], chosen, itself=scores[chosen])
    assert torch.equal(whole.cases, parts.cases)
    assert torch.equal(whole.values, parts.values)
    assert torch.equal(whole.kept["itself"][whole.found], parts.kept["itself"][parts.found])
    for p in range(3):
        want = sorted(range(10), key=lambda i: (-float(scores[i, p]), i))[:n]
        assert whole.cases[p].tolist() == want + [-1] * (n - len(want))


def test_what_may_not_be_found_is_not_found() -> None:
    top = TopCases(1, 2)
    top.update(torch.tensor([[float("-inf")], [1.0]]), torch.tensor([0, 1]))
    assert top.cases.tolist() == [[1, -1]]
    assert top.found.tolist() == [[True, False]]
    assert not top.constant.any()
    with pytest.raises(DataError, match=r"row 0 scores NaN in case 7"):
        top.update(torch.tensor([[float("nan")]]), torch.tensor([7]))
    with pytest.raises(UsageError, match="at least 1"):
        TopCases(1, 0)


@pytest.mark.parametrize("name", ["protopnet", "pipnet"])
def test_places_of_a_model_are_the_peaks_of_its_maps(name: str) -> None:
    model = get_method(name)().build(SmallEncoder(size=16), 3)
    subject = ModelSubject(model)
    with subject.looking():
        look = subject.look(torch.rand(5, 3, 16, 16))
    values, places = best_places(look)
    assert look.maps is not None
    peak = look.maps.flatten(2).max(2)
    if name == "protopnet":
        assert torch.equal(values.argsort(0), peak.values.argsort(0)), "negative distances rank cases alike"
    else:
        assert torch.allclose(values, peak.values, atol=1e-5)
    near = look.maps.flatten(2).gather(2, places.unsqueeze(2)).squeeze(2)
    assert torch.allclose(near, peak.values, atol=1e-5)
    bare = Look(look.logits, look.probabilities, look.scores, look.maps, look.ledger)
    assert torch.equal(best_places(bare)[0], peak.values)
    none = best_places(Look(look.logits, look.probabilities, look.scores, None, look.ledger))
    assert torch.equal(none[0], look.scores)
    assert none[1].eq(0).all()


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


def test_who_is_as_near_to_every_case_has_no_nearest() -> None:
    top = TopCases(3, 1)
    top.update(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([0]))
    assert not top.constant.any(), "one case says nothing yet"
    top.update(torch.tensor([[1.0, 2.0, 0.0], [1.0, 3.0, float("-inf")]]), torch.tensor([1, 2]))
    assert top.constant.tolist() == [True, False, False]
