"""The cases of a training as its phases need them: pictures, augmented pictures, cached tokens, scores."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from protolearn.core.method import Method
from protolearn.core.model import PrototypeModel
from protolearn.data.augment import Augment, Augmented
from protolearn.data.cases import Cases
from protolearn.data.splits import check_pair
from protolearn.encoders.cache import token_cache
from protolearn.errors import DataError, UsageError
from protolearn.structures import Source
from protolearn.training import distributed
from protolearn.training.material import CachedScores, CachedTokens, PlainTokens, TokenStore, plain_outputs
from protolearn.training.options import Options
from protolearn.training.project import layout, make_sources
from protolearn.training.steps import Tally, minimised

BYTES_IN_MEMORY = 2**30
"""Tokens that take more are kept on disk while training."""


class Stores:
    """Training and validation cases, and what is cached of them.

    Attributes
    ----------
    data : Cases
        As given.
    plain, drawn : Cases
        Under the encoder's preprocessing; and with augmentation, where there is any.
    validation : Cases or None
        Under the encoder's preprocessing, its labels those of the training classes.
    concerns : list of str
        What looks suspicious about training and validation cases together.
    """

    def __init__(
        self,
        model: PrototypeModel,
        data: Cases,
        validation: Cases | None,
        augment: Augment | None,
        how: Options,
        device: torch.device,
        folder: Path | None,
    ) -> None:
        self.model, self.data, self.augment, self.how, self.device = model, data, augment, how, device
        self.folder = folder
        self.concerns: list[str] = []
        preprocess = model.encoder.preprocess
        self.plain = self.drawn = data if preprocess is None else data.with_transform(preprocess)
        if augment is not None:
            if preprocess is None:
                raise UsageError("augment changes pictures, and this encoder does not read pictures")
            self.drawn = data.with_transform(Augmented(preprocess, augment)).with_seed(how.seed)
        elif how.views > 1:
            raise UsageError("several views of a case differ only by augmentation: give augment, or views=1")
        self.validation = validation
        if validation is not None:
            if len(validation) == 0:
                raise DataError(f"{validation.name}: no case to validate on; leave validation out")
            self.validation = validation.with_classes(data.classes).with_transform(preprocess)
            self.concerns = check_pair(data, self.validation)
        self._tokens: TokenStore | None = None
        self._validation: TokenStore | None = None
        self._material: CachedTokens | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def tokens(self) -> TokenStore:
        """Return the tokens of the training cases in all views, computed the first time."""
        if self.model.encoder.reads_bank:
            raise TypeError("tokens that depend on the prototypes cannot be cached, nor anything be started from them")
        if self._tokens is None:
            self._tokens = self._cache(self.plain if self.how.views == 1 else self.drawn, self.how.views)
        return self._tokens

    def validation_tokens(self) -> TokenStore | None:
        """Return the tokens of the validation cases, computed the first time."""
        if self._validation is None and self.validation is not None:
            self._validation = self._cache(self.validation, 1)
        return self._validation

    def forget(self) -> None:
        """Drop the tokens: the encoder has changed."""
        self._tokens = self._validation = self._material = None

    def close(self) -> None:
        """Remove what was on disk for this training only."""
        self.forget()
        if self._temporary is not None:
            self._temporary.cleanup()

    def batches(self) -> CaseTokens:
        """Return the un-augmented tokens with labels, to start neck and prototypes from."""
        self._material = None  # made of an earlier neck
        return CaseTokens(self)

    def outputs(self) -> CachedTokens:
        """Return what a phase reads that leaves the encoder alone."""
        if self._material is None:
            self._material = CachedTokens(self.model, self.tokens(), self.device)
        return self._material

    def scores(self, store: TokenStore | None) -> CachedScores:
        """Return what a phase reads that trains the head alone: one pass over all views, from tokens or pictures."""
        outputs = plain_outputs(
            self.model, self.plain, store, self.device, batch_size=self.how.batch_size,
            workers=self.how.workers, views=self.how.views, augmented=self.drawn,
        )  # fmt: skip
        return CachedScores(self.model, (out for _, out in outputs), self.how.views)

    @torch.no_grad()
    def judge(
        self,
        method: Method,
        cases: Cases,
        store: TokenStore | None,
        weights: Mapping[str, float] | None = None,
        numbers: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """Return loss, terms and accuracy on un-augmented cases.

        ``weights`` are the coefficients of the loss, ``numbers`` what the phase has scheduled.
        """
        counted = None if weights is None else frozenset(name for name, value in weights.items() if value != 0)
        tally, labels = Tally(), torch.from_numpy(cases.labels.copy())
        how = {"batch_size": self.how.batch_size, "workers": self.how.workers}
        for part, out in plain_outputs(self.model, cases, store, self.device, **how):  # type: ignore[arg-type]
            wanted = labels[part].to(self.device)
            targets = {
                name: torch.from_numpy(rows[part.numpy()]).to(self.device) for name, rows in cases.targets.items()
            }
            named = tuple(cases.ids[i] for i in part.tolist())
            out = out.replace(targets=targets, cases=named, counted=counted, scheduled=numbers or {})
            tally.add(minimised(method, out, wanted, weights)[1], int((wanted >= 0).sum()))
        return tally.means()

    def _cache(self, cases: Cases, views: int) -> TokenStore:
        if distributed.rank() > 0:
            distributed.barrier()  # the first process writes, the others then find it
        folder = self.folder
        if folder is None and self._bytes(len(cases) * views) > BYTES_IN_MEMORY:
            self._temporary = self._temporary or tempfile.TemporaryDirectory(prefix="protolearn-")
            folder = Path(self._temporary.name)
        store: TokenStore = token_cache(
            self.model.encoder, cases, folder, views=views, batch_size=self.how.batch_size,
            workers=self.how.workers, device=self.device, quiet=self.how.quiet or distributed.rank() > 0,
        )  # fmt: skip
        if distributed.rank() == 0:
            distributed.barrier()
        return store

    def _bytes(self, cases: int) -> int:
        return cases * layout(self.model, self.plain).values[0].numel() * 4


class CaseTokens(PlainTokens):
    """Un-augmented tokens of the training cases, which also say what else is known of each case."""

    def __init__(self, stores: Stores) -> None:
        super().__init__(stores.tokens(), stores.data.labels, stores.how.batch_size, stores.device)
        self._model, self._cases = stores.model, stores.plain

    @property
    def targets(self) -> Mapping[str, np.ndarray]:
        """What is known of the cases beside their class, in the order in which they come."""
        return self._cases.targets

    def sources(self, cases: Sequence[int], positions: Sequence[int] | None = None) -> list[Source]:
        """Return the sources of tokens that become prototypes as they are, by case number and position."""
        places = [0] * len(cases) if positions is None else list(positions)
        with torch.no_grad():
            shape = self._model.embed(layout(self._model, self._cases))  # a neck may take the input as a whole
        return make_sources(self._model, self._cases, list(cases), places, [0.0] * len(cases), shape)
