"""What a report says of the model, its data and its training: from the model's own record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from protolearn.explain import charts
from protolearn.explain.gathered import Gathered
from protolearn.explain.lettering import number, percent, signed
from protolearn.explain.page import facts, short, table, text
from protolearn.explain.passes import plain_json


def about(known: Gathered) -> str:
    """Return what the model is."""
    model, meta = known.model, known.meta
    method = model.method
    rows: list[tuple[str, str]] = []
    if method is not None:
        rows.append(("Method", f"{text(known.method_name)} (<code>{text(getattr(method, 'slug', ''))}</code>)"))
        rows.append(("Paper", text(getattr(method, "paper", ""))))
        rows.append(("Checked against", text(getattr(method, "verified", ""))))
    spec = _called(model.encoder, "spec")
    rows.append(("Encoder", short(_spec_words(spec) or type(model.encoder).__name__, 120)))
    rows.append(("Compared by", text(_words(model.measure.name))))
    per_class = Counter(known.bank.owner().tolist())
    shared = per_class.pop(-1, 0)
    counts = sorted(set(per_class.values()))
    spread = (
        "" if not counts else f"{counts[0]} a class" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} a class"
    )
    parts = (spread, f"{shared} of no single class" if shared else "")
    rows.append(
        (
            "Prototypes",
            (
                f"{len(known.bank)} ({text(', '.join(filter(None, parts)))}), "
                f"{known.bank.vectors.shape[-1]} numbers each"
            ),
        )
    )
    learned = sum(p.numel() for p in model.parameters())
    rows.append(("Parameters", f"{learned:,}"))
    for key, words in (("seed", "Seed"), ("date", "Trained on")):
        if meta.get(key) is not None:
            rows.append((words, text(meta[key])))
    versions = meta.get("versions")
    if isinstance(versions, dict):
        rows.append(("Versions", text(", ".join(f"{k} {v}" for k, v in versions.items()))))
    more = ""
    settings = _called(method, "settings")
    for words, plain in (
        ("All settings", settings),
        ("Encoder settings", spec),
        ("Training options", meta.get("options")),
    ):
        if plain:
            listed = text(json.dumps(plain_json(plain), indent=1))
            more += f"<details><summary>{words}</summary><pre>{listed}</pre></details>"
    return facts(rows) + more


def data(known: Gathered) -> str:
    """Return what it was trained and judged on."""
    kept = known.meta.get("data")
    kept = kept if isinstance(kept, dict) else {}
    rows = [
        (words, text(kept[key])) for key, words in (("split", "Split"), ("augment", "Augmentation")) if kept.get(key)
    ]
    if kept.get("digest"):
        rows.append(("Digest of the training data", f"<code>{text(kept['digest'])}</code>"))
    parts = [facts(rows)] if rows else []
    columns = [(w, r) for w, r in (("training", known.found.train), ("test", known.found.test)) if r is not None]
    if not columns:
        return "".join(parts)
    largest = max((s.count for _, r in columns for s in r.per_class), default=1) or 1
    body = []
    for c, name in enumerate(known.names):
        cells = [short(name, 60)]
        for _, result in columns:
            count = result.per_class[c].count
            cells.append(f'<span class="share" style="width:{80 * count / largest:.1f}px"></span>{count}')
        body.append(cells)
    body.append(["<em>all</em>", *(f"<b>{r.n}</b>" for _, r in columns)])
    if any(r.unlabelled for _, r in columns):
        body.append(["<em>without a label</em>", *(str(r.unlabelled) for _, r in columns)])
    parts.append(table(["class", *(f"{w} cases" for w, _ in columns)], body))
    told = kept.get("cases")
    if (
        isinstance(told, int)
        and known.found.train is not None
        and told != known.found.train.n + known.found.train.unlabelled
    ):
        parts.append(
            f'<p class="notice">The model was trained on {told} cases; the training cases given for this report '
            f"are {known.found.train.n + known.found.train.unlabelled}.</p>"
        )
    return "".join(parts)


def training(known: Gathered) -> str:
    """Return how training went: curves and projections."""
    history = [row for row in known.meta.get("history") or [] if isinstance(row, dict)]
    parts = []
    if history:
        phases = [str(row.get("phase", "")) for row in history]
        stages = [(p, row.get("stage", 0)) for p, row in zip(phases, history, strict=True)]
        marks = {
            float(p["after_epoch"]): "projection" for p in _projections(known) if isinstance(p.get("after_epoch"), int)
        }
        drawn = []
        for title, names in _curves(history).items():
            series = {label: [_real(row.get(name)) for row in history] for label, name in names.items()}
            drawn.append(charts.line_chart(title, series, phases=phases, marks=marks))
        order = " → ".join(f"{_words(name)} ({count})" for name, count in _blocks(stages))
        parts.append(
            f"<p>{len(history)} epochs: {text(order)}."
            + (" Dashed upright lines: projections.</p>" if marks else "</p>")
        )
        parts.append(f'<div class="charts">{"".join(drawn)}</div>')
    parts.append(_projection_table(known))
    if not "".join(parts):
        return '<p class="soft">The model carries no record of its training.</p>'
    return "".join(parts)


def _projections(known: Gathered) -> list[dict[str, Any]]:
    return [p for p in known.meta.get("projections") or [] if isinstance(p, dict)]


def _projection_table(known: Gathered) -> str:
    rows = []
    for k, p in enumerate(_projections(known), 1):
        twins = p.get("duplicates")
        twins = sum(map(len, twins)) if isinstance(twins, list) else twins
        before, after = _real(p.get("accuracy_before")), _real(p.get("accuracy_after"))
        change = "–" if before is None or after is None else f"{signed(100 * (after - before), 1)} points"
        kept = p.get("kept")
        rows.append(
            [
                str(k),
                text(p.get("moved", "–")),
                text(len(kept) if isinstance(kept, list) else "–"),
                text(twins if twins is not None else "–"),
                _number_or_dash(_real(p.get("mean_distance"))),
                percent(before),
                percent(after),
                change,
            ]
        )
    if not rows:
        return ""
    stayed = any(source is not None and not source.moved for source in known.bank.sources)
    what = (
        "At a projection every prototype becomes the nearest real training token. Accuracy is "
        "on the training cases, just before and just after; the last layer then adapts."
    )
    if stayed:
        what = "The training case nearest to each prototype was looked up and recorded. No prototype moved."
    head = [
        "search" if stayed else "projection",
        "found" if stayed else "moved",
        "without one" if stayed else "stayed",
        "sharing a token",
        "mean distance" if stayed else "mean distance moved",
        "accuracy before",
        "after",
        "change",
    ]
    return f"<h3>{'Nearest cases' if stayed else 'Projections'}</h3><p>{what}</p>" + table(
        head, rows, numbers=range(1, 8)
    )


def _called(thing: Any, name: str) -> Any:
    method = getattr(thing, name, None)
    if not callable(method):
        return None
    try:
        return method()
    except NotImplementedError:
        return None


def _spec_words(spec: Any) -> str:
    if not isinstance(spec, dict):
        return ""
    first = [str(spec[k]) for k in ("encoder", "name") if spec.get(k)]
    rest = [
        f"{k} {v}"
        for k, v in spec.items()
        if k not in ("encoder", "name", "preprocess") and isinstance(v, str | int | float)
    ]
    return ", ".join([" ".join(first), *rest]) if first else ""


def _words(name: str) -> str:
    return name.replace("_", " ")


def _real(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _number_or_dash(value: float | None) -> str:
    return "–" if value is None else number(value, 3)


def _blocks(stages: Sequence[tuple[str, Any]]) -> list[tuple[str, int]]:
    blocks: list[tuple[tuple[str, Any], int]] = []
    for stage in stages:
        if blocks and blocks[-1][0] == stage:
            blocks[-1] = (stage, blocks[-1][1] + 1)
        else:
            blocks.append((stage, 1))
    return [(name, count) for (name, _), count in blocks]


def _curves(history: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Return chart title -> {line label -> column}: training and validation of one quantity share a chart."""
    columns = [
        name
        for name in dict.fromkeys(key for row in history for key in row)
        if name not in ("phase", "stage", "epoch") and not name.startswith("rate_")
        and any(_real(row.get(name)) is not None for row in history)
    ]  # fmt: skip
    charts_: dict[str, dict[str, str]] = {}
    for name in columns:
        part, quantity = "training", name
        for prefix, words in (("validation_", "validation"), ("val_", "validation"), ("train_", "training")):
            if name.startswith(prefix):
                part, quantity = words, name.removeprefix(prefix)
        charts_.setdefault(_words(quantity).capitalize(), {})[part] = name
    first = [t for t in ("Accuracy", "Loss") if t in charts_]
    return {t: charts_[t] for t in [*first, *(t for t in charts_ if t not in first)]}
