"""Gini coefficient: its two ends, laws, and numbers from the authors' code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from protolearn.audit.concentration import active_count, gini
from protolearn.errors import UsageError


@pytest.mark.parametrize("count", [1, 2, 7, 500])
def test_both_ends(count: int) -> None:
    one = torch.zeros(3, count)
    one[0, 0], one[1, -1], one[2, count // 2] = 1.0, 1e6, -1e-6
    assert gini(one).tolist() == pytest.approx([(count - 1) / count] * 3)
    assert gini(torch.full((2, count), 0.37)).abs().max() < 1e-12


def test_it_is_the_mean_difference_of_pairs() -> None:
    values = torch.rand(20, 13, dtype=torch.float64) ** 3
    pairs = (values.unsqueeze(1) - values.unsqueeze(2)).abs().mean((1, 2)) / (2 * values.mean(1))
    assert torch.allclose(gini(values), pairs)


def test_neither_order_sign_nor_scale_matter() -> None:
    values = torch.randn(20, 13, dtype=torch.float64)
    assert torch.allclose(gini(values), gini(-40.0 * values[:, torch.randperm(13)]))


def test_nothing_is_shared_out_where_all_is_zero() -> None:
    assert gini(torch.zeros(2, 4)).isnan().all()
    assert gini(torch.zeros(2, 0)).isnan().all()
    assert gini(torch.zeros(0, 4)).shape == (0,)
    with pytest.raises(UsageError, match="without NaN"):
        gini(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(UsageError, match=r"\(3,\)"):
        gini(torch.ones(3))


def test_numbers_from_the_authors_code(reference: Callable[[str], dict[str, np.ndarray]]) -> None:
    known = reference("sizes_abstention")
    activations = torch.from_numpy(known["activations"])
    assert gini(activations).numpy() == pytest.approx(known["gini"], rel=1e-6)
    assert active_count(activations).tolist() == known["active_count"].tolist()
