"""Fit the head again after a person has changed the prototypes: removed some, or banned them."""

from __future__ import annotations

from typing import Any

from protolearn.core.method import Train
from protolearn.core.model import PrototypeModel
from protolearn.data.cases import Cases
from protolearn.data.splits import check_training
from protolearn.errors import UsageError
from protolearn.training.options import choose_device, make_options
from protolearn.training.record import Record
from protolearn.training.schedule import Schedule
from protolearn.training.stores import Stores


def refit_head(
    model: PrototypeModel, data: Cases, *, epochs: int = 50, rate: float = 1e-2, **options: Any
) -> list[dict[str, Any]]:
    """Train the head alone, from where it is, on what the prototypes that are left bring; return the history.

    Parameters
    ----------
    model : PrototypeModel
        Changed in place: the head's weights, and nothing else. Its history in ``metadata`` grows.
    data : Cases
        Training cases, matched to the model's classes by name.
    epochs, rate : int, float
        Passes and learning rate.
    **options
        ``batch_size``, ``seed``, ``device`` and so on, as for :func:`~protolearn.training.fit.fit`.

    Raises
    ------
    UsageError
        If no method built the model, so that nothing says what to minimise.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> method = get_method("protopnet")(prototypes_per_class=2, dim=8)
    >>> model = method.build(SmallEncoder(), 10)
    >>> model.method, model.classes = method, digits("train").classes
    >>> model.prune([0, 5])
    >>> history = refit_head(model, digits("train").subset(range(60)), epochs=2, quiet=True, device="cpu")
    >>> len(history), history[1]["loss"] < history[0]["loss"]
    (2, True)
    """
    method = model.method
    if method is None:
        raise UsageError("this model was put together by hand: nothing says what its head should minimise")
    how = make_options(options)
    place = choose_device(how.device)
    cases = data.with_classes(model.classes)
    check_training(cases)
    record = Record(None, "", tensorboard=False)
    stores = Stores(model.to(place), cases, None, None, how, place, None)
    schedule = Schedule(model, method, stores, record, how)
    schedule.phases = [Train("refit", epochs, {"head": rate})]
    try:
        schedule.run()
    finally:
        stores.close()
    model.requires_grad_(True).eval()
    history = record.progress.history
    model.metadata["history"] = [*model.metadata.get("history", []), *history]
    return history
