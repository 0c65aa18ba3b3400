"""``demo``: the whole way on real handwritten digits, without network or other data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from protolearn.cli.shared import say, say_json
from protolearn.errors import TrainingError

SETTINGS: dict[str, Any] = {
    "dim": 32,
    "warm_epochs": 0,
    "project_at": (15, 30),
    "step": 20,
    "encoder_rate": 3e-3,
    "head_rate": 1e-3,
}
"""A network from scratch on small pictures wants larger rates and fewer epochs than the paper's pretrained one."""


def run_demo(args: Any) -> int:
    """Train, save, load, verify, explain, report."""
    from protolearn.cli.train import score
    from protolearn.data import digits
    from protolearn.encoders import SmallEncoder
    from protolearn.explain import report, save_explanation
    from protolearn.methods import get_method
    from protolearn.tasks.verify import verify
    from protolearn.training.checkpoint import clear_checkpoint
    from protolearn.training.fit import fit
    from protolearn.training.folder import check_target, load, save

    start = time.monotonic()
    quiet = args.quiet or args.json
    out = Path(args.out)
    folder = out / "model"
    check_target(folder, overwrite=True)
    train, test = digits("train"), digits("test")
    method = get_method("protopnet")(**SETTINGS)
    say(f"training {type(method).__name__} on {len(train)} handwritten digits (about a minute) ...", quiet)
    # cells of one original pixel, each token seeing three by three: what is outlined is what was compared
    encoder = SmallEncoder(size=16, strides=(2, 1, 1), kernels=(3, 3, 1), seed=args.seed)
    result = fit(
        method, train, encoder=encoder, directory=folder / "training", seed=args.seed, device=args.device, quiet=quiet
    )
    scores = score(result.model, test, "test")
    save(result.model, folder, train, metrics=scores, overwrite=True)
    clear_checkpoint(folder / "training")
    model = load(folder)
    checked = verify(model, train)
    if not checked.ok:
        raise TrainingError(f"the demo's own model does not verify: {checked.summary()}; please report this")
    (out / "explained").mkdir(parents=True, exist_ok=True)
    drawn = [
        str(save_explanation(model, test, place, out / "explained" / f"{_name(test.ids[place])}.png", sources=train))
        for place in _telling(test)
    ]
    page = report(model, train, test, out / "report.html", quiet=quiet)
    seconds = time.monotonic() - start
    if args.json:
        told = {"model": folder, "report": page, "explanations": drawn, "scores": scores, "verified": True}
        say_json({**told, "seconds": round(seconds, 1)})
        return 0
    say(f"accuracy on {scores['cases']} test digits: {scores['accuracy']:.3f}", quiet)
    say(checked.summary(), quiet)
    say(f"\nlook at     {page}  (open it in a browser)", quiet)
    say(f"explained   {out / 'explained'}/  ({len(drawn)} pictures)", quiet)
    say(f"the model   {folder}/  (README.md says what is in it)", quiet)
    say(f"try         protolearn verify {folder} digits", quiet)
    say(f"            protolearn train YOUR_PICTURES --encoder resnet18 --weights hub --out {out / 'mine'}", quiet)
    say(f"{seconds:.0f} seconds", quiet)
    return 0


def _telling(test: Any) -> list[int]:
    """Return the first test case of four digits."""
    labels = test.labels.tolist()
    return [labels.index(digit) for digit in (0, 3, 5, 8)]


def _name(case: str) -> str:
    return case.replace("/", "_")
