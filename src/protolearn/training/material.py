"""What a training step reads: the network itself, cached tokens where the encoder is frozen, or cached scores.

Where the encoder is frozen it runs once for each view of a case; where neck and prototypes are frozen too, everything
up to the evidence is computed once, and an epoch is a few small matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.core.necks import PrincipalAxes
from protolearn.data.cases import Cases
from protolearn.structures import Output, Tokens
from protolearn.training import distributed

KEPT_BYTES = 2**30
"""How much memory reduced tokens may take; beyond it they are reduced in every step."""


class TokenStore(Protocol):
    """Frozen tokens of every case, before the neck (``encoders.cache.TokenCache`` is one)."""

    @property
    def views(self) -> int:
        """How many versions of each case there are; the first is not augmented."""
        ...

    def __len__(self) -> int: ...

    def tokens(self, indices: np.ndarray, view: int | np.ndarray = 0) -> Tokens:
        """Return tokens before the neck; ``view`` for all or one for each."""
        ...


class Material(Protocol):
    """Outputs of some cases, for a training step."""

    views: int

    def __call__(self, cases: Tensor, views: Tensor) -> Output:
        """Return the output of some cases in some views."""
        ...


def to_device(tokens: Tokens, device: torch.device) -> Tokens:
    """Move tokens."""
    mask = None if tokens.mask is None else tokens.mask.to(device)
    summary = None if tokens.summary is None else tokens.summary.to(device)
    extras = {name: tensor.to(device) for name, tensor in tokens.extras.items()}
    return tokens.replace(values=tokens.values.to(device), mask=mask, summary=summary, extras=extras)


class CachedTokens:
    """Outputs from cached tokens: the neck and all after it run.

    A neck that begins with principal axes changes only behind them: tokens are put on the axes once.
    """

    def __init__(
        self, model: PrototypeModel, store: TokenStore, device: torch.device, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self.model, self.store, self.device, self.views = model, store, device, store.views
        self.reduced: Tokens | None = None
        first = model.neck[0] if isinstance(model.neck, nn.Sequential) and len(model.neck) else None
        if isinstance(first, PrincipalAxes):
            positions = store.tokens(np.arange(1), 0).values.shape[1]
            if self.views * len(store) * positions * first.axes.shape[1] * 4 <= kept_bytes:
                self.reduced = self._reduce(first)

    @torch.no_grad()
    def _reduce(self, first: PrincipalAxes) -> Tokens:
        """Return the tokens on the axes, all cases view after view."""
        parts = []
        for view in range(self.views):
            for cases in torch.arange(len(self.store)).split(64):
                tokens = to_device(self.store.tokens(cases.numpy(), view), self.device)
                parts.append(tokens.replace(values=first(tokens.values)))
        found: dict[str, Tensor | None] = {}
        for name in ("values", "mask", "summary"):
            given = [getattr(part, name) for part in parts]
            found[name] = None if given[0] is None else torch.cat(given)
        return parts[0].replace(**found)

    def __call__(self, cases: Tensor, views: Tensor) -> Output:
        """Return the output of some cases in some views."""
        if self.reduced is None:
            tokens = to_device(self.store.tokens(cases.numpy(), views.numpy()), self.device)
            return self.model.run(tokens)
        assert isinstance(self.model.neck, nn.Sequential)
        rows = (views * len(self.store) + cases).to(self.device)
        parts = {name: getattr(self.reduced, name) for name in ("values", "mask", "summary")}
        tokens = self.reduced.replace(**{name: None if t is None else t[rows] for name, t in parts.items()})
        return self.model.score(tokens.replace(values=self.model.neck[1:](tokens.values)))


class PlainTokens:
    """Un-augmented cached tokens with their labels, batch by batch, as often as one likes."""

    def __init__(self, store: TokenStore, labels: np.ndarray, batch_size: int, device: torch.device) -> None:
        self.store, self.batch_size, self.device = store, batch_size, device
        self.labels = torch.from_numpy(np.array(labels))

    def __iter__(self) -> Iterator[tuple[Tokens, Tensor]]:
        """Yield tokens before the neck, and labels."""
        for part in torch.arange(len(self.labels)).split(self.batch_size):
            yield to_device(self.store.tokens(part.numpy(), 0), self.device), self.labels[part].to(self.device)


class CachedScores:
    """Outputs from cached scores: only the head runs, and reads no more than ``FIELDS``."""

    FIELDS = ("distances", "similarities", "positions", "evidence", "average")

    def __init__(self, model: PrototypeModel, outputs: Iterator[Output], views: int) -> None:
        """Keep the scores of ``views`` times all cases, view after view."""
        kept: dict[str, list[Tensor]] = {name: [] for name in self.FIELDS}
        for out in outputs:
            for name, parts in kept.items():
                value = getattr(out, name)
                if value is not None:
                    parts.append(value.detach())
        self.model, self.views = model, views
        self.scores = {name: torch.cat(parts) if parts else None for name, parts in kept.items()}
        evidence = self.scores["evidence"]
        assert evidence is not None
        self.cases = len(evidence) // views

    def __call__(self, cases: Tensor, views: Tensor) -> Output:
        """Return the output of some cases in some views."""
        rows = views * self.cases + cases
        part = {name: None if t is None else t[rows.to(t.device)] for name, t in self.scores.items()}
        evidence, similarities, positions = part["evidence"], part["similarities"], part["positions"]
        assert evidence is not None and similarities is not None and positions is not None
        bank, head = self.model.bank, self.model.head
        none = evidence.new_zeros(len(evidence), 0)
        out = Output(
            None, part["distances"], similarities, positions, evidence, none, bank, head, average=part["average"]
        )
        out = out.replace(similarity=self.model.similarity)
        return out.replace(logits=head.read(out))


@torch.no_grad()
def plain_outputs(
    model: PrototypeModel,
    cases: Cases,
    store: TokenStore | None,
    device: torch.device,
    *,
    batch_size: int,
    workers: int = 0,
    shard: bool = False,
    views: int = 1,
    augmented: Cases | None = None,
) -> Iterator[tuple[Tensor, Output]]:
    """Yield ``(case indices, output)`` in order, in eval mode, from cached tokens or through the network.

    With ``shard``, each process takes every ``size``-th case. With several ``views`` all cases come again for each one:
    first as they are, then as ``augmented`` draws them.
    """
    step = slice(distributed.rank(), None, distributed.size()) if shard else slice(None)
    indices = torch.arange(len(cases))[step]
    with evaluating(model):
        for view in range(views):
            if store is not None:
                for part in indices.split(batch_size):
                    tokens = to_device(store.tokens(part.numpy(), view), device)
                    yield part, model.run(tokens)
                continue
            drawn = cases if view == 0 or augmented is None else augmented
            drawn.set_epoch(view)
            loader = DataLoader(drawn, batch_size, sampler=indices.tolist(), num_workers=workers)
            for part, batch in zip(indices.split(batch_size), loader, strict=True):
                yield part, model(batch.inputs.to(device))
