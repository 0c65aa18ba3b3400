"""What pooling gives when one member of a set is taken out, for every member at once and without pooling again.

A sum less one term is never made by subtraction: the terms before it and those after it are added up, so that a member
that outweighs all others leaves the digits of the others intact. n members of one set, d their width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def exclusive_sum(values: Tensor, dim: int = 0) -> Tensor:
    """Return the sum of all entries along ``dim`` but each one, in shape and precision of ``values``.

    It is accumulated in double precision: without one of many members a sum hardly changes, and the change is wanted.

    Examples
    --------
    >>> exclusive_sum(torch.tensor([1.0, 2.0, 1e30])).tolist()[2]
    3.0
    """
    exact = values.double()
    front = exact.narrow(dim, 0, values.shape[dim] - 1).cumsum(dim)
    back = exact.flip(dim).narrow(dim, 0, values.shape[dim] - 1).cumsum(dim).flip(dim)
    none = torch.zeros_like(exact.narrow(dim, 0, 1))
    return (torch.cat([none, front], dim) + torch.cat([back, none], dim)).to(values.dtype)


def mean_without_each(values: Tensor) -> Tensor:
    """Return ``(n, d)``: row i is the mean of ``values (n, d)`` without row i.

    Raises
    ------
    ValueError
        If there are fewer than two rows.

    Examples
    --------
    >>> mean_without_each(torch.tensor([[0.0], [2.0], [4.0]])).flatten().tolist()
    [3.0, 2.0, 1.0]
    """
    _check(values)
    return exclusive_sum(values) / (len(values) - 1)


def attention_without_each(values: Tensor, scores: Tensor) -> Tensor:
    """Return ``(n, d)``: row i is the softmax-weighted mean of ``values`` without row i.

        z_-i = sum over j != i of exp(a_j) h_j / sum over j != i of exp(a_j)

    Stable also where one weight is 1 to the last digit: without that member the softmax is taken over the others anew.

    Parameters
    ----------
    values : Tensor
        ``(n, d)`` members h.
    scores : Tensor
        ``(n,)`` attention a before the softmax.

    Raises
    ------
    ValueError
        If there are fewer than two members, or not one score each.

    Examples
    --------
    >>> h, a = torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([0.0, 0.0, 1000.0])
    >>> attention_without_each(h, a).flatten().tolist()
    [5.0, 5.0, 1.5]
    """
    _check(values)
    if scores.shape != (len(values),):
        raise ValueError(f"attention must be one score a member, ({len(values)},), got {tuple(scores.shape)}")
    top = int(scores.argmax())
    weights = (scores - scores[top]).exp()
    total = exclusive_sum(weights)
    total[top] = 1.0  # may be 0 here: all others may be out of reach of the largest
    pooled = exclusive_sum(weights.unsqueeze(1) * values) / total.unsqueeze(1)
    rest = scores.clone()
    rest[top] = float("-inf")
    pooled[top] = rest.softmax(0) @ values
    return pooled


def maximum_without_each(best: Tensor, positions: Tensor, table: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``(B, S, P)``: what the maximum over positions is without each position.

    It stays what it was, unless the position is the one where it was found; then it is the best of the others.

    Parameters
    ----------
    best, positions : Tensor
        ``(B, P)`` the maximum and where it was found.
    table : Tensor
        ``(B, S, P)``.
    mask : Tensor, optional
        ``(B, S)`` bool; padding has no say, and taking it out changes nothing.

    Examples
    --------
    >>> table = torch.tensor([[[0.9], [0.2], [0.7]]])
    >>> maximum_without_each(torch.tensor([[0.9]]), torch.tensor([[0]]), table).flatten().tolist()
    [0.699999988079071, 0.8999999761581421, 0.8999999761581421]
    """
    others = table if mask is None else table.masked_fill(~mask.unsqueeze(-1), float("-inf"))
    others = others.scatter(1, positions.unsqueeze(1), float("-inf"))
    second = torch.minimum(others.amax(1), best)  # by rounding the table may hold a little more than the maximum
    here = torch.arange(table.shape[1], device=table.device).view(1, -1, 1) == positions.unsqueeze(1)
    return torch.where(here, second.unsqueeze(1), best.unsqueeze(1))


def average_without_each(table: Tensor, mask: Tensor | None = None, *, total: bool = False) -> Tensor:
    """Return ``(B, S, P)``: the mean over positions without each position, or the sum where ``total``.

    Where nothing is left it is 0, as it is for an input without positions; taking out padding changes nothing.

    Examples
    --------
    >>> average_without_each(torch.tensor([[[0.0], [2.0], [9.0]]]), torch.tensor([[True, True, False]])).flatten()
    tensor([2., 0., 1.])
    """
    if mask is None:
        mask = table.new_ones(table.shape[:2], dtype=torch.bool)
    kept = table.masked_fill(~mask.unsqueeze(-1), 0.0)
    without = exclusive_sum(kept, 1)
    if total:
        return without
    left = mask.sum(1, keepdim=True) - mask.long()
    return without / left.clamp_min(1).unsqueeze(-1)


def _check(values: Tensor) -> None:
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"expected (n, d) with at least two members, one of which is taken out: {tuple(values.shape)}")
