"""Correlations beside numpy and scipy, and what has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from protolearn.audit.correlation import (
    rank_correlation,
    row_correlation,
    standard_rows,
    weighted_correlation,
)
from protolearn.errors import UsageError


def test_correlation_is_the_cosine_of_standard_rows() -> None:
    table = torch.randn(5, 40)
    table[2] = -2 * table[0] + 7
    table[3] = 0.1
    units, real = standard_rows(table)
    assert real.tolist() == [True, True, True, False, True]
    want = np.corrcoef(table[real].numpy().astype(np.float64))
    assert np.allclose((units[real] @ units[real].T).numpy(), want)
    assert not standard_rows(torch.zeros(2, 0))[1].any()


def test_rank_correlation_with_ties() -> None:
    one, two = torch.randint(0, 5, (20, 9)).float(), torch.randint(0, 5, (20, 9)).float()
    found = rank_correlation(one, two)
    for b in range(20):
        assert float(found[b]) == pytest.approx(spearmanr(one[b], two[b]).statistic)
    assert torch.allclose(rank_correlation(one, one.exp()), torch.ones(20).double())
    assert rank_correlation(torch.ones(1, 3), two[:1, :3]).isnan().all()
    assert rank_correlation(torch.ones(2, 0), torch.ones(2, 0)).isnan().all()


def test_weighted_correlations() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, generator=g).double(), torch.randn(30, generator=g).double()
    y = y + 0.5 * x
    counts = torch.randint(0, 3, (5, 30), generator=g)
    for row, found in zip(counts, weighted_correlation(x, y, counts), strict=True):
        a, b = x.repeat_interleave(row).numpy(), y.repeat_interleave(row).numpy()
        assert float(found) == pytest.approx(np.corrcoef(a, b)[0, 1])
    far = weighted_correlation(1e8 + x, y, torch.ones(1, 30))
    assert float(far) == pytest.approx(np.corrcoef(x.numpy(), y.numpy())[0, 1], abs=1e-6)
    assert weighted_correlation(torch.full((4,), 0.1), torch.arange(4.0), torch.ones(1, 4)).isnan().all()


def test_two_tables_must_be_of_the_same_rows() -> None:
    with pytest.raises(UsageError, match="rows of one table"):
        row_correlation(torch.ones(2, 3), torch.ones(3, 3))
    assert row_correlation(torch.ones(2, 0), torch.ones(2, 0)).isnan().all()
