"""What the explanations of several methods are worth: every metric of the audit, on bird parts and on white-cell masks.

    python results/audits.py [--only SLUG ...] [--sets birds wbc] [--cases 12]
    python results/audits.py --table                   # print the tables of what is in the receipt

Models: each method with its recipe "frozen" on MobileNetV2's ImageNet features (its last map, 7 x 7 cells at 224 px),
trained with seed 0; a second one with seed 1 is the twin for cross-run stability. The test part is audited: birds with
15 key points and a box, cells with a mask. Metrics that run altered pictures (deletion, insertion, faithfulness,
continuity under shifts) see the first ``--cases`` test cases, spread over the classes, and deletion and insertion have
the zero substrate alone, to be affordable on a processor; all others see all of them. Textures are the outside cases.
Results are added to ``audits.json`` as they come; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, data_folder, load, made, make_encoder

from protolearn.audit.metric import METRICS, make_metric
from protolearn.audit.result import AuditResult, figure
from protolearn.audit.subject import subject_of
from protolearn.core.model import PrototypeModel
from protolearn.data import Annotation, arrays
from protolearn.data.cases import Cases
from protolearn.explain.passes import inputs_over
from protolearn.methods import get_method
from protolearn.tasks.audit import audit
from protolearn.tasks.audit_marks import marks_of
from protolearn.training.fit import fit
from protolearn.training.record import TrainingWarning

SIZE = 224
LONG = object()
BESIDE: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "pointing_game": (("own maps of prototypes", ("own maps, mean over prototypes",)),),
    "oirr": (("own maps of prototypes", ("own maps, mean over prototypes",)),),
    "purity": (("patches at random places", ("purity of patches at random places",)),),
    "keypoint_nmi": (("key points dealt at random", ("key points dealt at random",)),),
    "continuity": (("regions laid at random", ("overlap of two regions laid at random",)),),
    "cross_run_stability": (
        ("the second model shuffled", ("Jaccard index if the second model's cases were shuffled",)),
    ),
    "ood_abstention": (("AUROC", ("AUROC",)),),
    "deletion": (("cells at random, less this", ("zero", "random cells less salient first")),),
    "insertion": (("this, less cells at random", ("zero", "salient first less random cells")),),
    "prototype_faithfulness": (("a cell at random", ("a cell at random", "Pearson correlation")),),
}
"""Rows of the table that stand beside a metric: words, and where the figure is among its extras."""
METHODS = (
    "protopnet", "pipnet", "eval-protopnet", "prototree", "cbc", "st-protopnet",
)  # fmt: skip


def marked(name: str, part: str) -> Cases:
    """Return a part with its marks: key points and boxes of birds come with them, masks of cells are added here."""
    cases = load(name, part)
    if name == "birds":
        return cases
    with np.load(data_folder() / "wbc_tecom" / "wbc_tecom.npz", allow_pickle=False) as z:
        masks = z["mask"]
    found = {case: Annotation(mask=(masks[int(case.split("/")[1])] > 0).astype(np.uint8)) for case in cases.ids}
    return cases.with_annotations(found)


def textures() -> Cases:
    """Return the test pictures of six textures: nothing that any model here was trained on."""
    with np.load(data_folder() / "textures6" / "textures6.npz", allow_pickle=False) as z:
        pictures = z["x_test"]
    return arrays(pictures, np.full(len(pictures), -1), classes=["none"], name="textures6/test")


def spread(cases: Cases, count: int) -> Cases:
    """Return about ``count`` cases, the first of each class in turn."""
    rank = np.zeros(len(cases), dtype=int)
    for label in range(len(cases.classes)):
        rows = np.flatnonzero(cases.labels == label)
        rank[rows] = np.arange(len(rows))
    return cases.subset(np.sort(np.argsort(rank, kind="stable")[:count]))


def trained(slug: str, train: Cases, seed: int, cache: Path | None) -> PrototypeModel:
    """Return the method's frozen recipe, trained."""
    cls = get_method(slug)
    recipe = cls.recipes["frozen"]
    options = {**recipe.options, "views": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        fitted = fit(
            cls(**recipe.method), train, encoder=make_encoder(layer="final", size=SIZE), seed=seed, device="cpu",
            quiet=True, cache=cache, **options,
        )  # fmt: skip
    return fitted.model


def plain(found: AuditResult) -> dict[str, Any]:
    """Return what a receipt keeps: figures, intervals, counts and short extras, nothing per case."""
    kept = found.to_dict()
    for entry in kept["metrics"].values():
        del entry["per_case"], entry["per_prototype"], entry["variant"], entry["source"], entry["title"]
        entry["extras"] = small(entry["extras"])
    return {"metrics": kept["metrics"], "refused": kept["refused"], "facts": kept["facts"],
            "accuracy": found.classified.accuracy, "interval": found.classified.interval}  # fmt: skip


def small(value: Any) -> Any:
    """Return an extra without what is long: figures, words, pairs, and tables of them."""
    if isinstance(value, dict):
        kept = {key: small(inner) for key, inner in value.items() if len(value) <= 20}
        return {key: inner for key, inner in kept.items() if inner is not LONG}
    if isinstance(value, int | float | str) or value is None or (isinstance(value, list) and len(value) == 2):
        return value
    return LONG


@torch.no_grad()
def encoder_alone(name: str) -> dict[str, float]:
    """Return where the encoder's own map is strong, whatever the prototypes: the length of its tokens, by place."""
    cases, encoder = marked(name, "test"), make_encoder(layer="final", size=SIZE).eval()
    found: list[list[float]] = []
    for indices, inputs, sizes in inputs_over(cases, encoder.preprocess, batch_size=16):
        tokens = encoder(inputs)
        lengths = tokens.values.norm(dim=2).unflatten(1, tokens.grid)
        marks = marks_of(cases, indices, sizes, (SIZE, SIZE), encoder.preprocess, (), objects=True)
        share = torch.nn.functional.adaptive_avg_pool2d(marks.objects.float().unsqueeze(1), tokens.grid).squeeze(1)
        for length, object_share in zip(lengths, share, strict=True):
            on = object_share >= 0.5
            if on.any() and not on.all():
                corners = length[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
                best = on.flatten()[length.argmax()]
                found.append([float(v) for v in (best, length[on].mean(), length[~on].mean(), corners)])
    words = ("strongest cell on the object", "length on the object", "length off it", "length in the corners")
    return {"cases": len(found), **dict(zip(words, np.mean(found, 0).tolist(), strict=True))}


def once(slug: str, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train twice, audit once."""
    train, test = marked(name, "train"), marked(name, "test")
    start = time.perf_counter()
    model, twin = (trained(slug, train, seed, args.cache) for seed in (0, 1))
    between = time.perf_counter()
    wanted = args.again or list(METRICS)
    quick = [n for n in wanted if not METRICS[n].about.costly]
    costly = [n for n in wanted if METRICS[n].about.costly]
    outside, entry = textures(), {}
    for names, cases in ((quick, test), (costly, spread(test, args.cases))):
        if not names:
            continue
        chosen = [
            make_metric(n, substrates=("zero",)) if n in ("deletion", "insertion") else make_metric(n)
            for n in runnable(names, name, model)
        ]
        found = audit(model, cases, train, metrics=chosen, outside=outside, twin=twin, batch_size=32)
        part = plain(found)
        figures = {key: {**value, "cases": len(cases)} for key, value in part["metrics"].items()}
        entry = {**(entry or part), "metrics": {**entry.get("metrics", {}), **figures}}
    entry["seconds"] = {"training": round(between - start), "audit": round(time.perf_counter() - between)}
    return entry


def runnable(names: list[str], data: str, model: PrototypeModel) -> list[str]:
    """Return the metrics that the marks of a set and the model allow; a shift of the same cases is not made here."""
    lacking = {"shifted"} | ({"points"} if data == "wbc" else set())
    lacking |= {need for need in ("weights", "vectors") if getattr(subject_of(model), need) is None}
    return [name for name in names if not lacking & set(METRICS[name].about.needs)]


def table(receipt: dict[str, Any]) -> str:
    """Return the figures in Markdown, one table a set, metrics in the order of the audit."""
    parts = []
    for name, entries in receipt["sets"].items():
        slugs = list(entries)
        names = list(dict.fromkeys(metric for entry in entries.values() for metric in entry["metrics"]))
        lines = [f"**{name}**", "", f"| metric | better | {' | '.join(slugs)} |", "|---|---|" + "---|" * len(slugs)]
        shares = [f"{100 * entry['accuracy']:.1f}" for entry in entries.values()]
        lines.append(f"| *accuracy, %* | higher | {' | '.join(shares)} |")
        for metric in names:
            cells, better = [], ""
            for entry in entries.values():
                found = entry["metrics"].get(metric)
                better = found["better"] if found else better
                cells.append("" if found is None else cell(found))
            lines.append(f"| {metric} | {better} | {' | '.join(cells)} |")
            for words, path in BESIDE.get(metric, ()):
                cells = [beside(entry["metrics"].get(metric), path) for entry in entries.values()]
                lines.append(f"| *- {words}* | | {' | '.join(cells)} |")
        alone = receipt["encoder"][name]
        told = (
            f"The encoder alone, {alone['cases']} pictures: its strongest cell lies on the object in "
            f"{100 * alone['strongest cell on the object']:.0f} %; mean length of a token on the object "
            f"{alone['length on the object']:.1f}, off it {alone['length off it']:.1f}, in the corners "
            f"{alone['length in the corners']:.1f}."
        )
        lines += ["", told]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def beside(found: dict[str, Any] | None, path: tuple[str, ...]) -> str:
    """Return a figure among a metric's extras, with the interval that stands by it, if there is one."""
    inner: Any = {} if found is None else found["extras"]
    for key in path[:-1]:
        inner = inner.get(key, {})
    value, pair = inner.get(path[-1]), inner.get(f"{path[-1]}, interval over cases")
    span = "" if pair is None else f" ({figure(pair[0], 2)} to {figure(pair[1], 2)})"
    return "" if value is None else f"{figure(value, 2)}{span}"


def cell(found: dict[str, Any]) -> str:
    """Return a figure with its interval over cases, or over prototypes where cases have none."""
    pair = found["over_cases"] or found["over_prototypes"]
    span = "" if pair is None or found["value"] is None else f" ({figure(pair[0], 2)} to {figure(pair[1], 2)})"
    return f"{figure(found['value'], 2)}{span}"


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["birds", "wbc"], choices=["birds", "wbc"])
    parser.add_argument("--only", nargs="+", default=list(METHODS))
    parser.add_argument("--cases", type=int, default=12, help="for the metrics that run altered pictures")
    parser.add_argument("--cache", type=Path, default=None, help="folder that keeps the frozen tokens between runs")
    parser.add_argument("--again", nargs="+", default=[], help="run these metrics again for what is in the receipt")
    parser.add_argument("--out", type=Path, default=ROOT / "audits.json")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    receipt = (
        json.loads(args.out.read_text())
        if args.out.exists()
        else {"made": made("python results/audits.py"), "sets": {}}
    )
    if not args.table:
        for name in args.sets:
            receipt.setdefault("encoder", {})[name] = encoder_alone(name)
        for slug in args.only:
            for name in args.sets:
                entries = receipt["sets"].setdefault(name, {})
                if slug in entries and not args.again:
                    continue
                found = once(slug, name, args)
                if args.again:
                    entries[slug]["metrics"] |= found["metrics"]
                else:
                    entries[slug] = found
                temporary = args.out.with_suffix(".part")
                temporary.write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
                temporary.replace(args.out)
                print(name, slug, found["seconds"], flush=True)
    print(table(receipt))


if __name__ == "__main__":
    main()
