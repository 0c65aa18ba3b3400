"""Choose the settings of ProtoPNet's recipe "frozen" by cross-validation on the training parts alone.

    python results/select_frozen.py [--repeats 0 1] [--only NAME ...] [--cache FOLDER] [--table]

The encoder runs once over each training part (plain view and augmented views, kept as float16). Then, for every fold,
the library's own pieces run as ``fit`` runs them: principal axes and k-means on the fold's training tokens, the
epochs of the tensor loop, projection, last layer. Only two things differ from ``fit``: the fixed axes are applied to
the tokens once instead of in every step, and all folds share one draw of views. Beside it, on the same folds, the
logistic regression on pooled features. Rows go to ``select_frozen.csv``, one a fold; the test parts are never read.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, SETS, load, make_encoder, regression
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from protolearn.core.method import Initialise, Project, Train
from protolearn.core.model import PrototypeModel
from protolearn.core.projection import NearestTokens
from protolearn.core.smoothing import smooth
from protolearn.data.augment import Augment, Augmented
from protolearn.encoders import FeatureEncoder
from protolearn.encoders.cache import TokenCache, token_cache
from protolearn.methods import get_method
from protolearn.structures import Tokens
from protolearn.training.material import CachedScores, CachedTokens, PlainTokens, plain_outputs
from protolearn.training.steps import Run, set_rates, start_run
from protolearn.training.tensor_loop import tensor_epoch

ProtoPNet = get_method("protopnet")
BASE: dict[str, Any] = {
    "neck": "principal", "start": "k_means", "encoder_rate": None, "warm_epochs": 0, "neck_rate": 1e-3,
    "project_at": (20, 40, 60, 80, 100, 120), "step": 20, "gamma": 0.6,
    "last_layer": "final", "last_layer_epochs": 40, "head_rate": 1e-2,
}  # fmt: skip
AUGMENT: dict[str, Any] = {
    "one_of": False, "rotation": 15, "shear": 10, "skew": 0, "crop": (0.6, 1.0), "ratio": (0.8, 1.25),
    "brightness": 0.2, "contrast": 0.2, "saturation": 0.1, "hue": 0.02,
}  # fmt: skip
SIZE, VIEWS, BATCH, FOLDS = 320, 5, 40, 5

CANDIDATES: dict[str, dict[str, Any]] = {
    "base": {},
    "smooth 5": {"smooth": 5},
    "smooth 5, gain 0.25": {"smooth": 5, "gain": 0.25},
    "gain 0.25": {"gain": 0.25},
    "cluster 2": {"method": {"cluster_weight": 2.0}},
}
"""What differs from the base: smooth 3, gain 0.5 (first weights of the neck's linear layer), 5 views, BASE."""

HEADS: dict[str, dict[str, float]] = {
    "": {},
    "slow": {"head_rate": 3e-3},
    "sparse": {"l1_weight": 1e-2},
}
"""Last layers tried on top of every candidate, from the same projected prototypes."""


class Reduced:
    """Tokens on principal axes, in memory: what the trained part of the neck reads."""

    def __init__(self, values: Tensor, grid: tuple[int, ...] | None) -> None:
        self.values, self.grid, self.views = values, grid, len(values)

    def __len__(self) -> int:
        return self.values.shape[1]

    def tokens(self, indices: np.ndarray, view: int | np.ndarray = 0) -> Tokens:
        """Return tokens of some cases."""
        return Tokens(self.values[view, indices], grid=self.grid)


class Fold:
    """One training and validation part; reduces tokens once for candidates that read the same ones."""

    def __init__(self, cache: TokenCache, train: np.ndarray, held: np.ndarray) -> None:
        self.cache, self.train, self.held = cache, train, held
        self.labels = cache.labels[train]
        self.kept: dict[tuple[int, int], tuple[Any, Reduced, Reduced]] = {}

    def smoothed(self, window: int, cases: np.ndarray, view: int) -> Tensor:
        return torch.cat([smooth(self.cache.tokens(part, view), window).values for part in np.array_split(cases, 8)])

    def reduced(self, model: PrototypeModel, window: int, axes: int) -> tuple[Any, Reduced, Reduced]:
        """Return fitted axes, and all tokens on them."""
        if (window, axes) not in self.kept:
            first = model.neck[0]
            grid = self.cache.grid
            plain = self.smoothed(window, self.train, 0)
            first.fit([Tokens(part, grid=grid) for part in plain.split(BATCH)])
            with torch.no_grad():
                views = [first(self.smoothed(window, self.train, view)) for view in range(VIEWS)]
                held = first(self.smoothed(window, self.held, 0))
            self.kept[window, axes] = (first, Reduced(torch.stack(views), grid), Reduced(held[None], grid))
        return self.kept[window, axes]


def accuracy(model: PrototypeModel, store: Any, labels: np.ndarray) -> float:
    """Return the accuracy on plain tokens."""
    outputs = plain_outputs(model, store, store, torch.device("cpu"), batch_size=200)
    return float(np.mean(torch.cat([out.logits.argmax(1) for _, out in outputs]).numpy() == labels))


def project(model: PrototypeModel, store: Any, labels: Tensor) -> None:
    """Move every prototype onto the nearest own-class token, as the library's projection does, without its records."""
    search = NearestTokens(model.bank, model.measure, 1, own_class=True)
    for part, out in plain_outputs(model, store, store, torch.device("cpu"), batch_size=BATCH):
        search.update(out.tokens, labels[part], part, None)
    rows = torch.arange(len(model.bank))
    model.bank.move(rows, search.result.vectors[:, 0], [None] * len(rows))


def run(fold: Fold, candidate: dict[str, Any], seed: int) -> dict[str, float]:
    """Train one candidate on a fold; return accuracies on what was held out."""
    method = ProtoPNet(**{**BASE, **candidate.get("method", {})})
    window, gain, views = candidate.get("smooth", 3), candidate.get("gain", 0.5), candidate.get("views", VIEWS)
    model = method.build(FeatureEncoder(fold.cache.dim), int(fold.labels.max()) + 1, seed)
    _, store, held = fold.reduced(model, window, method.axes)
    store = Reduced(store.values[:views], store.grid)
    linear = model.neck[1]
    with torch.no_grad():
        linear.weight *= gain / 0.5
    model.neck = torch.nn.Sequential(linear)
    labels, truth = torch.from_numpy(fold.labels), fold.cache.labels[fold.held]
    how = {"seed": seed, "batch_size": BATCH, "clip": None}
    runs: dict[str, Run] = {}
    found: dict[str, float] = {}
    for phase in method.phases():
        if isinstance(phase, Initialise):
            method.initialise(model, PlainTokens(store, fold.labels, BATCH, torch.device("cpu")), seed)
        elif isinstance(phase, Project):
            found["before"] = accuracy(model, held, truth)
            project(model, store, labels)
            found["projected"] = accuracy(model, held, truth)
        elif isinstance(phase, Train) and set(phase.rates) != {"head"}:
            for _ in range(phase.epochs):
                step = runs.setdefault(phase.name, start_run(model, phase))
                set_rates(step, phase, model)
                tensor_epoch(
                    model, method, phase, step, CachedTokens(model, store, torch.device("cpu")), fold.labels, **how
                )
                step.epochs += 1
    for name, changes in HEADS.items():
        other = dataclasses.replace(method, **changes)
        phase = other.phases()[-1]
        assert isinstance(phase, Train)
        before = {key: value.clone() for key, value in model.head.state_dict().items()}
        outputs = (
            out for _, out in plain_outputs(model, store, store, torch.device("cpu"), batch_size=BATCH, views=views)
        )
        scores, step = CachedScores(model, outputs, views), start_run(model, phase)
        for _ in range(phase.epochs):
            set_rates(step, phase, model)
            tensor_epoch(model, other, phase, step, scores, fold.labels, **how)
            step.epochs += 1
        found[f"last_layer {name}".strip()] = accuracy(model, held, truth)
        model.head.load_state_dict(before)
    return found


def folds(cache: TokenCache, repeat: int) -> Iterator[Fold]:
    """Yield the folds of a repeat."""
    split = StratifiedKFold(FOLDS, shuffle=True, random_state=repeat)
    for train, held in split.split(np.zeros(len(cache)), cache.labels):
        yield Fold(cache, train, held)


def main() -> None:
    """Fill ``select_frozen.csv``; rows that are there already are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=list(CANDIDATES), choices=list(CANDIDATES))
    parser.add_argument("--cache", default=None, help="folder that keeps the tokens between runs")
    parser.add_argument("--out", default=ROOT / "select_frozen.csv", type=Path)
    parser.add_argument("--table", action="store_true", help="only print the table of what has been run")
    args = parser.parse_args()
    if args.table:
        print(table(args.out))
        return
    names = ["set", "repeat", "fold", "count", "candidate", "before", "projected"]
    names += [f"last_layer {name}".strip() for name in HEADS] + ["seconds"]
    done = set()
    if args.out.exists():
        with args.out.open(newline="") as page:
            done = {(r["set"], r["repeat"], r["fold"], r["candidate"]) for r in csv.DictReader(page)}
    else:
        args.out.write_text(",".join(names) + "\n")
    with tempfile.TemporaryDirectory() as temporary:
        for repeat in args.repeats:
            for name in SETS:
                cache = encoded(name, args.cache or temporary)
                whole = cache.tokens().values.mean(1).numpy()
                for index, fold in enumerate(folds(cache, repeat)):
                    for candidate in ["logistic regression", *args.only]:
                        if (name, str(repeat), str(index), candidate) in done:
                            continue
                        start = time.perf_counter()
                        if candidate == "logistic regression":
                            fitted = regression().fit(whole[fold.train], fold.labels)
                            found = {"last_layer": fitted.score(whole[fold.held], cache.labels[fold.held])}
                        else:
                            found = run(fold, CANDIDATES[candidate], seed=repeat)
                        row = {"set": name, "repeat": repeat, "fold": index, "count": len(fold.held),
                               "candidate": candidate, **{k: round(v, 5) for k, v in found.items()},
                               "seconds": round(time.perf_counter() - start, 1)}  # fmt: skip
                        with args.out.open("a", newline="") as page:
                            csv.DictWriter(page, names, restval="").writerow(row)
                        print(row, flush=True)


def table(path: Path) -> str:
    """Return means over the folds a candidate was run on, beside the logistic regression on just these folds."""
    with path.open(newline="") as page:
        rows = list(csv.DictReader(page))
    columns = ["before", "projected"] + [f"last_layer {name}".strip() for name in HEADS]
    lines = ["| data | candidate | folds | " + " | ".join(c.replace("_", " ") for c in columns) + " | LR | gap |"]
    lines += ["|---|---|---|" + "---|" * (len(columns) + 2)]
    yard = {(r["set"], r["repeat"], r["fold"]): r for r in rows if r["candidate"] == "logistic regression"}
    for name in SETS:
        for candidate in CANDIDATES:
            mine = [r for r in rows if (r["set"], r["candidate"]) == (name, candidate)]
            if not mine:
                continue
            count = sum(int(r["count"]) for r in mine)
            shares = [sum(float(r[c]) * int(r["count"]) for r in mine) / count for c in columns]
            paired = [yard[r["set"], r["repeat"], r["fold"]] for r in mine]
            reference = sum(float(r["last_layer"]) * int(r["count"]) for r in paired) / count
            cells = [f"{share:.3f}" for share in shares] + [f"{reference:.3f}", f"{100 * (shares[2] - reference):+.1f}"]
            lines.append(f"| {name} | {candidate} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def encoded(name: str, folder: str) -> TokenCache:
    """Return the training part's tokens, before smoothing."""
    encoder = make_encoder(layer="final", size=SIZE)
    drawn = load(name, "train").with_transform(Augmented(encoder.preprocess, Augment(**AUGMENT))).with_seed(0)
    return token_cache(encoder, drawn, folder, views=VIEWS, batch_size=16, dtype="float16", quiet=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
