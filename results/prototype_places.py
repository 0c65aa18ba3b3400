"""Where the recipe's prototypes lie: on the object, or beside it.

    python results/prototype_places.py

Trains the recipe "frozen" (seed 0) on birds and white blood cells and asks of each prototype whether the middle of its
place lies on the object: in the bird's box, on the cell's mask. Chance is the object's share of the same pictures.
Reads training pictures only; writes ``prototype_places.json``.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from common import ROOT, SETS, data_folder, load, made
from protopnet_frozen import RECIPE, train_once

from protolearn.data.cases import Cases
from protolearn.structures import Source


def on_object(name: str, cases: Cases, source: Source) -> tuple[bool, float]:
    """Return whether the middle of a prototype's place is on the object, and the object's share of that picture."""
    case = cases.index(source.case)
    assert source.region is not None
    x, y = (source.region.x0 + source.region.x1) / 2, (source.region.y0 + source.region.y1) / 2
    if name == "birds":
        annotation = cases.annotation(case)
        assert annotation is not None
        x0, y0, x1, y1 = annotation.boxes[0]
        width, height = cases.size(case)
        return bool(x0 <= x < x1 and y0 <= y < y1), float((x1 - x0) * (y1 - y0) / (width * height))
    with np.load(data_folder() / "wbc_tecom" / "wbc_tecom.npz", allow_pickle=False) as z:
        mask = z["mask"][int(source.case.rsplit("/", 1)[-1])] > 0
    return bool(mask[math.floor(y), math.floor(x)]), float(mask.mean())


def main() -> None:
    found: dict[str, Any] = {}
    for name in SETS:
        cases = load(name, "train")
        model, _ = train_once(cases, RECIPE.encoder["size"], seed=0)
        places = [on_object(name, cases, source) for source in model.bank.sources if source is not None]
        inside, chance = sum(hit for hit, _ in places), float(np.mean([share for _, share in places]))
        found[name] = {"prototypes": len(places), "on_object": inside, "chance": round(chance, 4)}
        print(f"{name}: {inside} of {len(places)} on the object; a random place would be {chance:.2f}")
    receipt = {**made("python results/prototype_places.py"), "seed": 0, "sets": found}
    (ROOT / "prototype_places.json").write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
