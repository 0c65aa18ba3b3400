"""``repair``: a smaller model with what is wrong taken out, compared with the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protolearn.cli.shared import check_positive, listed, parts, say, say_json, the_model, with_marks
from protolearn.errors import UsageError

NONE = "none"


def run_repair(args: Any) -> int:
    """Repair a copy of a model, say what was done, and save it."""
    from protolearn.tasks.audit import ALL, QUICK
    from protolearn.tasks.repair import repair
    from protolearn.training.folder import check_target, save

    check_positive("batch-size", args.batch_size)
    check_positive("epochs", args.epochs)
    if args.out is None and not args.dry_run:
        raise UsageError("repair writes a new model: say where with --out, or look first with --dry-run")
    if args.out is not None:
        check_target(Path(args.out).absolute(), args.overwrite)
    ban = _ids(args.ban)
    model = the_model(args.model, args.device)
    train, test = parts(model, args.data, args.test)
    if args.marks:
        train, test = with_marks(train, test, args.marks)
    wanted: Any = args.metrics if args.metrics in (ALL, QUICK) else listed(args.metrics)
    result = repair(
        model,
        train,
        test,
        merge=not args.no_merge,
        near=args.near,
        drop_dead=not args.keep_dead,
        drop_impure=not args.keep_impure,
        ban=ban,
        background=args.background,
        refit=not (args.no_refit or args.dry_run),
        epochs=args.epochs,
        rate=args.rate,
        metrics=None if args.metrics == NONE else wanted,
        seed=args.seed,
        batch_size=args.batch_size,
        device=str(model.bank.ids.device),
        quiet=args.quiet or args.json,
    )
    path = None if args.dry_run else save(result.model, args.out, train, overwrite=args.overwrite)
    if args.json:
        say_json({"model": args.model, "repaired": None if path is None else str(path), **result.to_dict()})
        return 0
    say(result.text())
    say("nothing was fitted or written (--dry-run)" if path is None else f"{path}: the repaired model", args.quiet)
    return 0


def _ids(text: str) -> list[int]:
    names = listed(text)
    wrong = next((name for name in names if not name.isdecimal()), None)
    if wrong is not None:
        raise UsageError(f"--ban takes ids of prototypes with commas between them, such as 3,7; got {wrong!r}")
    return [int(name) for name in names]
