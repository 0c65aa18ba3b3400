"""Every image method on the same frozen features: white blood cells, birds, CIFAR-10; one command, one table.

    python results/methods.py [--only SLUG ...] [--sets wbc birds cifar10] [--seeds 0 1 2] [--peer PYTHON]
    python results/methods.py --table                  # print the tables of what is in the receipt

Encoder: MobileNetV2 with ImageNet weights, its last map (1280 wide): 7 x 7 cells at 224 px for cells and birds, 3 x 3
at 96 px for CIFAR-10, of which the first 50 training pictures of each class are used. Each method runs with its recipe
"frozen", chosen on training parts only; the test part is read when a training is over. Beside them, on the same
features averaged over the map: logistic regression (the linear head) and k-nearest neighbours; and with ``--peer``, the
interpreter of an environment that has cabrnet, CaBRNet's own ProtoPNet training on the same maps (``make
.venv-peers/.ready`` makes one). Then three methods with the encoder trained as well, on smaller pictures. Results are
added to ``methods.json`` as they come; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, data_folder, load, made, make_encoder, regression
from sklearn.neighbors import KNeighborsClassifier

from protolearn.core.method import Method, Train
from protolearn.core.model import PrototypeModel
from protolearn.data import Augment, arrays
from protolearn.data.cases import Cases
from protolearn.encoders.cache import TokenCache, token_cache
from protolearn.errors import UsageError
from protolearn.methods import list_methods
from protolearn.training import schedule
from protolearn.training.fit import fit
from protolearn.training.material import plain_outputs
from protolearn.training.record import TrainingWarning

SIZES = {"wbc": 224, "birds": 224, "cifar10": 96}
TRAINED_SIZES = {"wbc": 96, "birds": 96, "cifar10": 64}
PER_CLASS = 50
VIEWS = 3
AUGMENT = Augment(
    one_of=False, rotation=15, shear=10, skew=0, crop=(0.6, 1.0), ratio=(0.8, 1.25), brightness=0.2, contrast=0.2,
    saturation=0.1, hue=0.02,
)  # fmt: skip

# The recipes' start and few epochs; the encoder moves for eight of them, its batch-norm statistics never.
TRAINED: dict[str, dict[str, Any]] = {
    "protopnet": {
        "neck": "principal", "start": "k_means", "warm_epochs": 20, "project_at": (28,), "encoder_rate": 3e-5,
        "neck_rate": 1e-3, "step": 0, "last_layer_epochs": 20, "head_rate": 1e-3,
    },
    "st-protopnet": {
        "neck": "principal", "start": "k_means", "enlarge": 1, "warm_epochs": 20, "project_at": (28,),
        "encoder_rate": 3e-5, "step": 0, "last_layer_epochs": 20, "head_rate": 1e-3,
    },
    "harmonic": {"init": "means", "exponent": 8.0, "epochs": 8, "encoder_rate": 1e-4, "prototype_rate": 1e-2},
}  # fmt: skip


def pictures(name: str, part: str) -> Cases:
    """Return the training or test pictures of a set."""
    if name != "cifar10":
        return load(name, part)
    with np.load(data_folder() / "cifar10" / "cifar10.npz", allow_pickle=False) as z:
        classes = [str(c) for c in z["classes"]]
        cases = arrays(z[f"x_{part}"], z[f"y_{part}"], classes=classes, name=f"cifar10/{part}")
    if part == "test":
        return cases
    first = [np.flatnonzero(cases.labels == label)[:PER_CLASS] for label in range(len(classes))]
    return cases.subset(np.sort(np.concatenate(first)))


def image_methods() -> dict[str, type[Method]]:
    """Return the methods that say how they run on a frozen encoder of pictures."""
    return {slug: cls for slug, cls in list_methods().items() if "frozen" in cls.recipes and cls.area != "shallow"}


@contextmanager
def last_projection(kept: list[PrototypeModel]) -> Iterator[None]:
    """Keep a copy of the model as the latest projection left it."""
    projected = schedule.project

    def watched(model: PrototypeModel, *args: Any, **how: Any) -> Any:
        report = projected(model, *args, **how)
        kept[:] = [copy.deepcopy(model)]
        return report

    schedule.project = watched
    try:
        yield
    finally:
        schedule.project = projected


@torch.no_grad()
def right(model: PrototypeModel, test: Cases, store: TokenCache | None) -> tuple[int, int]:
    """Return how many cases are right, and how many prototypes add anything to any score of any case."""
    correct, used = 0, torch.zeros(len(model.bank), dtype=torch.bool)
    if store is None:  # through the network, as it wants to be shown pictures
        test = test.with_transform(model.encoder.preprocess)
    for part, out in plain_outputs(model, test, store, torch.device("cpu"), batch_size=64):
        correct += int((out.logits.argmax(1).numpy() == test.labels[part.numpy()]).sum())
        for start in range(0, len(part), 8):
            used |= (model.head.ledger(out.part(slice(start, start + 8))).abs() > 1e-6).any(0).any(0)
    return correct, int(used.sum())


def epochs_of(method: Method) -> int:
    return sum(phase.epochs for phase in method.phases() if isinstance(phase, Train))


def once(
    method: Method,
    options: dict[str, Any],
    train: Cases,
    test: Cases,
    encoder: Any,
    seed: int,
    cache: Path | None,
    store: TokenCache | None,
    augment: Augment | None,
) -> dict[str, Any]:
    """Train with one seed and read the test part."""
    kept: list[PrototypeModel] = []
    start = time.perf_counter()
    with last_projection(kept), warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        fitted = fit(
            method, train, encoder=encoder, augment=augment, seed=seed, device="cpu", quiet=True, cache=cache, **options
        )
    seconds = time.perf_counter() - start
    final, used = right(fitted.model, test, store)
    moved = [source.moved for source in fitted.model.bank.sources if source is not None]
    entry = {"right": final, "prototypes": len(fitted.model.bank), "used": used, "seconds": round(seconds, 2)}
    entry["epochs"] = max(1, epochs_of(method))
    if kept and any(moved):
        kept[0].eval()
        entry["after_projection"] = right(kept[0], test, store)[0]
    return entry


def baselines(train: TokenCache, test: TokenCache) -> dict[str, int]:
    """Return how many test cases the linear head and nearest neighbours get right, on averaged tokens."""
    x, y = train.tokens().values.mean(1).numpy(), np.array(train.labels)
    held, truth = test.tokens().values.mean(1).numpy(), np.array(test.labels)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, held)]
    neighbours = KNeighborsClassifier(5).fit(unit[0], y)
    return {
        "linear head (logistic regression)": int((regression().fit(x, y).predict(held) == truth).sum()),
        "5 nearest neighbours (cosine)": int((neighbours.predict(unit[1]) == truth).sum()),
    }


def frozen(args: argparse.Namespace, receipt: dict[str, Any], out: Path) -> None:
    """Run what is missing from the receipt, with the encoder frozen."""
    for name in args.sets:
        train, test = pictures(name, "train"), pictures(name, "test")
        encoder = make_encoder(layer="final", size=SIZES[name])
        store = token_cache(encoder, test, args.cache, quiet=True, batch_size=32)
        entry = receipt["sets"].setdefault(name, {"methods": {}})
        entry["data"] = {"train": train.counts(), "test": test.counts(), "size": SIZES[name],
                         "train_digest": train.fingerprint(), "test_digest": test.fingerprint()}  # fmt: skip
        if "baselines" not in entry:
            entry["baselines"] = baselines(token_cache(encoder, train, args.cache, quiet=True, batch_size=32), store)
        for slug, cls in image_methods().items():
            if args.only and slug not in args.only:
                continue
            recipe = cls.recipes["frozen"]
            options = dict(recipe.options)
            several = options.get("views", 1) > 1
            options["views"] = VIEWS if several else 1
            found = entry["methods"].setdefault(slug, {})
            for seed in args.seeds:
                if str(seed) in found or found.get("not applicable"):
                    continue
                try:
                    found[str(seed)] = once(
                        cls(**recipe.method), options, train, test, encoder, seed, args.cache, store,
                        AUGMENT if several else None,
                    )  # fmt: skip
                except UsageError as error:
                    found["not applicable"] = str(error)
                write(receipt, out)
                shown = found.get(str(seed), found)
                print(name, slug, seed, shown, flush=True)


def peer(args: argparse.Namespace, receipt: dict[str, Any], out: Path) -> None:
    """Run CaBRNet's ProtoPNet on the same maps, in its own environment."""
    for name in args.sets:
        entry = receipt["sets"][name]
        if "cabrnet" in entry:
            continue
        encoder = make_encoder(layer="final", size=SIZES[name])
        arrays: dict[str, np.ndarray] = {}
        for part in ("train", "test"):
            store = token_cache(encoder, pictures(name, part), args.cache, quiet=True, batch_size=32)
            assert store.grid is not None
            maps = store.tokens().values.unflatten(1, store.grid).permute(0, 3, 1, 2)
            arrays |= {f"x_{part}": maps.contiguous().numpy(), f"y_{part}": np.array(store.labels)}
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder) / "maps.npz", **arrays)
            command = [args.peer, str(ROOT / "cabrnet_features.py"), "maps.npz", "--seeds", *map(str, args.seeds)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the peer failed:\n{done.stderr[-2000:]}")
        entry["cabrnet"] = json.loads(done.stdout)
        write(receipt, out)
        print(name, "cabrnet", entry["cabrnet"], flush=True)


def paper(args: argparse.Namespace, receipt: dict[str, Any], out: Path) -> None:
    """Run our ProtoPNet with the settings that the peer has: the paper's, with the encoder frozen."""
    for name in args.sets:
        train, test = pictures(name, "train"), pictures(name, "test")
        encoder = make_encoder(layer="final", size=SIZES[name])
        store = token_cache(encoder, test, args.cache, quiet=True, batch_size=32)
        found = receipt["sets"][name].setdefault("paper", {})
        for seed in args.seeds:
            if str(seed) not in found:
                method = list_methods()["protopnet"](encoder_rate=None)
                found[str(seed)] = once(method, {"batch_size": 40}, train, test, encoder, seed, args.cache, store, None)
                write(receipt, out)
                print(name, "protopnet, the paper's settings", seed, found[str(seed)], flush=True)


def trained(args: argparse.Namespace, receipt: dict[str, Any], out: Path) -> None:
    """Run three methods with the encoder trained, on smaller pictures."""
    for name in args.sets:
        train, test = pictures(name, "train"), pictures(name, "test")
        entry = receipt["sets"][name].setdefault("trained", {"size": TRAINED_SIZES[name], "methods": {}})
        encoder = make_encoder(layer="final", size=TRAINED_SIZES[name])
        if "baselines" not in entry:
            entry["baselines"] = baselines(*(token_cache(encoder, c, None, quiet=True) for c in (train, test)))
        for slug, settings in TRAINED.items():
            if args.only and slug not in args.only:
                continue
            found = entry["methods"].setdefault(slug, {})
            for seed in args.seeds:
                if str(seed) in found:
                    continue
                method, encoder = (
                    list_methods()[slug](**settings),
                    make_encoder(layer="final", size=TRAINED_SIZES[name], freeze_norms=True),
                )
                found[str(seed)] = once(
                    method, {"batch_size": 32}, train, test, encoder, seed, args.cache, None, AUGMENT
                )
                write(receipt, out)
                print(name, slug, "encoder trained", seed, found[str(seed)], flush=True)


def write(receipt: dict[str, Any], out: Path) -> None:
    """Write the receipt whole."""
    temporary = out.with_suffix(".part")
    temporary.write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    temporary.replace(out)


def table(receipt: dict[str, Any]) -> str:
    """Return the results in Markdown: mean and standard deviation over seeds, in per cent of the test cases."""
    sets = receipt["sets"]
    heads = [f"{name}: accuracy | after projection | prototypes used | s/epoch" for name in sets]
    lines = [f"| frozen encoder | {' | '.join(heads)} |", "|---|" + "---|" * (4 * len(sets))]
    for label in next(iter(sets.values()))["baselines"]:
        cells = [f"{100 * entry['baselines'][label] / tests(entry):.1f} | | |" for entry in sets.values()]
        lines.append(f"| *{label}* | {' '.join(cells)}")
    peers = [entry["cabrnet"]["seeds"] if "cabrnet" in entry else None for entry in sets.values()]
    if any(peers):
        cells = [row(runs, tests(entry)) for runs, entry in zip(peers, sets.values(), strict=True)]
        lines.append(f"| *CaBRNet's ProtoPNet, its own training* | {' '.join(cells)}")
    cells = [row(entry.get("paper"), tests(entry)) for entry in sets.values()]
    lines.append(f"| *our ProtoPNet with the same settings, the paper's* | {' '.join(cells)}")
    for slug in sorted({slug for entry in sets.values() for slug in entry["methods"]}):
        cells = [row(entry["methods"].get(slug), tests(entry)) for entry in sets.values()]
        lines.append(f"| {slug} | {' '.join(cells)}")
    if all("trained" in entry for entry in sets.values()):
        sizes = [f"{name} at {entry['trained']['size']} px: accuracy | after projection | prototypes used | s/epoch"
                 for name, entry in sets.items()]  # fmt: skip
        lines += ["", f"| encoder trained | {' | '.join(sizes)} |", "|---|" + "---|" * (4 * len(sets))]
        for label in next(iter(sets.values()))["trained"]["baselines"]:
            cells = [f"{100 * e['trained']['baselines'][label] / tests(e):.1f} | | |" for e in sets.values()]
            lines.append(f"| *{label}, frozen, at that size* | {' '.join(cells)}")
        for slug in TRAINED:
            cells = [row(entry["trained"]["methods"].get(slug), tests(entry)) for entry in sets.values()]
            lines.append(f"| {slug} | {' '.join(cells)}")
    return "\n".join(lines)


def tests(entry: dict[str, Any]) -> int:
    """Return how many test cases a set has."""
    return sum(entry["data"]["test"].values())


def row(runs: dict[str, Any] | None, count: int) -> str:
    """Return the four cells of a method on a set."""
    if not runs or runs.get("not applicable"):
        return f"{'not applicable' if runs else 'not run'} | | |"
    each = list(runs.values())
    projected = spread([r["after_projection"] / count for r in each]) if "after_projection" in each[0] else ""
    used = np.mean([r.get("used", r["prototypes"]) for r in each])
    made = np.mean([r["prototypes"] for r in each])
    seconds = np.mean([r["seconds"] / r["epochs"] for r in each])
    return f"{spread([r['right'] / count for r in each])} | {projected} | {used:.0f} of {made:.0f} | {seconds:.2f} |"


def spread(shares: list[float]) -> str:
    """Return mean and standard deviation (n - 1) in per cent."""
    deviation = f" ± {100 * np.std(shares, ddof=1):.1f}" if len(shares) > 1 else ""
    return f"{100 * np.mean(shares):.1f}{deviation}"


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--cache", type=Path, default=None, help="folder that keeps the frozen tokens between runs")
    parser.add_argument("--peer", default=None, help="interpreter of an environment that has cabrnet")
    parser.add_argument("--part", choices=("frozen", "trained"), default=None, help="only this part")
    parser.add_argument("--out", type=Path, default=ROOT / "methods.json")
    parser.add_argument("--table", action="store_true", help="print the table of the receipt and stop")
    args = parser.parse_args()
    receipt: dict[str, Any] = {"sets": {}}
    if args.out.exists():
        receipt = json.loads(args.out.read_text(encoding="utf-8"))
    if not args.table:
        receipt |= made("python results/methods.py")
        if args.part != "trained":
            frozen(args, receipt, args.out)
            paper(args, receipt, args.out)
            if args.peer:
                peer(args, receipt, args.out)
        if args.part != "frozen":
            trained(args, receipt, args.out)
        write(receipt, args.out)
    print(table(receipt))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
