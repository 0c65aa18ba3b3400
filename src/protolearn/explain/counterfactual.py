"""What would have to be otherwise for a case to get another class.

**Nearer**: the prototype of the other class that the case is nearest to, the training case behind it, and how much more
alike the case would have to be to it, all other evidence as it is. The amount is exact, from the weights of a linear
head; for other heads it is None. It is a number about one prototype: no input need exist that changes this evidence and
no other.

**Fewer**: the fewest prototypes without which the prediction is another one. For a linear head it is the smallest set
there is; for others prototypes are taken away one at a time, each time the one that speaks most for the predicted class
against the best of the rest, and the set need not be the smallest. Either way the model is asked again without them,
in a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.errors import UsageError
from protolearn.explain.alter import Alteration, altered
from protolearn.explain.counterfactual_fewer import Fewer, fewer_prototypes
from protolearn.explain.counterfactual_nearer import Nearer, nearer_prototypes
from protolearn.explain.explain import Target, class_of
from protolearn.explain.passes import CaseList, Seen, plain_json, run_over, track


@dataclass(frozen=True)
class Counterfactual:
    """What would have to be otherwise for one case to get another class.

    Attributes
    ----------
    case : str
        Its id.
    predicted, target : int
        The class it got, and the other one.
    label : int or None
        Its own.
    lead : float
        By how much the predicted class is ahead of the target, in logits; 0 where the target is predicted already.
    nearer : tuple of Nearer
        Usable prototypes of the target, the one it is nearest to first; empty where there is none, or where the target
        is predicted already.
    fewer : Fewer or None
        None where no set of prototypes changes the prediction, or none of at most ``most_removed``.
    """

    case: str
    predicted: int
    target: int
    label: int | None
    lead: float
    nearer: tuple[Nearer, ...]
    fewer: Fewer | None

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return plain JSON types with names of classes."""
        fewer = None if self.fewer is None else {**vars(self.fewer), "becomes": classes[self.fewer.becomes]}
        return plain_json(
            {
                "case": self.case,
                "predicted": classes[self.predicted],
                "target": classes[self.target],
                "label": None if self.label is None else classes[self.label],
                "lead": self.lead,
                "nearer": [one.to_dict() for one in self.nearer],
                "fewer": fewer,
            }
        )


def counterfactuals(
    model: PrototypeModel,
    cases: CaseList,
    indices: Sequence[int] | None = None,
    *,
    target: Target = "runner_up",
    most: int = 1,
    most_removed: int = 50,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    quiet: bool = True,
) -> list[Counterfactual]:
    """Say what would have to be otherwise for cases to get another class; the model is left as it is.

    Parameters
    ----------
    model, cases, indices
        As for :func:`~protolearn.explain.explain.explain`.
    target : int or str
        The other class: "runner_up", "label" (the case's own), a class index or a class name. With "runner_up",
        ``fewer`` may end in any class; with a class that is named, the set is one without which that class is ahead of
        the predicted one.
    most : int
        Prototypes of the other class that are told, nearest first.
    most_removed : int
        Largest set that is looked for with a head that is not linear.
    batch_size, device, quiet
        As usual.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=2).build(SmallEncoder(), 10)
    >>> (found,) = counterfactuals(model, digits("test"), [0])
    >>> found.fewer.smallest, model.bank.owner()[found.nearer[0].prototype].item() == found.target
    (True, True)
    """
    if most < 0 or most_removed < 1:
        raise UsageError(f"most must be at least 0 and most_removed at least 1, got {most} and {most_removed}")
    if target == "predicted" or len(model.classes) < 2:
        raise UsageError("a counterfactual is about another class than the predicted one: name it, or 'runner_up'")
    total = len(cases) if indices is None else len(indices)
    found: list[Counterfactual] = []
    without: PrototypeModel | None = None
    batches = run_over(model, cases, indices, batch_size=batch_size, device=device)
    for seen in track(batches, total, "asking for counterfactuals", quiet=quiet):
        if without is None:  # after the first batch, which may have moved the model
            without = altered(model, Alteration(), share=True)
        ids = [str(cases.ids[i]) for i in seen.indices]
        with evaluating(model), evaluating(without), torch.no_grad():
            found += _of_batch(model, without, ids, seen, target, most, most_removed)
    return found


def _of_batch(
    model: PrototypeModel,
    without: PrototypeModel,
    ids: list[str],
    seen: Seen,
    target: Target,
    most: int,
    most_removed: int,
) -> Iterator[Counterfactual]:
    out, labels = seen.output, seen.labels.tolist()
    logits = out.logits.double()
    order = logits.argsort(dim=1, descending=True, stable=True)
    ranked = order.tolist()
    targets = [class_of(target, model, ranked[b], labels[b], ids[b]) for b in range(len(ids))]
    wanted = torch.tensor(targets, dtype=torch.long, device=logits.device)
    nearer = nearer_prototypes(model, out, wanted, seen.sizes, most)
    rivals = None if target == "runner_up" else torch.nn.functional.one_hot(wanted, logits.shape[1]).bool()
    fewer = fewer_prototypes(without, out, order[:, 0], rivals, most_removed)
    for b, case in enumerate(ids):
        same = targets[b] == ranked[b][0]
        yield Counterfactual(
            case=case,
            predicted=ranked[b][0],
            target=targets[b],
            label=labels[b] if labels[b] >= 0 else None,
            lead=float(logits[b, ranked[b][0]] - logits[b, targets[b]]),
            nearer=() if same else nearer[b],
            fewer=None if same else fewer[b],
        )
