"""Purity and the cases that excite a channel most."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protolearn.core.purity import Exemplars, Ranking, peaks, purity_of
from protolearn.structures import Tokens


def test_purity_by_hand() -> None:
    values = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [-5.0, 0.0]], [[-3.0, 0.0], [-3.0, -4.0], [-6.0, -8.0]]])
    found = peaks(values)
    assert found.positions.tolist() == [[0, 0], [0, 0]]
    torch.testing.assert_close(found.purity, torch.tensor([[0.6, 0.8], [-1.0, 0.0]]))


def test_purity_is_not_symmetric_in_sign() -> None:
    """The peak is the largest value, not the largest absolute value."""
    values = torch.tensor([[[0.1, 0.0], [-9.0, 0.0]]])
    assert peaks(values).positions.tolist() == [[0, 0]]
    assert peaks(-values).positions.tolist() == [[1, 0]]


def test_a_token_of_zeros_has_purity_0_and_a_finite_gradient() -> None:
    values = torch.zeros(2, 3, 4, requires_grad=True)
    purity = purity_of(values, torch.tensor([[0, 1], [1, 3]]))
    purity.sum().backward()
    assert purity.tolist() == [0.0, 0.0]
    assert values.grad is not None
    assert bool(values.grad.isfinite().all())


def test_masked_positions_are_no_peaks() -> None:
    values = torch.tensor([[[1.0, 0.0], [9.0, 9.0]], [[1.0, 2.0], [3.0, 4.0]]])
    mask = torch.tensor([[True, False], [False, False]])
    found = peaks(values, mask)
    assert found.purity.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert bool((found.values[1] == float("-inf")).all())
    pairs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    assert purity_of(values, pairs, mask).tolist() == [1.0, 0.0, 0.0, 0.0]


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5), st.integers(0, 999), st.booleans())
def test_pairs_are_entries_of_the_table(batch: int, steps: int, dim: int, seed: int, masked: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, steps, dim, generator=draw)
    mask = torch.rand(batch, steps, generator=draw) > 0.4 if masked else None
    pairs = torch.cartesian_prod(torch.arange(batch), torch.arange(dim))
    found = peaks(values, mask)
    torch.testing.assert_close(purity_of(values, pairs, mask), found.purity.flatten())
    assert float(found.purity.abs().max()) <= 1 + 1e-6


def search(values: Tensor, by: Ranking, parts: list[Tensor], matrix: Tensor | None = None) -> Exemplars:
    found = Exemplars(values.shape[2], 4, by=by, matrix=matrix)
    for part in parts:
        found.update_from(Tokens(values[part]), part)
    return found


@pytest.mark.parametrize("by", ["sum", "peak"])
def test_prototypes_do_not_depend_on_batches_or_order(by: Ranking) -> None:
    """Single precision, many channels, and cases that come twice: whatever rounds, rounds away."""
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(60, 7, 96, generator=draw).relu()
    values[30:40] = values[:10]
    matrix = torch.linalg.qr(torch.randn(96, 96, generator=draw))[0]
    first = search(values, by, [torch.arange(60)], matrix)
    for size in (1, 7, 59):
        for order in (torch.arange(60), torch.randperm(60, generator=draw)):
            other = search(values, by, list(order.split(size)), matrix)
            assert torch.equal(other.cases, first.cases)
            assert torch.equal(other.columns["positions"], first.columns["positions"])


def test_the_two_rankings_differ_where_they_should() -> None:
    """A broad weak answer has the larger sum, one strong place the larger peak."""
    values = torch.tensor([[[1.0], [1.0], [1.0]], [[0.0], [2.0], [0.0]]])
    parts = [torch.arange(2)]
    assert search(values, "sum", parts).cases[0, :2].tolist() == [0, 1]
    assert search(values, "peak", parts).cases[0, :2].tolist() == [1, 0]


def test_a_case_without_a_place_is_never_chosen() -> None:
    values = torch.ones(2, 3, 2)
    mask = torch.tensor([[False] * 3, [True, False, False]])
    for by in ("sum", "peak"):
        found = Exemplars(2, 2, by=by)  # type: ignore[arg-type]
        found.update_from(Tokens(values, mask=mask), torch.arange(2))
        assert found.cases.tolist() == [[1, -1], [1, -1]]
        assert found.scores[:, 0].tolist() == [1.0, 1.0]


def test_padding_may_hold_anything() -> None:
    values = torch.ones(1, 2, 2)
    values[0, 1] = float("nan")
    found = Exemplars(2, 1)
    found.update_from(Tokens(values, mask=torch.tensor([[True, False]])), torch.arange(1))
    assert found.scores.tolist() == [[1.0], [1.0]]
    torch.testing.assert_close(found.columns["purity"], torch.full((2, 1), 0.5**0.5, dtype=torch.float64))
