"""``fit``: run a method's phases on data, from the first warm epoch to the last layer, and survive being killed."""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from protolearn.core.encoder import Encoder
from protolearn.core.method import Initialise, Method, Phase, Project, Prune, Train
from protolearn.core.model import PrototypeModel
from protolearn.data.augment import Augment, Augmented
from protolearn.data.cases import Cases
from protolearn.data.splits import check_pair, check_training
from protolearn.encoders.cache import token_cache
from protolearn.errors import DataError, TrainingError, UsageError
from protolearn.training import distributed
from protolearn.training.checkpoint import Progress, clear_checkpoint, load_checkpoint, save_checkpoint
from protolearn.training.health import dead_prototypes, projection_cost, projection_warnings
from protolearn.training.material import CachedScores, CachedTokens, Material, PlainTokens, TokenStore, plain_outputs
from protolearn.training.project import layout, project, prune
from protolearn.training.steps import Tally, minimised, set_rates, start_run
from protolearn.training.tensor_loop import tensor_epoch

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

CHECKPOINT_SECONDS = 10.0
"""How much work a kill may cost, at most one epoch more."""


class TrainingWarning(UserWarning):
    """Something about data or prototypes that a person should look at."""


@dataclass(frozen=True)
class Fit:
    """A finished training.

    Attributes
    ----------
    model : PrototypeModel
        In eval mode, with ``classes``, ``method`` and ``metadata`` filled in.
    history : list of dict
        One row an epoch: phase, epoch, loss, every term by name, accuracy, learning rates, validation figures.
    warnings : list of str
        What looked wrong on the way.
    directory : Path or None
        Where checkpoint and ``history.csv`` are.
    """

    model: PrototypeModel
    history: list[dict[str, Any]]
    warnings: list[str]
    directory: Path | None


@dataclass(frozen=True)
class Options:
    """How a training is run; see :func:`fit`."""

    batch_size: int = 80
    seed: int = 0
    device: str = "auto"
    precision: str = "32-true"
    clip: float | None = None
    workers: int = 0
    patience: int | None = None
    views: int = 1
    tensorboard: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "views"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.workers < 0 or (self.patience is not None and self.patience < 1):
            raise UsageError(f"workers must be >= 0 and patience >= 1, got {self.workers} and {self.patience}")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"clip must be positive, got {self.clip}")


def fit(
    method: Method,
    data: Cases,
    *,
    encoder: Encoder,
    validation: Cases | None = None,
    directory: str | Path | None = None,
    augment: Augment | None = None,
    resume: bool = True,
    cache: str | Path | None = None,
    **options: Any,
) -> Fit:
    """Train a method on cases.

    Phases that train the encoder run under Lightning over (augmented) pictures. Phases in which it is frozen run on
    tokens cached once for ``views`` views of each case (the first one not augmented), in a plain loop; where only the
    head moves, on cached scores.

    Parameters
    ----------
    method : Method
        Settings of a paper, e.g. ``ProtoPNet()``.
    data : Cases
        Training cases; their labels index ``data.classes``.
    encoder : Encoder
        Used in place: weights change where a phase trains them.
    validation : Cases, optional
        Scored after every epoch; matched to the training classes by name.
    directory : path, optional
        Where the checkpoint and ``history.csv`` go. Without it nothing can be resumed.
    augment : Augment, optional
        What may happen to a training picture. Never used for projection.
    resume : bool
        Go on from the checkpoint in ``directory`` if there is one of this very training; False starts again.
    cache : path, optional
        Folder that keeps frozen tokens between trainings.
    **options
        ``batch_size`` (80; of all processes together), ``seed`` (0), ``device`` ("auto", "cpu", "cuda", "mps"),
        ``precision`` (Lightning's names, "32-true"), ``clip`` (largest gradient norm), ``workers`` (0), ``patience``
        (end a phase after so many epochs without a better validation, else training, loss), ``views`` (1),
        ``tensorboard`` (False), ``quiet`` (False).

    Returns
    -------
    Fit

    Raises
    ------
    DataError
        If there is no case, only one class, or a label without class.
    UsageError
        If settings cannot be right, or ``directory`` holds another training.
    TrainingError
        If a term stops being finite; the last checkpoint is kept.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> train = digits("train").subset(range(0, 1200, 12))
    >>> method = get_method("protopnet")(prototypes_per_class=2, dim=16, warm_epochs=1, project_at=(2,),
    ...                                  last_layer_epochs=1)
    >>> result = fit(method, train, encoder=SmallEncoder(), quiet=True)
    >>> all(source is not None for source in result.model.bank.sources)
    True
    """
    names = Options.__dataclass_fields__
    for name in options:
        if name not in names:
            from protolearn.errors import nearest_names

            raise UsageError(f"fit has no option {name!r}: {nearest_names(name, names)}")
    place = choose_device(options.get("device", "auto"))
    how = Options(**options)
    with distributed.processes(place):
        training = _Training(
            method, data, encoder, validation, None if directory is None else Path(directory), augment, how, place
        )
        return training.run(resume, None if cache is None else Path(cache))


def choose_device(name: str) -> torch.device:
    """Return the device of a name; "auto" takes CUDA, then MPS, then the processor.

    Raises
    ------
    UsageError
        If the device is not there.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device must be auto, cpu, cuda or mps, got {name!r}")
    if (kind == "cuda" and not cuda) or (kind == "mps" and not mps):
        raise UsageError(f"device {name!r} is not available on this machine: use --device cpu or auto")
    return torch.device(f"cuda:{local}") if name == "cuda" else torch.device(name)


@dataclass
class _Training:
    method: Method
    data: Cases
    encoder: Encoder
    validation: Cases | None
    directory: Path | None
    augment: Augment | None
    how: Options
    device: torch.device
    progress: Progress = field(default_factory=Progress)
    store: TokenStore | None = None
    validation_store: TokenStore | None = None
    cached: CachedTokens | None = None
    logger: Any = None
    logged: int = 0

    def run(self, resume: bool, cache: Path | None) -> Fit:
        self.concerns = check_training(self.data)
        seed, preprocess = self.how.seed, self.encoder.preprocess
        self.plain, self.drawn = self.data, self.data
        if preprocess is not None:
            self.plain = self.data.with_transform(preprocess)
            changed = preprocess if self.augment is None else Augmented(preprocess, self.augment)
            self.drawn = self.data.with_transform(changed).with_seed(seed)
        elif self.augment is not None:
            raise UsageError("augment changes pictures, and this encoder does not read pictures")
        if self.augment is None and self.how.views > 1:
            raise UsageError("several views of a case differ only by augmentation: give augment, or views=1")
        if self.validation is not None:
            self.validation = self.validation.with_classes(self.data.classes).with_transform(preprocess)
            if len(self.validation) == 0:
                raise DataError(f"{self.validation.name}: no case to validate on; leave validation out")
            self.concerns += check_pair(self.data, self.validation)
        self.model = self.method.build(self.encoder, len(self.data.classes), seed).to(self.device)
        self.model.classes, self.model.method = self.data.classes, self.method
        self._refuse_too_many()
        self.phases = self.method.phases()
        self.digest = self._digest()
        self.always_frozen = not any(isinstance(p, Train) and "encoder" in p.rates for p in self.phases)
        self.saved = time.monotonic()
        if self.directory is not None:
            if not resume and distributed.rank() == 0:
                clear_checkpoint(self.directory)
            distributed.barrier()
            kept = load_checkpoint(self.directory, self.model, self.digest, self.phases)
            self.progress = kept or self.progress
        if not self.progress.warnings and self.progress.phase == 0:
            for text in self.concerns:
                self._warn(text)
        with ExitStack() as stack:
            self.cache = cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="protolearn-")))
            self.keep_cache = cache is not None
            for index in range(self.progress.phase, len(self.phases)):
                self._phase(self.phases[index], index)
                self.progress.phase, self.progress.epoch = index + 1, 0
                self._save(force=True)
        self.model.requires_grad_(True).eval()
        self.model.metadata = self._metadata()
        return Fit(self.model, self.progress.history, self.progress.warnings, self.directory)

    # -- phases ---------------------------------------------------------------------------------------------------

    def _phase(self, phase: Phase, index: int) -> None:
        self.model.to(self.device)
        how: dict[str, Any] = {
            "store": self._tokens(), "batch_size": self.how.batch_size,
            "workers": self.how.workers, "device": self.device,
        }  # fmt: skip
        if isinstance(phase, Initialise):
            store = self._tokens()
            if store is None:
                raise TypeError(f"{self.method.slug}: initialisation from data comes before the encoder is trained")
            batches = PlainTokens(store, self.data.labels, self.how.batch_size, self.device)
            self.method.initialise(self.model, batches, self.how.seed)
            self.cached = None  # made of an earlier neck
            distributed.agree(self.model)
        elif isinstance(phase, Project):
            report = project(self.model, self.plain, phase, **how)
            entry = {"after_epoch": len(self.progress.history), "accuracy_after": None, **report.to_dict()}
            self.progress.projections.append(entry)
            for text in projection_warnings(report, self.model.bank, self.model.classes):
                self._warn(text)
            store = self._tokens()
            if store is not None:
                self._after_projection(self._scores(self.plain, store)["accuracy"])
        elif isinstance(phase, Prune):
            gone = prune(self.model, self.plain, phase, **how)
            self.progress.runs.clear()  # their parameters are of another size now
            if gone:
                self._warn(f"pruned {len(gone)} prototypes whose nearest cases are of other classes: ids {gone}")
        elif isinstance(phase, Train):
            self._train(phase, index)
        else:
            raise TypeError(f"{self.method.slug}: unknown phase {phase!r}")

    def _train(self, phase: Train, index: int) -> None:
        run = self.progress.runs.setdefault(phase.name, start_run(self.model, phase))
        left = phase.epochs - self.progress.epoch
        if left <= 0:
            return
        if "encoder" in phase.rates:
            from protolearn.training.lightning_loop import lightning_phase

            lightning_phase(
                self.model, self.method, phase, run, self.drawn, left,
                lambda means: self._epoch_end(phase, index, means),
                device=self.device, precision=self.how.precision, clip=self.how.clip,
                quiet=self.how.quiet or distributed.rank() > 0, seed=self.how.seed,
                batch_size=self.how.batch_size, workers=self.how.workers, kept=self._kept(),
            )  # fmt: skip
            self.model.to(self.device)
            distributed.agree(self.model)  # each process has seen other cases, and batch norm remembers them
            return
        material = self._material(phase)
        with self._bar(phase.name, left) as bar:
            for _ in range(left):
                set_rates(run, phase, self.model)
                means = tensor_epoch(
                    self.model, self.method, phase, run, material, self.data.labels,
                    seed=self.how.seed, batch_size=self.how.batch_size, clip=self.how.clip, kept=self._kept(),
                )  # fmt: skip
                more = self._epoch_end(phase, index, means)
                if bar is not None:
                    bar.advance(bar.task_ids[0])
                if not more:
                    break
        distributed.agree(self.model)

    def _epoch_end(self, phase: Train, index: int, means: dict[str, float]) -> bool:
        """Record an epoch, save when due, and say whether the phase goes on."""
        run = self.progress.runs[phase.name]
        for group, values in zip(phase.rates, run.optimizer.param_groups, strict=False):
            bad = [p for p in values["params"] if not bool(torch.isfinite(p).all())]
            if bad:
                raise TrainingError(f"weights of {group!r} became not finite in phase {phase.name!r}; {self._kept()}")
        rates = set_rates(run, phase, self.model)
        row: dict[str, Any] = {"phase": phase.name, "stage": index, "epoch": run.epochs + 1, **means}
        row |= {f"rate_{group}": rate for group, rate in rates.items()}
        watched = means["loss"]
        if self.validation is not None:
            scored = self._scores(self.validation, self._validation_tokens())
            row |= {f"validation_{name}": scored[name] for name in ("loss", "accuracy")}
            watched = scored["loss"]
        self.progress.history.append(row)
        run.epochs += 1
        self.progress.epoch += 1
        run.waited = 0 if watched < run.best else run.waited + 1
        run.best = min(run.best, watched)
        self._save()
        return self.how.patience is None or run.waited < self.how.patience

    # -- what the phases read -------------------------------------------------------------------------------------

    def _tokens(self) -> TokenStore | None:
        """Return cached tokens of the training cases as long as nothing has trained the encoder."""
        trained = any(isinstance(p, Train) and "encoder" in p.rates for p in self.phases[: self.progress.phase])
        if trained:
            self.store = None
        elif self.store is None:
            self.store = self._cache(self.plain if self.how.views == 1 else self.drawn, self.how.views)
        return self.store

    def _validation_tokens(self) -> TokenStore | None:
        if not self.always_frozen or self.validation is None:
            return None
        if self.validation_store is None:
            self.validation_store = self._cache(self.validation, 1)
        return self.validation_store

    def _cache(self, cases: Cases, views: int) -> TokenStore:
        if distributed.rank() > 0:
            distributed.barrier()  # the first process writes, the others then find it
        quiet = self.how.quiet or distributed.rank() > 0
        store: TokenStore = token_cache(
            self.model.encoder, cases, self.cache if self.keep_cache else None, views=views,
            batch_size=self.how.batch_size, workers=self.how.workers, device=self.device, quiet=quiet,
        )  # fmt: skip
        if distributed.rank() == 0:
            distributed.barrier()
        return store

    def _material(self, phase: Train) -> Material:
        store = self._tokens()
        if set(phase.rates) == {"head"}:
            outputs = plain_outputs(
                self.model, self.plain, store, self.device, batch_size=self.how.batch_size,
                workers=self.how.workers, views=self.how.views, augmented=self.drawn,
            )  # fmt: skip
            scores = CachedScores(self.model, (out for _, out in outputs), self.how.views)
            evidence = scores.scores["evidence"]
            assert evidence is not None
            self._complete_projection(evidence[: len(self.data)])
            dead = dead_prototypes(self.model.bank, evidence)
            if dead:
                self._warn(f"{len(dead)} prototypes are dead (same evidence for every case): ids {dead[:20]}")
            return scores
        if store is None:
            store = self._cache(self.plain if self.how.views == 1 else self.drawn, self.how.views)
        if self.cached is None or self.cached.store is not store:
            self.cached = CachedTokens(self.model, store, self.device)
        return self.cached

    @torch.no_grad()
    def _scores(self, cases: Cases, store: TokenStore | None) -> dict[str, float]:
        tally, labels = Tally(), torch.from_numpy(cases.labels.copy())
        how = {"batch_size": self.how.batch_size, "workers": self.how.workers}
        for part, out in plain_outputs(self.model, cases, store, self.device, **how):  # type: ignore[arg-type]
            wanted = labels[part].to(self.device)
            tally.add(minimised(self.method, out, wanted)[1], int((wanted >= 0).sum()))
        return tally.means()

    @torch.no_grad()
    def _complete_projection(self, evidence: Tensor) -> None:
        """Fill in what a projection cost where only the scores that follow it can tell."""
        if self.progress.projections and self.progress.projections[-1]["accuracy_after"] is None:
            labels = torch.from_numpy(self.data.labels.copy()).to(evidence.device)
            right = (self.model.head(evidence).argmax(1) == labels) & (labels >= 0)
            self._after_projection(float(right.sum() / (labels >= 0).sum().clamp_min(1)))

    def _after_projection(self, accuracy: float) -> None:
        entry = self.progress.projections[-1]
        entry["accuracy_after"] = accuracy
        text = projection_cost(entry["accuracy_before"], accuracy)
        if text is not None:
            self._warn(text)

    # -- bookkeeping ----------------------------------------------------------------------------------------------

    def _refuse_too_many(self) -> None:
        """Refuse more prototypes of a class than its cases have tokens: some could only be copies."""
        positions = layout(self.model, self.plain).values.shape[1]
        present = torch.from_numpy(self.data.labels.copy())
        for label, name in enumerate(self.data.classes):
            cases, wanted = int((present == label).sum()), int((self.model.bank.ownership[:, label] > 0).sum())
            if 0 < cases * positions < wanted:
                raise UsageError(
                    f"class {name!r} has {cases} cases of {positions} positions and cannot fill {wanted} prototypes: "
                    "use fewer prototypes per class"
                )

    def _digest(self) -> str:
        facts = {
            "method": self.method.settings(),
            "encoder": self.encoder.spec(),
            "weights": self.model.fingerprint(),
            "data": self.data.fingerprint(),
            "augment": None if self.augment is None else self.augment.to_dict(),
            "options": {
                n: getattr(self.how, n) for n in ("batch_size", "seed", "precision", "clip", "patience", "views")
            },
            "validation": None if self.validation is None else self.validation.fingerprint(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def _kept(self) -> str:
        return "no directory was given, so nothing is kept" if self.directory is None else (
            f"the last good state is in {self.directory}"
        )  # fmt: skip

    def _save(self, *, force: bool = False) -> None:
        if self.directory is None or distributed.rank() > 0:
            return
        if force or time.monotonic() - self.saved >= CHECKPOINT_SECONDS:
            save_checkpoint(self.directory, self.model, self.progress, self.digest)
            write_history(self.directory / "history.csv", self.progress.history)
            if self.how.tensorboard:
                self._log(self.directory / "tensorboard")
            self.saved = time.monotonic()

    def _log(self, folder: Path) -> None:
        """Bring the TensorBoard files up to the history; a resumed training writes them anew."""
        if self.logger is None:
            from lightning.pytorch.loggers import TensorBoardLogger

            shutil.rmtree(folder, ignore_errors=True)
            self.logger = TensorBoardLogger(folder.parent, name=folder.name, version="")
        for step in range(self.logged, len(self.progress.history)):
            row = self.progress.history[step]
            numbers = {name: value for name, value in row.items() if isinstance(value, float)}
            self.logger.log_metrics({f"{row['phase']}/{name}": value for name, value in numbers.items()}, step)
        self.logged = len(self.progress.history)
        self.logger.save()

    def _warn(self, text: str) -> None:
        self.progress.warnings.append(text)
        if distributed.rank() == 0:
            warnings.warn(text, TrainingWarning, stacklevel=2)

    def _metadata(self) -> dict[str, Any]:
        validation = None if self.validation is None else {"name": self.validation.name, "cases": len(self.validation)}
        return {
            "data": {
                "name": self.data.name, "cases": len(self.data), "classes": self.data.counts(),
                "digest": self.data.fingerprint(), "validation": validation,
                "augment": None if self.augment is None else self.augment.to_dict(),
            },
            "seed": self.how.seed,
            "options": {n: getattr(self.how, n) for n in Options.__dataclass_fields__ if n != "quiet"},
            "history": self.progress.history,
            "projections": self.progress.projections,
            "warnings": self.progress.warnings,
            "versions": {name: version(name) for name in ("protolearn", "torch", "lightning", "timm")},
            "date": datetime.date.today().isoformat(),
        }  # fmt: skip

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


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Write the history as CSV, whole, under a temporary name first."""
    names = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(history)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    os.replace(temporary, path)
