"""What a prompt looks at, head by head, and which heads matter: for encoders that let prototypes attend to patches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.errors import UsageError


class HeadRanking(NamedTuple):
    """The heads of the last block by how much a class needs them.

    Attributes
    ----------
    heads : tuple of int
        The one needed most comes first.
    probabilities : tuple of float
        Of the class: as it is, then after the head needed least is blurred, after the next one as well, and so on.
    """

    heads: tuple[int, ...]
    probabilities: tuple[float, ...]


@torch.no_grad()
def attention_maps(model: PrototypeModel, inputs: Tensor) -> Tensor:
    """Return ``(B, P, heads, S)``: the share of each prompt's attention in the last block that falls on each patch.

    Raises
    ------
    UsageError
        If the model's encoder lets no prototypes attend to patches.
    """
    _check(model)
    with evaluating(model):
        return model.encode(inputs).extras["attention"].transpose(1, 2)


@torch.no_grad()
def rank_heads(model: PrototypeModel, inputs: Tensor, target: int) -> HeadRanking:
    """Rank the heads of the last block for one class and one input, by blurring them one after the other.

    A blurred head has its attention logits for the prompts of that class set to 0, so that it attends to everything
    alike. At every step the head is blurred without which the class stays most probable; the reverse order ranks them.
    Source: Prompt-CAM (Chowdhury et al., 2025).

    Parameters
    ----------
    model : PrototypeModel
        With prompts as prototypes; left as it is.
    inputs : Tensor
        ``(1, ...)`` one input of the encoder.
    target : int
        The class, the predicted one or a rival.

    Raises
    ------
    UsageError
        If the model has no prompts, there is more than one input, or no such class.
    """
    _check(model)
    if len(inputs) != 1 or not 0 <= target < len(model.classes):
        raise UsageError(
            f"heads are ranked for one input and one of {len(model.classes)} classes, got {len(inputs)} and {target}"
        )
    rows = model.bank.ownership[:, target] > 0

    def probability(blurred: list[int], heads: int) -> float:
        table = torch.zeros(len(model.bank), heads, dtype=torch.bool, device=rows.device)
        table[:, blurred] = rows.unsqueeze(1)
        logits = model.run(model.encoder(inputs, model.bank, table)).logits
        return float(model.head.probabilities(logits.double())[0, target])

    with evaluating(model):
        heads = int(model.encode(inputs).extras["attention"].shape[1])
        blurred: list[int] = []
        found = [probability([], heads)]
        left = list(range(heads))
        while left:
            values = [probability([*blurred, head], heads) for head in left]
            best = max(range(len(left)), key=values.__getitem__)  # the first of equals
            blurred.append(left.pop(best))
            found.append(values[best])
    return HeadRanking(tuple(reversed(blurred)), tuple(found))


def _check(model: PrototypeModel) -> None:
    if not getattr(model.encoder, "reads_bank", False):
        raise UsageError("this model has no prompts: its prototypes do not attend to patches")
