"""Deletion: what becomes of a logit when the places that are said to matter are taken out of the input."""

from __future__ import annotations

import torch
from torch import Tensor

from protolearn.core.model import PrototypeModel


@torch.no_grad()
def deletion_curve(
    model: PrototypeModel, inputs: Tensor, order: Tensor, targets: Tensor, *, fill: float = 0.0
) -> Tensor:
    """Return the target's logit ``(B, K + 1)`` with none, one, ... K places taken out, in eval mode.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is.
    inputs : Tensor
        ``(B, C, H, W)`` pictures as the encoder takes them.
    order : Tensor
        ``(B, K)`` int64 positions of tokens; each stands for its cell of the picture.
    targets : Tensor
        ``(B,)`` int64 classes.
    fill : float
        What a cell becomes; 0 is the mean colour where pictures are centred.

    Raises
    ------
    ValueError
        If the encoder's tokens have no place in its input.

    Examples
    --------
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=1).build(SmallEncoder(size=16), 2)
    >>> curve = deletion_curve(model, torch.rand(3, 3, 16, 16), torch.tensor([[0, 5]] * 3), torch.tensor([0, 1, 0]))
    >>> curve.shape
    torch.Size([3, 3])
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        shape = model.encode(inputs[:1])
        shown = inputs.clone()
        columns = [model(shown).logits]
        for step in range(order.shape[1]):
            for row, position in enumerate(order[:, step].tolist()):
                cell = shape.region(position)
                if cell is None:
                    raise ValueError("these tokens have no place in the input: nothing can be taken out of it")
                x0, y0, x1, y1 = (round(side) for side in cell)
                shown[row, :, y0:y1, x0:x1] = fill
            columns.append(model(shown).logits)
    finally:
        for module, training in modes:
            module.training = training
    return torch.stack([logits.gather(1, targets.unsqueeze(1)).squeeze(1) for logits in columns], 1)
