"""The regular simplex: as many directions as wanted, all equally far from each other, with nothing to learn."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def simplex(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the vertices of a regular simplex, ``(K, K - 1)`` unit rows with products ``-1 / (K - 1)``.

    The same for every call: models made apart share the directions. Source: d-simplex classifiers (Pernici et al.).

    Parameters
    ----------
    count : int
        K, at least 2.
    dtype : dtype
        Of the result; the construction runs in double precision.

    Examples
    --------
    >>> simplex(3) @ simplex(3).T
    tensor([[ 1.0000, -0.5000, -0.5000],
            [-0.5000,  1.0000, -0.5000],
            [-0.5000, -0.5000,  1.0000]])
    """
    if count < 2:
        raise ValueError(f"a simplex has at least 2 vertices, got {count}")
    dim = count - 1
    corners = torch.eye(count, dim, dtype=torch.float64)
    corners[-1] = (1 - (1 + dim) ** 0.5) / dim
    return F.normalize(corners - corners.mean(0), dim=-1).to(dtype)
