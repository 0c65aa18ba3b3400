"""``discover``: new classes among unlabelled cases; a cluster that a person has named becomes a class of the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from protolearn.cli.shared import check_positive, parts, say, say_json, the_model
from protolearn.errors import UsageError

if TYPE_CHECKING:
    from protolearn.audit.discovered import Discovery
    from protolearn.core.model import PrototypeModel
    from protolearn.data import Cases


def run_discover(args: Any) -> int:
    """Cluster, write the galleries, and make named clusters classes of a copy of the model."""
    from protolearn.data import load_cases
    from protolearn.errors import DataError
    from protolearn.explain.clusters_page import save_discovery_folder
    from protolearn.tasks.discover import discover

    check_positive("batch-size", args.batch_size)
    named = _named(args.name or [])
    if named and args.save is None:
        raise UsageError("--name changes the model: say where the new one goes, --save FOLDER")
    if args.save is not None and not named:
        raise UsageError("--save keeps a model with named clusters: name some, --name 'new 1=wolf'")
    model = the_model(args.model, args.device)
    train, held = parts(model, args.data, args.test)
    try:
        free = load_cases(args.unlabelled)
    except DataError:  # pictures of no class, or no such data, which is then said
        free = load_cases(args.unlabelled, labelled=False)
    found = discover(
        model, train, free, method=args.method, classes=args.classes, criterion=args.criterion, high=args.most_classes,
        move="apart" if args.apart else "all", features=args.features, draws=args.draws, seed=args.seed,
        batch_size=args.batch_size, quiet=args.quiet or args.json,
    )  # fmt: skip
    files = [] if args.out is None else [str(p) for p in save_discovery_folder(found, args.out, free, train)]
    promoted = _promote(model, found, named, free, train, held, args) if named else []
    if args.json:
        say_json({"model": args.model, **found.to_dict(), "promoted": promoted, "saved": args.save, "files": files})
        return 0
    say(found.table())
    if files:
        say(f"{files[0]}: open it in a browser; {len(files)} files in {args.out}/", args.quiet)
    return 0


def _named(words: list[str]) -> dict[str, str]:
    """Return the names of clusters."""
    named: dict[str, str] = {}
    for word in words:
        cluster, equals, name = word.partition("=")
        if not equals or not cluster.strip() or not name.strip():
            raise UsageError(f"--name takes CLUSTER=NAME, as in --name 'new 1=wolf', got {word!r}")
        if cluster.strip() in named:
            raise UsageError(f"--name names {cluster.strip()!r} twice")
        named[cluster.strip()] = name.strip()
    return named


def _promote(
    model: PrototypeModel,
    found: Discovery,
    named: dict[str, str],
    free: Cases,
    train: Cases,
    held: Cases | None,
    args: Any,
) -> list[dict[str, Any]]:
    from protolearn.data.joined import join
    from protolearn.tasks.promote import promote
    from protolearn.training.folder import check_target, save

    check_target(Path(args.save), args.overwrite)
    done = []
    for cluster, name in named.items():
        each = promote(
            model, found, cluster, name, free, train if held is None else held, harm=args.harm, seed=args.seed,
            batch_size=args.batch_size, quiet=args.quiet or args.json,
        )  # fmt: skip
        done.append(each.to_dict())
        if not args.json:
            say(each.table() + "\n")
    if held is None and not args.json:
        say("harm was counted on training cases, which the model has seen: give --test for honest figures", args.quiet)
    pictured = train.pictured and free.pictured
    save(model, args.save, join([train, free]) if pictured else None, overwrite=args.overwrite)
    if not args.json:
        say(f"{args.save}: the model with {len(done)} new classes", args.quiet)
    return done
