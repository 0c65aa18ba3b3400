"""Heat maps between 0 and 1, and the one map of a case that says where the evidence for a class lies.

B cases, P prototypes, C classes, h x w cells, H x W pixels. A map that is the same everywhere points nowhere: its heat
is undefined, and whatever judges it must leave it out and count it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protolearn.audit.look import Look
from protolearn.core.maps import upsample_maps


def uneven(maps: Tensor) -> Tensor:
    """Return ``(...)`` bool: maps ``(..., h, w)`` whose values differ by more than rounding and are all finite.

    Examples
    --------
    >>> uneven(torch.tensor([[[0.0, 1.0]], [[3.0, 3.0]], [[0.0, float("nan")]]]))
    tensor([ True, False, False])
    """
    low, high = maps.amin((-2, -1)), maps.amax((-2, -1))
    rounding = 8 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    spread = high - low
    return (spread > rounding) & torch.isfinite(spread)


def heat(maps: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return maps enlarged (bicubic) and scaled to reach from 0 to 1, and which of them have any heat.

    Source: the evaluation of ST-ProtoPNet (Wang et al., 2023).

    Parameters
    ----------
    maps : Tensor
        ``(..., h, w)`` similarities.
    size : sequence of int
        ``(H, W)`` in pixels.

    Returns
    -------
    heat : Tensor
        ``(..., H, W)``, in float32 or better; zeros where it is undefined.
    judged : Tensor
        ``(...)`` bool: False for a map that is the same everywhere or not finite.

    Examples
    --------
    >>> shown, judged = heat(torch.tensor([[[0.0, 1.0]], [[2.0, 2.0]]]), (1, 4))
    >>> shown[0], judged
    (tensor([[0.0000, 0.2742, 0.7258, 1.0000]]), tensor([ True, False]))
    """
    maps = maps if maps.dtype == torch.float64 else maps.float()
    judged = uneven(maps)
    settled = torch.where(judged[..., None, None], maps, 0.0)
    fine = upsample_maps(settled - settled.amin((-2, -1), keepdim=True), size)
    judged = judged & uneven(fine)  # too few pixels may miss all there is
    low, high = fine.amin((-2, -1), keepdim=True), fine.amax((-2, -1), keepdim=True)
    scaled = (fine - low) / torch.where(judged[..., None, None], high - low, 1.0)
    return scaled.masked_fill_(~judged[..., None, None], 0.0), judged


def mean_map(maps: Tensor, counted: Tensor) -> Tensor:
    """Return ``(B, h, w)``: the mean over the counted prototypes of each case; zeros where none counts.

    Source: the evaluation of ST-ProtoPNet, over the prototypes of the true class. Its two branches weigh the same
    there, as they do here while both have as many prototypes.

    Parameters
    ----------
    maps : Tensor
        ``(B, P, h, w)``.
    counted : Tensor
        ``(B, P)`` bool.

    Examples
    --------
    >>> mean_map(torch.tensor([[[[1.0]], [[3.0]], [[9.0]]]]), torch.tensor([[True, True, False]])).item()
    2.0
    """
    share = counted.to(maps) / counted.sum(1, keepdim=True).clamp_min(1)
    # a map that does not count may hold anything, and 0 times NaN is NaN
    return torch.einsum("bp,bphw->bhw", share, maps.masked_fill(~counted[..., None, None], 0.0))


def pull(look: Look, classes: Tensor) -> Tensor:
    """Return ``(B, P)``: what each prototype adds to a class's score beyond what it adds to the mean class.

    A number added to all classes moves no probability, and this difference does not see it. With a single class it is
    the contribution itself.

    Parameters
    ----------
    look : Look
        What the subject put out.
    classes : Tensor
        ``(B,)`` int64.
    """
    own = look.toward(classes)
    if look.logits.shape[1] < 2 or not len(look):
        return own
    return own - torch.cat([table.mean(1) for _, table in look.ledgers()])


def evidence_map(maps: Tensor, weights: Tensor) -> Tensor:
    """Return ``(B, h, w)``: the sum over prototypes of a weight times the map, each map scaled to reach from 0 to 1.

    A map that is the same everywhere, or not finite, adds nothing.

    Parameters
    ----------
    maps : Tensor
        ``(B, P, h, w)``.
    weights : Tensor
        ``(B, P)`` such as :func:`pull`; a prototype that speaks against has a negative one.

    Examples
    --------
    >>> maps = torch.tensor([[[[5.0, 7.0]], [[1.0, 0.0]], [[4.0, 4.0]]]])
    >>> evidence_map(maps, torch.tensor([[2.0, -1.0, 9.0]]))
    tensor([[[-1.,  2.]]])
    """
    maps = maps if maps.dtype == torch.float64 else maps.float()
    some = uneven(maps)
    low, high = maps.amin((2, 3)), maps.amax((2, 3))
    scale = torch.where(some, weights.to(maps) / torch.where(some, high - low, 1.0), 0.0)
    settled = torch.where(some[..., None, None], maps - low[..., None, None], 0.0)
    return torch.einsum("bp,bphw->bhw", scale, settled)
