"""Draws for the laws: token sets, banks and masks of awkward sizes, among them 1."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import Distance, Measure
from protolearn.core.model import PrototypeModel
from protolearn.core.pooling import Pooling, max_pool
from protolearn.core.similarities import LogRatio
from protolearn.structures import Tokens

sizes = st.integers(1, 5)
seeds = st.integers(0, 2**32 - 1)


class AsTokens(nn.Module):
    """An encoder for tests: the input is the tokens."""

    def forward(self, inputs: Tensor) -> Tokens:
        return Tokens(inputs)


@st.composite
def token_sets(draw: st.DrawFn, masked: bool | None = None) -> Tokens:
    b, s, d = draw(sizes), draw(st.integers(1, 12)), draw(sizes)
    g = torch.Generator().manual_seed(draw(seeds))
    values = torch.randn(b, s, d, generator=g) * draw(st.sampled_from([1e-3, 1.0, 100.0]))
    use = draw(st.booleans()) if masked is None else masked
    return Tokens(values, torch.rand(b, s, generator=g) > 0.4 if use else None)


def bank_for(tokens: Tokens, seed: int, classes: int = 2, per_class: int = 2, drawn: bool = False) -> PrototypeBank:
    g = torch.Generator().manual_seed(seed)
    count, (b, _, d) = classes * per_class, tokens.values.shape
    vectors = torch.randn(*((b,) if drawn else ()), count, d, generator=g) * tokens.values.abs().amax()
    return PrototypeBank(vectors, torch.eye(classes).repeat_interleave(per_class, 0))


def model_of(bank: PrototypeBank, measure: Measure, pooling: Pooling = max_pool) -> PrototypeModel:
    head = LinearEvidence.from_ownership(bank.ownership)
    similarity = LogRatio() if isinstance(measure, Distance) else None
    return PrototypeModel(AsTokens(), nn.Identity(), bank, measure, head, similarity=similarity, pooling=pooling)
