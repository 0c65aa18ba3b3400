"""The cases in which each prototype scores highest: against a sort, whatever the batches and their order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protolearn.core.top_cases import TopCases
from protolearn.errors import UsageError


@given(
    st.lists(st.lists(st.integers(-2, 3), min_size=2, max_size=2), min_size=1, max_size=14),
    st.integers(1, 6),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_top_cases_are_those_of_a_sort_whatever_batches_and_order(
    rows: list[list[int]], k: int, size: int, shuffle: object
) -> None:
    """Ties on purpose: scores are small whole numbers, and -2 stands for never."""
    scores = torch.tensor(rows, dtype=torch.float32)
    scores = scores.where(scores > -2, float("-inf"))
    order = list(range(len(rows)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    top = TopCases(2, k)
    for part in torch.tensor(order).split(size):
        top.update(scores[part], part, double=2 * scores[part])
    for p in range(2):
        best = sorted((i for i in range(len(rows)) if rows[i][p] > -2), key=lambda i: (-rows[i][p], i))[:k]
        assert top.cases[p].tolist() == best + [-1] * (k - len(best))
        assert top.scores[p, : len(best)].tolist() == [float(rows[i][p]) for i in best]
        assert top.columns["double"][p, : len(best)].tolist() == [2.0 * rows[i][p] for i in best]


def test_the_last_batch_may_be_smaller_than_what_is_kept() -> None:
    """Counting back through an index modulo the present batch would name the wrong cases here."""
    scores = torch.tensor([[9.0], [8.0], [7.0], [6.0], [5.0], [1.0]])
    top = TopCases(1, 4)
    for part in torch.arange(6).split(5):
        top.update(scores[part], part)
    assert top.cases.tolist() == [[0, 1, 2, 3]]


def test_what_cannot_be_ranked_is_refused() -> None:
    top = TopCases(1, 2)
    with pytest.raises(ValueError, match=r"row 0 scores NaN in case 7"):
        top.update(torch.tensor([[1.0], [float("nan")]]), torch.tensor([3, 7]))
    with pytest.raises(ValueError, match="twice"):
        top.update(torch.ones(2, 1), torch.tensor([3, 3]))
    with pytest.raises(UsageError, match="at least 1"):
        TopCases(1, 0)


def test_what_may_not_be_found_is_not_found() -> None:
    top = TopCases(1, 2)
    top.update(torch.tensor([[float("-inf")], [1.0]]), torch.tensor([0, 1]))
    assert top.cases.tolist() == [[1, -1]]
    assert top.found.tolist() == [[True, False]]
    assert not top.constant.any()


def test_who_is_as_near_to_every_case_has_no_nearest() -> None:
    top = TopCases(3, 1)
    top.update(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([0]))
    assert not top.constant.any(), "one case says nothing yet"
    top.update(torch.tensor([[1.0, 2.0, 0.0], [1.0, 3.0, float("-inf")]]), torch.tensor([1, 2]))
    assert top.constant.tolist() == [True, False, False]
