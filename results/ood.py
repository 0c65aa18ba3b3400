"""What a small encoder has not seen: PALM beside one prototype a class, SupCon and cross-entropy with post-hoc scores.

    python results/ood.py [--seeds 0 1 2] [--epochs 40] [--threads 1] [--out FILE]

Every training has the same network, pictures, views, batches, optimiser, rate and number of steps, and ends with its
last step. Nothing was chosen by looking at foreign pictures. Writes ``ood.json`` and the tables of ``ood.md``.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import ROOT, data_folder, made
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from protolearn.audit.ood import Convention, detect
from protolearn.core.encoder import Encoder
from protolearn.core.method import Train
from protolearn.core.scorer import View, make_scorer
from protolearn.methods import get_method
from protolearn.objectives.contrastive import group_contrast
from protolearn.structures import Tokens

HELD_OUT = ("cat", "deer", "truck")
"""Near: each has a relative among the known classes (dog, horse, automobile)."""
SAME = (
    "shepherd", "terrier", "bullfrog", "beach wagon", "convertible", "limousine", "sports car", "police van",
    "school bus", "tabby",
)  # fmt: skip
"""Words in the names of Tiny-ImageNet classes that show what CIFAR-10's classes show: left out."""
MEAN, STD = torch.tensor([0.491, 0.482, 0.447]).view(3, 1, 1), torch.tensor([0.247, 0.243, 0.262]).view(3, 1, 1)
BATCH, RATE, DECAY, DIM = 128, 0.1, 1e-4, 128
PAPER_STEPS = 500 * 98
"""Of CIFAR in batches of 512: what PALM's momentum of 0.999 was made for."""
KINDS = {"held-out classes": "near", "Tiny-ImageNet": "near", "textures": "far", "digits": "far"}
POST_HOC = ("msp", "max_logit", "energy", "mahalanobis", "relative_mahalanobis", "ssd", "knn", "vim", "react", "ash")
ON_FEATURES = ("ssd", "mahalanobis", "relative_mahalanobis", "knn", "prototype_cosine")
MARKS = ("<!-- table {}: written by python results/ood.py -->", "<!-- end of table {} -->")


class Pictures(NamedTuple):
    """Pictures ``(N, 3, 32, 32)`` from 0 to 1, known labels from 0 to C - 1, and foreign sets by name."""

    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor
    foreign: dict[str, Tensor]
    classes: list[str]


def pictures() -> Pictures:
    """Return CIFAR-10 without the classes held out, and the sets that are foreign to the rest."""
    folder = data_folder()
    with np.load(folder / "cifar10" / "cifar10.npz") as z:
        held = {name: z[name] for name in z.files}
    names = [str(name) for name in held["classes"]]
    known = [name for name in names if name not in HELD_OUT]
    place = np.array([known.index(name) if name in known else -1 for name in names])
    train, test = place[held["y_train"]], place[held["y_test"]]
    with np.load(folder / "textures6" / "textures6.npz") as z:
        textures = np.concatenate([z["x_train"], z["x_test"]])
    with np.load(folder / "mnist_federated" / "mnist_federated.npz") as z:
        digits = np.repeat(z["x_test"].reshape(-1, 28, 28, 1)[::3], 3, axis=3)
    foreign = {
        "held-out classes": as_tensor(held["x_test"][test < 0]),
        "Tiny-ImageNet": as_tensor(tiny_imagenet(folder / "tinyimagenet100")),
        "textures": as_tensor(textures),
        "digits": as_tensor(digits),
    }
    return Pictures(
        as_tensor(held["x_train"][train >= 0]), torch.from_numpy(train[train >= 0]).long(),
        as_tensor(held["x_test"][test >= 0]), torch.from_numpy(test[test >= 0]).long(), foreign, known,
    )  # fmt: skip


def tiny_imagenet(folder: Path) -> np.ndarray:
    """Return every third test picture of the classes that are foreign."""
    with open(folder / "index.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    rows = [row for row in rows if not any(word in row["name"] for word in SAME)][::3]
    with zipfile.ZipFile(folder / "tinyimagenet100.zip") as archive:
        return np.stack([np.array(Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGB")) for row in rows])


def as_tensor(values: np.ndarray) -> Tensor:
    """Return ``(N, 3, 32, 32)``: larger pictures are averaged down, smaller ones enlarged."""
    found = torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255
    side = found.shape[-1]
    if side == 32:
        return found
    how: dict[str, Any] = {"mode": "area"} if side > 32 else {"mode": "bilinear", "align_corners": False}
    return F.interpolate(found, size=(32, 32), **how)


def view(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """Return a random view of each picture: SimCLR's, without its change of hue."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(pictures), *shape, generator=draw)

    area, ratio = uniform(0.2, 1.0), uniform(np.log(3 / 4), np.log(4 / 3)).exp()
    wide, high = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
    right, down = uniform(-1, 1) * (1 - wide), uniform(-1, 1) * (1 - high)
    wide = wide * torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)  # a mirror image
    zero = torch.zeros_like(wide)
    turn = torch.stack([torch.stack([wide, zero, right], 1), torch.stack([zero, high, down], 1)], 1)
    seen = F.grid_sample(
        pictures, F.affine_grid(turn, list(pictures.shape), align_corners=False), padding_mode="reflection",
        align_corners=False,
    )  # fmt: skip
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    change = (uniform(0, 1, 1, 1, 1) < 0.8).float()
    light, hard, full = (1 + change * uniform(-0.4, 0.4, 1, 1, 1) for _ in range(3))
    seen = (seen * light).clamp(0, 1)
    middle = (seen * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    seen = (middle + hard * (seen - middle)).clamp(0, 1)
    grey = (seen * weights).sum(1, keepdim=True)
    full = torch.where(uniform(0, 1, 1, 1, 1) < 0.2, 0.0, full)  # without colours
    return normal((grey + full * (seen - grey)).clamp(0, 1))


def normal(pictures: Tensor) -> Tensor:
    """Return what the network is shown."""
    return (pictures - MEAN) / STD


class Net(Encoder):
    """Four convolutions with batch norm; 256 features, the mean over the last map of 4 x 4."""

    dim = 256

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 128), (128, 256)):
            stride = 2 if before == 3 else 1  # the first layer at full size would cost more than all others
            pool = nn.MaxPool2d(2) if after in (64, 128) else nn.Identity()
            convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(), pool]
        self.net = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def features(self, inputs: Tensor) -> Tensor:
        """Return ``(B, 256)``."""
        made: Tensor = self.net(inputs.contiguous(memory_format=torch.channels_last)).mean((2, 3))
        return made

    def forward(self, inputs: Tensor) -> Tokens:
        """Return one token a picture."""
        return Tokens(self.features(inputs).unsqueeze(1))

    def spec(self) -> dict[str, Any]:
        """Return nothing: it is not saved."""
        return {}


class Way(NamedTuple):
    """A way of training: parameters beside the encoder's, a loss on two views, what follows a step, what is scored."""

    module: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    after: Callable[[], None]
    see: Callable[[Tensor], View]
    scores: tuple[Any, ...]


def cross_entropy(net: Net, classes: int, steps: int) -> Way:
    """Return training as a classifier, on both views."""
    layer = nn.Linear(net.dim, classes)

    def see(inputs: Tensor) -> View:
        found = net.features(inputs)
        return View(found, layer(found), None, layer.weight.detach(), layer.bias.detach())

    return Way(layer, lambda x, y: F.cross_entropy(layer(net.features(x)), y), lambda: None, see, POST_HOC)


def sup_con(net: Net, classes: int, steps: int) -> Way:
    """Return supervised contrast behind an MLP."""
    head = nn.Sequential(nn.Linear(net.dim, net.dim), nn.ReLU(), nn.Linear(net.dim, DIM))

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        return group_contrast(F.normalize(head(net.features(inputs)), dim=1), labels, 0.1)

    def see(inputs: Tensor) -> View:
        found = net.features(inputs)
        return View(found, found.new_zeros(len(found), classes))

    return Way(head, loss, lambda: None, see, ON_FEATURES)


def mixture(prototypes: int, k: int, momentum: float | None = None) -> Callable[[Net, int, int], Way]:
    """Return PALM with so many prototypes a class; by default its average spans the paper's share of the training."""

    def make(net: Net, classes: int, steps: int) -> Way:
        slow = max(0.5, 1 - 0.001 * PAPER_STEPS / steps) if momentum is None else momentum
        method = get_method("palm")(prototypes_per_class=prototypes, k=k, momentum=slow, dim=DIM)
        model = method.build(net, classes, seed=0)
        last: list[Any] = []

        def loss(inputs: Tensor, labels: Tensor) -> Tensor:
            last[:] = [model(inputs), labels]
            return method.loss(method.objective(*last))

        def after() -> None:
            with torch.no_grad():
                method.after_step(model, *last, steps)
                model.constrain()

        def see(inputs: Tensor) -> View:
            out = model(inputs)
            return View(out.encoded.values[:, 0], out.logits.clamp_min(1e-12).log(), out.evidence)

        return Way(model.neck, loss, after, see, (*ON_FEATURES, "msp", "nearest_prototype"))

    return make


WAYS: dict[str, Callable[[Net, int, int], Way]] = {
    "cross-entropy": cross_entropy,
    "SupCon": sup_con,
    "one prototype a class": mixture(1, 1),
    "PALM": mixture(6, 5),
    "PALM, momentum 0.999": mixture(6, 5, 0.999),
}


def train(way: Way, net: Net, shown: Pictures, epochs: int, seed: int) -> float:
    """Train; return the mean loss of the last epoch."""
    draw = torch.Generator().manual_seed(1000 + seed)
    phase = Train("learn", epochs, {"encoder": RATE}, warmup=max(1, epochs // 10), cosine=True, floor=1e-3, per="step")
    weights = [*net.parameters(), *way.module.parameters()]
    optimiser = torch.optim.SGD(weights, RATE, momentum=0.9, nesterov=True, weight_decay=DECAY)
    mean = 0.0
    for epoch in range(epochs):
        batches = torch.randperm(len(shown.labels), generator=draw).split(BATCH)
        found = []
        for step, rows in enumerate(batches):
            for group in optimiser.param_groups:
                group["lr"] = RATE * phase.factor(epoch + step / len(batches), 1 / len(batches))
            inputs = torch.cat([view(shown.train[rows], draw), view(shown.train[rows], draw)])
            loss = way.loss(inputs, shown.labels[rows].repeat(2))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            way.after()
            found.append(float(loss.detach()))
        mean = float(np.mean(found))
        if not np.isfinite(mean):
            raise SystemExit(f"the loss is {mean} in epoch {epoch + 1}")
    return mean


@torch.no_grad()
def seen(way: Way, inputs: Tensor) -> View:
    """Return what scores read of un-augmented pictures."""
    parts = [way.see(normal(part)) for part in inputs.split(256)]
    evidence = None if parts[0].evidence is None else torch.cat([p.evidence for p in parts if p.evidence is not None])
    return View(
        torch.cat([p.features for p in parts]), torch.cat([p.logits for p in parts]), evidence, parts[0].weight,
        parts[0].bias,
    )  # fmt: skip


def judged(name: str, shown: Pictures, epochs: int, seed: int) -> dict[str, Any]:
    """Train one way from one seed; return its accuracy, and AUROC and FPR95 of every score on every set."""
    torch.manual_seed(seed)
    net, began = Net(), time.perf_counter()
    way = WAYS[name](net, len(shown.classes), epochs * -(-len(shown.labels) // BATCH))
    net.train(), way.module.train()
    loss = train(way, net, shown, epochs, seed)
    net.eval(), way.module.eval()
    known, test = seen(way, shown.train), seen(way, shown.test)
    foreign = {part: seen(way, inputs) for part, inputs in shown.foreign.items()}
    # the mean of each class on the sphere: a classifier that every way has
    means = torch.stack([F.normalize(known.features[shown.labels == c]).mean(0) for c in range(len(shown.classes))])
    nearest = (F.normalize(test.features) @ F.normalize(means).T).argmax(1)
    right = {"nearest mean": float((nearest == shown.test_labels).float().mean())}
    if name != "SupCon":
        right["its own"] = float((test.logits.argmax(1) == shown.test_labels).float().mean())
    rows: dict[str, Any] = {}
    for spec in way.scores:
        score = make_scorer(spec).fit(known, shown.labels)
        inside = score.score(test).double().numpy()
        rows[score.name] = {}
        for part, other in foreign.items():
            found = detect(inside, score.score(other).double().numpy())
            rows[score.name][part] = {"auroc": round(found.auroc, 4), "fpr": round(found.fpr, 4)}
    return {
        "accuracy": {key: round(value, 4) for key, value in right.items()}, "last_loss": round(loss, 4),
        "seconds": round(time.perf_counter() - began, 1), "scores": rows,
    }  # fmt: skip


def cell(values: list[float], digits: int = 3) -> str:
    """Return mean and standard deviation over seeds."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def lines(receipt: dict[str, Any], what: str) -> Iterator[str]:
    """Return a table of a figure: every way and score, means over near and far sets, then every set."""
    yield "| trained by | score | near | far | " + " | ".join(KINDS) + " |"
    yield "|---" * (4 + len(KINDS)) + "|"
    for way, runs in receipt["runs"].items():
        for score in runs[0]["scores"]:
            each = {part: [run["scores"][score][part][what] for run in runs] for part in KINDS}
            mean = {
                kind: [float(np.mean(one)) for one in zip(*(each[p] for p in KINDS if KINDS[p] == kind), strict=True)]
                for kind in ("near", "far")
            }
            cells = [cell(mean["near"]), cell(mean["far"]), *(cell(each[part]) for part in KINDS)]
            yield f"| {way} | {score} | {' | '.join(cells)} |"


def gains(receipt: dict[str, Any]) -> Iterator[str]:
    """Return differences of AUROC between PALM with its score and others, taken within a seed."""
    yield "| PALM with ssd, less | near | far |"
    yield "|---|---|---|"
    pairs = [
        ("cross-entropy", "msp"), ("cross-entropy", "ssd"), ("cross-entropy", "mahalanobis"), ("SupCon", "ssd"),
        ("one prototype a class", "ssd"), ("PALM, momentum 0.999", "ssd"),
    ]  # fmt: skip
    for way, score in pairs:
        if way not in receipt["runs"]:
            continue
        cells = []
        for kind in ("near", "far"):
            parts = [part for part in KINDS if KINDS[part] == kind]
            gaps = [
                float(np.mean([p["scores"]["ssd"][s]["auroc"] - o["scores"][score][s]["auroc"] for s in parts]))
                for p, o in zip(receipt["runs"]["PALM"], receipt["runs"][way], strict=True)
            ]
            cells.append(cell(gaps))
        yield f"| {way}, {score} | {' | '.join(cells)} |"


def accuracies(receipt: dict[str, Any]) -> Iterator[str]:
    """Return accuracies on the known classes."""
    yield "| trained by | its own classifier | nearest class mean of the features |"
    yield "|---|---|---|"
    for way, runs in receipt["runs"].items():
        own = [run["accuracy"]["its own"] for run in runs if "its own" in run["accuracy"]]
        yield f"| {way} | {cell(own) if own else '-'} | {cell([run['accuracy']['nearest mean'] for run in runs])} |"


def write(page: Path, receipt: dict[str, Any]) -> None:
    """Put the tables between their marks."""
    text = page.read_text(encoding="utf-8")
    tables = {
        "accuracy": accuracies(receipt), "gains": gains(receipt), "auroc": lines(receipt, "auroc"),
        "fpr": lines(receipt, "fpr"),
    }  # fmt: skip
    for name, rows in tables.items():
        begin, end = (mark.format(name) for mark in MARKS)
        head, rest = text.split(begin)
        text = f"{head}{begin}\n" + "\n".join(rows) + f"\n{end}{rest.split(end)[1]}"
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Train, judge, and write after every training what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "ood.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shown = pictures()
    command = f"python results/ood.py --seeds {' '.join(map(str, given.seeds))} --epochs {given.epochs}"
    sets = {"known, training": shown.train, "known, test": shown.test, **shown.foreign}
    receipt: dict[str, Any] = {
        **made(command),
        "settings": {"batch": BATCH, "rate": RATE, "decay": DECAY, "dim": DIM, "epochs": given.epochs},
        "seeds": given.seeds, "classes": shown.classes, "held_out": HELD_OUT, "kinds": KINDS,
        "fpr": Convention().words,
        "data": {
            name: {"pictures": len(x), "digest": hashlib.sha256(x.numpy().tobytes()).hexdigest()[:16]}
            for name, x in sets.items()
        },
        "runs": {},
    }  # fmt: skip
    for seed in given.seeds:
        for name in given.ways:
            run = judged(name, shown, given.epochs, seed)
            receipt["runs"].setdefault(name, []).append({"seed": seed, **run})
            print(f"seed {seed}, {name}: {run['accuracy']}, {run['seconds']} s", flush=True)
        given.out.write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    page = given.out.with_suffix(".md")
    if page.exists():
        write(page, receipt)
    for table in (accuracies(receipt), gains(receipt), lines(receipt, "auroc"), lines(receipt, "fpr")):
        print("\n".join(["", *table]))


if __name__ == "__main__":
    main()
