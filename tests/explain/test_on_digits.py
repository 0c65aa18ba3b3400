"""What the tools say of a model that was trained on real digits: directions, not numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.core.model import PrototypeModel
from protolearn.data import digits
from protolearn.data.archive import archive
from protolearn.encoders import ImageEncoder, SmallEncoder
from protolearn.explain import compare_attributions, region_honesty, tcav
from protolearn.methods import get_method
from protolearn.training.fit import fit

pytestmark = pytest.mark.slow


def shown(model: PrototypeModel, cases: Any, indices: Any) -> Tensor:
    return torch.stack([model.encoder.preprocess(cases.picture(int(i))) for i in indices])


@pytest.fixture(scope="module")
def trained() -> PrototypeModel:
    method = get_method("protopnet")(
        dim=32, prototypes_per_class=4, warm_epochs=0, project_at=(8,), step=20, encoder_rate=3e-3, head_rate=1e-3,
        last_layer_epochs=5,
    )  # fmt: skip
    encoder = SmallEncoder(size=16, strides=(2, 1, 1), kernels=(3, 3, 1))
    return fit(method, digits("train"), encoder=encoder, seed=0, quiet=True).model


def test_asking_the_pixels_is_more_faithful_than_enlarging_the_map(trained: PrototypeModel) -> None:
    found = compare_attributions(trained, shown(trained, digits("test"), range(32)), methods=["upsample", "occlusion"])
    told = found.summary()
    for kind in ("deletion", "insertion"):
        assert told["occlusion"][kind]["gain_interval"][0] > 0
        assert told["occlusion"][kind]["gain"] > told["upsample"][kind]["gain"]
    assert found.best() == "occlusion"


def test_a_concept_test_agrees_with_drawing_the_concept(trained: PrototypeModel) -> None:
    """Where a concept's score holds, drawing it into the inputs moves the logit to the side that the score says."""
    train, test = digits("train"), digits("test")
    base, pool = shown(trained, train, range(300, 360)), shown(trained, train, range(300))
    ones = shown(trained, test, np.flatnonzero(test.labels == 1))
    where = {"upright bar": (slice(None), slice(6, 10)), "level bar": (slice(6, 10), slice(None))}

    def marked(pictures: Tensor, name: str) -> Tensor:
        made = pictures.clone()
        made[:, :, where[name][0], where[name][1]] = 1.0
        return made

    found = tcav(trained, {name: marked(base, name) for name in where}, pool, ones, target="1")
    upright, level = found.concepts
    assert upright.holds and upright.score > 0.5 > level.score
    with torch.no_grad():
        plain = trained(ones).logits[:, 1]
        moved = {name: float((trained(marked(ones, name)).logits[:, 1] - plain).mean()) for name in where}
    assert moved["upright bar"] > 0 > moved["level bar"]


def test_outlines_of_a_deep_network_on_birds_leave_most_out(shared_data: Any) -> None:
    """Seven by seven cells of a pretrained network, whose receptive field is the whole picture."""
    weights = shared_data / "backbones" / "mobilenetv2_100_in1k.safetensors"
    birds = archive(shared_data / "cub_birds6" / "cub_birds6.zip", "test")
    encoder = ImageEncoder("mobilenetv2_100", weights=weights, size=224)
    model = get_method("protopnet")(prototypes_per_class=1, dim=32).build(encoder, 6)
    found = region_honesty(model, shown(model, birds, range(0, 60, 10)), 0, draws=2)
    assert all(each.disagrees for each in found)
    assert all(each.covered(each.field) > 0.9 for each in found)
    assert max(each.inside for each in found if each.inside is not None) < 0.4
