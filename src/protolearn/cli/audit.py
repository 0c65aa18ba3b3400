"""``audit``: what a model's explanations are worth, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protolearn.cli.shared import check_positive, listed, parts, say, say_json, the_model, with_marks
from protolearn.errors import DataError, UsageError, nearest_names

if TYPE_CHECKING:
    from protolearn.data import Cases


def run_audit(args: Any) -> int:
    """Run the metrics the data allow; print a table or write a folder."""
    from protolearn.audit.metric import METRICS
    from protolearn.data import load_cases
    from protolearn.explain.audit_page import save_audit_folder
    from protolearn.tasks.audit import ALL, QUICK, audit

    if args.list:
        for name, cls in METRICS.items():
            needs = f" (needs: {', '.join(cls.about.needs)})" if cls.about.needs else ""
            say(f"{name}: {cls.about.variant}{needs}")
        return 0
    if args.model is None or args.data is None:
        raise UsageError("audit takes the folder of a model and its data: protolearn audit MODEL DATA")
    check_positive("batch-size", args.batch_size)
    check_positive("draws", args.draws)
    model = the_model(args.model, args.device)
    train, test = parts(model, args.data, args.test)
    if args.marks:
        train, test = with_marks(train, test, args.marks)
    wanted = args.metrics if args.metrics in (ALL, QUICK) else listed(args.metrics)
    judged = train if test is None else test
    found = audit(
        model,
        judged,
        train,
        metrics=wanted,
        outside=None if args.outside is None else load_cases(args.outside, labelled=False),
        shifted=None if args.shifted is None else _again(judged, load_cases(args.shifted, labelled=False)),
        twin=None if args.twin is None else the_model(args.twin, args.device),
        seed=args.seed,
        draws=args.draws,
        batch_size=args.batch_size,
        quiet=args.quiet or args.json,
    )
    files = [] if args.out is None else [str(path) for path in save_audit_folder(found, args.out)]
    if args.json:
        say_json({"model": args.model, **found.to_dict(), "files": files})
        return 0
    if test is None:
        say("judged on the training cases, which the model has seen: give --test for an honest audit", args.quiet)
    say(found.table())
    if files:
        say(f"{files[0]}: open it in a browser; {len(files)} files in {args.out}/", args.quiet)
    return 0


def _again(judged: Cases, shifted: Cases) -> Cases:
    """Return the judged cases as they are in other data, in their order."""
    place = {case: i for i, case in enumerate(shifted.ids)}
    lost = [case for case in judged.ids if case not in place]
    if lost:
        raise DataError(
            f"{shifted.name} lacks {len(lost)} of the {len(judged)} judged cases, first {lost[0]!r}: give the same "
            f"files under a shift, by the same names; {nearest_names(lost[0], list(place)[:2000])}"
        )
    return shifted.subset([place[case] for case in judged.ids])
