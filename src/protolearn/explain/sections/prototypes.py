"""What a report shows of each prototype: its source, its nearest cases, its weights, what is odd about it."""

from __future__ import annotations

from protolearn.core.measures import Distance
from protolearn.explain.decode import decodes_pictures
from protolearn.explain.described import Characteristics
from protolearn.explain.draw import NO_PICTURE, View, index_of, origin
from protolearn.explain.explain import weight_table
from protolearn.explain.gathered import NEIGHBOURS, Gathered, plain_view
from protolearn.explain.lettering import number, signed
from protolearn.explain.page import decoded_beside, image, pair, short, text
from protolearn.explain.passes import picture_of
from protolearn.explain.wording import NOTHING


def prototypes(known: Gathered, described: Characteristics | None = None) -> str:
    """Return the prototypes chosen, class by class; with what each is matched for where that was measured."""
    order = known.chosen
    if not order:
        return "<p>No prototype is shown.</p>" if len(known.bank) else ""
    noun = "picture" if known.pictured else "case"
    stayed = any(known.bank.sources[row] is not None and not known.bank.sources[row].moved for row in order)  # type: ignore[union-attr]
    whence = f"with the training {noun} it comes from"
    if stayed:
        whence = f"with the training {noun} nearest to it (prototypes of this model are no training cases)"
    if decodes_pictures(known.model):
        whence = f"as the decoder shows it, beside the training {noun} nearest to it"
    parts = [
        f"<p>Each prototype {whence}, and "
        + (
            f"the {NEIGHBOURS} other training cases nearest to it, nearest first. "
            f"{'A dashed frame' if known.pictured else 'A cross'} marks a neighbour of another class."
            if known.found.nearest is not None
            else "its weights. Without the training cases its neighbours cannot be shown."
        )
        + " “In charge”: in how many "
        + ("training" if known.train is not None else "test")
        + " cases it made the largest contribution to the prediction.</p>"
    ]
    if len(order) < len(known.bank):
        parts.append(
            f'<p class="notice calm">{len(order)} of {len(known.bank)} prototypes are shown, those most in charge '
            "of each class.</p>"
        )
    owners = known.bank.owner().tolist()
    groups: dict[int, list[int]] = {}
    for row in order:
        groups.setdefault(owners[row], []).append(row)
    for owner in sorted(groups, key=lambda o: (o < 0, o)):
        name = short(known.names[owner], 80) if owner >= 0 else "of no single class"
        cards = "".join(_card(known, row, described) for row in groups[owner])
        parts.append(f'<h3>{name}</h3><div class="protos">{cards}</div>')
    return "".join(parts)


def _card(known: Gathered, row: int, described: Characteristics | None) -> str:
    key, source = int(known.bank.ids[row]), known.bank.sources[row]
    use = known.found.use
    view, why = plain_view(known.painter, source)
    made = known.painter.decoded(key)
    if made is not None:
        shown, why = decoded_beside(made, key, view, why, side=140), ""
    elif source is not None and why == NO_PICTURE:
        shown, why = f'<div class="absent">token {source.position}</div>', ""
    elif view is None:
        shown = f'<div class="absent">{text(why)}</div>'
    else:
        assert source is not None
        shown = pair(view, f"training case {source.case}, source of prototype {key}", close_first=True, side=140)
    told_from = short(origin(source), 50)
    if source is not None and why:
        told_from += f"<br>{text(why)}"
    numbers = ""
    if use.cases:
        numbers = (
            f"<br>evidence: mean {number(float(use.mean[row]))}, highest {number(float(use.highest[row]))}"
            f"<br>in charge of {int(use.leading[row])} of {use.cases} cases"
        )
    told = f'<div><h4 id="p{key}">Prototype {key}</h4><div class="small soft">{told_from}{numbers}</div></div>'
    flags = "".join(f"<li>{text(words)}</li>" for words in known.troubles.get(key, []))
    listed = f'<ul class="flags">{flags}</ul>' if flags else ""
    words = ""
    if described is not None and key in described.train.prototypes:
        said = described.words(key)
        if said != NOTHING:
            words = f'<p class="small">{text(said[:1].upper() + said[1:])}.</p>'
    body = f"{_near(known, row)}{words}{_weights(known, row)}{listed}"
    return f'<article class="proto"><div class="head">{shown}{told}</div>{body}</article>'


def _near(known: Gathered, row: int) -> str:
    nearest = known.found.nearest
    if nearest is None or known.train is None:
        return ""
    source = known.bank.sources[row]
    own = None if source is None else index_of(known.train, source.case)
    items: list[str] = []
    for k in range(nearest.cases.shape[1]):
        i, label = int(nearest.cases[row, k]), int(nearest.labels[row, k])
        if i < 0 or i == own or len(items) >= NEIGHBOURS:
            continue
        name = known.names[label] if label >= 0 else "unlabelled"
        other = (
            label >= 0
            and bool((known.bank.ownership[row] > 0).any())
            and not bool(known.bank.ownership[row, label] > 0)
        )
        value, position = float(nearest.values[row, k]), int(nearest.positions[row, k])
        what = "distance" if isinstance(known.model.measure, Distance) else "similarity"
        case = str(known.train.ids[i])
        picture = picture_of(known.train, i)
        if picture is None:
            thumb = f"{short(case, 24)}<br>"
        else:
            box = None if known.found.cells is None else known.found.cells.box(position, picture.size)
            thumb = image(
                View(picture, box, supports=not other).thumbnail(114),
                f"training case {case} of class {name}, {what} {_tidy(value)}",
                lossless=max(picture.size) <= 64,
            )
        kind, sign = (' class="other"', "✗ ") if other else ("", "")
        items.append(f"<li{kind}>{thumb}{sign}{short(name, 18)}<br>{_tidy(value)}</li>")
    return f'<ol class="near">{"".join(items)}</ol>' if items else ""


def _weights(known: Gathered, row: int) -> str:
    weight = weight_table(known.model)
    if weight is None:
        return ""
    column = weight[:, row].double().cpu()
    order = column.abs().argsort(descending=True, stable=True).tolist()
    owner = int(known.bank.owner()[row])
    shown = [c for c in order if c == owner] + [c for c in order if c != owner]
    shown = shown[:5]
    listed = ""
    for c in shown:
        sign = "plus" if column[c] >= 0 else "minus"
        listed += f'<li>{short(known.names[c], 30)} <b class="{sign}">{signed(float(column[c]))}</b></li>'
    rest = f"<li>and {len(order) - len(shown)} nearer to 0</li>" if len(order) > len(shown) else ""
    return f'<ul class="weights"><li>Weight for</li>{listed}{rest}</ul>'


def _tidy(value: float) -> str:
    if 0 < abs(value) < 0.0005:
        return "< 0.001"
    return number(value, 3) if abs(value) < 10 else number(value, 1)
