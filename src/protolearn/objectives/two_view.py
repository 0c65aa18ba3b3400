"""Terms on two views of the same cases, for prototypes that are channels: what a view shows, the other must show too.

``first`` and ``second`` are distributions over prototypes at every position, ``(B, S, P)``, position by position the
same place of the same case; ``presence`` is ``(B, P)``, how surely each prototype is found in a view.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protolearn.structures import Output


def two_view_alignment(first: Tensor, second: Tensor, mask: Tensor | None = None, eps: float = 1e-12) -> Tensor:
    """Return the mean over real positions of ``-log(<p1, p2> + eps)``, each side once held fixed.

    0 when both views put all on the same prototype. Source: PIP-Net (Nauta et al., CVPR 2023), ``L_A``.

    Examples
    --------
    >>> sure = torch.tensor([[[1.0, 0.0]]])
    >>> two_view_alignment(sure, torch.tensor([[[0.5, 0.5]]])).item() == torch.tensor(2.0).log().item()
    True
    """
    if first.shape != second.shape or first.ndim != 3:
        raise ValueError(f"two views must be (B, S, P) alike, got {tuple(first.shape)} and {tuple(second.shape)}")

    def one_way(moved: Tensor, fixed: Tensor) -> Tensor:
        costs = -((moved * fixed.detach()).sum(-1) + eps).log()
        if mask is None:
            return costs.mean()
        return costs.where(mask, costs.new_zeros(())).sum() / mask.sum().clamp_min(1)

    return (one_way(first, second) + one_way(second, first)) / 2


def presence_tanh(presence: Tensor, eps: float = 1e-10) -> Tensor:
    """Return ``-mean over prototypes of log(tanh(sum over cases of presence) + eps)``: each is found in some case.

    Source: PIP-Net, ``L_T``. Of one view; the mean of both views is the term. The sum runs over a batch, so the value
    depends on the batch size.

    Examples
    --------
    >>> found, never = presence_tanh(torch.tensor([[9.0]])), presence_tanh(torch.tensor([[0.0]]))
    >>> round(found.item(), 4), round(never.item(), 2)
    (0.0, 23.03)
    """
    return -(presence.sum(0).tanh() + eps).log().mean()


def uniformity(rows: Tensor, sharpness: float = 2.0, eps: float = 1e-10) -> Tensor:
    """Return ``log(mean over pairs of exp(-t |x - y|^2) + eps)`` of unit rows ``(N, D)``: lower where they spread out.

    Source: Wang and Isola, ICML 2020, with PIP-Net's small constant. One row has no pair: 0.

    Examples
    --------
    >>> same, apart = uniformity(torch.tensor([[1.0, 0.0], [1.0, 0.0]])), uniformity(torch.eye(2))
    >>> round(same.item(), 4), round(apart.item(), 4)
    (0.0, -4.0)
    """
    if len(rows) < 2:
        return rows.sum() * 0.0
    return ((-sharpness * torch.pdist(torch.nn.functional.normalize(rows, dim=1)).square()).exp().mean() + eps).log()


def mean_entropy(distributions: Tensor, eps: float = 1e-12) -> Tensor:
    """Return the mean entropy of distributions over the last axis: 0 where each is sure.

    Examples
    --------
    >>> mean_entropy(torch.tensor([[1.0, 0.0]])).item() < 1e-6
    True
    """
    return -(distributions * (distributions + eps).log()).sum(-1).mean()


def two_view_terms(out: Output) -> tuple[Tensor, Tensor]:
    """Return alignment and presence of an output whose embedded tokens are distributions over prototypes.

    Where the batch is paired, its halves are the two views, and presence is the mean of both. Otherwise a view stands
    for both: alignment then only asks each place to choose one prototype. 0 for alignment where tokens were not kept.
    """
    evidence = out.evidence
    views = evidence.chunk(2) if out.paired else (evidence,)
    presence = torch.stack([presence_tanh(view) for view in views]).mean()
    if out.tokens is None:
        return evidence.sum() * 0.0, presence
    values, mask = out.tokens.values, out.tokens.mask
    if not out.paired:
        return two_view_alignment(values, values, mask), presence
    first, second = values.chunk(2)
    if mask is not None:
        mask = mask.chunk(2)[0] & mask.chunk(2)[1]
    return two_view_alignment(first, second, mask), presence
