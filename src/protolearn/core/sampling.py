"""Predictions and contributions of a model whose prototypes are drawn: what varies from one draw to the next.

A model's own output is that of the mode, so its ledger is exact and repeats. These functions say how far it could have
come out otherwise. S draws, B batch, P prototypes, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from protolearn.core.matching import best_match
from protolearn.core.measures import Measure
from protolearn.core.similarities import ToSimilarity
from protolearn.core.uncertainty import Refusal, Uncertainty, decompose
from protolearn.errors import UsageError
from protolearn.structures import Tokens

if TYPE_CHECKING:
    from protolearn.core.bank import PrototypeBank
    from protolearn.core.model import PrototypeModel


class Predictive(NamedTuple):
    """Sampled predictions."""

    mean: Tensor
    """``(B, C)``: the averaged prediction, which is the one to score."""
    samples: Tensor
    """``(B, S, C)`` probabilities of each draw."""
    uncertainty: Uncertainty
    """How much doubt, and of which kind, each ``(B,)``."""


class Spread(NamedTuple):
    """Sampled contributions, each ``(B, C, P)``."""

    mean: Tensor
    """Over draws; with the bias they add up to the mean of the sampled logits."""
    low: Tensor
    """Lower end of the interval."""
    high: Tensor
    """Upper end."""


def sampled_evidence(
    bank: PrototypeBank,
    tokens: Tokens,
    vectors: Tensor,
    measure: Measure,
    similarity: ToSimilarity,
) -> Tensor:
    """Return ``(B, S, P)`` evidence of embedded tokens for drawn vectors ``(S, P, D)``: the nearest position of each.

    Inactive and banned prototypes bring 0, as they do in the model.
    """
    draws, count, width = vectors.shape
    pooled, _ = best_match(tokens.values, vectors.reshape(draws * count, width), measure, tokens.mask)
    evidence = similarity(pooled).view(-1, draws, count)
    return evidence.masked_fill(~bank.usable | torch.isinf(evidence), 0.0)


def draw(model: PrototypeModel, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Return ``(S, P, D)`` draws of the prototypes of a model whose bank has a law.

    Raises
    ------
    UsageError
        If its prototypes are points, or ``count`` is below 1.
    """
    if model.bank.law is None:
        raise UsageError("this model's prototypes are points: there is nothing to draw from")
    if count < 1:
        raise UsageError(f"samples must be at least 1, got {count}")
    drawn: Tensor = model.bank.law.sample(model.bank.vectors, count, generator)
    return drawn


@torch.no_grad()
def predictive(
    model: PrototypeModel, tokens: Tokens, samples: int = 30, generator: torch.Generator | None = None
) -> Predictive:
    """Return the averaged prediction for embedded tokens, and its uncertainty.

    ``tokens`` are embedded ones (``Output.tokens``). The draws are of the prototypes, the same for every case of the
    batch. Without a generator they come from torch's global one.
    """
    evidence = _evidence(model, tokens, samples, generator)
    probabilities = model.head(evidence.flatten(0, 1)).softmax(-1).view(*evidence.shape[:2], -1)
    return Predictive(probabilities.mean(1), probabilities, decompose(probabilities))


class Doubt(NamedTuple):
    """What sampled predictions of some cases say, and which of them the model refuses."""

    mean: Tensor
    """``(B, C)``: the averaged prediction."""
    uncertainty: Uncertainty
    """Each ``(B,)``."""
    refused: Tensor | None
    """``(B,)`` bool by the rule in the model's metadata; None where none was calibrated."""


def rule_of(model: PrototypeModel) -> Refusal | None:
    """Return the refusal that was calibrated for a model, None where there is none."""
    plain = model.metadata.get("refusal")
    return None if plain is None or model.bank.law is None else Refusal.from_dict(plain)


@torch.no_grad()
def doubt_of(model: PrototypeModel, tokens: Tokens) -> Doubt | None:
    """Return what sampled predictions say of embedded tokens, None where a model's prototypes are points.

    The same draws every time, as many as the refusal was calibrated with (30 where there is none), so that it does not
    matter in which batch a case comes.
    """
    if model.bank.law is None:
        return None
    rule = rule_of(model)
    samples = 30 if rule is None else rule.samples
    found = predictive(model, tokens, samples, torch.Generator().manual_seed(0))
    return Doubt(found.mean, found.uncertainty, None if rule is None else rule(found.uncertainty))


@torch.no_grad()
def contribution_spread(
    model: PrototypeModel,
    tokens: Tokens,
    samples: int = 30,
    generator: torch.Generator | None = None,
    *,
    level: float = 0.9,
) -> Spread:
    """Return mean and central interval of every contribution over draws of the prototypes.

    The contributions of one draw add up to that draw's logits exactly, so the means add up to the mean logits.
    ``level`` is the share of draws inside the interval.
    """
    if not 0 < level < 1:
        raise UsageError(f"level must lie between 0 and 1, got {level}")
    evidence = _evidence(model, tokens, samples, generator)
    low, mean, high = [], [], []
    for case in evidence:  # case by case: all draws of all cases at once would not fit
        parts = model.head.contributions(case)  # (S, C, P)
        mean.append(parts.mean(0))
        ends = torch.quantile(parts, torch.tensor([(1 - level) / 2, (1 + level) / 2]).to(parts), dim=0)
        low.append(ends[0])
        high.append(ends[1])
    return Spread(torch.stack(mean), torch.stack(low), torch.stack(high))


@torch.no_grad()
def decoded_spread(model: PrototypeModel, samples: int = 30, generator: torch.Generator | None = None) -> Tensor:
    """Return ``(P,)``: how much what a prototype decodes to varies over draws, as the mean standard deviation.

    For the prototypes of the predicted class this is how uncertain the explanation itself is.

    Raises
    ------
    UsageError
        If the model has no decoder, or its prototypes are points.
    """
    if model.decoder is None:
        raise UsageError("this model has no decoder: there is nothing that could vary")
    decoded: Tensor = model.decoder(draw(model, samples, generator))  # (S, P, ...)
    return decoded.flatten(2).std(0, correction=0).mean(1)


def calibrate_refusal(
    model: PrototypeModel,
    tokens: Tokens,
    quantile: float = 0.95,
    *,
    score: str = "epistemic",
    samples: int = 30,
    generator: torch.Generator | None = None,
) -> Refusal:
    """Set a model's refusal by validation cases, given as embedded tokens, and keep it in the model's metadata.

    ``Refusal.from_dict(model.metadata["refusal"])`` reads it again, also from a saved model.
    """
    rule = Refusal(0.0, score, quantile, samples=samples)  # type: ignore[arg-type]  # checked there
    doubt = predictive(model, tokens, samples, generator).uncertainty
    rule = Refusal.calibrate(getattr(doubt, rule.score), quantile, score=rule.score, samples=samples)
    model.metadata["refusal"] = rule.to_dict()
    return rule


def _evidence(model: PrototypeModel, tokens: Tokens, samples: int, generator: torch.Generator | None) -> Tensor:
    return sampled_evidence(model.bank, tokens, draw(model, samples, generator), model.measure, model.similarity)
