"""``fit``: train a method on cases, from the first warm epoch to the last layer, and survive being killed."""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from protolearn.core.encoder import Encoder
from protolearn.core.method import Method
from protolearn.core.model import PrototypeModel
from protolearn.data.augment import Augment
from protolearn.data.cases import Cases
from protolearn.data.splits import check_training
from protolearn.errors import UsageError
from protolearn.training import distributed
from protolearn.training.options import choose_device, make_options
from protolearn.training.project import layout
from protolearn.training.record import Record
from protolearn.training.schedule import Schedule
from protolearn.training.stores import Stores


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
        If there is no case; or, for a method that reads labels, only one class, or a label without class.
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
    how = make_options(options)
    place = choose_device(how.device)
    with distributed.processes(place):
        check = check_training(data, labels=method.reads_labels)
        model = method.build(encoder, len(data.classes), how.seed).to(place)
        model.classes, model.method = data.classes, method
        stores = Stores(model, data, validation, augment, how, place, None if cache is None else Path(cache))
        refuse_too_many(model, stores.plain)
        digest = training_digest(model, stores)
        record = Record(None if directory is None else Path(directory), digest, tensorboard=how.tensorboard)
        record.resume(model, method.phases(), anew=not resume)
        if record.progress.phase == 0 and not record.progress.warnings:
            for text in check + stores.concerns:
                record.warn(text)
        try:
            Schedule(model, method, stores, record, how).run()
        finally:
            stores.close()
    model.requires_grad_(True).eval()
    model.metadata = describe(model, stores, record)
    return Fit(model, record.progress.history, record.progress.warnings, record.directory)


def refuse_too_many(model: PrototypeModel, cases: Cases) -> None:
    """Refuse more prototypes of a class than its cases have tokens: some could only be copies."""
    positions = layout(model, cases).values.shape[1]
    present = torch.from_numpy(cases.labels.copy())
    for label, name in enumerate(cases.classes):
        count, wanted = int((present == label).sum()), int((model.bank.ownership[:, label] > 0).sum())
        if 0 < count * positions < wanted:
            raise UsageError(
                f"class {name!r} has {count} cases of {positions} positions and cannot fill {wanted} prototypes: "
                "use fewer prototypes per class"
            )


def training_digest(model: PrototypeModel, stores: Stores) -> str:
    """Return the SHA-256 of all that decides a training, so that only its own checkpoint is resumed."""
    assert model.method is not None
    how = asdict(stores.how)
    facts = {
        "method": model.method.settings(),
        "encoder": model.encoder.spec(),
        "weights": model.fingerprint(),
        "data": stores.data.fingerprint(),
        "targets": stores.data.targets_digest(),
        "augment": None if stores.augment is None else stores.augment.to_dict(),
        "options": {name: how[name] for name in ("batch_size", "seed", "precision", "clip", "patience", "views")},
        "validation": None if stores.validation is None else stores.validation.fingerprint(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def describe(model: PrototypeModel, stores: Stores, record: Record) -> dict[str, Any]:
    """Return the facts about a training that are saved with the model, as plain JSON types."""
    data, held, augment = stores.data, stores.validation, stores.augment
    return {
        "data": {
            "name": data.name,
            "cases": len(data),
            "classes": data.counts(),
            "digest": data.fingerprint(),
            "validation": None if held is None else {"name": held.name, "cases": len(held)},
            "augment": None if augment is None else augment.to_dict(),
        },
        "seed": stores.how.seed,
        "options": {name: value for name, value in asdict(stores.how).items() if name != "quiet"},
        "history": record.progress.history,
        "projections": record.progress.projections,
        "warnings": record.progress.warnings,
        "versions": {name: version(name) for name in ("protolearn", "torch", "lightning", "timm")},
        "date": datetime.date.today().isoformat(),
    }
