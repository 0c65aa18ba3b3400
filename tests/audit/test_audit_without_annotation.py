"""The metrics that need no annotation through one call, on real digits: what training, noise and a twin do to them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from protolearn import fit, get_method
from protolearn.audit.metric import METRICS
from protolearn.audit.result import AuditResult
from protolearn.audit.subject import subject_of
from protolearn.core.model import PrototypeModel
from protolearn.data import arrays, digits
from protolearn.encoders import SmallEncoder
from protolearn.errors import UsageError
from protolearn.tasks.audit import audit

NAMES = [
    "prototype_cosine", "orthogonality", "evidence_correlation", "map_overlap", "shared_sources", "neighbour_purity",
    "channel_purity", "pac", "pca", "pca_w", "pca_shared", "shift_agreement", "continuity", "continuity_moves",
    "cross_run_stability",
]  # fmt: skip
RATES = {"encoder_rate": 1e-2, "neck_rate": 1e-2, "prototype_rate": 1e-2, "head_rate": 1e-2}


def made(name: str, seed: int, **settings: Any) -> PrototypeModel:
    model = get_method(name)(**settings).build(SmallEncoder(dim=16, size=16, seed=seed), 10, seed=seed)
    model.classes = digits("test").classes
    return model


def noisy(std: float) -> Any:
    """Return the audited digits with noise on their pixels."""
    cases, draw = digits("test").subset(range(60)), np.random.default_rng(0)
    pixels = np.stack([np.asarray(cases.picture(i)) for i in range(60)]).astype(float)
    pixels = np.clip(pixels + draw.normal(0, 1, pixels.shape) * std, 0, 255).astype(np.uint8)
    return arrays(pixels, cases.labels, classes=cases.classes, ids=cases.ids, name="noisy digits")


@pytest.fixture(scope="module")
def trained() -> PrototypeModel:
    method = get_method("protopnet")(
        prototypes_per_class=2, dim=16, warm_epochs=1, project_at=(8,), last_layer_epochs=2, **RATES
    )
    return fit(method, digits("train").subset(range(400)), encoder=SmallEncoder(dim=16, size=16), quiet=True).model


def run(model: PrototypeModel, names: list[str], **more: Any) -> AuditResult:
    return audit(model, digits("test").subset(range(60)), digits("train").subset(range(200)), metrics=names, **more)


@pytest.mark.parametrize("name", ["protopnet", "st-protopnet", "protopool", "prototree", "pipnet"])
def test_any_method_is_audited_in_one_call(name: str) -> None:
    """Weights that a method lacks are asked for; nothing is NaN, and the record is plain JSON."""
    model, twin = (made(name, seed) for seed in (0, 1))
    cases, subject = digits("test").subset(range(24)), subject_of(model)
    has = {"weights": subject.weights is not None, "vectors": subject.vectors is not None}
    able = [each for each in NAMES if all(has.get(need, True) for need in METRICS[each].about.needs)]
    data: dict[str, Any] = {"train": digits("train").subset(range(40)), "shifted": cases, "twin": twin}
    found = audit(model, cases, metrics=able, **data)
    assert set(json.loads(found.to_json())["metrics"]) == set(able)
    for each in set(NAMES) - set(able):
        with pytest.raises(UsageError, match=f"{each} needs"):
            audit(model, cases, metrics=[each], **data)
    for each in able:
        assert found[each].value is not None or found[each].notes, each
    assert found["pac"].value == pytest.approx(1.0), "the shifted cases are the cases"
    assert found["shift_agreement"].value == 1.0
    assert found["evidence_correlation"].value is not None
    assert found["continuity"].value is not None


def test_training_brings_prototypes_to_their_own_class(trained: PrototypeModel) -> None:
    names = ["neighbour_purity", "shared_sources", "pca"]
    after, before = run(trained, names), run(made("protopnet", 0, prototypes_per_class=2, dim=16), names)
    assert (after["neighbour_purity"].value or 0) > 0.6 > 0.4 > (before["neighbour_purity"].value or 0)
    assert (after["pca"].value or 0) > (before["pca"].value or 0) + 0.1
    counts = after["shared_sources"]
    assert counts.extras["share by the record of the projection"] == pytest.approx(counts.value, abs=0.2)


def test_more_shift_less_consistency(trained: PrototypeModel) -> None:
    names = ["pac", "shift_agreement"]
    found = [run(trained, names, shifted=noisy(std)) for std in (0.0, 25.0, 90.0)]
    pac, same = ([each[name].value or 0 for each in found] for name in names)
    assert pac[0] == pytest.approx(1.0)
    assert pac[0] > pac[1] > pac[2]
    assert same[0] == 1.0
    assert same[1] > same[2]
    level = found[0]["pac"].extras["of each case and the next one under shift, the level of no relation"]
    assert level < pac[1]


def test_more_noise_less_continuity(trained: PrototypeModel) -> None:
    found = [
        run(trained, ["continuity"], noise=noise, limit=10.0)["continuity"].value or 0 for noise in (0.0, 0.3, 3.0)
    ]
    assert found[0] == 1.0
    assert found[0] > found[1] > found[2]


def test_a_model_agrees_with_itself_and_less_with_another(trained: PrototypeModel) -> None:
    itself = run(trained, ["cross_run_stability"], twin=trained)["cross_run_stability"]
    assert itself.value == pytest.approx(1.0)
    assert itself.extras["compared by"] == "vectors"
    other = made("protopnet", 5, prototypes_per_class=2, dim=16)
    apart = run(trained, ["cross_run_stability"], twin=other)["cross_run_stability"]
    assert apart.extras["compared by"] == "cases"
    assert (apart.value or 0) < 0.7


def test_what_is_not_given_is_asked_for(trained: PrototypeModel) -> None:
    cases = digits("test").subset(range(8))
    for name, wanted in (("pac", "shifted="), ("cross_run_stability", "twin="), ("neighbour_purity", "train=")):
        with pytest.raises(UsageError, match=wanted):
            audit(trained, cases, metrics=[name])
