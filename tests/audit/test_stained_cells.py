"""Real pictures, real masks, and a model whose evidence is known: how much stain a cell of its map has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.audit.planted import planted
from torch import Tensor

from protolearn.audit.metric import make_metric
from protolearn.audit.result import AuditResult
from protolearn.data import Annotation, arrays
from protolearn.tasks.audit import audit


def stain(inputs: Tensor) -> Tensor:
    """Two maps: nuclei are dark in the green channel, the ground is bright in it."""
    green = torch.nn.functional.avg_pool2d(inputs[:, 1:2], 10)
    return torch.cat([1 - green, green], 1)


@pytest.fixture(scope="module")
def found(shared_data: Path) -> AuditResult:
    with np.load(shared_data / "wbc_tecom" / "wbc_tecom.npz", allow_pickle=False) as z:
        pictures, masks = z["x"][:60], z["mask"][:60]
    # every other case is said to be of class 1, whose only prototype looks at the ground
    cases = arrays(pictures, np.arange(60) % 2, classes=["class 0", "class 1"], name="cells")
    nuclei = {case: Annotation(mask=(mask == 2).astype(np.uint8)) for case, mask in zip(cases.ids, masks, strict=True)}
    subject = planted(stain, torch.eye(2), torch.tensor([[8.0, 0.0], [0.0, 4.0]]))
    kinds = [make_metric(name, steps=10, substrates=("blur",), most=12) for name in ("deletion", "insertion")]
    named = ["content_heat", "content_heat_share", "oirr", "iou", "pointing_game", "prototype_faithfulness"]
    return audit(subject, cases.with_annotations(nuclei), metrics=[*named, *kinds])


def test_stain_lies_on_nuclei_and_ground_does_not(found: AuditResult) -> None:
    share = found["pointing_game"].extras["object's share of the picture, mean"]
    assert 0.05 < share < 0.4
    for name, chance in (("content_heat_share", share), ("pointing_game", share), ("oirr", 1.0), ("content_heat", 0.5)):
        on, off = (float(value) for value in found[name].per_prototype)  # type: ignore[union-attr]
        assert (on < chance < off) if name == "oirr" else (off < chance < on), name
    assert found["pointing_game"].per_prototype[0] > 0.9  # type: ignore[index]
    assert found["iou"].per_prototype[0] > 5 * found["iou"].per_prototype[1]  # type: ignore[index]


def test_taking_the_stain_out_costs_the_prediction(found: AuditResult) -> None:
    taken, put = found["deletion"].extras["blur"], found["insertion"].extras["blur"]
    assert taken["salient first"] < taken["random cells"] < taken["inverse"]
    assert taken["random cells less salient first, interval over cases"][0] > 0
    assert put["salient first"] > put["random cells"] > put["inverse"]
    assert put["salient first less random cells, interval over cases"][0] > 0
    assert found["deletion"].counts["cases not drawn"] == 48


def test_the_darkest_cell_is_not_all_the_stain_there_is(found: AuditResult) -> None:
    """Another cell of the nucleus is nearly as dark: the promise of the ledger is not kept, and the figures say so."""
    score = found["prototype_faithfulness"]
    assert score.extras["cell of the peak"]["share of the prototype's own entry that goes"] < 0.5
    assert score.extras["cell of the peak"]["mean absolute gap"] > 0.5 * score.extras["mean promised drop"]
