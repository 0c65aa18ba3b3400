"""Does a prototype fire alone where it fires most? Channel purity."""

from __future__ import annotations

from torch import Tensor


def channel_purity(maps: Tensor, usable: Tensor | None = None) -> Tensor:
    """Return ``(B, P)``: a map's value at its peak over the length of all prototypes' values at that place.

    1 = it alone is active there; ``1 / sqrt(P)`` = all are equally active; negative where its largest value is. Source:
    EPIC (Borycki et al., 2026), whose prototypes are channels. NaN for a map that is the same at all of several
    places, which has no peak.

    Parameters
    ----------
    maps : Tensor
        ``(B, P, h, w)``.
    usable : Tensor, optional
        ``(P,)`` bool: the prototypes that count in the length; all by default.

    Examples
    --------
    >>> import torch
    >>> maps = torch.tensor([[[[3.0, 0.0]], [[4.0, 9.0]]]])
    >>> [round(v, 3) for v in channel_purity(maps)[0].tolist()]
    [0.6, 1.0]
    """
    if maps.ndim != 4:
        raise ValueError(f"maps must be (B, P, h, w), got {tuple(maps.shape)}")
    flat = maps.detach().flatten(2).float()
    counted = flat if usable is None else flat * usable.to(flat.device).view(1, -1, 1)
    length = counted.norm(dim=1)
    peak = flat.max(2)
    found = peak.values / length.gather(1, peak.indices).clamp_min(1e-8)
    if flat.shape[2] > 1:
        found = found.masked_fill(peak.values == flat.amin(2), float("nan"))
    return found
