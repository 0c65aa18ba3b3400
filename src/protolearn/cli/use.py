"""``predict``, ``explain``, ``report`` and ``verify``: what is done with a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protolearn.cli.shared import (
    check_positive,
    csv_text,
    listed,
    parts,
    pictures_of,
    say,
    say_json,
    source_pictures,
    the_model,
)
from protolearn.errors import UsageError, nearest_names

if TYPE_CHECKING:
    from protolearn.core.model import PrototypeModel
    from protolearn.data import Cases
    from protolearn.structures import Explanation, LedgerRow

FORMATS = ("png", "json", "html")
UNKNOWN = "does not know"
"""In place of a class where nothing speaks for any."""
DOUBTS = ("averaged", "total_uncertainty", "epistemic_uncertainty", "refused", "confidence", "known")


def run_predict(args: Any) -> int:
    """Print or write a table of predictions."""
    check_positive("batch-size", args.batch_size)
    model = the_model(args.model, args.device)
    rows = [row for cases in pictures_of(args.pictures) for row in _predictions(model, cases, args)]
    if args.json and args.out is None:
        say_json({"model": args.model, "classes": list(model.classes), "predictions": rows})
        return 0
    names = ["case", "predicted", "probability", "runner_up", "runner_up_probability"]
    names += [name for name in DOUBTS if rows and name in rows[0]]
    if args.all:
        names += [f"p({name})" for name in model.classes]
        rows = [{**row, **{f"p({name})": p for name, p in row["probabilities"].items()}} for row in rows]
    table = csv_text(names, [{**row, "predicted": UNKNOWN} if _unknown(row) else row for row in rows])
    if args.out is None:
        say(table.rstrip("\n"))
        return 0
    from protolearn.explain.page import write_text
    from protolearn.training.folder import plain

    if args.json or args.out.endswith(".json"):
        import json

        table = json.dumps(plain({"model": args.model, "predictions": rows}), indent=2) + "\n"
    say(f"{write_text(args.out, table)}: {len(rows)} predictions", args.quiet)
    return 0


def _predictions(model: PrototypeModel, cases: Cases, args: Any) -> list[dict[str, Any]]:
    from protolearn.core.sampling import doubt_of
    from protolearn.encoders.search import retrieval_for
    from protolearn.explain.passes import novelty_of, run_over, track

    rows: list[dict[str, Any]] = []
    seen = run_over(model, cases, batch_size=args.batch_size, run=retrieval_for(model))
    for batch in track(seen, len(cases), "predicting", quiet=args.quiet):
        probabilities = model.head.probabilities(batch.output.logits.double()).cpu()
        doubt = None if batch.output.tokens is None else doubt_of(model, batch.output.tokens)
        novelty = novelty_of(model, batch.output)
        top = probabilities.topk(min(2, len(model.classes)), dim=1)
        unknown = model.head.abstains(batch.output.logits).tolist()
        for place, index in enumerate(batch.indices):
            first, second = int(top.indices[place, 0]), int(top.indices[place, -1])
            row: dict[str, Any] = {
                "case": cases.ids[index],
                "predicted": model.classes[first],
                "probability": round(float(top.values[place, 0]), 6),
                "runner_up": model.classes[second],
                "runner_up_probability": round(float(top.values[place, -1]), 6),
                "abstains": unknown[place],
            }
            if doubt is not None:
                row["averaged"] = model.classes[int(doubt.mean[place].argmax())]
                row["total_uncertainty"] = round(float(doubt.uncertainty.total[place]), 6)
                row["epistemic_uncertainty"] = round(float(doubt.uncertainty.epistemic[place]), 6)
                if doubt.refused is not None:
                    row["refused"] = bool(doubt.refused[place])
            if novelty is not None:
                row["confidence"] = float(f"{float(novelty.confidence[place]):.6g}")
                if novelty.known is not None:
                    row["known"] = bool(novelty.known[place])
            if args.all:
                row["probabilities"] = {
                    name: round(p, 6) for name, p in zip(model.classes, probabilities[place].tolist(), strict=True)
                }
            rows.append(row)
    return rows


def _unknown(row: dict[str, Any]) -> bool:
    """Return whether the class in a row of results is no answer."""
    return bool(row["abstains"]) or row.get("known") is False


def run_explain(args: Any) -> int:
    """Write explanations of pictures, in one or several forms each."""
    from protolearn.explain import contrast, save_explanation
    from protolearn.explain.passes import track

    formats = [name.strip().lower().removeprefix(".") for name in args.formats.split(",") if name.strip()]
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"--formats has no {name!r}: {nearest_names(name, FORMATS)}")
    check_positive("most", args.most)
    model = the_model(args.model, "cpu")
    sources = source_pictures(args.model, args.data)
    folder = Path(args.out)
    every = pictures_of(args.pictures)
    work = [(cases, index) for cases in every for index in range(len(cases))]
    told: list[dict[str, Any]] = []
    taken: set[str] = set()
    for cases, index in track(iter(work), len(work), "explaining", quiet=args.quiet):
        stem = _file_name(cases.ids[index], taken)
        files = [
            str(save_explanation(
                model, cases, index, folder / f"{stem}.{name}", sources=sources, most=args.most, region=args.region
            ))
            for name in formats
        ]  # fmt: skip
        found, _ = contrast(model, cases, [index])[0]
        best = _shown_first(found)
        told.append(
            {
                "case": found.case,
                "predicted": model.classes[found.predicted],
                "probability": found.probability,
                "logit": found.logit,
                "abstains": found.abstains,
                "confidence": found.confidence,
                "known": found.known,
                "prototype": None if best is None else best.prototype,
                "contribution": None if best is None else best.contribution,
                "looks_like": None if best is None or best.source is None else best.source.case,
                "files": files,
            }
        )
    if args.json:
        say_json({"model": args.model, "explanations": told})
        return 0
    for entry in told:
        like = f", most of all prototype {entry['prototype']}" if entry["prototype"] is not None else ""
        like += f" ({entry['contribution']:+.2f}) from {entry['looks_like']}" if entry["looks_like"] else ""
        named = (
            UNKNOWN + _closest(entry) if _unknown(entry) else f"{entry['predicted']} ({entry['probability']:.2f}){like}"
        )
        say(f"{entry['case']}: {named}", args.quiet)
    say(f"{len(told)} explained in {folder}/", args.quiet)
    return 0


def _shown_first(found: Explanation) -> LedgerRow | None:
    """Return the row that matters most: what adds most to the class, or what is closest where nothing is known."""
    if found.known is False and found.rows:
        return max(found.rows, key=lambda row: row.similarity)
    return found.rows[0] if found.rows else None


def _closest(entry: dict[str, Any]) -> str:
    if entry["known"] is not False:
        return ""
    like = f" from {entry['looks_like']}" if entry["looks_like"] else ""
    return f" (confidence {entry['confidence']:.4g}); closest: prototype {entry['prototype']}{like}"


def _file_name(case: str, taken: set[str]) -> str:
    """Return a file name for a case id, which may hold anything, that no other case has got."""
    stem = re.sub(r"[^\w.-]+", "_", re.sub(r"\.\w{1,5}$", "", case)).strip("._") or "case"
    stem, number, found = stem[-100:], 1, ""
    while not found or found in taken:
        found = stem if number == 1 else f"{stem}-{number}"
        number += 1
    taken.add(found)
    return found


def run_report(args: Any) -> int:
    """Write the report."""
    from protolearn.explain import report

    model = the_model(args.model, args.device)
    train, test = parts(model, args.data, args.test)
    how: dict[str, Any] = {"batch_size": args.batch_size, "quiet": args.quiet or args.json}
    audited = described = None
    if args.audit is not None:
        from protolearn.tasks.audit import ALL, QUICK, audit

        wanted = args.audit if args.audit in (ALL, QUICK) else listed(args.audit)
        audited = audit(model, train if test is None else test, train, metrics=wanted, **how)
    if args.characteristics:
        from protolearn.explain.described import characterise

        described = characterise(model, train, test, **how)
    path = report(
        model, train, test, args.out, audited=audited, described=described, most=args.most, examples=args.examples,
        **how,
    )  # fmt: skip
    if args.json:
        say_json({"model": args.model, "report": str(path)})
    else:
        say(f"{path}: open it in a browser", args.quiet)
    return 0


def run_verify(args: Any) -> int:
    """Compare every prototype with the case it names."""
    from protolearn.data import load_cases
    from protolearn.tasks.verify import verify

    check_positive("batch-size", args.batch_size)
    model = the_model(args.model, args.device)
    result = verify(model, load_cases(args.data), tolerance=args.tolerance, batch_size=args.batch_size)
    if args.json:
        say_json({"model": args.model, "data": args.data, **result.to_dict()})
        return int(not result.ok)
    if args.all or not result.ok:
        say(result.table(everything=args.all))
    say(f"{args.model}: {result.summary()}", args.quiet and result.ok)
    return int(not result.ok)
