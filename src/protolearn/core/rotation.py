"""Turning the channels of a map without changing what a linear classifier makes of their mean.

    Zhat(s) = U Z(s) at every position s;   W mean(Z) + b = (W U^-1) mean(Zhat) + b

U is the exponential of a matrix that is learned from 0, so it starts as the identity and can always be undone:
``orthogonal`` takes exp(A - A'), whose inverse is its transpose, ``invertible`` takes exp(A), whose inverse is exp(-A).

Source: EPIC (Borycki et al., AAAI 2026).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from protolearn.core.heads import WeighedEvidence, resize_to

RotationKind = Literal["orthogonal", "invertible"]

_DEGREE = 16
_BLOCK = 4


def exponential(matrix: Tensor) -> Tensor:
    """Return the exponential of a square matrix, by scaling, a Taylor polynomial of degree 16, and squaring.

    The same as ``torch.matrix_exp``, made of products alone: the gradient then costs two products for each, where that
    function takes the exponential of a matrix twice as wide.

    Parameters
    ----------
    matrix : Tensor
        ``(D, D)``. Use double precision where the result is to be orthogonal to seven digits.

    Returns
    -------
    Tensor
        ``(D, D)``, differentiable; NaN where the matrix holds something that is not finite.

    Examples
    --------
    >>> exponential(torch.tensor([[0.0, -torch.pi / 2], [torch.pi / 2, 0.0]], dtype=torch.float64)).round().tolist()
    [[0.0, -1.0], [1.0, 0.0]]
    """
    norm = float(torch.linalg.matrix_norm(matrix.detach(), 1)) if matrix.numel() else 0.0
    if not math.isfinite(norm):
        return matrix * float("nan")
    halvings = max(0, math.ceil(math.log2(norm))) if norm > 0 else 0
    x = matrix / 2.0**halvings  # of norm at most 1: the polynomial lacks less than 1 / 17!
    square = x @ x
    powers = (torch.eye(len(x), dtype=x.dtype, device=x.device), x, square, square @ x)
    step = square @ square
    made = step / math.factorial(_DEGREE)
    for start in range(_DEGREE - _BLOCK, -1, -_BLOCK):
        part = sum(power / math.factorial(start + i) for i, power in enumerate(powers))
        made = (made if start == _DEGREE - _BLOCK else made @ step) + part
    for _ in range(halvings):
        made = made @ made
    return made


class _Known(NamedTuple):
    raw: Tensor
    matrix: Tensor
    inverse: Tensor


class ChannelRotation(nn.Module):
    """A neck that multiplies every token by one invertible matrix U, the identity at first.

    Parameters
    ----------
    dim : int
        D, the width of the tokens.
    kind : {"orthogonal", "invertible"}
        ``orthogonal``: U = exp(A - A'), so lengths and angles of tokens stay. ``invertible``: U = exp(A).

    Attributes
    ----------
    raw : Parameter
        A ``(D, D)``, zeros at first.

    Examples
    --------
    >>> turn = ChannelRotation(3)
    >>> tokens = torch.rand(2, 5, 3)
    >>> torch.equal(turn(tokens), tokens)
    True
    """

    def __init__(self, dim: int, kind: RotationKind = "orthogonal") -> None:
        super().__init__()
        self.kind = kind
        self.raw = nn.Parameter(torch.zeros(dim, dim))
        self._known: _Known | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., D)``: U times each token."""
        return nn.functional.linear(values, self.matrix().to(values.dtype))

    def matrix(self) -> Tensor:
        """Return U ``(D, D)``; with a gradient where one is asked for."""
        if torch.is_grad_enabled() and self.raw.requires_grad:
            made = self._exponential(self.raw, 1.0)
            self._keep(made.detach())
            return made
        return self._current().matrix

    def inverse(self) -> Tensor:
        """Return the inverse of U ``(D, D)``, without a gradient; the same tensor until U changes."""
        return self._current().inverse

    @torch.no_grad()
    def defect(self) -> float:
        """Return the largest entry of ``U^-1 U - I``: how far rounding is from an exact undoing."""
        known = self._current()
        gap = known.inverse @ known.matrix - torch.eye(len(self.raw), device=self.raw.device)
        return float(gap.abs().max()) if gap.numel() else 0.0

    def _exponential(self, raw: Tensor, sign: float) -> Tensor:
        fine = raw.double() if raw.device.type != "mps" else raw
        fine = fine - fine.T if self.kind == "orthogonal" else fine
        return exponential(sign * fine).to(raw.dtype)

    @torch.no_grad()
    def _current(self) -> _Known:
        """Return matrix and inverse for the present A, computed again only where it is not the one they were made of.

        The copies are compared number by number, since a version counter misses what is written past it.
        """
        known = self._known
        same = known is not None and known.raw.device == self.raw.device and known.raw.dtype == self.raw.dtype
        if known is None or not same or not torch.equal(known.raw, self.raw):
            known = self._keep(self._exponential(self.raw, 1.0))
        return known

    @torch.no_grad()
    def _keep(self, made: Tensor) -> _Known:
        inverse = made.T.contiguous() if self.kind == "orthogonal" else self._exponential(self.raw, -1.0)
        self._known = _Known(self.raw.detach().clone(), made, inverse)
        return self._known


class FoldedLinear(WeighedEvidence):
    """A trained linear classifier that reads turned channels: its weights are W U^-1, whatever U is at the moment.

    Nothing is stored that U could leave behind: W and b are kept as they were trained, and what multiplies the
    evidence is made of them and the rotation each time. Logits give the rotation no gradient, as it cannot change them.

    Parameters
    ----------
    rotation : ChannelRotation
        The neck of the same model; no part of the head, and not saved with it.
    weight : Tensor
        W ``(C, D)``, for channels before they are turned.
    bias : Tensor, optional
        b ``(C,)``; zeros by default.

    Attributes
    ----------
    trained, bias : Parameter
        W and b.
    rows : Tensor
        ``(P,)`` int64: the channels that are left, all D at first.

    Examples
    --------
    >>> turn = ChannelRotation(2)
    >>> head = FoldedLinear(turn, torch.tensor([[1.0, 2.0]]))
    >>> with torch.no_grad():
    ...     _ = turn.raw.copy_(torch.tensor([[0.0, 0.5], [0.0, 0.0]]))
    >>> round(head(turn(torch.tensor([[3.0, 4.0]]))).item(), 5)
    11.0
    """

    trained: nn.Parameter
    bias: nn.Parameter
    rows: Tensor

    def __init__(self, rotation: ChannelRotation, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        if weight.ndim != 2 or weight.shape[1] != len(rotation.raw):
            raise ValueError(f"weight must be (C, D) with D = {len(rotation.raw)}, got {tuple(weight.shape)}")
        self._rotation = (rotation,)  # in a tuple, or it would become a part of the head
        self.trained = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(weight.new_zeros(len(weight)) if bias is None else bias.detach().clone())
        self.register_buffer("rows", torch.arange(weight.shape[1]))
        self._known: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """``(C, P)``: W U^-1, the columns of the channels that are left."""
        inverse = self._rotation[0].inverse()
        if torch.is_grad_enabled() and self.trained.requires_grad:
            return self.trained @ inverse[:, self.rows]
        known = self._known
        if (
            known is None
            or known[0] is not inverse
            or not torch.equal(known[1], self.trained)
            or not torch.equal(known[2], self.rows)
        ):
            folded = self.trained.detach() @ inverse[:, self.rows]
            known = self._known = (inverse, self.trained.detach().clone(), self.rows.clone(), folded)
        return known[3]

    def forward(self, evidence: Tensor) -> Tensor:
        """Return logits ``(B, C)``: channels are turned back first, which costs less than to turn the weights."""
        back = evidence @ self._rotation[0].inverse()[:, self.rows].T
        return nn.functional.linear(back, self.trained, self.bias)

    def keep(self, rows: Tensor) -> None:
        """Keep only these channels."""
        self.rows = self.rows[rows]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_to(self, state_dict, prefix, ("rows",))
        super(WeighedEvidence, self)._load_from_state_dict(state_dict, prefix, *args)  # it would resize the weight
