"""New classes on frozen features: k-means, semi-supervised k-means, ProtoGCD, and the estimated number of classes.

``python results/discovery.py [--sets NAME ...]`` writes discovery.json and the tables of discovery.md.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import io
import json
import os
import sys
import time
import warnings
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import data_folder  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from protolearn.audit.discovery import DiscoveryScore, discovery_score  # noqa: E402
from protolearn.core.updates import k_means  # noqa: E402
from protolearn.data import features  # noqa: E402
from protolearn.encoders import FeatureEncoder, ImageEncoder  # noqa: E402
from protolearn.tasks.class_number import CRITERIA, estimate_classes  # noqa: E402
from protolearn.tasks.discover import discover  # noqa: E402

SETS = ("digits", "satimage", "letter", "tiny-imagenet")
SEEDS = (0, 1, 2)
MARKS = ("<!-- tables: written by python results/discovery.py -->", "<!-- end of tables -->")
METHODS = ("k-means", "semi-supervised k-means", "ProtoGCD")


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features, every column standardised, and the truth."""
    if name == "digits":
        values, truth = load_digits(return_X_y=True)
    elif name == "tiny-imagenet":
        values, truth = tiny_imagenet()
    else:
        with np.load(data_folder() / "tables" / f"{name}.npz", allow_pickle=False) as z:
            values, truth = z["x_train"], z["y_train"]
    scaled: np.ndarray = StandardScaler().fit_transform(values).astype(np.float32)
    return scaled, np.unique(truth, return_inverse=True)[1].astype(np.int64)


def tiny_imagenet() -> tuple[np.ndarray, np.ndarray]:
    """Return means over places of every fifth class, by MobileNetV2 that was trained on birds, not on these classes."""
    folder = data_folder() / "tinyimagenet100"
    with (folder / "index.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["split"] == "train" and int(r["label"]) % 5 == 0]
    encoder = ImageEncoder(
        "mobilenetv2_100", weights=data_folder() / "backbones" / "mobilenetv2_100_inat_birds.safetensors", size=128,
        mean=0.5, std=0.5, model_args={"pad_type": "same"},
    ).eval()  # fmt: skip
    assert encoder.preprocess is not None
    found = []
    with zipfile.ZipFile(next(folder.glob("*.zip"))) as archive, torch.no_grad():
        for start in range(0, len(rows), 50):
            part = [Image.open(io.BytesIO(archive.read(r["file"]))).convert("RGB") for r in rows[start : start + 50]]
            found.append(encoder(torch.stack([encoder.preprocess(picture) for picture in part])).values.mean(1))
    return torch.cat(found).numpy(), np.array([int(r["label"]) for r in rows])


def shown(truth: np.ndarray, seed: int) -> tuple[np.ndarray, list[int]]:
    """Return labels and old classes: half of the classes are old, and half of their cases are labelled."""
    draw = np.random.default_rng(seed)
    classes = draw.permutation(int(truth.max()) + 1)
    old = sorted(classes[: len(classes) // 2].tolist())
    known = np.isin(truth, old) & (draw.random(len(truth)) < 0.5)
    return np.where(known, truth, -1), old


def judge(name: str, values: np.ndarray, truth: np.ndarray, seed: int) -> dict[str, Any]:
    """Return what one seed finds on one set."""
    labels, old = shown(truth, seed)
    count, free = int(truth.max()) + 1, labels < 0
    names = [f"class {k}" for k in range(count)]
    known = features(values[~free], [names[k] for k in truth[~free]], name="known")
    others = features(values[free], name="free")
    found: dict[str, Any] = {"cases": len(truth), "classes": count, "old": len(old), "labelled": int((~free).sum())}

    def note(method: str, score: DiscoveryScore, start: float) -> None:
        found[method] = {**score.to_dict(), "names": None, "seconds": round(time.process_time() - start, 2)}
        print(name, seed, method, f"all {score.all:.3f} old {score.old:.3f} new {score.new:.3f}", flush=True)

    start = time.process_time()
    unit = F.normalize(torch.from_numpy(values), dim=1)
    rows = k_means(unit, count, generator=torch.Generator().manual_seed(seed), restarts=10, iterations=100).rows
    note("k-means", discovery_score(rows.numpy()[free], truth[free], old), start)
    for method, slug in (("semi-supervised k-means", "ssk_means"), ("ProtoGCD", "protogcd")):
        start = time.process_time()
        done = discover(
            FeatureEncoder(values.shape[1]), known, others, method=slug, classes=count, draws=0, seed=seed, device="cpu"
        )
        note(method, done.score(truth[free], names), start)
    found["number"] = {}
    for criterion in CRITERIA:
        draw = torch.Generator().manual_seed(seed)
        start = time.process_time()
        number = estimate_classes(unit, torch.from_numpy(labels), generator=draw, criterion=criterion)  # type: ignore[arg-type]
        taken = round(time.process_time() - start, 2)
        found["number"][criterion] = {"count": number.count, "low": number.low, "high": number.high, "seconds": taken}
        print(name, seed, criterion, number.count, flush=True)
    return found


def main() -> None:
    """Judge the sets and write the receipt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    warnings.simplefilter("ignore")
    path = ROOT / "discovery.json"
    receipt: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"sets": {}}
    for name in given.sets:
        values, truth = load(name)
        digest = hashlib.sha256(values.tobytes() + truth.tobytes()).hexdigest()
        receipt["sets"][name] = {"digest": digest, "seeds": {str(s): judge(name, values, truth, s) for s in SEEDS}}
    receipt |= {
        "command": "python results/discovery.py",
        "date": datetime.date.today().isoformat(),
        "versions": {package: version(package) for package in ("protolearn", "torch", "scikit-learn", "timm")},
    }
    path.write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    page = ROOT / "discovery.md"
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(MARKS[0])
    page.write_text(f"{head}{MARKS[0]}\n\n{tables(receipt)}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


def tables(receipt: dict[str, Any]) -> str:
    """Return the tables of the page."""
    lines = [
        "| set | method | all | old | new | NMI | all, seed by seed | seconds |",
        "|---|---|---:|---:|---:|---:|---|---:|",
    ]
    for name in (s for s in SETS if s in receipt["sets"]):
        seeds = list(receipt["sets"][name]["seeds"].values())
        for method in METHODS:
            each = [seed[method] for seed in seeds]
            mean = {key: np.mean([e[key] for e in each]) for key in ("all", "old", "new", "nmi", "seconds")}
            shares = " | ".join(f"{mean[key]:.3f}" for key in ("all", "old", "new", "nmi"))
            apart = ", ".join(f"{e['all']:.3f}" for e in each)
            lines.append(f"| {name} | {method} | {shares} | {apart} | {mean['seconds']:.1f} |")
    lines += ["", f"| set | classes | {' | '.join(CRITERIA)} |", f"|---|---:|{'---|' * len(CRITERIA)}"]
    for name in (s for s in SETS if s in receipt["sets"]):
        seeds = list(receipt["sets"][name]["seeds"].values())
        cells = [", ".join(str(seed["number"][c]["count"]) for seed in seeds) for c in CRITERIA]
        lines.append(f"| {name} | {seeds[0]['classes']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
