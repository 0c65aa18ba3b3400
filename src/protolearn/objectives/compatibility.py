"""Terms that keep the features of a new model comparable with those of the one it replaces."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def higher_order_compatibility(
    new: Tensor, old: Tensor, labels: Tensor, *, scale: float = 10.0, leave_out: bool = False
) -> Tensor:
    """Return the contrastive term that draws a case's new feature to its own old one; 0 where there is no case.

    Old features are anchors: mean over ``i`` of ``-s_ii + log sum over j of exp(s_ij [y_i != y_j])`` with
    ``s_ij = scale * cos(old_i, new_j)``. Source: d-simplex HOC (Biondi et al., CVPR 2024).

    Parameters
    ----------
    new, old : Tensor
        ``(B, D)`` features of the same cases; the old ones get no gradient.
    labels : Tensor
        ``(B,)``; cases with label -1 are left out.
    scale : float
        One over the temperature.
    leave_out : bool
        Take cases of the anchor's own class out of the sum. The authors' code, and the default, multiplies their
        similarity by 0, so that each still adds ``exp(0) = 1``. Anchors without a case of another class then drop out.

    Examples
    --------
    >>> features, labels = torch.eye(2), torch.tensor([0, 1])
    >>> round(higher_order_compatibility(features, features, labels).item(), 3)
    -9.307
    """
    known = labels >= 0
    new, old, labels = F.normalize(new[known], dim=-1), F.normalize(old[known].detach(), dim=-1), labels[known]
    table = scale * old @ new.T
    same = labels.unsqueeze(1) == labels
    if leave_out:
        some = ~same.all(1)
        others = torch.logsumexp(table.masked_fill(same, float("-inf"))[some], 1)
        terms = others - table.diagonal()[some]
    else:
        terms = torch.logsumexp(table.masked_fill(same, 0.0), 1) - table.diagonal()
    return terms.sum() / max(1, len(terms))
