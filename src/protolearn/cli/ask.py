"""``similar`` and ``whatif``: questions about a model's cases and prototypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from protolearn.cli.shared import check_positive, csv_text, parts, pictures_of, say, say_json, the_model
from protolearn.cli.use import UNKNOWN
from protolearn.errors import UsageError

if TYPE_CHECKING:
    from protolearn.core.model import PrototypeModel

SHOWN = 20
"""Answers that change, printed one by one."""
FLIP = ("case", "label", "before", "after", "probability_before", "probability_after", "kind")
PLACE = ("rank", "similar", "class", "value", "x0", "y0", "x1", "y1")


def run_similar(args: Any) -> int:
    """Print or write the training cases most like pictures or prototypes."""
    check_positive("batch-size", args.batch_size)
    check_positive("k", args.k)
    if bool(args.pictures) == (args.prototypes is not None):
        raise UsageError("similar asks about pictures, or about --prototypes ID: one of the two")
    model = the_model(args.model, args.device)
    train = parts(model, args.data)[0]
    rows: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    if args.prototypes is not None:
        from protolearn.tasks.retrieve import cases_of_prototypes

        for near in cases_of_prototypes(model, train, args.prototypes, k=args.k, batch_size=args.batch_size):
            rows += near.rows()
            told.append(near.to_dict())
        names: Sequence[str] = ("prototype", "owner", "purity", *PLACE)
    else:
        from protolearn.tasks.retrieve import CaseMemory

        memory = CaseMemory(
            model, train, k=args.k, by=args.by, search=args.search, batch_size=args.batch_size,
            quiet=args.quiet or args.json,
        )  # fmt: skip
        for cases in pictures_of(args.pictures):
            found = memory.like(cases)
            rows += [{**row, "predicted": row["predicted"] or UNKNOWN} for row in found.rows()]
            told.append(found.to_dict())
        names = ("case", "predicted", "probability", "agreement", "prototype", *PLACE)
        if args.by != "prototype":
            names = tuple(name for name in names if name not in ("prototype", "x0", "y0", "x1", "y1"))
    return _give(args, {"model": args.model, "found": told}, names, rows, "similar cases")


def run_whatif(args: Any) -> int:
    """Compare a model with an altered copy over data."""
    from protolearn.data import load_cases
    from protolearn.explain.alter import Alteration
    from protolearn.explain.what_if import what_if

    check_positive("batch-size", args.batch_size)
    if not (args.ban or args.remove or args.reweight):
        raise UsageError("nothing to ask: name prototypes after --ban, --remove or --reweight")
    model = the_model(args.model, args.device)
    alteration = Alteration(
        ban=tuple(_whom(model, word) for word in args.ban),
        remove=tuple(_whom(model, word) for word in args.remove),
        reweight=_factors(model, args.reweight),
    )
    train, held = parts(model, args.data)
    cases = load_cases(args.data, classes=model.classes) if args.everything else train if held is None else held
    found = what_if(model, cases, alteration, batch_size=args.batch_size, quiet=args.quiet or args.json)
    if args.json or args.out is not None:
        rows = [flip.to_dict() for flip in found.flips]
        whole = {"model": args.model, "data": cases.name, **found.to_dict()}
        code = _give(args, whole, FLIP, rows, "answers that change")
        if args.json:
            return code
    if held is None and not args.everything:
        say(f"{cases.name} has no held-out part: asked about all of it", args.quiet)
    say(f"{cases.name}: {found.summary()}")
    for name, (old, new, count) in found.per_class().items():
        if old is not None and new is not None and old != new:
            say(f"  {name}: recall {old:.3f} -> {new:.3f} ({count} cases)")
    for note in found.notes:
        say(f"  note: {note}")
    if args.out is None:
        for flip in found.flips[:SHOWN]:
            label = "" if flip.label is None else f", is {flip.label}"
            say(f"  {flip.case}: {flip.before or UNKNOWN} -> {flip.after or UNKNOWN}{label}")
        if len(found.flips) > SHOWN:
            say(f"  and {len(found.flips) - SHOWN} more: --out FILE writes them all", args.quiet)
    return 0


def _whom(model: PrototypeModel, word: str) -> str | int:
    """Return what a word names: a group of that very name, else a prototype where it is a number."""
    from protolearn.explain.groups import group_names

    if model.bank.groups is not None and word in group_names(model):
        return word
    return int(word) if word.isdecimal() else word


def _factors(model: PrototypeModel, words: Sequence[str]) -> dict[str | int, float]:
    found: dict[str | int, float] = {}
    for word in words:
        name, equals, factor = word.rpartition("=")
        try:
            value = float(factor)
        except ValueError:
            equals = ""
            value = 0.0
        if not equals or not name:
            raise UsageError(f"--reweight takes WHO=FACTOR, such as 5=0.5, got {word!r}")
        who = _whom(model, name)
        if who in found:
            raise UsageError(f"--reweight names {name} twice")
        found[who] = value
    return found


def _give(
    args: Any, whole: Mapping[str, Any], names: Sequence[str], rows: Sequence[Mapping[str, Any]], words: str
) -> int:
    """Print a table or JSON, or write either into a file."""
    if args.out is None:
        if args.json:
            say_json(whole)
        else:
            say(csv_text(names, rows).rstrip("\n"))
        return 0
    import json

    from protolearn.explain.page import write_text
    from protolearn.training.folder import plain

    as_json = args.json or args.out.endswith(".json")
    text = json.dumps(plain(whole), indent=2) + "\n" if as_json else csv_text(names, rows)
    say(f"{write_text(args.out, text)}: {len(rows)} {words}", args.quiet)
    return 0
