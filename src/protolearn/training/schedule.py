"""A method's phases, one after the other: which loop runs each, and what happens between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from protolearn.core.method import Choose, Initialise, Method, Phase, Project, Prune, Revise, Train
from protolearn.core.model import PrototypeModel
from protolearn.errors import TrainingError, UsageError
from protolearn.training import distributed
from protolearn.training.health import dead_prototypes, projection_cost, projection_warnings
from protolearn.training.material import CachedScores, Material, TokenStore
from protolearn.training.options import Options
from protolearn.training.project import project, prune
from protolearn.training.record import Record
from protolearn.training.steps import checked_pairs, set_rates, start_run
from protolearn.training.stores import Stores
from protolearn.training.tensor_loop import tensor_epoch

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Schedule:
    """Runs the phases that are not yet done.

    Until a phase trains the encoder, all phases read its cached tokens; afterwards tokens are cached again only for a
    phase that trains neck or prototypes, and scores for one that trains the head.
    """

    def __init__(self, model: PrototypeModel, method: Method, stores: Stores, record: Record, how: Options) -> None:
        self.model, self.method, self.stores, self.record, self.how = model, method, stores, record, how
        self.phases = method.phases()

    def run(self) -> None:
        """Run to the end, saving after every phase; a failure says what was kept."""
        progress = self.record.progress
        for index in range(progress.phase, len(self.phases)):
            try:
                self._phase(self.phases[index], index)
            except TrainingError as error:
                raise TrainingError(f"{error}; {self.record.kept()}") from error
            if index + 1 == len(self.phases):
                self._settle_accounts()
            progress.phase, progress.epoch = index + 1, 0
            self.record.save(self.model, force=True)

    def _phase(self, phase: Phase, index: int) -> None:
        self.model.to(self.stores.device)
        if isinstance(phase, Initialise):
            before = {name: parameter.shape for name, parameter in self.model.named_parameters()}
            self.model.eval()
            self.method.initialise(self.model, self.stores.batches(), self.how.seed)
            if {name: parameter.shape for name, parameter in self.model.named_parameters()} != before:
                self.record.progress.runs.clear()  # their parameters are of another size now
            distributed.agree(self.model)
        elif isinstance(phase, Choose):
            self.model.eval()
            with torch.no_grad():
                pairs = self.method.choose(self.model, self.stores.batches(), phase).cpu()
            self.record.progress.chosen = checked_pairs(pairs, len(self.stores.data), len(self.model.bank), phase.name)
        elif isinstance(phase, Revise):
            with torch.no_grad():
                self.method.revise(self.model, phase.name)
            self.record.progress.runs.clear()  # their parameters may be others now
        elif isinstance(phase, Project):
            self._project(phase)
        elif isinstance(phase, Prune):
            gone = prune(self.model, self.stores.plain, phase, **self._pass())
            self.record.progress.runs.clear()  # their parameters are of another size now
            if gone:
                self.record.warn(f"pruned {len(gone)} prototypes whose nearest cases are of other classes: ids {gone}")
        elif isinstance(phase, Train):
            self._train(phase, index)
        else:
            raise TypeError(f"{self.method.slug}: unknown phase {phase!r}")

    def _pass(self) -> dict[str, Any]:
        """Return how a pass over the un-augmented training cases is run."""
        return {
            "store": self._tokens(),
            "batch_size": self.how.batch_size,
            "workers": self.how.workers,
            "device": self.stores.device,
        }

    def _tokens_change(self, upto: int | None = None) -> bool:
        """Say whether the encoder's tokens are others than at the start, or cannot be kept at all."""
        if self.model.encoder.reads_bank:
            return True
        done = self.phases[: self.record.progress.phase if upto is None else upto]
        return any(isinstance(phase, Train) and "encoder" in phase.rates for phase in done)

    def _tokens(self) -> TokenStore | None:
        """Return cached tokens as long as nothing has changed them."""
        return None if self._tokens_change() else self.stores.tokens()

    # -- projection -----------------------------------------------------------------------------------------------

    def _project(self, phase: Project) -> None:
        how = self._pass()
        report = project(self.model, self.stores.plain, phase, **how)
        progress = self.record.progress
        entry = {"after_epoch": len(progress.history), "accuracy_after": None, **report.to_dict()}
        progress.projections.append(entry)
        for text in projection_warnings(report, self.model.bank, self.model.classes):
            self.record.warn(text)
        if not phase.move:
            self._after_projection(report.accuracy_before)
        elif how["store"] is not None:
            self._after_projection(self.stores.judge(self.method, self.stores.plain, how["store"])["accuracy"])

    def _settle_accounts(self) -> None:
        """Learn what the last projection cost where no later phase has: one pass through the network."""
        projections = self.record.progress.projections
        if projections and projections[-1]["accuracy_after"] is None:
            self._after_projection(self.stores.judge(self.method, self.stores.plain, None)["accuracy"])

    def _after_projection(self, accuracy: float) -> None:
        entry = self.record.progress.projections[-1]
        entry["accuracy_after"] = accuracy
        text = projection_cost(entry["accuracy_before"], accuracy)
        if text is not None:
            self.record.warn(text)

    @torch.no_grad()
    def _read_scores(self, scores: CachedScores) -> None:
        """Learn from un-augmented scores what a projection cost, if not known yet, and which prototypes are dead."""
        projections = self.record.progress.projections
        every = torch.arange(len(self.stores.data))
        out = scores(every, torch.zeros_like(every))
        if projections and projections[-1]["accuracy_after"] is None:
            labels = torch.from_numpy(self.stores.data.labels.copy()).to(out.logits.device)
            right = (out.logits.argmax(1) == labels) & (labels >= 0)
            self._after_projection(float(right.sum() / (labels >= 0).sum().clamp_min(1)))
        dead = dead_prototypes(self.model.bank, out.evidence)
        if dead:
            self.record.warn(f"{len(dead)} prototypes are dead (same evidence for every case): ids {dead[:20]}")

    # -- training -------------------------------------------------------------------------------------------------

    def _train(self, phase: Train, index: int) -> None:
        progress = self.record.progress
        run = progress.runs.setdefault(phase.name, start_run(self.model, phase))
        left = phase.epochs - progress.epoch
        if left <= 0:
            return
        chosen = progress.chosen if phase.chosen else None
        if phase.chosen and (chosen is None or self.model.encoder.reads_bank):
            raise UsageError(
                f"phase {phase.name!r} goes through chosen pairs of cached tokens: a Choose comes before it"
            )
        if "encoder" in phase.rates or self.model.encoder.reads_bank:
            from protolearn.training.lightning_loop import lightning_phase

            self.stores.forget()
            lightning_phase(
                self.model, self.method, phase, run, self.stores.drawn, left,
                lambda means: self._epoch_end(phase, index, means),
                device=self.stores.device, precision=self.how.precision, clip=self.how.clip,
                quiet=self.how.quiet or distributed.rank() > 0, seed=self.how.seed,
                batch_size=self.how.batch_size, workers=self.how.workers,
            )  # fmt: skip
            self.model.to(self.stores.device)
            distributed.agree(self.model)  # each process has seen other cases, and batch norm remembers them
            return
        material = self._material(phase)
        with self._bar(phase.name, left) as bar:
            for _ in range(left):
                set_rates(run, phase, self.model)
                means = tensor_epoch(
                    self.model, self.method, phase, run, material, self.stores.data.labels,
                    seed=self.how.seed, batch_size=self.how.batch_size, clip=self.how.clip,
                    targets=self.stores.data.targets, ids=self.stores.data.ids, chosen=chosen,
                )  # fmt: skip
                more = self._epoch_end(phase, index, means)
                if bar is not None:
                    bar.advance(bar.task_ids[0])
                if not more:
                    break
        distributed.agree(self.model)

    def _material(self, phase: Train) -> Material:
        if set(phase.rates) != {"head"} or not set(self.model.head.reads) <= set(CachedScores.FIELDS):
            return self.stores.outputs()
        scores: CachedScores = self.stores.scores(self._tokens())
        self._read_scores(scores)
        return scores

    def _epoch_end(self, phase: Train, index: int, means: dict[str, float]) -> bool:
        """Record an epoch, save when due, and say whether the phase goes on."""
        progress = self.record.progress
        run = progress.runs[phase.name]
        for group, values in zip(phase.rates, run.optimizer.param_groups, strict=False):
            if any(not bool(torch.isfinite(p).all()) for p in values["params"]):
                raise TrainingError(f"weights of {group!r} became not finite in phase {phase.name!r}")
        rates = set_rates(run, phase, self.model)
        row: dict[str, Any] = {"phase": phase.name, "stage": index, "epoch": run.epochs + 1, **means}
        row |= {f"rate_{group}": rate for group, rate in rates.items()}
        watched = means["loss"]
        if self.stores.validation is not None:
            # an encoder that is, or was, trained makes other tokens than those that could be cached
            store = None if self._tokens_change(index + 1) else self.stores.validation_tokens()
            weights = phase.mean_coefficients(self.method.weights(), run.epochs)
            numbers = phase.numbers(run.epochs)
            scored = self.stores.judge(self.method, self.stores.validation, store, weights, numbers)
            row |= {f"validation_{name}": scored[name] for name in ("loss", "accuracy")}
            watched = scored["loss"]
        progress.history.append(row)
        run.epochs += 1
        progress.epoch += 1
        run.waited = 0 if watched < run.best else run.waited + 1
        run.best = min(run.best, watched)
        self.record.save(self.model)
        return self.how.patience is None or run.waited < self.how.patience

    @contextmanager
    def _bar(self, name: str, epochs: int) -> Iterator[Bar | None]:
        if self.how.quiet or distributed.rank() > 0:
            yield None
            return
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(stderr=True), transient=True) as bar:
            bar.add_task(f"{self.method.slug}: {name}", total=epochs)
            yield bar
