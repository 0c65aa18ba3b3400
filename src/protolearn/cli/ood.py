"""``ood``: a model learns to say what it has not seen before, and how well it does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from protolearn.cli.shared import check_positive, parts, say, say_json, the_model
from protolearn.errors import UsageError

if TYPE_CHECKING:
    from protolearn.audit.ood_result import OODResult
    from protolearn.core.model import PrototypeModel
    from protolearn.core.scorer import Scorer
    from protolearn.data import Cases


def run_ood(args: Any) -> int:
    """Fit scores, judge them on foreign cases where there are some, keep the first where asked."""
    from protolearn.core.scorer import make_scorer
    from protolearn.tasks.ood import fit_novelty
    from protolearn.training.scorer_files import save_scorer

    if args.list:
        return _list()
    if args.model is None or args.data is None:
        raise UsageError("ood takes the folder of a model and its training data: protolearn ood MODEL DATA")
    check_positive("batch-size", args.batch_size)
    specs = _specs(args.score, args.set or [])
    for spec in specs:
        make_scorer(spec)  # a wrong name or setting is said before anything is read
    sets = {kind: _sets(getattr(args, kind) or []) for kind in ("near", "far", "outside")}
    if not any(sets.values()) and not args.save:
        raise UsageError(
            "there is nothing to do: give foreign cases to judge by (--near, --far or --outside NAME=DATA), or --save"
        )
    model = the_model(args.model, args.device)
    train, test, held = _known(model, args)
    found = _judged(model, specs, train, test, held, sets, args) if any(sets.values()) else None
    if found is None:
        first = fit_novelty(model, train, specs[0], held=held, **_given(args))
    else:
        first = next(iter(found.fitted.values()))
        model.metadata["novelty"] = {**found.facts["fitted"], "score": first.spec(), "rate": args.rate}
    if args.save:
        model.scorer = first
        save_scorer(model, args.model)
    files = _files(model, found, train, args.out)
    _tell(found, first, model.metadata["novelty"], files, test is None, args)
    return 0


def _given(args: Any) -> dict[str, Any]:
    quiet = args.quiet or args.json
    return {"rate": args.rate, "share": args.share, "seed": args.seed, "batch_size": args.batch_size, "quiet": quiet}


def _judged(
    model: PrototypeModel,
    specs: list[dict[str, Any]],
    train: Cases,
    test: Cases | None,
    held: Cases | None,
    sets: dict[str, Any],
    args: Any,
) -> OODResult:
    from protolearn.audit.ood import Convention
    from protolearn.tasks.ood import evaluate_ood

    return evaluate_ood(
        model, train if test is None else test, **sets, scores=specs, train=train, held=held,
        convention=Convention(args.positive), **_given(args),
    )  # fmt: skip


def _known(model: PrototypeModel, args: Any) -> tuple[Cases, Cases | None, Cases | None]:
    """Return known cases to fit on, to judge by, and to calibrate by: the data's validation part, where it has one."""
    from protolearn.data import load_cases

    train, test = parts(model, args.data, args.test)
    if args.held is not None:
        return train, test, load_cases(args.held, classes=model.classes)
    whole = load_cases(args.data, classes=model.classes)
    if {"train", "val", "test"} <= set(whole.split_names):
        return train, test, whole.split("val")
    return train, test, None


def _sets(given: list[str]) -> dict[str, Cases]:
    """Return foreign cases by name; of data with parts, the test part."""
    from protolearn.data import load_cases
    from protolearn.errors import DataError

    sets: dict[str, Cases] = {}
    for word in given:
        name, equals, spec = word.partition("=")
        if not equals or not name or "/" in name or not spec:
            name, spec = Path(word).stem or word, word
        if name in sets:
            raise UsageError(f"two sets are called {name!r}: name them NAME=DATA")
        try:
            cases = load_cases(spec)
        except DataError:  # pictures of no class, or no such data, which is then said
            cases = load_cases(spec, labelled=False)
        sets[name] = cases.split("test") if "test" in cases.split_names else cases
    return sets


def _specs(names: str, settings: list[str]) -> list[dict[str, Any]]:
    """Return the scores asked for, with their settings."""
    specs = {name.strip(): {"name": name.strip()} for name in names.split(",") if name.strip()}
    if not specs:
        raise UsageError("--score names at least one score: protolearn ood --list")
    for word in settings:
        path, equals, value = word.partition("=")
        name, dot, key = path.partition(".")
        if not equals or not dot or key == "name":
            raise UsageError(f"--set takes SCORE.SETTING=VALUE, got {word!r}")
        if name not in specs:
            raise UsageError(f"--set speaks of {name!r}, which --score does not name")
        try:
            specs[name][key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {path}: {value!r} is no value") from error
    return list(specs.values())


def _files(model: PrototypeModel, found: OODResult | None, train: Cases, folder: str | None) -> list[str]:
    if found is None or folder is None:
        return []
    from protolearn.explain.draw import Painter
    from protolearn.explain.novelty_page import save_novelty_folder

    return [str(path) for path in save_novelty_folder(found, folder, Painter(model, train))]


def _tell(
    found: OODResult | None,
    first: Scorer,
    facts: dict[str, Any],
    files: list[str],
    judged_on_training: bool,
    args: Any,
) -> None:
    if args.json:
        told = {
            "model": args.model, "saved": args.save, "score": first.spec(), "threshold": float(first.threshold),
            "novelty": facts, "result": None if found is None else found.to_dict(), "files": files,
        }  # fmt: skip
        say_json(told)
        return
    if found is not None:
        if judged_on_training:
            say(
                "known cases are the training cases, which the model has seen: give --test for honest figures",
                args.quiet,
            )
        say(found.table())
    say(
        f"threshold of {first.name}: {float(first.threshold):.6g}, reached by {100 * args.rate:g} % of "
        f"{facts['calibrated']} known cases ({facts['calibrated_on']})",
        args.quiet,
    )
    if found is None and "share" in facts:
        say(
            "if the model was trained on those, it will refuse more of the new known cases: give --held cases it has "
            "not seen",
            args.quiet,
        )
    if files:
        say(f"{files[0]}: open it in a browser; {len(files)} files in {args.out}/", args.quiet)
    if args.save:
        say(f'{args.model}: now says "does not know" below that threshold', args.quiet)


def _list() -> int:
    from protolearn.core.scorer import SCORERS, make_scorer

    make_scorer("msp")  # every module of scores registers itself
    for name, cls in sorted(SCORERS.items()):
        spec = {key: value for key, value in cls().spec().items() if key != "name"}
        about = (cls.__doc__ or "").strip().splitlines()[0]
        say(f"{name}: {about} {cls.source}. ({', '.join(f'{key}={value}' for key, value in spec.items())})")
    return 0
