"""What people marked in the pictures of a batch, in the coordinates an audit needs: shares of the input's sides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protolearn.errors import UsageError


@dataclass(frozen=True, eq=False)
class Marks:
    """Key points and object regions of a batch.

    Attributes
    ----------
    parts : tuple of str
        Names of the key points, N of them, in one order for all cases.
    points : Tensor
        ``(B, N, 2)`` x and y as shares of the input's width and height, 0 to 1.
    visible : Tensor
        ``(B, N)`` bool: key points that are marked, can be seen and lie in the input.
    objects : Tensor or None
        ``(B, H, W)`` bool at the input's size: the object, from a mask or a filled box; None where none is marked in
        any case of the data.
    known : Tensor or None
        ``(B,)`` bool: cases whose object is marked and not empty.
    kind : str
        "mask", "box" or "" where there is none.
    """

    parts: tuple[str, ...]
    points: Tensor
    visible: Tensor
    objects: Tensor | None = None
    known: Tensor | None = None
    kind: str = ""

    def __post_init__(self) -> None:
        if self.points.shape != (*self.visible.shape, 2) or self.visible.shape[1] != len(self.parts):
            raise UsageError(
                f"points {tuple(self.points.shape)} must be (B, N, 2) and visible {tuple(self.visible.shape)} (B, N) "
                f"with N = {len(self.parts)} parts"
            )
        if (self.objects is None) != (self.known is None):
            raise UsageError("objects and known go together: say for each case whether its object is marked")

    def to(self, device: torch.device) -> Marks:
        """Return the marks on a device."""
        objects = None if self.objects is None else self.objects.to(device)
        known = None if self.known is None else self.known.to(device)
        points, visible = self.points.to(device), self.visible.to(device)
        return Marks(self.parts, points, visible, objects, known, self.kind)

    def points_at(self, size: int) -> Tensor:
        """Return the key points ``(B, N, 2)`` in pixels of a square of this side."""
        return self.points * size


def no_marks(count: int, device: torch.device | None = None) -> Marks:
    """Return the marks of a batch in which nothing is marked.

    Examples
    --------
    >>> no_marks(3).visible.shape
    torch.Size([3, 0])
    """
    return Marks((), torch.zeros(count, 0, 2, device=device), torch.zeros(count, 0, dtype=torch.bool, device=device))
