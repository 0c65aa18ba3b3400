"""The path of an input, composed: encoder, neck, bank, measure, similarity, pooling, head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.decoders import Decoder
from protolearn.core.encoder import Encoder, fingerprint
from protolearn.core.heads import Head
from protolearn.core.matching import all_matches, best_match, mean_match
from protolearn.core.measures import Distance, Measure
from protolearn.core.metrics import Metric, under
from protolearn.core.pooling import Pooling, max_pool
from protolearn.core.precision import full_precision
from protolearn.core.scorer import Novelty, Scorer, view_of
from protolearn.core.similarities import Identity, PerPrototype, ToSimilarity
from protolearn.errors import UsageError
from protolearn.structures import Output, Tokens

if TYPE_CHECKING:
    from protolearn.core.method import Method

Across = Callable[[Tensor, Tensor], Tensor]
"""Couples prototypes at one position: ``(B, S, P)`` similarities and ``(P,)`` usable prototypes to ``(B, S, P)``."""
Compare = Callable[[Tokens], Tensor]
"""What an encoder that reads the bank already knows of tokens and prototypes: ``(B, S, P)`` in the model's measure."""


class PrototypeModel(nn.Module):
    """A model that compares the tokens of an input with prototypes and weighs what it finds.

    Parameters
    ----------
    encoder : Encoder
        ``inputs -> Tokens``.
    neck : Module
        ``(..., D_in) -> (..., D)`` on token values; or, if it has a method ``on_tokens``, from tokens to tokens, for
        what changes the layout too.
    bank : PrototypeBank
        The prototypes.
    measure : Measure
        How a token is compared with a prototype.
    head : Head
        From evidence to logits.
    similarity : callable, optional
        From distance to similarity; must fall with distance. Not for measures that are similarities.
    pooling : callable, optional
        Over positions; maximum by default, which is computed without the table of all positions.
    across : callable, optional
        Applied to the table of similarities before pooling, where prototypes at one position compete (a softmax over
        prototypes, say).
    decoder : Decoder, optional
        From embedded token values back to what was encoded.
    compare : callable, optional
        In place of the measure between token and prototype, for an encoder that has compared them itself; the measure
        then says whether near is small or large, and still compares prototypes with each other.
    metric : Metric, optional
        What tokens and prototypes both go through before ``measure`` compares them; learned with the group ``neck``.

    Attributes
    ----------
    measure : Measure
        How a token is compared with a prototype, the metric included.
    classes : tuple of str
        Names, in the order of the logits.
    method : Method or None
        The settings it was built from.
    metadata : dict
        Plain JSON facts about data, seed and training, saved with the model.
    scorer : Scorer or None
        How it tells what it has not seen before; saved with it.

    Examples
    --------
    >>> from protolearn.core.heads import LinearEvidence
    >>> from protolearn.core.measures import squared_l2
    >>> from protolearn.core.similarities import LogRatio
    >>> class Rows(Encoder):
    ...     dim = 2
    ...     def forward(self, inputs):
    ...         return Tokens(inputs)
    ...     def spec(self):
    ...         return {}
    >>> bank = PrototypeBank(torch.eye(2), torch.eye(2))
    >>> model = PrototypeModel(Rows(), nn.Identity(), bank, squared_l2,
    ...                        LinearEvidence.from_ownership(bank.ownership), similarity=LogRatio())
    >>> model(torch.tensor([[[1.0, 0.0], [1.0, 0.2]]])).logits.argmax().item()
    0
    """

    def __init__(
        self,
        encoder: Encoder,
        neck: nn.Module,
        bank: PrototypeBank,
        measure: Measure,
        head: Head,
        *,
        similarity: ToSimilarity | None = None,
        pooling: Pooling = max_pool,
        across: Across | None = None,
        decoder: Decoder | None = None,
        compare: Compare | None = None,
        metric: Metric | None = None,
    ) -> None:
        super().__init__()
        if isinstance(measure, Distance) and similarity is None:
            raise ValueError(f"{measure.name} is a distance: say how it becomes a similarity")
        self.encoder: Encoder = encoder
        self.neck: nn.Module = neck
        self.bank: PrototypeBank = bank
        self.head: Head = head
        self.decoder: Decoder | None = decoder
        self.metric: Metric | None = metric
        self._measure, self.pooling, self.across, self.compare = measure, pooling, across, compare
        self.similarity: ToSimilarity = Identity() if similarity is None else similarity
        self.classes: tuple[str, ...] = tuple(str(c) for c in range(bank.classes))
        self.method: Method | None = None
        self.metadata: dict[str, Any] = {}
        self.scorer: Scorer | None = None

    @property
    def measure(self) -> Measure:
        """How a token is compared with a prototype."""
        return self._measure if self.metric is None else under(self._measure, self.metric)

    def encode(self, inputs: Tensor) -> Tokens:
        """Return the encoder's tokens, before the neck: what a cache of frozen features holds."""
        reads_bank = getattr(self.encoder, "reads_bank", False)
        tokens = self.encoder(inputs, self.bank) if reads_bank else self.encoder(inputs)
        if not isinstance(tokens, Tokens):
            raise TypeError(f"an encoder returns Tokens, got {type(tokens).__name__}")
        return tokens

    def embed(self, tokens: Tokens) -> Tokens:
        """Return tokens after the neck: what prototypes are compared with."""
        if tokens.mask is not None:  # padding may hold anything; NaN times a gradient of 0 would spoil the neck's
            tokens = tokens.replace(values=tokens.values.masked_fill(~tokens.mask.unsqueeze(-1), 0.0))
        on_tokens = getattr(self.neck, "on_tokens", None)
        if on_tokens is not None:
            whole: Tokens = on_tokens(tokens)
            return whole
        return tokens.replace(values=self.neck(tokens.values))

    def score(self, tokens: Tokens) -> Output:
        """Return every intermediate from embedded tokens to logits."""
        usable = self.bank.usable
        table = None
        values, vectors = tokens.values, self.bank.vectors
        if self.metric is not None:  # before the match, whose gradient ends at what it compares
            values, vectors = self.metric(values), self.metric(vectors)
        if self.pooling is max_pool and self.across is None and self.compare is None:
            pooled, positions = best_match(values, vectors, self._measure, tokens.mask)
            similarities = self.similarity(pooled)  # falls with distance, so it commutes with the maximum
        else:
            compared = self._compared(tokens)
            pooled, positions = self.measure.nearest(compared, dim=1)
            table = self.similarity(compared)
            if self.across is not None:
                table = self.across(table, usable)
                positions = (
                    table if tokens.mask is None else table.masked_fill(~tokens.mask.unsqueeze(-1), float("-inf"))
                ).argmax(1)
            similarities = self.pooling(table, tokens.mask)
        # an infinite similarity means that nothing could match; nan is an error and must surface in the logits
        evidence = similarities.masked_fill(~usable | torch.isinf(similarities), 0.0)
        distances = pooled.masked_fill(~usable, self.measure.farthest) if isinstance(self.measure, Distance) else None
        similarities = similarities.masked_fill(~usable, float("-inf"))
        none = evidence.new_zeros(len(evidence), 0)
        out = Output(tokens, distances, similarities, positions, evidence, none, self.bank, self.head, table=table)
        out = out.replace(similarity=self.similarity)
        if "average" in self.head.reads:
            average = mean_match(values, vectors, self._measure, tokens.mask)
            out = out.replace(average=average.masked_fill(~usable, self.measure.farthest))
        # the leads between classes are small beside the scores, and half precision would round them away
        out = _singly(out)
        with full_precision(evidence.device):
            return out.replace(logits=self.head.read(out))

    def run(self, encoded: Tokens, inputs: Tensor | None = None) -> Output:
        """Return the path from the encoder's tokens on; ``inputs`` are what it made them of, where they are at hand."""
        tokens = self.embed(encoded)
        out = self.score(tokens).replace(encoded=encoded, inputs=inputs)
        if self.decoder is None:
            return out
        original = self.decoder.original(inputs, encoded)
        return out.replace(reconstruction=self.decoder(tokens.values), original=original)

    def forward(self, inputs: Tensor) -> Output:
        """Return the whole path for a batch of inputs."""
        return self.run(self.encode(inputs), inputs)

    def novelty(self, inputs: Tensor | Output) -> Novelty:
        """Return how much inputs, or an output of theirs, are like what the model knows, and whether it knows them.

        Raises
        ------
        UsageError
            If the model has no novelty score yet.
        """
        if self.scorer is None:
            raise UsageError(
                "this model cannot tell what it has not seen: fit a novelty score first (tasks.ood.fit_novelty, or "
                "protolearn ood)"
            )
        with torch.set_grad_enabled(self.scorer.needs_grad):
            if self.scorer.reads_inputs:
                return self.scorer.novelty(self.scorer.score_inputs(self, inputs).detach())
            out = inputs if isinstance(inputs, Output) else self(inputs)
            return self.scorer.novelty(self.scorer.score(view_of(out, self.scorer.features)))

    def _compared(self, tokens: Tokens, rows: Tensor | None = None) -> Tensor:
        """Return ``(B, S, P')`` in the measure, of some bank rows or of all."""
        if self.compare is None:
            vectors = self.bank.vectors if rows is None else self.bank.vectors[..., rows, :]
            return all_matches(tokens.values, vectors, self.measure, tokens.mask)
        table = self.compare(tokens)
        if tokens.mask is not None:
            table = table.masked_fill(~tokens.mask.unsqueeze(-1), self.measure.farthest)
        return table if rows is None else table[..., rows]

    @torch.no_grad()
    def maps(self, tokens: Tokens, rows: Tensor | None = None) -> Tensor:
        """Return ``(B, P', S)`` similarities at every position, of some bank rows or of all.

        ``tokens`` are embedded ones; the grid says how to fold the positions.
        """
        some = rows if self.across is None else None  # prototypes that compete are compared together
        similar = self.similarity
        if some is not None and isinstance(similar, PerPrototype):
            similar = similar.of(some)
        table = similar(self._compared(tokens, some))
        if self.across is not None:
            table = self.across(table, self.bank.usable)
            table = table if rows is None else table[..., rows]
        return table.transpose(1, 2)

    def prune(self, ids: Sequence[int] | Tensor) -> None:
        """Remove prototypes from bank and head together."""
        gone = self.bank.rows(ids)
        keep = torch.ones(len(self.bank), dtype=torch.bool, device=gone.device)
        keep[gone] = False
        rows = keep.nonzero().squeeze(1)
        self.bank.keep(rows)
        self.head.keep(rows)
        if isinstance(self.similarity, PerPrototype):
            self.similarity.keep(rows)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of each group that a phase can train."""
        return {
            "encoder": self.encoder.tunable(),
            "neck": [*self.neck.parameters(), *([] if self.metric is None else self.metric.parameters())],
            "prototypes": [
                *self.bank.parameters(),
                *(self.similarity.parameters() if isinstance(self.similarity, PerPrototype) else ()),
            ],
            "head": list(self.head.parameters()),
            "decoder": [] if self.decoder is None else list(self.decoder.parameters()),
        }

    def constrain(self) -> None:
        """Bring prototypes, head and metric back to where they may be, after a step of the optimiser."""
        self.bank.constrain()
        self.head.constrain()
        if self.metric is not None:
            self.metric.constrain()

    def fingerprint(self) -> str:
        """Return a SHA-256 over settings and weights of encoder and neck: tokens are comparable under one only.

        Where the encoder reads the bank, over the bank's vectors too.
        """
        vectors = {"vectors": self.bank.vectors} if self.encoder.reads_bank else {}
        return fingerprint(self.encoder.spec(), self.encoder.about_training, self.encoder, self.neck, **vectors)


def _singly(out: Output) -> Output:
    """Return an output whose tables and tokens are in single precision, or as they are where they are finer."""
    changes: dict[str, Any] = {
        name: value.float()
        for name in ("distances", "similarities", "evidence", "table", "average")
        if (value := getattr(out, name)) is not None and _is_half(value)
    }
    if out.tokens is not None:
        tokens = out.tokens
        summary = tokens.summary if tokens.summary is None or not _is_half(tokens.summary) else tokens.summary.float()
        extras = {name: value.float() if _is_half(value) else value for name, value in tokens.extras.items()}
        values = tokens.values.float() if _is_half(tokens.values) else tokens.values
        changes["tokens"] = tokens.replace(values=values, summary=summary, extras=extras)
    return out.replace(**changes)


def _is_half(values: Tensor) -> bool:
    return values.dtype in (torch.float16, torch.bfloat16)
