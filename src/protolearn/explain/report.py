"""The report: one HTML file that says what a model is, how good it is, and shows what it looks at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from protolearn.audit.classification import ClassificationResult
from protolearn.core.measures import Distance
from protolearn.core.model import PrototypeModel
from protolearn.errors import UsageError
from protolearn.explain import charts
from protolearn.explain.draw import Painter, SourcePictures, View, explanation_picture, index_of
from protolearn.explain.explain import contrast, explanation_dict, weight_table
from protolearn.explain.lettering import number, signed
from protolearn.explain.page import explained_prediction, facts, image, page, pair, section, short, table, text
from protolearn.explain.passes import CaseList, plain_json, whole_file
from protolearn.explain.survey import Survey, explained, survey, telling
from protolearn.structures import Explanation, Source

NEIGHBOURS = 5


def report(
    model: PrototypeModel,
    train: CaseList | None,
    test: CaseList | None = None,
    path: str | Path = "report.html",
    *,
    most: int = 120,
    examples: int = 3,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    quiet: bool = False,
) -> Path:
    """Write one self-contained HTML file about a model: no script, nothing loaded from anywhere.

    Parameters
    ----------
    model : PrototypeModel
        Read, not changed.
    train : Cases or None
        The training cases: prototypes are shown with their sources and nearest cases.
    test : Cases, optional
        What the model is judged by; without it the training cases are, and the report says so.
    path : path
        The file; written under a temporary name and renamed.
    most : int
        Prototypes shown with pictures, spread evenly over the classes; the report says how many there are.
    examples : int
        Best and worst predictions explained, this many of each.
    batch_size, device, quiet
        As usual; progress bars appear when it takes long.

    Returns
    -------
    Path
        Of the file written.

    Raises
    ------
    UsageError
        If there are no cases at all.
    DataError
        If a case has a class the model was not trained on.

    Examples
    --------
    >>> import tempfile
    >>> from protolearn.data import digits
    >>> from protolearn.encoders import SmallEncoder
    >>> from protolearn.methods import get_method
    >>> model = get_method("protopnet")(prototypes_per_class=2).build(SmallEncoder(), 10)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = report(model, None, digits("test").subset(range(20)), f"{folder}/digits.html", quiet=True)
    ...     '<script' in path.read_text(encoding="utf-8")
    False
    """
    if (train is None or not len(train)) and (test is None or not len(test)):
        raise UsageError("a report needs cases: give the training cases, the test cases, or both")
    if most < 0 or examples < 0:
        raise UsageError(f"most and examples must not be negative, got {most} and {examples}")
    found = survey(model, train, test, neighbours=NEIGHBOURS + 1, batch_size=batch_size, device=device, quiet=quiet)
    return write_text(path, _Report(model, train, test, found, most, examples).html())


def save_explanation(
    model: PrototypeModel,
    cases: CaseList,
    index: int,
    path: str | Path,
    *,
    sources: SourcePictures | None = None,
    most: int = 5,
    region: str = "cell",
) -> Path:
    """Write the explanation of one picture, with the runner-up: ``.png``, ``.html`` or ``.json`` by the file's suffix.

    Parameters
    ----------
    model, cases, index
        Which case of which data set (``PictureList`` for a picture that is in none).
    path : path
        The file.
    sources : Cases or callable, optional
        The training cases, or a function from a ``Source`` to its picture; without it prototypes have no picture.
    most : int
        Rows shown.
    region : {"cell", "percentile"}
        What is outlined in pictures: the compared cell, or the hottest five percent's bounding rectangle.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".png", ".html", ".json"):
        raise UsageError(f"an explanation is written as .png, .html or .json, got {path.name!r}")
    explanation, runner_up = contrast(model, cases, [index])[0]
    if suffix == ".json":
        return write_text(path, explanation_json(model, explanation, runner_up))
    painter = Painter(model, sources, region=region)
    picture = cases.picture(index)
    if suffix == ".html":
        return write_text(path, explanation_html(painter, picture, explanation, runner_up, most=most))
    drawn = explanation_picture(painter, picture, explanation, runner_up, most=most)
    with whole_file(path, "the picture") as temporary:
        drawn.save(temporary, "PNG")
    return path


def explanation_html(
    painter: Painter, picture: Any, explanation: Explanation, runner_up: Explanation | None = None, *, most: int = 5
) -> str:
    """Return one explained prediction as a whole HTML page."""
    names = painter.model.classes
    title = f"Looks like {names[explanation.predicted]}: {explanation.case}"
    told = explained_prediction(painter, picture, explanation, runner_up, most=most)
    body = f"<header><div><h1>Why this prediction?</h1>{_how_to_read()}</div></header><main>{told}</main>"
    return page(title, body)


def explanation_json(
    model: PrototypeModel, explanation: Explanation, runner_up: Explanation | None = None, *, most: int | None = None
) -> str:
    """Return one explained prediction as JSON: the explanation, with that of the ``runner_up``."""
    plain = explanation_dict(explanation, model, most)
    plain["runner_up"] = None if runner_up is None else explanation_dict(runner_up, model, most)
    return json.dumps(plain, allow_nan=False, indent=2) + "\n"


def write_text(path: str | Path, content: str) -> Path:
    """Write a file whole or not at all."""
    with whole_file(path, "the page") as temporary:
        temporary.write_text(content, encoding="utf-8")
    return Path(path)


def _how_to_read() -> str:
    return (
        "<p>Each row says: <em>this part of this picture</em> looks like <em>that part of a training picture</em>. "
        "How similar the two are, times the weight the class gives the prototype, is the contribution; all "
        "contributions "
        "(and the bias, where there is one) add up to the class score, the logit. The yellow outline is the cell that "
        "was "
        "compared, the glow the prototype's similarity over the whole picture. "
        '<span class="plus">Blue, plus, solid</span> speaks for the class; '
        '<span class="minus">orange, minus, hatched or dashed</span> against it.</p>'
    )


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


class _Report:
    """One report in the making; every method returns a piece of HTML."""

    def __init__(
        self,
        model: PrototypeModel,
        train: CaseList | None,
        test: CaseList | None,
        found: Survey,
        most: int,
        examples: int,
    ) -> None:
        self.model, self.train, self.test, self.found = model, train, test, found
        self.most, self.examples = most, examples
        self.names, self.bank, self.meta = model.classes, model.bank, dict(model.metadata or {})
        self.painter = Painter(model, train)
        self.judged = found.scored
        self.on_test = found.test is not None and found.test.n > 0
        self.cases = test if self.on_test else train
        self.rows = {key: row for row, key in enumerate(self.bank.ids.tolist())}
        best, worst = telling(self.judged, examples + 1) if self.judged is not None else ([], [])
        # the surest one is the example to learn reading from
        self.first, self.best = self._explained(best[:1]), self._explained(best[1:])
        self.worst = self._explained(worst[:examples])
        cases = test if test is not None and len(test) else train
        if not self.first and not self.worst and cases is not None and len(cases):
            # nothing is labelled: the first cases are shown all the same
            self.cases = cases
            shown = explained(model, cases, [str(i) for i in cases.ids[: examples + 1]])
            self.first, self.best = shown[:1], shown[1:]

    def _explained(self, places: Sequence[int]) -> list[tuple[int, Explanation, Explanation | None]]:
        if self.judged is None or self.cases is None or not places:
            return []
        return explained(self.model, self.cases, [self.judged.ids[i] for i in places])

    def html(self) -> str:
        """Return the document."""
        pieces = [
            ("example", "How to read it", self._example()),
            ("model", "The model", self._about()),
            ("data", "The data", self._data()),
            ("training", "Training", self._training()),
            ("scores", "How good it is", self._scores()),
            ("prototypes", "Prototypes", self._prototypes()),
            ("predictions", "Predictions", self._predictions()),
            ("attention", "Worth a look", self._attention()),
            ("limits", "What this cannot tell", self._limits()),
        ]
        pieces = [(key, title, body) for key, title, body in pieces if body]
        links = "".join(f'<a href="#{key}">{text(title)}</a>' for key, title, _ in pieces)
        sections = "".join(section(key, title, body) for key, title, body in pieces)
        title = f"{self._method_name()} on {self._data_name()}"
        return page(
            title,
            f"<header><div><h1>{short(title, 90)}</h1>{self._summary()}{self._tiles()}</div></header>\n"
            f'<nav aria-label="Sections"><div>{links}</div></nav>\n<main>{sections}</main>\n'
            f"<footer>Written by protolearn {text(_version())}. Everything is in this file; it loads nothing.</footer>",
        )

    # -- the top ----------------------------------------------------------------------------------------------------

    def _method_name(self) -> str:
        method = self.model.method
        return str(getattr(type(method), "__name__", "Prototype model")) if method is not None else "Prototype model"

    def _data_name(self) -> str:
        data = self.meta.get("data")
        named = data.get("name") if isinstance(data, dict) else None
        return str(named or getattr(self.train if self.train is not None else self.test, "name", "its data"))

    def _summary(self) -> str:
        usable, classes = int(self.bank.usable.sum()), len(self.names)
        kinds = f"{classes} classes" if classes != 1 else "one class"
        return (
            f'<p class="soft">It tells {kinds} apart by {usable} prototypes, each a part of a picture it knows. '
            "This page shows what they are, how good the result is, and where to be careful.</p>"
        )

    def _tiles(self) -> str:
        tiles = []
        scores = self.judged
        where = "test" if self.on_test else "training"
        if scores is not None and scores.n:
            assert scores.interval is not None
            low, high = scores.interval
            tiles.append(
                (
                    _percent(scores.accuracy),
                    f"right on {scores.n} {where} cases (95 %: {100 * low:.1f} to {100 * high:.1f})",
                )
            )
            tiles.append((_percent(scores.balanced_accuracy), "balanced accuracy: the mean over classes"))
            tiles.append((number(scores.ece or 0.0, 3), "calibration error: mean gap between sure and right"))
        total, usable = len(self.bank), int(self.bank.usable.sum())
        real = sum(s is not None for s in self.bank.sources)
        tiles.append(
            (str(usable), f"prototypes in use{f' of {total}' if total != usable else ''}, {real} with a real case")
        )
        trouble = len(self._troubles())
        tiles.append((str(trouble), "prototypes worth a look" if trouble != 1 else "prototype worth a look"))
        listed = "".join(f"<li><b>{text(value)}</b><span>{text(words)}</span></li>" for value, words in tiles)
        warned = ""
        if scores is not None and scores.n and not self.on_test:
            warned = (
                '<p class="notice">These scores are on the training cases, which the model has seen: '
                "they say little about new ones. Give test cases to judge it.</p>"
            )
        return f'<ul class="tiles">{listed}</ul>{warned}'

    def _example(self) -> str:
        chosen = (self.first or self.worst)[:1]
        if not chosen or self.cases is None:
            return "<p>There is no case to explain.</p>"
        i, explanation, runner_up = chosen[0]
        return _how_to_read() + explained_prediction(
            self.painter, self.cases.picture(i), explanation, runner_up, most=3
        )

    # -- what it is -------------------------------------------------------------------------------------------------

    def _about(self) -> str:
        model, meta = self.model, self.meta
        method = model.method
        rows: list[tuple[str, str]] = []
        if method is not None:
            rows.append(("Method", f"{text(self._method_name())} (<code>{text(getattr(method, 'slug', ''))}</code>)"))
            rows.append(("Paper", text(getattr(method, "paper", ""))))
            rows.append(("Checked against", text(getattr(method, "verified", ""))))
        spec = _called(model.encoder, "spec")
        rows.append(("Encoder", short(_spec_words(spec) or type(model.encoder).__name__, 120)))
        rows.append(("Compared by", text(_words(model.measure.name))))
        per_class = Counter(self.bank.owner().tolist())
        shared = per_class.pop(-1, 0)
        counts = sorted(set(per_class.values()))
        spread = (
            "" if not counts else f"{counts[0]} a class" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} a class"
        )
        rows.append(
            (
                "Prototypes",
                (
                    f"{len(self.bank)} ({text(spread)}{f', {shared} of no single class' if shared else ''}), "
                    f"{self.bank.vectors.shape[-1]} numbers each"
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

    def _data(self) -> str:
        data = self.meta.get("data")
        data = data if isinstance(data, dict) else {}
        rows = [
            (words, text(data[key]))
            for key, words in (("split", "Split"), ("augment", "Augmentation"))
            if data.get(key)
        ]
        if data.get("digest"):
            rows.append(("Digest of the training data", f"<code>{text(data['digest'])}</code>"))
        parts = [facts(rows)] if rows else []
        columns = [(w, r) for w, r in (("training", self.found.train), ("test", self.found.test)) if r is not None]
        if not columns:
            return "".join(parts)
        largest = max((s.count for _, r in columns for s in r.per_class), default=1) or 1
        body = []
        for c, name in enumerate(self.names):
            cells = [short(name, 60)]
            for _, result in columns:
                count = result.per_class[c].count
                cells.append(f'<span class="share" style="width:{80 * count / largest:.1f}px"></span>{count}')
            body.append(cells)
        body.append(["<em>all</em>", *(f"<b>{r.n}</b>" for _, r in columns)])
        if any(r.unlabelled for _, r in columns):
            body.append(["<em>without a label</em>", *(str(r.unlabelled) for _, r in columns)])
        parts.append(table(["class", *(f"{w} cases" for w, _ in columns)], body))
        told = data.get("cases")
        if (
            isinstance(told, int)
            and self.found.train is not None
            and told != self.found.train.n + self.found.train.unlabelled
        ):
            parts.append(
                f'<p class="notice">The model was trained on {told} cases; the training cases given for this report '
                "are "
                f"{self.found.train.n + self.found.train.unlabelled}.</p>"
            )
        return "".join(parts)

    def _training(self) -> str:
        history = [row for row in self.meta.get("history") or [] if isinstance(row, dict)]
        parts = []
        if history:
            phases = [str(row.get("phase", "")) for row in history]
            stages = [(p, row.get("stage", 0)) for p, row in zip(phases, history, strict=True)]
            marks = {
                float(p["after_epoch"]): "projection"
                for p in self._projections()
                if isinstance(p.get("after_epoch"), int)
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
        parts.append(self._projection_table())
        if not "".join(parts):
            return '<p class="soft">The model carries no record of its training.</p>'
        return "".join(parts)

    def _projections(self) -> list[dict[str, Any]]:
        return [p for p in self.meta.get("projections") or [] if isinstance(p, dict)]

    def _projection_table(self) -> str:
        rows = []
        for k, p in enumerate(self._projections(), 1):
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
                    _percent(before),
                    _percent(after),
                    change,
                ]
            )
        if not rows:
            return ""
        head = [
            "projection",
            "moved",
            "stayed",
            "sharing a token",
            "mean distance moved",
            "accuracy before",
            "after",
            "change",
        ]
        return (
            "<h3>Projections</h3><p>At a projection every prototype becomes the nearest real training token. Accuracy "
            "is on the "
            "training cases, just before and just after; the last layer then adapts.</p>"
            + table(head, rows, numbers=range(1, 8))
        )

    # -- how good ---------------------------------------------------------------------------------------------------

    def _scores(self) -> str:
        scores = self.judged
        if scores is None or not scores.n:
            return "<p>No labelled case was given, so nothing can be said about how often the model is right.</p>"
        where = "test" if self.on_test else "training"
        low, high = scores.interval or (0.0, 1.0)
        parts = [
            f"<p>On {scores.n} {where} cases the model is right {_percent(scores.accuracy)} of the time. With so many "
            "cases, "
            f"anything from {100 * low:.1f} to {100 * high:.1f} % is compatible with that (Wilson, 95 %). "
            + self._other_part()
            + "</p>"
        ]
        rows = []
        for s in scores.per_class:
            span = "–" if s.interval is None else f"{100 * s.interval[0]:.0f} to {100 * s.interval[1]:.0f}"
            rows.append([short(s.name, 60), str(s.count), _percent(s.recall), span, _percent(s.precision)])
        shown = table(
            ["class", "cases", "found (recall)", "95 % range", "right when said (precision)"], rows, numbers=range(1, 5)
        )
        if len(rows) > 40:
            shown = f"<details><summary>All {len(rows)} classes</summary>{shown}</details>"
        sure = (
            "<h3>Does it know how sure it is</h3><p>Each point holds cases about which the model was equally sure. On "
            "the dashed "
            "line it is right as often as it is sure; below it is too sure, above too modest. Large points hold many "
            "cases. "
            f"The mean gap (expected calibration error, 15 bins) is {number(scores.ece or 0.0, 3)}.</p>"
            + charts.reliability_chart(scores.bins)
        )
        parts.append(f'<div class="two"><div><h3>Class by class</h3>{shown}</div><div>{sure}</div></div>')
        parts.append("<h3>Which classes are taken for which</h3>" + self._confusion(scores))
        return "".join(parts)

    def _other_part(self) -> str:
        train = self.found.train
        if not self.on_test or train is None or not train.n:
            return ""
        return f"On the {train.n} training cases it is right {_percent(train.accuracy)} of the time."

    def _confusion(self, scores: ClassificationResult) -> str:
        counts = scores.confusion.tolist()
        pairs = sorted(
            ((counts[r][c], r, c) for r in range(len(counts)) for c in range(len(counts)) if r != c and counts[r][c]),
            key=lambda entry: (-entry[0], entry[1], entry[2]),
        )[:8]
        listed = ""
        if pairs:
            rows = [[short(self.names[r], 60), short(self.names[c], 60), str(n)] for n, r, c in pairs]
            listed = table(["most often, this", "was taken for", "cases"], rows, numbers=[2])
        if len(counts) > 20:
            return f'<div class="two">{charts.confusion_chart(counts)}<div>{listed}</div></div>'
        head = "".join(f'<th scope="col">{short(name, 22)}</th>' for name in self.names)
        body = []
        for r, name in enumerate(self.names):
            total = sum(counts[r]) or 1
            cells = []
            for c, n in enumerate(counts[r]):
                tone = "var(--for)" if r == c else "var(--against)"
                style = (
                    f' style="background:color-mix(in srgb,{tone} {round(8 + 42 * n / total)}%,transparent)"'
                    if n
                    else ""
                )
                cells.append(f"<td{style}>{n if n else '<span class=soft>·</span>'}</td>")
            body.append(f'<tr><th scope="row">{short(name, 30)}</th>{"".join(cells)}</tr>')
        matrix = (
            '<div class="scroll"><table class="confusion"><caption>Rows: the label. Columns: what the model '
            "said.</caption>"
            f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        )
        return f'<div class="two">{matrix}<div>{listed}</div></div>' if listed else matrix

    # -- prototypes -------------------------------------------------------------------------------------------------

    def _prototypes(self) -> str:
        order = self._chosen()
        if not order:
            return "<p>No prototype is shown.</p>" if len(self.bank) else ""
        parts = [
            "<p>Each prototype with the training picture it comes from, and "
            + (
                f"the {NEIGHBOURS} other training cases nearest to it, nearest first. A dashed frame marks a "
                "neighbour of another class."
                if self.found.nearest is not None
                else "its weights. Without the training cases its neighbours cannot be shown."
            )
            + " “In charge”: in how many "
            + ("training" if self.train is not None else "test")
            + " cases it made the largest contribution to the prediction.</p>"
        ]
        if len(order) < len(self.bank):
            parts.append(
                f'<p class="notice calm">{len(order)} of {len(self.bank)} prototypes are shown, those most in charge '
                "of each class.</p>"
            )
        owners = self.bank.owner().tolist()
        groups: dict[int, list[int]] = {}
        for row in order:
            groups.setdefault(owners[row], []).append(row)
        for owner in sorted(groups, key=lambda o: (o < 0, o)):
            name = short(self.names[owner], 80) if owner >= 0 else "of no single class"
            cards = "".join(self._prototype(row) for row in groups[owner])
            parts.append(f'<h3>{name}</h3><div class="protos">{cards}</div>')
        return "".join(parts)

    def _chosen(self) -> list[int]:
        """Return rows to show: most in charge first within a class, classes in turn, then in the bank's order."""
        use, owners = self.found.use, self.bank.owner().tolist()
        by_class: dict[int, list[int]] = {}
        for row in sorted(range(len(self.bank)), key=lambda r: (-int(use.leading[r]), -int(use.among[r]), r)):
            by_class.setdefault(owners[row], []).append(row)
        taken: list[int] = []
        depth = 0
        while len(taken) < min(self.most, len(self.bank)):
            layer = [rows[depth] for rows in by_class.values() if depth < len(rows)]
            taken += layer[: self.most - len(taken)]
            depth += 1
        return sorted(taken)

    def _prototype(self, row: int) -> str:
        key, source = int(self.bank.ids[row]), self.bank.sources[row]
        use = self.found.use
        view, why = self._plain_view(source)
        if view is None:
            shown = f'<div class="absent">{text(why)}</div>'
        else:
            assert source is not None
            shown = pair(view, f"training case {source.case}, source of prototype {key}", close_first=True, side=140)
        origin = f"from {short(source.case, 44)}" if source is not None else text(why)
        if source is not None and why:
            origin += f"<br>{text(why)}"
        numbers = ""
        if use.cases:
            numbers = (
                f"<br>evidence: mean {number(float(use.mean[row]))}, highest {number(float(use.highest[row]))}"
                f"<br>in charge of {int(use.leading[row])} of {use.cases} cases"
            )
        told = f'<div><h4 id="p{key}">Prototype {key}</h4><div class="small soft">{origin}{numbers}</div></div>'
        flags = "".join(f"<li>{text(words)}</li>" for words in self._troubles().get(key, []))
        listed = f'<ul class="flags">{flags}</ul>' if flags else ""
        body = f"{self._near(row)}{self._weights(row)}{listed}"
        return f'<article class="proto"><div class="head">{shown}{told}</div>{body}</article>'

    def _plain_view(self, source: Source | None) -> tuple[View | None, str]:
        """Return the source picture with its cell; a map would cost a pass for each prototype."""
        picture, why = self.painter.source_picture(source)
        return (None, why) if picture is None or source is None else (View(picture, source.region), "")

    def _near(self, row: int) -> str:
        nearest = self.found.nearest
        if nearest is None or self.train is None:
            return ""
        source = self.bank.sources[row]
        own = None if source is None else index_of(self.train, source.case)
        items: list[str] = []
        for k in range(nearest.cases.shape[1]):
            i, label = int(nearest.cases[row, k]), int(nearest.labels[row, k])
            if i < 0 or i == own or len(items) >= NEIGHBOURS:
                continue
            picture = self.train.picture(i)
            box = (
                self.found.cells.box(int(nearest.positions[row, k]), picture.size)
                if self.found.cells is not None
                else None
            )
            name = self.names[label] if label >= 0 else "unlabelled"
            other = (
                label >= 0
                and bool((self.bank.ownership[row] > 0).any())
                and not bool(self.bank.ownership[row, label] > 0)
            )
            value = float(nearest.values[row, k])
            what = "distance" if isinstance(self.model.measure, Distance) else "similarity"
            thumb = image(
                View(picture, box, supports=not other).thumbnail(114),
                f"training case {self.train.ids[i]} of class {name}, {what} {_tidy(value)}",
                lossless=max(picture.size) <= 64,
            )
            kind, sign = (' class="other"', "✗ ") if other else ("", "")
            items.append(f"<li{kind}>{thumb}{sign}{short(name, 18)}<br>{_tidy(value)}</li>")
        return f'<ol class="near">{"".join(items)}</ol>' if items else ""

    def _weights(self, row: int) -> str:
        weight = weight_table(self.model)
        if weight is None:
            return ""
        column = weight[:, row].double().cpu()
        order = column.abs().argsort(descending=True, stable=True).tolist()
        owner = int(self.bank.owner()[row])
        shown = [c for c in order if c == owner] + [c for c in order if c != owner]
        shown = shown[:5]
        listed = ""
        for c in shown:
            sign = "plus" if column[c] >= 0 else "minus"
            listed += f'<li>{short(self.names[c], 30)} <b class="{sign}">{signed(float(column[c]))}</b></li>'
        rest = f"<li>and {len(order) - len(shown)} nearer to 0</li>" if len(order) > len(shown) else ""
        return f'<ul class="weights"><li>Weight for</li>{listed}{rest}</ul>'

    # -- predictions ------------------------------------------------------------------------------------------------

    def _predictions(self) -> str:
        if self.cases is None or not (self.best or self.worst):
            return ""
        parts = []
        labelled = self.judged is not None and self.judged.n > 0
        wrong = [entry for entry in self.worst if entry[1].label != entry[1].predicted]
        unsure = [entry for entry in self.worst if entry[1].label == entry[1].predicted]
        for heading, words, entries in (
            ("Surely right" if labelled else "Some predictions", "", self.best),
            ("Surely wrong", "The wrong predictions the model was surest of: the ones to learn from.", wrong),
            ("Right, but least sure", "", unsure),
        ):
            if not entries:
                continue
            shown = "".join(explained_prediction(self.painter, self.cases.picture(i), e, r) for i, e, r in entries)
            parts.append(f"<h3>{heading}</h3>{f'<p>{words}</p>' if words else ''}{shown}")
        if labelled and not wrong:
            parts.append("<p>No prediction was wrong.</p>")
        return "".join(parts)

    # -- what to be careful with --------------------------------------------------------------------------------------

    def _troubles(self) -> dict[int, list[str]]:
        """Return what is suspicious about each prototype, by id."""
        if not hasattr(self, "_known_troubles"):
            found: dict[int, list[str]] = {}
            for key, reason in self.found.dead.items():
                found.setdefault(key, []).append(f"Dead: {reason}.")
            for group in self.found.shared:
                for key in group:
                    others = _ids([o for o in group if o != key])
                    found.setdefault(key, []).append(f"Redundant: stands on the same token as prototype {others}.")
            shared = {frozenset(p) for g in self.found.shared for p in [(a, b) for a in g for b in g if a < b]}
            for near in self.found.pairs:
                if frozenset((near.left, near.right)) in shared:
                    continue
                for key, other in ((near.left, near.right), (near.right, near.left)):
                    figures = f"({near.value:.2g}; a usual pair: {near.usual:.2g})"
                    told = f"Redundant: hardly differs from prototype {other} {figures}."
                    found.setdefault(key, []).append(told)
            for key in self.found.impure:
                found.setdefault(key, []).append("Impure: most of its nearest training cases are of other classes.")
            for key, source, usable in zip(
                self.bank.ids.tolist(), self.bank.sources, self.bank.usable.tolist(), strict=True
            ):
                if source is None and usable:
                    found.setdefault(key, []).append(
                        "No training case behind it: it was never projected, or was merged."
                    )
                elif usable and self.painter.sources is not None and self._plain_view(source)[1]:
                    found.setdefault(key, []).append(f"Source in doubt: {self._plain_view(source)[1]}.")
            self._known_troubles = dict(sorted(found.items()))
        return self._known_troubles

    def _attention(self) -> str:
        parts = []
        warned = [str(w) for w in self.meta.get("warnings") or []]
        if warned:
            listed = "".join(f'<li class="notice">{text(words)}</li>' for words in warned)
            parts.append(f'<h3>Warnings given during training</h3><ul class="notices">{listed}</ul>')
        troubles = self._troubles()
        if troubles:
            owners = self.bank.owner().tolist()
            shown = {int(self.bank.ids[row]) for row in self._chosen()}
            rows = []
            for key, reasons in troubles.items():
                owner = owners[self.rows[key]]
                link = f'<a href="#p{key}">{key}</a>' if key in shown else str(key)
                named = short(self.names[owner], 40) if owner >= 0 else "none"
                rows.append([link, named, "<br>".join(text(reason) for reason in reasons)])
            listed = table(["prototype", "class", "what"], rows)
            body = (
                listed if len(rows) <= 30 else f"<details><summary>{len(rows)} prototypes</summary>{listed}</details>"
            )
            parts.append(f"<h3>Prototypes</h3>{body}")
        elif len(self.bank):
            parts.append("<p>No prototype looks redundant, dead, impure or without a source.</p>")
        return "".join(parts)

    def _limits(self) -> str:
        scores = self.judged
        small = ""
        if scores is not None and scores.n:
            low, high = scores.interval or (0.0, 1.0)
            small = (
                f"<li>{scores.n} cases leave the accuracy uncertain by about {50 * (high - low):.1f} points either "
                "way, and more "
                "within a class. Cases of one patient, photographer or place on both sides of a split would make it "
                "look better "
                "than it is; this page cannot see that.</li>"
            )
        return (
            "<ul>"
            "<li>An outlined cell is where the features were compared, not all they saw: deep features draw on pixels "
            "far beyond "
            "their cell (the receptive field).</li>"
            "<li>A glow is a coarse map of a few cells, enlarged smoothly. Its fine edges are not information.</li>"
            "<li>The arithmetic is exact: contributions add up to the score. That two regions are similar <em>to the "
            "model</em> does "
            "not say in which respect (colour, shape, background); compare the pictures yourself.</li>"
            "<li>Similar background counts like similar objects. Look whether outlines lie on what should matter.</li>"
            "<li>What matters for one prediction is shown for a few cases, chosen by how sure the model was, not at "
            "random.</li>"
            f"{small}</ul>"
        )


def _version() -> str:
    from protolearn import __version__

    return __version__


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


def _ids(keys: Sequence[int]) -> str:
    return ", ".join(map(str, keys[:8])) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")


def _real(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _tidy(value: float) -> str:
    if 0 < abs(value) < 0.0005:
        return "< 0.001"
    return number(value, 3) if abs(value) < 10 else number(value, 1)


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
