"""``associate``: which prototypes go with labels from outside."""

from __future__ import annotations

from typing import Any

from protolearn.cli.shared import check_positive, listed, say, say_json, the_model


def run_associate(args: Any) -> int:
    """Test every pair of prototype and label; print the first, write all."""
    from protolearn.data import load_cases
    from protolearn.tasks.associate import associate

    check_positive("batch-size", args.batch_size)
    check_positive("most", args.most)
    model = the_model(args.model, args.device)
    cases = load_cases(args.data, labelled=False) if args.part is None else load_cases(args.data, args.part)
    found = associate(
        model,
        cases,
        args.labels,
        covariates=listed(args.covariates),
        categorical=listed(args.categorical),
        group=args.group,
        only=listed(args.only),
        families=listed(args.families),
        correction=args.correction,
        alpha=args.alpha,
        least=args.least,
        test_share=args.test_share or None,
        seed=args.seed,
        batch_size=args.batch_size,
        quiet=args.quiet or args.json,
    )
    path = None if args.out is None else found.save(args.out)
    if args.json:
        file = None if path is None else str(path)
        say_json({"model": args.model, "labels": args.labels, **found.to_dict(), "file": file})
        return 0
    say(found.text(args.most))
    if path is not None:
        say(f"{path}: all {found.table.tests} tests", args.quiet)
    return 0
