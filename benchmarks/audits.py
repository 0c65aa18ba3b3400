"""What do audits cost beside the forward passes they need, and beside a loop over pictures and prototypes?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Plan, Row, in_turn
from benchmarks.pictures import BATCH, CLASSES, PER_CLASS, model
from protolearn.audit.look import Look
from protolearn.audit.marks import Marks
from protolearn.audit.metric import Metric, Seen, Setting, make_metric
from protolearn.audit.noise import disturb
from protolearn.audit.subject import ModelSubject
from protolearn.core.model import PrototypeModel

TITLE = "Audits"
PARTS, MAP, HALF = 15, 224, 36
STEPS = 28


class Pictures:
    """Labelled noise with key points: what an audit reads, made before the clock starts."""

    def __init__(self, count: int, size: int) -> None:
        g = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(count, 3, size, size, generator=g)
        self.noisy = disturb(self.inputs, generator=g)
        self.labels = torch.arange(count) % CLASSES
        self.points = torch.rand(count, PARTS, 2, generator=g)
        self.visible = torch.rand(count, PARTS, generator=g) < 0.8

    def __len__(self) -> int:
        return len(self.inputs)


def forward(judged: PrototypeModel, *parts: Tensor) -> None:
    """Pass pictures through the model, and nothing else."""
    with torch.no_grad():
        for part in parts:
            for inputs in part.split(BATCH):
                judged(inputs)


def audited(judged: PrototypeModel, pictures: Pictures, metrics: Sequence[Metric], noise: bool) -> None:
    """Show metrics every batch, and ask for their results: values, intervals and counts."""
    subject = ModelSubject(judged)
    names = tuple(f"part {k}" for k in range(PARTS))
    for each in metrics:
        each.start(Setting(subject, {"cases": len(pictures)}, names, torch.Generator().manual_seed(0)))
    with subject.looking():
        for rows in torch.arange(len(pictures)).split(BATCH):
            looks: list[Look] = [
                subject.look(part[rows]) for part in (pictures.inputs, *([pictures.noisy] if noise else []))
            ]
            marks = Marks(names, pictures.points[rows], pictures.visible[rows])
            seen = Seen("cases", rows, pictures.inputs[rows], pictures.labels[rows], looks[0], marks, tuple(looks[1:]))
            for each in metrics:
                each.update(seen)
    for each in metrics:
        each.result()


def looped_parts(judged: PrototypeModel, pictures: Pictures) -> None:
    """Consistency and stability in the plain way: enlarge and search one map after the other."""
    same, hits = [], torch.zeros(len(pictures), PER_CLASS, PARTS, dtype=torch.bool)
    with torch.no_grad():
        for i in range(len(pictures)):
            both = []
            for part in (pictures.inputs, pictures.noisy):
                tokens = judged.embed(judged.encode(part[i : i + 1]))
                assert tokens.grid is not None
                maps = judged.maps(tokens)[0].unflatten(1, tokens.grid)
                first = int(pictures.labels[i]) * PER_CLASS
                found = torch.zeros(PER_CLASS, PARTS, dtype=torch.bool)
                for k in range(PER_CLASS):
                    fine = F.interpolate(maps[first + k][None, None], size=(MAP, MAP), mode="bicubic")[0, 0]
                    row, column = divmod(int(fine.argmax()), MAP)
                    for n, (x, y) in enumerate((pictures.points[i] * MAP).tolist()):
                        near = abs(x - column) <= HALF and abs(y - row) <= HALF
                        found[k, n] = near and bool(pictures.visible[i, n])
                both.append(found)
            hits[i] = both[0]
            same.append((both[0] == both[1]).all(1))
    torch.stack(same).float().mean()


def looped_deletion(judged: PrototypeModel, pictures: Pictures, saliency: Tensor) -> None:
    """Deletion in the plain way, in the salient order alone: one altered picture after the other."""
    pixels = saliency[0].numel()
    step = -(-pixels // STEPS)
    with torch.no_grad():
        for i in range(len(pictures)):
            shown = pictures.inputs[i : i + 1].clone()
            order = saliency[i].flatten().argsort(descending=True)
            target = int(judged(shown).logits.argmax())
            curve = [float(judged(shown).logits.softmax(1)[0, target])]
            for start in range(0, pixels, step):
                shown.view(1, 3, -1)[:, :, order[start : start + step]] = 0.0
                curve.append(float(judged(shown).logits.softmax(1)[0, target]))


def run(plan: Plan) -> Iterator[Row]:
    """Time both kinds of audit on two sizes of pictures."""
    yield from parts(plan)
    yield from deletions(plan)


def parts(plan: Plan) -> Iterator[Row]:
    """Time consistency and stability, which need each picture twice."""
    for count, size in [(2 * BATCH, 64)] if plan.quick else [(1000, 64), (120, 224)]:
        judged, pictures = model(size), Pictures(count, size)
        few = 4 if plan.quick else BATCH
        some = Pictures(few, size)

        def ours() -> None:
            metrics = [make_metric("consistency"), make_metric("stability")]
            audited(judged, pictures, metrics, noise=True)  # noqa: B023  called before the next turn

        times = in_turn(
            {
                "ours": ours,
                "forward": lambda: forward(judged, pictures.inputs, pictures.noisy),  # noqa: B023
                "looped": lambda: looped_parts(judged, some),  # noqa: B023
            },
            plan.rounds(5),
        )
        note = f"resnet18, {count} pictures {size}x{size}, {CLASSES * PER_CLASS} prototypes, {PARTS} key points"
        yield times.ratio(
            "ours",
            "forward",
            what="consistency and stability, intervals included",
            against="the two forward passes",
            at_most=1.3,
            note=note,
        )
        yield times.ratio(
            "looped",
            "ours",
            what="loop over pictures, prototypes and key points",
            against="ours",
            scale=count / few,
            note=f"{size}x{size}; the loop on {few} pictures, in proportion",
        )


def deletions(plan: Plan) -> Iterator[Row]:
    """Time deletion in four orders, which needs each picture 4 x 27 + 2 times, beside the look that it starts from."""
    for count, size in [(2, 64)] if plan.quick else [(40, 64), (6, 224)]:
        judged, pictures = model(size), Pictures(count, size)
        steps, few = (4, 1) if plan.quick else (STEPS, 4)
        some = Pictures(few, size)
        saliency = torch.rand(few, size, size, generator=torch.Generator().manual_seed(0))
        passes = 4 * (steps - 1) + 2
        for kind in ("zero", "blur"):

            def ours() -> None:
                metric = make_metric("deletion", steps=steps, substrates=(kind,), at_once=BATCH)  # noqa: B023
                audited(judged, pictures, [metric], noise=False)  # noqa: B023

            def bare() -> None:
                forward(judged, pictures.inputs, pictures.inputs.repeat(passes, 1, 1, 1))  # noqa: B023

            calls = {"ours": ours, "forward": bare}
            if kind == "zero":
                calls["looped"] = lambda: looped_deletion(judged, some, saliency)  # noqa: B023
            times = in_turn(calls, plan.rounds(3))
            yield times.ratio(
                "ours",
                "forward",
                what=f"deletion in four orders, {kind}",
                against="the forward passes",
                at_most=1.3,
                note=f"resnet18, {count} pictures {size}x{size}, {passes} altered ones each: the same for any number",
            )
            if kind == "zero":
                yield times.ratio(
                    "looped",
                    "ours",
                    what="loop over pictures and steps, in four orders",
                    against="ours",
                    scale=4 * count / few * (steps / STEPS),
                    note=f"{size}x{size}; the loop on {few} pictures and one order, in proportion",
                )
