"""The report: one HTML file that says what a model is, how good it is, and shows what it looks at."""

from __future__ import annotations

from pathlib import Path

import torch

from protolearn.audit.discovered import Discovery
from protolearn.audit.ood_result import OODResult
from protolearn.audit.result import AuditResult
from protolearn.core.model import PrototypeModel
from protolearn.errors import UsageError
from protolearn.explain.described import Characteristics
from protolearn.explain.gathered import NEIGHBOURS, Gathered, gather
from protolearn.explain.lettering import number, percent
from protolearn.explain.page import NUMBERS, page, section, short, text, write_text
from protolearn.explain.passes import CaseList
from protolearn.explain.sections.audits import audits
from protolearn.explain.sections.characteristics import characteristics
from protolearn.explain.sections.clusters import clusters
from protolearn.explain.sections.honesty import honesty_section
from protolearn.explain.sections.novelty import novelty as novelty_section
from protolearn.explain.sections.predictions import attention, example, limits, predictions
from protolearn.explain.sections.prototypes import prototypes
from protolearn.explain.sections.record import about, data, training
from protolearn.explain.sections.scores import scores
from protolearn.explain.survey import survey


def report(
    model: PrototypeModel,
    train: CaseList | None,
    test: CaseList | None = None,
    path: str | Path = "report.html",
    *,
    audited: AuditResult | None = None,
    described: Characteristics | None = None,
    novelty: OODResult | None = None,
    discovered: Discovery | None = None,
    unlabelled: CaseList | None = None,
    most: int = 120,
    examples: int = 3,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    quiet: bool = False,
) -> Path:
    """Write one self-contained HTML file about a model: no script, nothing loaded from anywhere.

    Parameters
    ----------
    model : PrototypeModel
        Read, not changed.
    train : Cases or None
        The training cases: prototypes are shown with their sources and nearest cases.
    test : Cases, optional
        What the model is judged by; without it the training cases are, and the report says so.
    path : path
        The file; written under a temporary name and renamed.
    audited : AuditResult, optional
        What ``protolearn.audit`` found of this model: a section of its own.
    described : Characteristics, optional
        What :func:`~protolearn.explain.described.characterise` found: a section of its own, and words on every card.
    novelty : OODResult, optional
        What ``tasks.ood.evaluate_ood`` found of it: a section with the foreign cases and what they are closest to.
    discovered : Discovery, optional
        What ``tasks.discover.discover`` found: a section with the new clusters.
    unlabelled : Cases, optional
        The cases that were searched, for their pictures.
    most : int
        Prototypes shown with pictures, spread evenly over the classes; the report says how many there are.
    examples : int
        Best and worst predictions explained, this many of each.
    batch_size, device, quiet
        As usual; progress bars appear when it takes long.

    Returns
    -------
    Path
        Of the file written.

    Raises
    ------
    UsageError
        If there are no cases at all.
    DataError
        If a case has a class the model was not trained on.

    Examples
    --------
    >>> import tempfile
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=2).build(SmallEncoder(), 10)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = report(model, None, digits("test").subset(range(20)), f"{folder}/digits.html", quiet=True)
    ...     '<script' in path.read_text(encoding="utf-8")
    False
    """
    if test is train:
        test = None  # scores on the training cases then say that they are
    if (train is None or not len(train)) and (test is None or not len(test)):
        raise UsageError("a report needs cases: give the training cases, the test cases, or both")
    if most < 0 or examples < 0:
        raise UsageError(f"most and examples must not be negative, got {most} and {examples}")
    found = survey(model, train, test, neighbours=NEIGHBOURS + 1, batch_size=batch_size, device=device, quiet=quiet)
    known = gather(model, train, test, found, most=most, examples=examples)
    galleries = [part for part in (unlabelled, train) if part is not None]
    groups = "" if discovered is None else clusters(discovered, *galleries)
    return write_text(path, _document(known, audited, described, novelty, groups))


def _document(
    known: Gathered,
    audited: AuditResult | None,
    described: Characteristics | None,
    novelty: OODResult | None,
    groups: str,
) -> str:
    cards = frozenset(int(known.bank.ids[row]) for row in known.chosen)
    pieces = [
        ("example", "How to read it", example(known)),
        ("model", "The model", about(known)),
        ("data", "The data", data(known)),
        ("training", "Training", training(known)),
        ("scores", "How good it is", scores(known)),
        ("prototypes", "Prototypes", prototypes(known, described)),
        ("characteristics", "What prototypes look at", "" if described is None else characteristics(described, cards)),
        ("predictions", "Predictions", predictions(known)),
        ("sees", "How far a place really sees", honesty_section(known)),
        ("audit", "What the explanations are worth", "" if audited is None else audits(audited, cards)),
        ("novelty", "Known and foreign", "" if novelty is None else novelty_section(novelty, known.painter)),
        ("clusters", "Clusters beside the known classes", groups),
        ("attention", "Worth a look", attention(known)),
        ("limits", "What this cannot tell", limits(known)),
    ]
    pieces = [(key, title, body) for key, title, body in pieces if body]
    links = "".join(f'<a href="#{key}">{text(title)}</a>' for key, title, _ in pieces)
    sections = "".join(section(key, title, body) for key, title, body in pieces)
    title = f"{known.method_name} on {known.data_name}"
    return page(
        title,
        f"<header><div><h1>{short(title, 90)}</h1>{_summary(known)}{_tiles(known)}</div></header>\n"
        f'<nav aria-label="Sections"><div>{links}</div></nav>\n<main>{sections}</main>\n'
        f"<footer>Written by protolearn {text(_version())}. Everything is in this file; it loads nothing.</footer>",
    )


def _summary(known: Gathered) -> str:
    usable, classes = int(known.bank.usable.sum()), len(known.names)
    kinds = f"{classes} classes" if classes != 1 else "one class"
    numbers = "" if known.pictured else f'<p class="notice calm">{NUMBERS}</p>'
    each = "a part of a picture it knows" if known.pictured else "a case it knows, or a token of one"
    return (
        f'<p class="soft">It tells {kinds} apart by {usable} prototypes, each {each}. '
        "This page shows what they are, how good the result is, and where to be careful.</p>"
        f"{numbers}"
    )


def _tiles(known: Gathered) -> str:
    tiles = []
    judged = known.judged
    where = "test" if known.on_test else "training"
    if judged is not None and judged.n:
        assert judged.interval is not None
        low, high = judged.interval
        tiles.append(
            (
                percent(judged.accuracy),
                f"right on {judged.n} {where} cases (95 %: {100 * low:.1f} to {100 * high:.1f})",
            )
        )
        tiles.append((percent(judged.balanced_accuracy), "balanced accuracy: the mean over classes"))
        tiles.append((number(judged.ece or 0.0, 3), "calibration error: mean gap between sure and right"))
    total, usable = len(known.bank), int(known.bank.usable.sum())
    real = sum(s is not None for s in known.bank.sources)
    tiles.append(
        (str(usable), f"prototypes in use{f' of {total}' if total != usable else ''}, {real} with a real case")
    )
    trouble = len(known.troubles)
    tiles.append((str(trouble), "prototypes worth a look" if trouble != 1 else "prototype worth a look"))
    listed = "".join(f"<li><b>{text(value)}</b><span>{text(words)}</span></li>" for value, words in tiles)
    warned = ""
    if judged is not None and judged.n and not known.on_test:
        warned = (
            '<p class="notice">These scores are on the training cases, which the model has seen: '
            "they say little about new ones. Give test cases to judge it.</p>"
        )
    return f'<ul class="tiles">{listed}</ul>{warned}'


def _version() -> str:
    from protolearn import __version__

    return __version__
