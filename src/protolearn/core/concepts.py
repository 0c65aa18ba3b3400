"""Maps of named concepts, made beside the tokens that prototypes are compared with."""

from __future__ import annotations

from torch import Tensor, nn

from protolearn.structures import Tokens


class ConceptNeck(nn.Module):
    """A projector, and beside it a map of scores for each of K concepts made of the same tokens.

    The maps are kept in the tokens' ``extras`` as ``concept_maps (B, S, K)``, and as ``concept_vectors (B, K, D)`` what
    the projector makes of the tokens' mean under a softmax over positions of each map. No gradient flows from the
    vectors into the maps: the maps are learned from concept labels alone.

    Parameters
    ----------
    project : Module
        ``(..., D_in) -> (..., D)``.
    maps : Module
        ``(..., D_in) -> (..., K)``.
    temperature : float
        Of the softmax: small = the places with the highest scores alone, large = everywhere alike.

    Examples
    --------
    >>> import torch
    >>> neck = ConceptNeck(nn.Linear(3, 2), nn.Linear(3, 4))
    >>> found = neck.on_tokens(Tokens(torch.zeros(1, 5, 3)))
    >>> found.values.shape, found.extras["concept_maps"].shape, found.extras["concept_vectors"].shape
    (torch.Size([1, 5, 2]), torch.Size([1, 5, 4]), torch.Size([1, 4, 2]))
    """

    def __init__(self, project: nn.Module, maps: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.project, self.maps, self.temperature = project, maps, temperature

    def forward(self, values: Tensor) -> Tensor:
        """Return ``(..., D)``."""
        projected: Tensor = self.project(values)
        return projected

    def on_tokens(self, tokens: Tokens) -> Tokens:
        """Return the projected tokens with maps and vectors in ``extras``."""
        maps = self.maps(tokens.values)
        mean = softmax_attention(tokens.values, maps.detach() / self.temperature, tokens.mask)
        extras = {**tokens.extras, "concept_maps": maps, "concept_vectors": self.project(mean)}
        return tokens.replace(values=self.project(tokens.values), extras=extras)


def softmax_attention(values: Tensor, scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``(B, K, D)``: the mean of the tokens of a case, weighted K times by a softmax of scores over positions.

    Parameters
    ----------
    values : Tensor
        ``(B, S, D)``.
    scores : Tensor
        ``(B, S, K)``.
    mask : Tensor, optional
        ``(B, S)`` bool, True = real. A case without a real position gives zeros.

    Examples
    --------
    >>> import torch
    >>> softmax_attention(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[0.0], [0.0]]]))
    tensor([[[2.]]])
    """
    if values.shape[:2] != scores.shape[:2]:
        raise ValueError(f"tokens {tuple(values.shape)} and scores {tuple(scores.shape)} do not fit")
    if mask is not None:
        real = mask.unsqueeze(-1)
        scores = scores.masked_fill(~real, float("-inf")).masked_fill(~mask.any(1)[:, None, None], 0.0)
        values = values.masked_fill(~real, 0.0)
    return scores.softmax(1).transpose(1, 2) @ values
