"""Why a case got a logit: every prototype's similarity, weight and contribution, where it matched, what it comes from.

Works for any model of the core: it reads the ``Output``, the head's contributions and offset, and the bank's sources.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protolearn.core.matching import chunk_rows
from protolearn.core.model import PrototypeModel
from protolearn.core.modes import evaluating
from protolearn.errors import DataError, UsageError, nearest_names
from protolearn.explain.passes import CaseList, Seen, novelty_of, plain_json, run_over, track, whole_file
from protolearn.explain.regions import Cells
from protolearn.structures import Explanation, LedgerRow

KEYWORDS = ("predicted", "runner_up", "label")
Target = int | str
"""A class index, a class name, or one of ``KEYWORDS`` (a class of that very name is chosen by its index)."""


def explain(
    model: PrototypeModel,
    cases: CaseList,
    indices: Sequence[int] | None = None,
    *,
    target: Target = "predicted",
    batch_size: int = 64,
    device: str | torch.device | None = None,
    quiet: bool = True,
) -> list[Explanation]:
    """Explain one logit of each case.

    Parameters
    ----------
    model : PrototypeModel
        Left as it is: evaluated in eval mode without gradients.
    cases : Cases
        Any data set of the library, or a ``PictureList``.
    indices : sequence of int, optional
        Which cases; all by default.
    target : int or str
        Which logit: "predicted", "runner_up", "label" (the case's own class), a class index or a class name.
    batch_size, device, quiet
        As usual; a progress bar appears when it takes long.

    Returns
    -------
    list of Explanation
        Rows hold every usable prototype by absolute contribution; with ``bias`` they sum to the logit.

    Examples
    --------
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=2).build(SmallEncoder(), 10)
    >>> explanation = explain(model, digits("test"), [0], target="7")[0]
    >>> explanation.target, len(explanation.rows), abs(explanation.total - explanation.logit) < 1e-4
    (7, 20, True)
    """
    each = explain_each(model, cases, indices, target=target, batch_size=batch_size, device=device, quiet=quiet)
    return list(each)


def explain_each(
    model: PrototypeModel,
    cases: CaseList,
    indices: Sequence[int] | None = None,
    *,
    target: Target = "predicted",
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    quiet: bool = True,
) -> Iterator[Explanation]:
    """Explain cases one after the other, holding no more than one batch; see :func:`explain`."""
    total = len(cases) if indices is None else len(indices)
    seen = run_over(model, cases, indices, batch_size=batch_size, device=device, workers=workers)
    for batch in track(seen, total, "explaining", quiet=quiet):
        for found in explain_seen(model, cases, batch, (target,)):
            yield found[0]


def contrast(
    model: PrototypeModel,
    cases: CaseList,
    indices: Sequence[int] | None = None,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> list[tuple[Explanation, Explanation | None]]:
    """Explain the predicted class and the runner-up of each case in one pass; None where there is only one class."""
    targets = ("predicted", "runner_up") if len(model.classes) > 1 else ("predicted",)
    pairs: list[tuple[Explanation, Explanation | None]] = []
    for batch in run_over(model, cases, indices, batch_size=batch_size, device=device):
        for found in explain_seen(model, cases, batch, targets):
            pairs.append((found[0], found[1] if len(found) > 1 else None))
    return pairs


def write_explanations(
    model: PrototypeModel,
    cases: CaseList,
    path: str | Path,
    indices: Sequence[int] | None = None,
    *,
    target: Target = "predicted",
    most: int | None = 10,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    quiet: bool = False,
) -> int:
    """Explain many cases as a batch job: one JSON object a line, written as it goes, renamed when whole.

    Parameters
    ----------
    model, cases, indices, target, batch_size, device
        As for :func:`explain`.
    path : path
        The file, e.g. ``explanations.jsonl``.
    most : int, optional
        Rows written a case, the largest first; what the others add is written as one number, so that every line still
        sums to its logit. None writes all.
    workers : int
        Processes that read pictures.
    quiet : bool
        No progress bar.

    Returns
    -------
    int
        How many lines were written.
    """
    _check_most(most)
    total = len(cases) if indices is None else len(indices)
    seen = run_over(model, cases, indices, batch_size=batch_size, device=device, workers=workers)
    written = 0
    with whole_file(path, "the explanations") as temporary, open(temporary, "w", encoding="utf-8") as file:
        for batch in track(seen, total, f"explaining into {Path(path).name}", quiet=quiet):
            for found in explain_seen(model, cases, batch, (target,), most=most):
                file.write(json.dumps(explanation_dict(found[0], model), allow_nan=False) + "\n")
                written += 1
    return written


def explanation_dict(explanation: Explanation, model: PrototypeModel, most: int | None = None) -> dict[str, Any]:
    """Return an explanation as plain JSON types with class names; what is not shown is summed up under ``others``.

    ``bias`` + contributions of ``rows`` + ``others`` = ``logit``. A number that is not finite is null.
    """
    _check_most(most)
    plain = explanation.to_dict()
    shown = plain["rows"] if most is None else plain["rows"][:most]
    names = model.classes
    for row in shown:
        row["owner_class"] = None if row["owner"] is None else names[row["owner"]]
    listed = sum(row["contribution"] for row in shown)
    usable = int(model.bank.usable.sum())
    head = {
        "case": plain["case"],
        "predicted": plain["predicted"],
        "predicted_class": names[plain["predicted"]],
        "target": plain["target"],
        "target_class": names[plain["target"]],
        "label": plain["label"],
        "label_class": None if plain["label"] is None else names[plain["label"]],
    }
    others = {
        "prototypes": max(usable - len(shown), 0),
        "contribution": plain["logit"] - plain["bias"] - listed if usable > len(shown) else 0.0,
    }
    return plain_json({**head, **{k: plain[k] for k in plain if k not in head}, "rows": shown, "others": others})


def explain_seen(
    model: PrototypeModel,
    cases: CaseList,
    seen: Seen,
    targets: Sequence[Target] = ("predicted",),
    *,
    most: int | None = None,
) -> Iterator[list[Explanation]]:
    """Explain a batch that has been through the model, one logit for each of ``targets``, case by case.

    With ``most`` the explanations hold their largest rows only and no longer sum to the logit by themselves.
    """
    output = seen.output
    assert output.tokens is not None  # a whole pass keeps them
    ledger = Ledger(model, Cells(output.tokens, getattr(model.encoder, "preprocess", None)))
    ids = [str(cases.ids[i]) for i in seen.indices]
    probabilities = output.head.probabilities(output.logits.double()).cpu()
    logits, labels = output.logits.double().cpu(), seen.labels.tolist()
    unknown = output.head.abstains(output.logits).tolist()
    novelty = novelty_of(model, output)
    order = logits.argsort(dim=1, descending=True, stable=True).tolist()
    wanted = [[class_of(t, model, order[b], labels[b], ids[b]) for t in targets] for b in range(len(ids))]
    classes, count = output.logits.shape[1], output.evidence.shape[1]
    rows = chunk_rows(4 * classes * count)
    for start in range(0, len(ids), rows):
        chunk = output.part(slice(start, start + rows))
        with evaluating(output.head):  # a head may weigh evidence in another way while it is trained
            table = output.head.ledger(chunk).double().cpu()
            parts = {name: values.detach().double().cpu() for name, values in output.head.parts(chunk).items()}
        for b in range(start, min(start + rows, len(ids))):
            made = []
            for c in wanted[b]:
                made.append(
                    Explanation(
                        case=ids[b],
                        target=c,
                        predicted=order[b][0],
                        label=labels[b] if labels[b] >= 0 else None,
                        logit=float(logits[b, c]),
                        bias=float(ledger.offset[c]),
                        probability=float(probabilities[b, c]),
                        abstains=unknown[b],
                        score_name=output.head.score_name,
                        confidence=None if novelty is None else float(novelty.confidence[b]),
                        known=None if novelty is None or novelty.known is None else bool(novelty.known[b]),
                        rows=ledger.rows(
                            output,
                            b,
                            c,
                            table[b - start, c],
                            seen.sizes[b],
                            most,
                            {name: values[b - start, c] for name, values in parts.items()},
                        ),
                    )
                )
            yield made


class Ledger:
    """What is the same for every case of a batch: ids, owners, sources, weights and cells."""

    def __init__(self, model: PrototypeModel, cells: Cells) -> None:
        bank = model.bank
        self.cells = cells
        self.offset: list[float] = model.head.offset().detach().double().cpu().tolist()
        self.ids: list[int] = bank.ids.tolist()
        self.owners: list[int] = bank.owner().tolist()
        self.usable = bank.usable.cpu()
        self.sources = bank.sources
        weight = model.head.per_unit(len(bank), bank.usable)
        self.weight = None if weight is None else weight.detach().double().cpu()

    def rows(
        self,
        output: Any,
        b: int,
        target: int,
        contribution: Tensor,
        size: tuple[int, int] | None,
        most: int | None,
        parts: Mapping[str, Tensor],
    ) -> tuple[LedgerRow, ...]:
        """Return the rows of one case, largest absolute contribution first; ties keep the bank's order."""
        speaks = (self.usable | (contribution != 0)).nonzero().squeeze(1)
        order = speaks[contribution[speaks].abs().argsort(descending=True, stable=True)]
        if most is not None:
            order = order[:most]
        with evaluating(output.head):
            evidence = output.head.weighed(output.evidence[b : b + 1])[0].detach().double().cpu()
        if self.weight is not None:
            weight = self.weight[target]
        else:
            weight = torch.where(evidence != 0, contribution / torch.where(evidence != 0, evidence, 1.0), 0.0)
        columns = [
            v[order].tolist()
            for v in (
                output.similarities[b].detach().double().cpu(),
                evidence,
                weight,
                contribution,
                output.positions[b].cpu(),
            )
        ]
        far = [None] * len(order) if output.distances is None else output.distances[b].cpu()[order].tolist()
        made = []
        for p, near, brought, w, part, position, away in zip(order.tolist(), *columns, far, strict=True):
            real = near != float("-inf") and (away is None or away != float("inf"))
            owner = self.owners[p]
            made.append(
                LedgerRow(
                    prototype=self.ids[p],
                    similarity=near,
                    evidence=brought,
                    weight=w,
                    contribution=part,
                    distance=away if real else None,
                    position=position,
                    region=self.cells.box(position, size) if real else None,
                    owner=owner if owner >= 0 else None,
                    source=self.sources[p],
                    parts={name: float(values[p]) for name, values in parts.items()},
                    quotient=self.weight is None,
                )
            )
        return tuple(made)


def weight_table(model: PrototypeModel) -> Tensor | None:
    """Return the head's ``(C, P)`` weights, detached; None for a head that has no such table."""
    weight = getattr(model.head, "weight", None)
    if not isinstance(weight, Tensor) or tuple(weight.shape) != (len(model.head.offset()), len(model.bank)):
        return None
    return weight.detach()


def class_of(target: Target, model: PrototypeModel, order: list[int], label: int, case: str) -> int:
    """Return the class that a target means for one case.

    Parameters
    ----------
    target : int or str
        As for :func:`explain`.
    model : PrototypeModel
        Whose classes they are.
    order : list of int
        Classes by score, the highest first.
    label : int
        Class of the case, -1 = unlabelled.
    case : str
        Its id, for the message of an error.
    """
    names = model.classes
    if target == "predicted":
        return order[0]
    if target == "runner_up":
        if len(order) < 2:
            raise UsageError("a model of one class has no runner-up: explain target='predicted'")
        return order[1]
    if target == "label":
        if label < 0:
            raise DataError(f"case {case!r} has no label the model knows: explain target='predicted' or a class")
        return label
    if isinstance(target, str):
        if target not in names:
            raise UsageError(f"no class is called {target!r}: {nearest_names(target, [*names, *KEYWORDS])}")
        return names.index(target)
    if not 0 <= target < len(order):
        raise UsageError(f"there is no class {target}: the model has the classes 0 to {len(order) - 1}")
    return int(target)


def _check_most(most: int | None) -> None:
    if most is not None and most < 0:
        raise UsageError(f"most must not be negative, got {most}")
