"""Which prototypes go with which outside labels: run a model over cases, unchanged, and test every pair.

The model may be from elsewhere: trained on other data, projected, never fitted to these labels. What is tested beside
single prototypes are the model's class predictions, and classes as a whole; all tests are corrected together.

NOT VERIFIED against the paper it follows, see :mod:`protolearn.audit.association`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protolearn.audit.association import AssociationTable, Regressors, association_table
from protolearn.audit.association_foretelling import Foretold, foretell
from protolearn.audit.heterogeneity import Heterogeneity, heterogeneity, intra_class_distance
from protolearn.audit.subject import ModelSubject, Subject, subject_of
from protolearn.data.splits import group_split, stratified_split
from protolearn.errors import DataError, ProtolearnError, UsageError, look_up
from protolearn.explain.passes import CaseList, inputs_over, track, whole_file
from protolearn.tasks.outside_labels import OutsideLabels, read_outside_labels

FAMILIES = {
    "prototypes": "prototype",
    "predictions": "class prediction",
    "classes": "prototypes of a class",
    "covariates": "covariates",
}
"""What a family of regressors is called in a table. ``covariates`` only foretell: they are in every test already."""


@dataclass(frozen=True, eq=False)
class AssociationResult:
    """What a search for associations found.

    Attributes
    ----------
    table : AssociationTable
        Every test.
    heterogeneity : Heterogeneity or None
        Whether classes whose prototypes differ in significance are more spread out; None where prototypes are no
        vectors.
    foretold : tuple of Foretold
        How well each family foretells each label in held-out patients; empty where that was not asked for.
    facts : mapping
        Model, data, cases left out and why, grouping, seed: plain JSON types.
    """

    table: AssociationTable
    heterogeneity: Heterogeneity | None
    foretold: tuple[Foretold, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "facts": dict(self.facts),
            **self.table.to_dict(),
            "heterogeneity": None if self.heterogeneity is None else self.heterogeneity.to_dict(),
            "foretold": [each.to_dict() for each in self.foretold],
        }

    def save(self, path: str | Path) -> Path:
        """Write every test as CSV: whole, or not at all.

        Raises
        ------
        ModelFileError
            If the file cannot be written.
        """
        with whole_file(path, "the associations") as temporary:
            temporary.write_text(self.table.csv_text(), encoding="utf-8")
        return Path(path)

    def text(self, most: int = 20) -> str:
        """Return the first tests, the families beside each other, and what a reader must know."""
        table = self.table
        lines = [table.text(most), ""]
        for family, count in table.by_family().items():
            lines.append(
                f"{family}: {count['significant']} of {count['tests']} tests significant after correction "
                f"({table.correction}, {table.tests} tests, level {table.alpha:g})"
            )
        lines += [f"{reason}: {count}" for reason, count in self.facts.get("left_out", {}).items() if count]
        if self.heterogeneity is not None:
            found = self.heterogeneity
            lines.append(
                found.note
                or f"spread of classes, {len(found.mixed)} mixed and {len(found.uniform)} uniform in significance: "
                f"p = {found.p:.2g}, a mixed class is the wider one with chance {found.effect:.2f}"
            )
        for each in self.foretold:
            if each.auroc is not None and each.interval is not None:
                low, high = each.interval
                lines.append(f"{each.label} from {each.family}: AUROC {each.auroc:.3f} ({low:.3f} to {high:.3f})")
        return "\n".join([*lines, *(f"Note: {note}" for note in table.notes)])


def associate(
    model: Any,
    cases: CaseList,
    labels: str | Path | Mapping[str, Sequence[Any]],
    *,
    covariates: Sequence[str] = (),
    categorical: Sequence[str] = (),
    group: str | None = None,
    only: Sequence[str] = (),
    families: Sequence[str] = ("prototypes", "predictions"),
    correction: str = "bonferroni",
    alpha: float = 0.05,
    least: int = 20,
    test_share: float | None = 0.3,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    quiet: bool = True,
) -> AssociationResult:
    """Test which prototypes go with which labels that the model has not been trained on.

    Parameters
    ----------
    model : PrototypeModel or Subject
        Not changed: its parameters, buffers and modes are compared before and after.
    cases : Cases
        Shown to the model as its encoder takes them. Signals and pictures from elsewhere must have been brought to
        what the model was trained on (sampling rate, filters, staining), or activations mean something else.
    labels, covariates, categorical, group, only
        The table beside the cases, see :func:`~protolearn.tasks.outside_labels.read_outside_labels`.
    group : str, optional
        Column with the patient; the groups of the cases by default, where they have any. Errors then allow for several
        cases of a patient, and no patient is on both sides of the split.
    families : sequence of str
        What is tested: ``prototypes``, ``predictions`` (the probability of each class), ``classes`` (the mean
        activation of a class's prototypes). All their tests are corrected together.
    correction, alpha, least
        As for :func:`~protolearn.audit.association.association_table`.
    test_share : float or None
        Share held out to see how well all activations together foretell each label; None = do not.
    seed : int
        Of the split and of resampling.
    batch_size, device, workers, quiet
        As usual.

    Raises
    ------
    UsageError, DataError
        If a name or column does not exist, a cell is neither 0, 1 nor empty, or no case has a row.
    MissingExtra
        Without statsmodels.
    """
    for name in families:
        look_up("family of regressors", name, {key: key for key in FAMILIES if key != "covariates"})
    if not families:
        raise UsageError(f"say what is to be tested: {', '.join(key for key in FAMILIES if key != 'covariates')}")
    if test_share is not None and not 0 < test_share < 1:
        raise UsageError(f"test_share must lie between 0 and 1, or be None, got {test_share}")
    subject = subject_of(model)
    ids = [str(case) for case in cases.ids]
    read = read_outside_labels(labels, ids, covariates=covariates, categorical=categorical, group=group, only=only)
    read = _grouped(read, cases)
    scores, probabilities = activations(
        subject, cases, read.index.tolist(), batch_size=batch_size, device=device, workers=workers, quiet=quiet
    )
    every = _families(subject, scores, probabilities, families)
    how = {"correction": correction, "alpha": alpha, "least": least}
    table = association_table(every, read.labels, read.names, read.covariates, read.groups, **how)  # type: ignore[arg-type]
    spread = None
    if subject.vectors is not None and "prototypes" in families:
        distance = intra_class_distance(subject.vectors.cpu(), subject.ownership.cpu(), subject.usable.cpu())
        spread = heterogeneity(table.rows, distance, subject.classes)
    told: tuple[Foretold, ...] = ()
    if test_share is not None:
        if read.covariates is not None:
            every.append(Regressors(FAMILIES["covariates"], read.covariate_names, read.covariates))
        told = _foretold(every, read, [ids[i] for i in read.index.tolist()], table, test_share, seed)
    return AssociationResult(table, spread, told, {
        "model": subject.name,
        "data": str(getattr(cases, "name", "its cases")),
        "cases": len(read.index),
        "left_out": dict(read.counts),
        "covariates": list(read.covariate_names),
        "groups": None if read.groups is None else len(set(read.groups)),
        "prototypes_out_of_use": int((~subject.usable).sum()),
        "test_share": test_share,
        "seed": seed,
    })  # fmt: skip


def activations(
    subject: Subject,
    cases: CaseList,
    indices: Sequence[int] | None = None,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    quiet: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return what a subject sees in cases: activations ``(n, P)`` and probabilities ``(n, C)``, float64.

    Raises
    ------
    ProtolearnError
        If looking changed the model.
    """
    held = [*subject.module.parameters(), *subject.module.buffers()]
    where = torch.device(device) if device is not None else held[0].device if held else torch.device("cpu")
    subject.module.to(where)
    before = subject.digest()
    scores, chances = [torch.zeros(0, len(subject.ids)).double()], [torch.zeros(0, len(subject.classes)).double()]
    total = len(cases) if indices is None else len(indices)
    with subject.looking():
        shown = inputs_over(cases, subject.preprocess, indices, batch_size=batch_size, workers=workers)
        for batch in track(shown, total, "looking", quiet=quiet):
            look = subject.look(batch.inputs.to(where), maps=False)
            scores.append(look.scores.double().cpu())
            chances.append(look.probabilities.double().cpu())
    if subject.digest() != before:
        raise ProtolearnError("looking at the cases changed the model; its figures are withheld")
    return torch.cat(scores), torch.cat(chances)


def _grouped(read: OutsideLabels, cases: CaseList) -> OutsideLabels:
    """Return the labels with the cases' own groups, where the table names none."""
    own = getattr(cases, "groups", None)
    if read.groups is not None or own is None:
        return read
    return replace(read, groups=tuple(str(own[i]) for i in read.index.tolist()))


def _families(subject: Subject, scores: Tensor, probabilities: Tensor, wanted: Sequence[str]) -> list[Regressors]:
    usable = subject.usable.cpu()
    rows = usable.nonzero().squeeze(1)
    owned = (subject.ownership.cpu() > 0) & usable.unsqueeze(1)
    if not len(rows):
        raise DataError("no prototype of this model is in use: there is nothing to test")
    made = []
    for name in dict.fromkeys(wanted):
        if name == "prototypes":
            owners = [
                " + ".join(subject.classes[c] for c in owned[p].nonzero().squeeze(1).tolist()) for p in rows.tolist()
            ]
            sources = _sources(subject)
            told = [sources[p] for p in rows.tolist()]
            ids = tuple(str(subject.ids[p]) for p in rows.tolist())
            made.append(Regressors(FAMILIES[name], ids, scores[:, rows].numpy(), tuple(owners), tuple(told)))
        elif name == "predictions":
            made.append(Regressors(FAMILIES[name], subject.classes, probabilities.numpy(), subject.classes))
        else:
            some = owned.any(0).nonzero().squeeze(1)
            member = owned[:, some].double()
            classes = tuple(subject.classes[c] for c in some.tolist())
            made.append(Regressors(FAMILIES[name], classes, (scores @ member / member.sum(0)).numpy(), classes))
    return made


def _named(subject: Subject, owned: Tensor) -> str:
    return " + ".join(subject.classes[c] for c in owned.nonzero().squeeze(1).tolist())


def _sources(subject: Subject) -> list[str]:
    if not isinstance(subject, ModelSubject):
        return [""] * len(subject.ids)
    return ["" if source is None else source.case for source in subject.model.bank.sources]


def _foretold(
    families: Sequence[Regressors],
    read: OutsideLabels,
    ids: Sequence[str],
    table: AssociationTable,
    share: float,
    seed: int,
) -> tuple[Foretold, ...]:
    strata = rarest(read.labels)
    if read.groups is None:
        held = stratified_split(strata, share, seed, ids=ids)[1]
    else:
        held = group_split(strata, read.groups, share, seed)[1]
    mask = np.zeros(len(strata), dtype=bool)
    mask[held] = True
    tested = [q for q, name in enumerate(read.names) if name not in table.dropped]
    names = [read.names[q] for q in tested]
    draw = torch.Generator().manual_seed(seed)
    return foretell(families, read.labels[:, tested], names, mask, read.groups, generator=draw)


def rarest(labels: np.ndarray) -> np.ndarray:
    """Return for each record the rarest label that it has, as its column; the number of labels where it has none.

    What a split divides evenly.

    Examples
    --------
    >>> rarest(np.array([[1.0, 1.0], [1.0, 0.0], [0.0, np.nan]])).tolist()
    [1, 0, 2]
    """
    have = labels == 1
    order = np.argsort(have.sum(0), kind="stable")
    ranked = have[:, order]
    first = ranked.argmax(1)
    return np.where(ranked.any(1), order[first], labels.shape[1]).astype(np.int64)
