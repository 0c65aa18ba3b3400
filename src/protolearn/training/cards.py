"""The parts of a model folder that people read: the table of prototypes, their pictures, the model card."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image, ImageDraw

from protolearn.core.model import PrototypeModel
from protolearn.data import Cases, content_hash, read_picture
from protolearn.errors import DataError, ModelFileError
from protolearn.structures import Box, Source

COLUMNS = (
    "prototype", "class", "active", "banned", "count", "weight", "case", "content", "position", "x0", "y0", "x1", "y1",
    "distance", "encoder",
)  # fmt: skip
_CHECKED = ("class", "active", "banned", "case", "content", "position", "encoder")
_LARGEST_SIDE, _CROP_SIDE, _SMALLEST_SIDE = 512, 192, 192
_MARK = (230, 60, 20)
_MOST_IN_CARD = 60
_KEPT_PIXELS, _KEPT_BYTES = 4_000_000, 64 * 2**20
PICTURES = "cases"


def prototype_table(model: PrototypeModel) -> str:
    """Return ``prototypes.csv``: one row a prototype, empty cells where it comes from no case."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table_rows(model))
    return text.getvalue()


def table_rows(model: PrototypeModel) -> list[dict[str, Any]]:
    """Return the rows of the table, as text and numbers."""
    bank = model.bank
    weights = own_weights(model)
    rows = []
    for row, key in enumerate(bank.ids.tolist()):
        source = bank.sources[row]
        region = ("", "", "", "") if source is None or source.region is None else source.region
        rows.append(
            {
                "prototype": key,
                "class": owners(model, row),
                "active": int(bank.active[row]),
                "banned": int(bank.banned[row]),
                "count": f"{float(bank.counts[row]):g}",
                "weight": "" if weights[row] is None else f"{weights[row]:.6g}",
                "case": "" if source is None else source.case,
                "content": "" if source is None else source.content,
                "position": "" if source is None else source.position,
                **dict(zip(("x0", "y0", "x1", "y1"), (_number(side) for side in region), strict=True)),
                "distance": "" if source is None else f"{source.distance:.6g}",
                "encoder": "" if source is None else source.encoder,
            }
        )
    return rows


def check_table(model: PrototypeModel, text: str, path: Path) -> None:
    """Fail when a table of prototypes tells another story than the weights beside it."""
    rows = table_rows(model)
    advice = "delete it, or save the model again"
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        found = list(reader)
    except csv.Error as error:
        raise ModelFileError(f"{path}: not a table ({error}); {advice}") from error
    missing = [name for name in ("prototype", *_CHECKED) if name not in (reader.fieldnames or ())]
    if missing:
        raise ModelFileError(f"{path} lacks the column {missing[0]!r}; {advice}")
    if len(found) != len(rows):
        raise ModelFileError(f"{path} lists {len(found)} prototypes, the weights hold {len(rows)}; {advice}")
    by_id = {entry["prototype"]: entry for entry in found}
    for row in rows:
        entry = by_id.get(str(row["prototype"]))
        if entry is None:
            raise ModelFileError(f"{path} lacks prototype {row['prototype']}; {advice}")
        for name in _CHECKED:
            if _unix(entry[name] or "") != _unix(str(row[name])):
                raise ModelFileError(
                    f"{path}: {name!r} of prototype {row['prototype']} is not what the weights say; {advice}"
                )


def _unix(value: str) -> str:
    return value.replace("\r\n", "\n")  # a spreadsheet writes line ends its own way


def _number(value: Any) -> str:
    return "" if value == "" else f"{float(value):g}"


def owners(model: PrototypeModel, row: int) -> str:
    """Return the names of the classes that own a prototype, joined by `` + ``."""
    return " + ".join(model.classes[c] for c in (model.bank.ownership[row] > 0).nonzero().squeeze(1).tolist())


@torch.no_grad()
def own_weights(model: PrototypeModel) -> list[float | None]:
    """Return what one unit of each prototype's evidence adds to its class (the first of several), None without one."""
    bank = model.bank
    per_unit = model.head.per_unit(len(bank), bank.usable)  # (C, P)
    if per_unit is None:
        return [None] * len(bank)
    owned = bank.ownership > 0
    first = owned.int().argmax(1)
    values = per_unit.gather(0, first.unsqueeze(0))[0].tolist()
    return [value if has else None for value, has in zip(values, owned.any(1).tolist(), strict=True)]


def draw_cases(model: PrototypeModel, cases: Cases, folder: Path) -> dict[int, tuple[str, str]]:
    """Draw each prototype's case with its place marked, and the place alone; return the file names by prototype id.

    Only the very picture a prototype was made from is drawn: same id, same content. The picture itself is kept beside,
    unless it is very large, so that the folder can explain predictions without the data (:func:`kept_picture`). Files
    are named after prototype ids and hashes, never after case ids, which may hold anything.
    """
    drawn: dict[int, tuple[str, str]] = {}
    room = _KEPT_BYTES
    for key, source in zip(model.bank.ids.tolist(), model.bank.sources, strict=True):
        if source is None or source.region is None:
            continue
        try:
            place = cases.index(source.case)
            if cases.content(place) != source.content:
                continue
            picture = cases.picture(place)
        except (DataError, KeyError):
            continue
        folder.mkdir(exist_ok=True)
        names = (f"{key:05d}.png", f"{key:05d}_place.png")
        marked(picture, source.region).save(folder / names[0])
        cut_out(picture, source.region).save(folder / names[1])
        drawn[key] = names
        kept = folder / _kept_name(source)
        if not kept.exists() and picture.width * picture.height <= _KEPT_PIXELS and room > 0:
            picture.save(kept)
            room -= kept.stat().st_size
    return drawn


def kept_picture(folder: Path, source: Source) -> Image.Image | None:
    """Return the picture behind a prototype from a model's own folder; None where that very picture is not there."""
    path = folder / PICTURES / _kept_name(source)
    if not re.fullmatch("[0-9a-f]{64}", source.content) or path.is_symlink() or not path.is_file():
        return None
    try:
        picture = read_picture(path)
    except DataError:
        return None
    return picture if content_hash(picture) == source.content else None


def _kept_name(source: Source) -> str:
    return f"picture_{source.content[:16]}.png"


def marked(picture: Image.Image, region: Box) -> Image.Image:
    """Return a picture of a size to look at, with a frame around a region."""
    scale = min(1.0, _LARGEST_SIDE / max(picture.size))
    if max(picture.size) < _SMALLEST_SIDE:
        scale = _SMALLEST_SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    shown = picture.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
    x0, y0, x1, y1 = (side * scale for side in region)
    draw = ImageDraw.Draw(shown)
    width = max(2, round(max(size) / 128))
    draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=(255, 255, 255), width=width + 2)
    draw.rectangle((x0 + 1, y0 + 1, max(x0 + 1, x1 - 2), max(y0 + 1, y1 - 2)), outline=_MARK, width=width)
    return shown


def cut_out(picture: Image.Image, region: Box) -> Image.Image:
    """Return a region alone, at a size to look at."""
    x0, y0 = max(0, int(region.x0)), max(0, int(region.y0))
    x0, y0 = min(x0, picture.width - 1), min(y0, picture.height - 1)
    x1 = min(picture.width, max(x0 + 1, round(region.x1)))
    y1 = min(picture.height, max(y0 + 1, round(region.y1)))
    part = picture.convert("RGB").crop((x0, y0, x1, y1))
    scale = _CROP_SIDE / max(part.size)
    size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    return part.resize(size, Image.Resampling.NEAREST if scale > 4 else Image.Resampling.LANCZOS)


def model_card(
    model: PrototypeModel, metadata: Mapping[str, Any], drawn: Mapping[int, tuple[str, str]], *, had_cases: bool
) -> str:
    """Return ``README.md``: what the model is, from what, how good, its prototypes, how to load it."""
    method = model.method
    assert method is not None
    scores = metadata.get("metrics") or {}
    data = metadata.get("data") if isinstance(metadata.get("data"), Mapping) else {}
    assert isinstance(data, Mapping)
    encoder = model.encoder.spec()
    encoder_name = str(encoder.get("name") or encoder.get("encoder") or type(model.encoder).__name__)
    sourced = sum(source is not None for source in model.bank.sources)
    lines = [
        _front_matter(method.slug, scores, data),
        f"# {_text(type(method).__name__)} on {_text(data.get('name') or 'data without a name')}",
        "",
        f"A model that reasons by cases: a picture is compared with {len(model.bank)} prototypes of",
        f"{len(model.classes)} classes; {sourced} of them are places in real training cases. The prediction is the sum",
        "of what each prototype adds, so the comparison is the explanation.",
        "",
        f"- method: `{method.slug}`, {_text(method.paper)}",
        f"- encoder: `{_code(encoder_name)}`",
        f"- seed: {_text(metadata.get('seed', 'not recorded'))}",
        f"- trained: {_text(metadata.get('date', 'not recorded'))}",
    ]
    if versions := metadata.get("versions"):
        shown = (
            ", ".join(f"{name} {version}" for name, version in versions.items())
            if isinstance(versions, Mapping)
            else ""
        )
        lines.append(f"- versions: {_text(shown)}")
    lines += ["", "## Scores", ""]
    numbers = {name: value for name, value in scores.items() if isinstance(value, int | float)}
    if numbers:
        lines += ["| score | value |", "|---|---|"]
        lines += [f"| {_text(name)} | {value:.4g} |" for name, value in numbers.items()]
    else:
        lines.append("None recorded.")
    lines += ["", "## Data", ""]
    for name in ("name", "cases", "split", "digest"):
        if data.get(name) is not None:
            lines.append(f"- {name}: {_text(data[name])}")
    counts = data.get("classes") if isinstance(data.get("classes"), Mapping) else {}
    assert isinstance(counts, Mapping)
    lines += ["", "| class | training cases | prototypes |", "|---|---|---|"]
    owned = (model.bank.ownership > 0).sum(0).tolist()
    for name, number in zip(model.classes, owned, strict=True):
        lines.append(f"| {_text(name)} | {_text(counts.get(name, ''))} | {number} |")
    lines += ["", "## Prototypes", "", *_prototypes(model, drawn, had_cases), "", "## Use", ""]
    lines += [
        "```python",
        "import protolearn",
        "",
        'model = protolearn.load("path/to/this/folder")',
        "```",
        "",
        "```sh",
        "protolearn predict path/to/this/folder picture.png",
        "protolearn explain path/to/this/folder picture.png --out explained",
        "protolearn verify path/to/this/folder path/to/the/training/data",
        "```",
        "",
        "`verify` recomputes every prototype from the case it names and fails when one does not match.",
        "`config.yaml` holds all settings, `prototypes.csv` every",
        "prototype with its source, `metrics.json` scores and training history.",
        "",
    ]
    return "\n".join(lines)


def _front_matter(slug: str, scores: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    facts: dict[str, Any] = {
        "library_name": "protolearn",
        "pipeline_tag": "image-classification",
        "tags": ["prototype-learning", "case-based-reasoning", "interpretability", slug],
    }
    accuracy = scores.get("accuracy")
    if isinstance(accuracy, int | float):
        name = str(scores.get("judged_on") or data.get("name") or "data")  # what it was judged on, not trained on
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": name, "type": "".join(c if c.isalnum() else "-" for c in name.lower())[:60]},
            "metrics": [{"type": "accuracy", "value": round(float(accuracy), 6)}],
        }
        facts |= {"metrics": ["accuracy"], "model-index": [{"name": slug, "results": [result]}]}
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n"


def _prototypes(model: PrototypeModel, drawn: Mapping[int, tuple[str, str]], had_cases: bool) -> list[str]:
    bank = model.bank
    if not drawn:
        why = "no prototype comes from a case of the data" if had_cases else "the model was saved without its data"
        return [f"No pictures: {why}. `prototypes.csv` lists every prototype."]
    weights = own_weights(model)
    shown = [row for row, key in enumerate(bank.ids.tolist()) if key in drawn]
    lines = ["| prototype | class | case, with the place | the place | weight |", "|---|---|---|---|---|"]
    for row in shown[:_MOST_IN_CARD]:
        key = int(bank.ids[row])
        source = bank.sources[row]
        assert isinstance(source, Source)
        case, place = drawn[key]
        weight = "" if weights[row] is None else f"{weights[row]:.3g}"
        lines.append(
            f"| {key} | {_text(owners(model, row))} | ![case of prototype {key}](cases/{case}) {_text(source.case)} "
            f"| ![place of prototype {key}](cases/{place}) | {weight} |"
        )
    if len(shown) > _MOST_IN_CARD:
        lines += ["", f"{len(shown) - _MOST_IN_CARD} more in `cases/` and `prototypes.csv`."]
    undrawn = len(bank) - len(drawn)
    if undrawn:
        lines += ["", f"{undrawn} prototypes without a picture: they come from no case, or not from the data at hand."]
    return lines


_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]()#|!~$"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def _text(value: Any) -> str:
    """Return text that Markdown shows as it is, on one line: names may hold anything."""
    line = " ".join(str(value).split())
    return (line if len(line) <= 200 else line[:197] + "...").translate(_MARKDOWN)


def _code(value: str) -> str:
    return " ".join(value.replace("`", "'").split())[:200]
