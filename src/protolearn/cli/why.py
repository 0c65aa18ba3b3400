"""``characteristics`` and ``correct``: why a prototype matches, and what a person's corrections change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protolearn.cli.shared import (
    check_positive,
    listed,
    parts,
    pictures_of,
    say,
    say_json,
    source_pictures,
    the_model,
)
from protolearn.errors import UsageError, nearest_names

FORMATS = ("png", "html", "json")


def run_characteristics(args: Any) -> int:
    """Say what prototypes, or the matches in pictures, are matched for; print it or write a file."""
    from protolearn.explain.described import characterise
    from protolearn.explain.described_page import FORMS, save_characteristics
    from protolearn.explain.draw import Painter
    from protolearn.explain.perturb import CHARACTERISTICS
    from protolearn.explain.wording import LITTLE, MUCH

    check_positive("batch-size", args.batch_size)
    if args.cases < 0:
        raise UsageError(f"--cases must be at least 1, or 0 for all, got {args.cases}")
    check_positive("matches", args.matches)
    if args.out is not None and Path(args.out).suffix.lower() not in FORMS:  # before minutes of work
        raise UsageError(f"--out takes a file ending in {', '.join(FORMS)}, got {args.out}")
    model = the_model(args.model, args.device)
    train, test = parts(model, args.data, args.test)
    pictures = pictures_of(args.pictures)
    found = characterise(
        model,
        train,
        test,
        pictures,
        names=listed(args.only) or CHARACTERISTICS,
        strength=args.strength,
        most=args.cases or None,
        matches=args.matches,
        seed=args.seed,
        batch_size=args.batch_size,
        quiet=args.quiet or args.json,
    )
    path = None
    if args.out is not None:
        shown = [cases.picture(i) for cases in pictures for i in range(len(cases))]
        path = save_characteristics(found, args.out, painter=Painter(model, train), pictures=shown)
    if args.json:
        say_json({"model": args.model, **found.to_dict(), "file": None if path is None else str(path)})
        return 0
    for match in found.matches:
        like = f"{match.case}: {match.predicted} ({match.probability:.2f})"
        say(f"{like}, prototype {match.row.prototype} ({match.row.contribution:+.2f}): {match.words}")
    if not found.matches:
        for key, owner in zip(found.train.prototypes, found.owners, strict=True):
            say(f"prototype {key}{'' if owner is None else f' ({owner})'}: {found.words(key)}")
    of = f"{found.facts['cases']} of {found.facts['of']} training pictures altered"
    rule = f"'matched for' = at least {MUCH} times a prototype's own mean, 'not for' = at most {LITTLE} times"
    say(f"{of}; in brackets times the usual fall; {rule}", args.quiet)
    for note in found.notes:
        say(f"note: {note}", args.quiet)
    if path is not None:
        say(f"{path}: written", args.quiet)
    return 0


def run_correct(args: Any) -> int:
    """Write a prediction before and after a person's edits."""
    from protolearn.explain.corrected import save_corrected
    from protolearn.explain.edits import Interaction
    from protolearn.explain.interact import interact, typical_evidence

    formats = [name.lower().removeprefix(".") for name in listed(args.formats)]
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"--formats has no {name!r}: {nearest_names(name, FORMATS)}")
    check_positive("most", args.most)
    edits = Interaction.load(args.edits)
    model = the_model(args.model, "cpu")
    found = [(cases, i) for cases in pictures_of([args.picture]) for i in range(len(cases))]
    if len(found) != 1:
        raise UsageError(f"correct takes one picture, {args.picture} holds {len(found)}: edits are of one picture")
    cases, index = found[0]
    typical = None
    if edits.absent == "mean":
        if args.data is None:
            raise UsageError('these edits have absent="mean", which needs the training data: give --data')
        typical = typical_evidence(model, parts(model, args.data)[0])
    done = interact(model, cases, edits, [index], target=args.target, typical=typical)[0]
    sources = source_pictures(args.model, args.data)
    stem = Path(args.out) / "corrected"
    files = [
        str(save_corrected(
            model, cases, index, edits, stem.with_suffix(f".{name}"), done=done, sources=sources, most=args.most
        ))
        for name in formats
    ]  # fmt: skip
    old, new = (model.classes[e.predicted] for e in (done.before, done.after))
    if args.json:
        from protolearn.explain.corrected import corrected_dict

        say_json({"model": args.model, **corrected_dict(model, done, edits), "files": files})
        return 0
    say(f"{done.before.case}: {old} ({done.before.probability:.2f}) -> {new} ({done.after.probability:.2f})")
    if done.without:
        say(f"without a say: {', '.join(map(str, done.without))}")
    for file in files:
        say(f"{file}: written", args.quiet)
    return 0
