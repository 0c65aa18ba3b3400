"""One call audits any model: deterministic, without changing it, and it refuses what the data do not allow."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from protolearn.audit.blanking import per_call
from protolearn.audit.metric import METRICS, Metric, Score, Seen, make_metric
from protolearn.audit.result import AuditResult
from protolearn.core.model import PrototypeModel
from protolearn.data import Annotation, arrays, digits
from protolearn.encoders import SmallEncoder
from protolearn.errors import DataError, ProtolearnError, UsageError
from protolearn.explain.audit_page import audit_html, save_audit, save_audit_folder
from protolearn.methods import get_method
from protolearn.tasks.audit import audit
from protolearn.tasks.audit_marks import marks_of

PART_METRICS = ["consistency", "stability"]


@pytest.fixture(scope="module")
def model() -> PrototypeModel:
    model = get_method("protopnet")(prototypes_per_class=2).build(SmallEncoder(), 10)
    model.classes = digits("test").classes
    return model.eval()


@pytest.fixture(scope="module")
def cases() -> Any:
    """Twenty digits with two key points and a mask each."""
    part = digits("test").subset(range(20))
    marks = {}
    for i, case in enumerate(part.ids):
        width, height = part.picture(i).size
        mask = np.zeros((height, width), np.uint8)
        mask[1 : height - 1, 1 : width - 1] = 1
        points = np.array([[width / 2, height / 2, 1.0], [1.0, 1.0, float(i % 2)]])
        marks[case] = Annotation(points=points, point_names=("middle", "corner"), mask=mask)
    return part.with_annotations(marks)


def same(a: AuditResult, b: AuditResult) -> bool:
    return json.loads(a.to_json()) == json.loads(b.to_json())


def test_the_same_seed_the_same_figures_whatever_the_batches(model: PrototypeModel, cases: Any) -> None:
    first = audit(model, cases, metrics=PART_METRICS, seed=3)
    assert same(first, audit(model, cases, metrics=PART_METRICS, seed=3))
    other = audit(model, cases, metrics=PART_METRICS, seed=3, batch_size=7)
    for name in PART_METRICS:
        assert other[name].value == pytest.approx(first[name].value, abs=1e-9)
    alone = audit(model, cases, metrics=["stability"], seed=3)
    assert alone["stability"].over_cases == first["stability"].over_cases  # no metric draws from another's generator


def test_noise_of_nothing_changes_nothing(model: PrototypeModel, cases: Any) -> None:
    assert audit(model, cases, metrics=["stability"], noise=0.0, draws=2)["stability"].value == 100.0


def test_the_model_is_left_as_it_was(model: PrototypeModel, cases: Any) -> None:
    model.train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    audit(model, cases, metrics="quick")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    model.eval()


class Meddling(Metric):
    """A metric that changes what it measures."""

    about = METRICS["consistency"].about

    def update(self, seen: Seen) -> None:
        self.setting.subject.module.bank.vectors.add_(1e-3)

    def result(self) -> Score:
        return Score(1.0)


def test_figures_of_a_meddling_metric_are_withheld(cases: Any) -> None:
    victim = get_method("protopnet")(prototypes_per_class=1).build(SmallEncoder(), 10)
    victim.classes = cases.classes
    with pytest.raises(ProtolearnError, match="changed the model"):
        audit(victim, cases, metrics=[Meddling()])


def test_what_is_missing_is_named_with_what_can_stand_in(model: PrototypeModel) -> None:
    bare = digits("test").subset(range(8))
    with pytest.raises(UsageError, match=r"consistency needs key points .*; without it, look at 'continuity'"):
        audit(model, bare, metrics=["consistency"])
    found = audit(model, bare, metrics="quick")
    refused = {each.about.name: each.reason for each in found.refused}
    assert set(PART_METRICS) <= set(refused)
    for each in found.refused:
        assert set(each.about.instead) <= set(METRICS), each.about.name
        assert all("points" not in METRICS[name].about.needs for name in each.about.instead)
    with pytest.raises(UsageError, match="consistency needs key points"):
        found["consistency"]
    with pytest.raises(UsageError, match="did you mean 'consistency'"):
        found["consistencies"]


def test_wrong_requests(model: PrototypeModel, cases: Any) -> None:
    with pytest.raises(UsageError, match="did you mean 'stability'"):
        audit(model, cases, metrics=["stabilty"])
    with pytest.raises(UsageError, match="did you mean 'threshold'"):
        make_metric("consistency", treshold=1)
    with pytest.raises(UsageError, match="asked for twice"):
        audit(model, cases, metrics=["stability", make_metric("stability", half_side=3)])
    with pytest.raises(UsageError, match="needs cases, got none"):
        audit(model, cases.subset([]))
    with pytest.raises(UsageError, match="draws must be"):
        audit(model, cases, draws=0)
    with pytest.raises(UsageError, match="same cases in the same order"):
        audit(model, cases, shifted=cases.subset(range(19, -1, -1)), metrics=["consistency"])
    with pytest.raises(UsageError, match="wrap another model"):
        audit(torch.nn.Linear(1, 1), cases)


def test_unlabelled_and_single_cases(model: PrototypeModel, cases: Any) -> None:
    one = audit(model, cases.subset([0]), metrics=PART_METRICS)
    assert one["consistency"].value is not None and one["consistency"].over_cases is None
    unlabelled = arrays(np.zeros((3, 8, 8), np.uint8), np.full(3, -1), classes=list(cases.classes))
    found = audit(model, unlabelled, metrics="quick")
    assert found.classified.accuracy is None
    assert {each.about.name for each in found.refused} >= set(PART_METRICS)


def test_marks_that_do_not_fit_are_refused(model: PrototypeModel, cases: Any) -> None:
    first = cases.ids[0]

    def marked(**fields: Any) -> Any:
        return cases.with_annotations({first: Annotation(**fields)})

    far = marked(points=np.array([[400.0, 2.0, 1.0]]), point_names=("beak",))
    with pytest.raises(DataError, match=f"{first}: the key point 'beak' lies at .* outside the picture"):
        audit(model, far, metrics=["consistency"])
    hidden = marked(points=np.array([[400.0, 2.0, 0.0], [1, 1, 1]]), point_names=("beak", "tail"))
    assert audit(model, hidden, metrics=["consistency"])["consistency"].counts["parts never visible"] == 1
    width, height = cases.picture(0).size
    small = marked(mask=np.ones((height - 1, width), np.uint8))
    with pytest.raises(DataError, match=f"{first}: the mask is"):
        marks_of(small, [0], [(width, height)], (32, 32), model.encoder.preprocess, (), objects=True)
    empty = marks_of(
        marked(mask=np.zeros((height, width), np.uint8)), [0], [(width, height)], (32, 32), None, (), objects=True
    )
    assert empty.known is not None and not empty.known.any()


def test_points_and_regions_follow_the_encoders_crop() -> None:
    from protolearn.data.transforms import Preprocess

    picture = Image.new("RGB", (200, 100))
    held = arrays(np.asarray(picture)[None], np.zeros(1, np.int64), classes=["a"], ids=["one"])
    points = np.array([[100.0, 25.0, 1.0], [10.0, 50.0, 1.0]])
    mask = np.zeros((100, 200), np.uint8)
    mask[:50, 50:150] = 7
    held = held.with_annotations({"one": Annotation(points=points, point_names=("mid", "left"), mask=mask)})
    crop = Preprocess(size=(40, 40), resize="crop")
    marks = marks_of(held, [0], [(200, 100)], (40, 40), crop, ("mid", "left"), objects=True)
    assert torch.allclose(marks.points[0, 0], torch.tensor([0.5, 0.25]))
    assert marks.visible.tolist() == [[True, False]]  # the left one was cropped away
    assert marks.objects is not None and marks.objects[0, :20].all() and not marks.objects[0, 20:].any()


def test_it_is_written_whole_in_every_form(model: PrototypeModel, cases: Any, tmp_path: Path) -> None:
    found = audit(model, cases, metrics=PART_METRICS)
    files = save_audit_folder(found, tmp_path / "audit")
    assert [f.name for f in files] == ["audit.html", "audit.json", "metrics.csv", "prototypes.csv", "cases.csv"]
    read = json.loads(files[1].read_text())
    assert read["metrics"]["consistency"]["value"] == found["consistency"].value
    assert len(read["metrics"]["consistency"]["per_prototype"]) == 20
    assert files[2].read_text().splitlines()[1].startswith("consistency,")
    html = files[0].read_text()
    assert "<script" not in html and "For people to judge" in html
    for name in PART_METRICS:
        assert f">{name}<" in html
    assert "consistency" in found.table() and "accuracy" not in found.table().splitlines()[0]
    with pytest.raises(UsageError, match="is written as"):
        save_audit(found, tmp_path / "audit.pdf")


def test_it_draws_nothing_from_the_global_generators(model: PrototypeModel, cases: Any) -> None:
    before, numbers = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002  the global state
    settings = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_float32_matmul_precision()
    found = audit(model, cases, cases, metrics="quick", shifted=cases, outside=cases, twin=model)
    assert len(found) > 30
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])  # noqa: NPY002
    assert settings == (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_float32_matmul_precision())


def test_a_model_in_another_precision(model: PrototypeModel, cases: Any) -> None:
    single = audit(model, cases, metrics="quick")
    double = audit(copy.deepcopy(model).double(), cases, metrics="quick")
    assert list(single) == list(double)
    for name in ("evidence_correlation", "content_heat", "prototype_cosine", "nll"):
        assert double[name].value == pytest.approx(single[name].value, rel=1e-4, abs=1e-4), name
    half = copy.deepcopy(model)
    half.encoder.half(), half.neck.half()
    found = audit(half, cases, metrics=["evidence_correlation", "nll"])
    assert found["nll"].value == pytest.approx(single["nll"].value, rel=1e-2)
    with pytest.raises(UsageError, match=r"head is in half precision.* audit model\.float\(\)"):
        audit(half.half(), cases, metrics=["nll"])


@pytest.mark.parametrize("name", ["pac", "evidence_correlation", "additivity", "continuity", "global_size"])
def test_damaged_weights_are_said_whatever_is_asked(model: PrototypeModel, cases: Any, name: str) -> None:
    for value, words in ((float("nan"), "class scores hold NaN"), (float("inf"), "a class score is infinite")):
        damaged = copy.deepcopy(model)
        with torch.no_grad():
            damaged.head.weight[3] = value
        with pytest.raises(DataError, match=f"case 0 of the cases: {words}"):
            audit(damaged, cases, shifted=cases, metrics=[name])


def test_cases_that_make_a_model_look_good_or_unlabelled_are_said(model: PrototypeModel, cases: Any) -> None:
    clean = audit(model, cases, digits("train").subset(range(10)), metrics=["evidence_correlation"])
    assert clean.facts["trained_on"] == 0 and not clean.warnings()
    seen = audit(model, cases, cases.subset(range(5)), metrics=["evidence_correlation"])
    assert seen.facts["trained_on"] == 5
    assert "5 of the 20 audited cases are training cases" in seen.table()
    assert "5 of the 20 audited cases are training cases" in audit_html(seen)
    black, white = (np.full((4, 8, 8), shade, np.uint8) for shade in (0, 255))
    one, other = (arrays(pixels, np.zeros(4, np.int64), classes=["0"]) for pixels in (black, white))
    assert one.ids == other.ids  # numbers of rows, of different pictures
    assert audit(model, one, other, metrics=["nll"]).facts["trained_on"] == 0
    foreign = arrays(black, np.array([0, 1, 1, 2]), classes=["0", "zero", "one"])
    found = audit(model, foreign, metrics=["nll"])
    assert found.classified.n == 1
    assert "does not know the classes zero, one" in found.table()


def test_few_large_pictures_at_once_on_a_processor() -> None:
    large, small = torch.zeros(1, 3, 224, 224), torch.zeros(1, 3, 16, 16)
    assert (per_call(large, None), per_call(small, None), per_call(small[:0], None)) == (6, 64, 64)
    assert per_call(large, 50) == 50
    assert per_call(torch.zeros(1, 3, 4096, 4096), None) == 1


def test_a_key_point_on_the_border_is_in_the_picture(model: PrototypeModel, cases: Any) -> None:
    width, height = cases.picture(0).size
    points = np.array([[0, 0, 1], [width, height, 1], [width + 0.9, 2, 1], [-0.5, 2, 1], [width, 2, 0]], dtype=float)
    held = cases.with_annotations({cases.ids[0]: Annotation(points=points, point_names=tuple("abcde"))})
    marks = marks_of(held, [0], [(width, height)], (32, 32), model.encoder.preprocess, tuple("abcde"), objects=False)
    assert marks.visible.tolist() == [[True, True, True, True, False]]
    assert torch.allclose(marks.points[0, 1:4], torch.tensor([[1, 1], [1, 2 / height], [0, 2 / height]]), atol=1e-3)
    assert bool((marks.points[0, :4] < 1).all())


def test_the_order_of_cases_changes_no_figure(model: PrototypeModel, cases: Any) -> None:
    """Nor does it change what is said of a case; intervals draw cases by their place, and so differ a little."""
    order = np.random.default_rng(0).permutation(len(cases))
    first = audit(model, cases, cases, metrics="quick", shifted=cases)
    other = audit(model, cases.subset(order), cases.subset(order[::-1]), metrics="quick", shifted=cases.subset(order))
    for name in first:
        values = [float("nan") if each[name].value is None else each[name].value for each in (first, other)]
        assert values[1] == pytest.approx(values[0], rel=1e-4, abs=1e-5, nan_ok=True), name
        assert other[name].counts == first[name].counts, name
        each = first[name].per_case
        if each is not None:
            assert torch.allclose(other[name].per_case, each[order], rtol=1e-4, atol=1e-5, equal_nan=True), name
