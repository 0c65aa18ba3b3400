"""The regular simplex."""

from __future__ import annotations

import pytest
import torch

from protolearn.core.simplex import simplex


@pytest.mark.parametrize("count", [2, 3, 10, 257])
def test_gram_matrix(count: int) -> None:
    vertices = simplex(count, torch.double)
    gram = vertices @ vertices.T
    want = torch.full((count, count), -1 / (count - 1), dtype=torch.double).fill_diagonal_(1.0)
    torch.testing.assert_close(gram, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(vertices.sum(0), torch.zeros(count - 1).double(), rtol=0, atol=1e-12)


def test_every_call_gives_the_same() -> None:
    assert torch.equal(simplex(40), simplex(40))
    with pytest.raises(ValueError, match="at least 2"):
        simplex(1)
