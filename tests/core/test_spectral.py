"""Spanning trees, bandwidths and spectral clusters beside known classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

from protolearn.core.spectral import longest_tree_edge, novel_spectral, spectral_embedding, tree_bandwidth
from protolearn.errors import UsageError


def drawn(seed: int, rows: int, dim: int) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 99), rows=st.integers(2, 40), dim=st.integers(1, 4))
def test_the_tree_is_scipys_and_its_weakest_link_is_as_asked(seed: int, rows: int, dim: int) -> None:
    x = drawn(seed, rows, dim)
    tree = minimum_spanning_tree((torch.cdist(x, x) ** 2).numpy()).toarray()
    assert longest_tree_edge(x) == pytest.approx(tree.max(), rel=1e-6)
    sigma = tree_bandwidth(x, 0.4)
    assert np.exp(-tree[tree > 0] / (2 * sigma**2)).min() == pytest.approx(math.sqrt(0.4), rel=1e-6)


def test_embedding_solves_the_laplacian() -> None:
    x = drawn(0, 30, 2)
    sigma = tree_bandwidth(x)
    found = spectral_embedding(x, 4, sigma)
    table = torch.exp(-(torch.cdist(x, x) ** 2) / (2 * sigma**2)).fill_diagonal_(0.0)
    scale = table.sum(1).rsqrt()
    laplacian = torch.eye(30, dtype=torch.float64) - scale.unsqueeze(1) * table * scale
    values = torch.linalg.eigvalsh(laplacian)
    torch.testing.assert_close(laplacian @ found, found * values[1:5], rtol=1e-6, atol=1e-8)


def test_it_follows_shapes_that_k_means_cuts() -> None:
    """Two rings of new classes and a known class beside them."""
    draw = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(300, generator=draw)
    radius = torch.tensor([1.0, 4.0]).repeat_interleave(150) + 0.1 * torch.randn(300, generator=draw)
    rings = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    known = torch.tensor([5.0, 5.0]) + 0.2 * torch.randn(40, 2, generator=draw)
    labels = torch.tensor([-1] * 300 + [7] * 40)
    found = novel_spectral(torch.cat([rings, known]), labels, 3, generator=draw, lowest=1e-6, components=2)
    inner, outer = found.rows[:150], found.rows[150:300]
    assert len(set(inner.tolist())) == len(set(outer.tolist())) == 1 and inner[0] != outer[0]
    assert found.classes.tolist() == [7, -1, -1] and bool((found.rows[300:] == 0).all())


def test_odd_rows() -> None:
    with pytest.raises(UsageError, match="equal"):
        tree_bandwidth(torch.ones(4, 2))
    with pytest.raises(UsageError, match="lowest"):
        tree_bandwidth(drawn(0, 4, 2), 1.0)
    with pytest.raises(UsageError, match="components"):
        spectral_embedding(drawn(0, 4, 2), 4, 1.0)
    assert longest_tree_edge(torch.zeros(1, 3)) == 0.0
