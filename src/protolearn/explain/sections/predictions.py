"""What a report shows of single predictions, and what to be careful with."""

from __future__ import annotations

from protolearn.explain.decode import decodes_pictures
from protolearn.explain.draw import weighed
from protolearn.explain.gathered import Gathered
from protolearn.explain.page import explained_prediction, how_to_read, short, table, text
from protolearn.explain.passes import picture_of


def example(known: Gathered) -> str:
    """Return the prediction to learn reading from."""
    chosen = (known.first or known.worst)[:1]
    if not chosen or known.cases is None:
        return "<p>There is no case to explain.</p>"
    i, explanation, runner_up = chosen[0]
    return how_to_read(
        known.pictured, decoded=decodes_pictures(known.model), weighted=weighed(explanation)
    ) + explained_prediction(known.painter, picture_of(known.cases, i), explanation, runner_up, most=3)


def predictions(known: Gathered) -> str:
    """Return the sure, the wrong and the unsure predictions shown."""
    if known.cases is None or not (known.best or known.worst):
        return ""
    parts = []
    labelled = known.judged is not None and known.judged.n > 0
    wrong = [entry for entry in known.worst if entry[1].label != entry[1].predicted]
    unsure = [entry for entry in known.worst if entry[1].label == entry[1].predicted]
    for heading, words, entries in (
        ("Surely right" if labelled else "Some predictions", "", known.best),
        ("Surely wrong", "The wrong predictions the model was surest of: the ones to learn from.", wrong),
        ("Right, but least sure", "", unsure),
    ):
        if not entries:
            continue
        shown = "".join(explained_prediction(known.painter, picture_of(known.cases, i), e, r) for i, e, r in entries)
        parts.append(f"<h3>{heading}</h3>{f'<p>{words}</p>' if words else ''}{shown}")
    if labelled and not wrong:
        parts.append("<p>No prediction was wrong.</p>")
    return "".join(parts)


def attention(known: Gathered) -> str:
    """Return the warnings of training and the prototypes with something odd."""
    parts = []
    warned = [str(w) for w in known.meta.get("warnings") or []]
    if warned:
        listed = "".join(f'<li class="notice">{text(words)}</li>' for words in warned)
        parts.append(f'<h3>Warnings given during training</h3><ul class="notices">{listed}</ul>')
    troubles = known.troubles
    if troubles:
        owners = dict(zip(known.bank.ids.tolist(), known.bank.owner().tolist(), strict=True))
        shown = {int(known.bank.ids[row]) for row in known.chosen}
        rows = []
        for key, reasons in troubles.items():
            owner = owners[key]
            link = f'<a href="#p{key}">{key}</a>' if key in shown else str(key)
            named = short(known.names[owner], 40) if owner >= 0 else "none"
            rows.append([link, named, "<br>".join(text(reason) for reason in reasons)])
        listed = table(["prototype", "class", "what"], rows)
        body = listed if len(rows) <= 30 else f"<details><summary>{len(rows)} prototypes</summary>{listed}</details>"
        parts.append(f"<h3>Prototypes</h3>{body}")
    elif len(known.bank):
        parts.append("<p>No prototype looks redundant, dead, impure or without a source.</p>")
    return "".join(parts)


def limits(known: Gathered) -> str:
    """Return what no figure on the page can say."""
    scores = known.judged
    small = ""
    if scores is not None and scores.n:
        low, high = scores.interval or (0.0, 1.0)
        small = (
            f"<li>{scores.n} cases leave the accuracy uncertain by about {50 * (high - low):.1f} points either way, "
            "and more within a class. Cases of one patient, photographer or place on both sides of a split would "
            "make it look better than it is; this page cannot see that.</li>"
        )
    seen = (
        "<li>An outlined place is where the features were compared, not all they saw: deep features draw on pixels "
        "far beyond it (the receptive field).</li>"
        "<li>A glow is a coarse map of a few cells, enlarged smoothly. Its fine edges are not information.</li>"
    )
    alike = (
        "That two regions are similar <em>to the model</em> does not say in which respect (colour, shape, background); "
        "compare the pictures yourself.</li>"
        "<li>Similar background counts like similar objects. Look whether outlines lie on what should matter.</li>"
    )
    numbers = "That two tokens are similar <em>to the model</em> does not say in which respect.</li>"
    return (
        f"<ul>{seen if known.pictured else ''}"
        "<li>The arithmetic is exact: contributions add up to the score. "
        f"{alike if known.pictured else numbers}"
        "<li>What matters for one prediction is shown for a few cases, chosen by how sure the model was, not at "
        "random.</li>"
        f"{small}</ul>"
    )
