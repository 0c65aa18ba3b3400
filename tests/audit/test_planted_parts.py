"""What metrics on key points must say of planted prototypes, through one audit of a whole model.

The pictures of these cases are their own similarity maps, one channel a prototype; the parts stand in known cells.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.audit.planted import planted, spots
from torch import Tensor
from torch.nn import functional as F

from protolearn.audit.metric import Metric, Score, make_metric
from protolearn.audit.subject import AdaptedSubject
from protolearn.data import Annotation
from protolearn.data.archive import archive
from protolearn.encoders import SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.methods import get_method
from protolearn.tasks.audit import audit

SIDE = 28
PARTS = ("crown", "left eye", "right eye", "beak", "tail")
ON, ANYWHERE, CORNER, SILENT = range(4)
"""The prototypes of each class: always on the beak; anywhere; in a corner without parts; never firing."""
CONSISTENT, STABLE = ["consistency", "segment_consistency"], ["stability", "segment_stability"]
EVERY = [*CONSISTENT, *STABLE, "purity", "purity_all", "keypoint_nmi", "keypoint_ari"]


@dataclass(frozen=True)
class World:
    """Cases whose inputs are maps ``(n, P, SIDE, SIDE)``, with key points in pixels of a picture of 56 x 56."""

    maps: Tensor
    cells: Tensor
    visible: Tensor
    labels: np.ndarray
    classes: tuple[str, ...] = ("first", "second")
    name: str = "planted"

    @property
    def ids(self) -> list[str]:
        return [f"case {i}" for i in range(len(self.maps))]

    @property
    def annotations(self) -> dict[str, Annotation]:
        return {case: self.annotation(i) for i, case in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.maps[i], int(self.labels[i])

    def picture(self, i: int) -> Image.Image:
        return Image.new("RGB", (56, 56))

    def annotation(self, i: int) -> Annotation:
        places = (self.cells[i].double() + 0.5) * (56 / SIDE)
        points = torch.cat([places, self.visible[i, :, None].double()], 1)
        return Annotation(points=points.numpy(), point_names=PARTS)

    def some(self, rows: Sequence[int] | slice) -> World:
        return replace(
            self, maps=self.maps[rows], cells=self.cells[rows], visible=self.visible[rows], labels=self.labels[rows]
        )


def world(count: int = 60, seed: int = 0) -> World:
    """Two classes with four prototypes each; key points anywhere but in the corner."""
    g = torch.Generator().manual_seed(seed)
    cells = torch.randint(9, SIDE, (count, len(PARTS), 2), generator=g)  # column, row
    visible = torch.rand(count, len(PARTS), generator=g) < 0.8
    visible[:, 3] = True
    places = torch.stack([
        cells[:, 3], torch.randint(SIDE, (count, 2), generator=g), *torch.zeros(2, count, 2, dtype=torch.int64)
    ], 1).repeat(1, 2, 1)  # fmt: skip
    maps = spots(places[..., 1], places[..., 0], SIDE)
    maps[:, [SILENT, 4 + SILENT]] = 0.0
    return World(maps, cells, visible, np.arange(count) % 2)


def subject(prototypes: int = 8, order: Sequence[int] | None = None, classes: int = 2) -> AdaptedSubject:
    ownership = torch.eye(classes).repeat_interleave(prototypes // classes, 0)
    if order is not None:
        ownership = ownership[list(order)]
    return planted(lambda x: x, ownership, name="planted prototypes")


def score(cases: World, metric: str | Metric, model: AdaptedSubject | None = None, **settings: Any) -> Score:
    each = make_metric(metric) if isinstance(metric, str) else metric
    model = model or planted(
        lambda x: x, torch.eye(len(cases.classes)).repeat_interleave(cases.maps.shape[1] // len(cases.classes), 0)
    )
    model.classes = cases.classes
    return audit(model, cases, metrics=[each], **settings)[each.about.name]


def figures(found: Score) -> list[float | None]:
    assert found.per_prototype is not None
    return [None if value != value else value for value in found.per_prototype.tolist()]


@pytest.mark.parametrize("name", CONSISTENT)
def test_a_prototype_on_a_part_is_consistent_and_others_are_not(name: str) -> None:
    found = score(world(), name)
    assert figures(found) == [100.0, 0.0, 0.0, 0.0] * 2
    assert found.value == 25.0
    assert found.extras["most hit part"]["0"] == found.extras["most hit part"]["4"] == "beak"
    assert found.over_cases is not None and found.over_cases[0] <= 25 <= found.over_cases[1]
    assert found.over_prototypes is not None and found.over_prototypes[0] < 25 < found.over_prototypes[1]
    assert found.counts["prototypes judged"] == 8
    assert found.counts["prototypes that hit no key point"] >= 2


@pytest.mark.parametrize("name", ["purity", "purity_all"])
def test_the_same_prototype_is_pure_and_a_random_one_near_chance(name: str) -> None:
    found = score(world(400), name)
    on, anywhere, corner, silent = figures(found)[:4]
    assert on == 1.0 and silent is None
    assert corner == 0.0, "no part lies in the corner"
    chance = found.extras["purity of patches at random places"]
    assert anywhere is not None and anywhere <= max(0.4, 2 * chance)
    assert found.counts["prototypes that never fire"] == 2


def test_prototypes_on_every_part_divide_them_as_people_do() -> None:
    """One prototype a part in each class, in another order; then all of them anywhere."""
    cases = world()
    places = cases.cells.clone()
    second = torch.from_numpy(cases.labels) == 1
    turned = torch.where(second[:, None, None], places[:, [4, 0, 3, 1, 2]], places)
    far = torch.exp(-_distance(turned) / 4.0)
    planned = replace(cases, maps=torch.cat([far, far], 1))
    apart = (_distance(cases.cells) == 0).sum(1) <= 1
    only = cases.visible & torch.tensor([bool(apart[i].all()) for i in range(len(cases))])[:, None]
    planned = replace(planned, visible=only)
    random = replace(planned, maps=torch.rand(planned.maps.shape, generator=torch.Generator().manual_seed(1)))
    for name in ("keypoint_nmi", "keypoint_ari"):
        assert score(planned, name).value == pytest.approx(1.0)
        lost = score(random, name)
        assert lost.value == pytest.approx(lost.extras["key points dealt at random"], abs=0.05)


def _distance(cells: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return ((columns - cells[..., 0, None, None]) ** 2 + (rows - cells[..., 1, None, None]) ** 2).float()


@pytest.mark.parametrize("name", STABLE)
def test_without_noise_everything_is_stable(name: str) -> None:
    quiet = make_metric(name, **({"std": 0.0} if name == "segment_stability" else {}))
    found = score(world(20), quiet, noise=0.0)
    assert figures(found) == [100.0] * 8 and found.value == 100.0
    assert any("nothing to lose" in note for note in found.notes), "one that meets no part is stable: say so"
    assert found.extras["stability of prototypes that hit a key point"] == 100.0


@pytest.mark.parametrize("name", STABLE)
def test_stability_falls_with_noise_on_average(name: str) -> None:
    """Smooth maps, their peaks on key points, under growing noise; the mean of draws."""
    cases = world(24)
    smooth = replace(cases, maps=F.avg_pool2d(cases.maps, 7, 1, 3) * 30)
    means = []
    for std in (0.0, 0.1, 0.5, 3.0):
        each = make_metric(name, **({"std": std} if name == "segment_stability" else {}))
        found = score(smooth, each, noise=std, limit=100.0, draws=4)
        shown = figures(found)[ON]
        assert shown is not None
        means.append(shown)
    assert means[0] == 100.0
    assert all(a >= b for a, b in itertools.pairwise(means)) and means[-1] < 90


@pytest.mark.parametrize("name", CONSISTENT)
def test_a_higher_threshold_never_raises_consistency(name: str) -> None:
    cases = world()
    found = [score(cases, make_metric(name, threshold=t)) for t in (0.0, 0.2, 0.5, 0.8, 1.0)]
    values = [each.value for each in found]
    assert all(a is not None and b is not None and a >= b for a, b in itertools.pairwise(values))
    shown = figures(found[0])
    assert shown[ON] == 100.0 and shown[CORNER] == shown[SILENT] == 0.0, "0 asks for one hit at least"
    assert shown.count(0.0) == found[0].counts["prototypes that hit no key point"]
    assert values[-1] == (0.0 if name == "segment_consistency" else 25.0), "by area a rate must pass the threshold"


def test_larger_regions_never_lower_consistency() -> None:
    cases = world()
    values = [score(cases, make_metric("consistency", half_side=half)).value for half in (0, 4, 12, 36, 80, 224)]
    assert all(a is not None and b is not None and a <= b for a, b in itertools.pairwise(values))
    assert values[0] is not None and values[0] <= 25.0
    assert values[-1] == 100.0, "the whole picture holds every part"
    areas = [score(cases, make_metric("segment_consistency", quantile=q)) for q in (0.995, 0.9, 0.5, 0.0)]
    rates = [each.extras["best rate of a part, mean over prototypes"] for each in areas]
    assert all(a <= b for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize("name", [*CONSISTENT, "purity", "purity_all"])
def test_what_cannot_be_seen_never_counts(name: str) -> None:
    cases = world()
    half = cases.visible.clone()
    half[::4, 3] = half[1::4, 3] = False
    assert figures(score(replace(cases, visible=half), name))[ON] == figures(score(cases, name))[ON]
    moved = cases.cells.clone()
    moved[~half[:, 3], 3] = 0
    a, b = (score(replace(cases, visible=half, cells=cells), name) for cells in (cases.cells, moved))
    assert a.value == b.value and figures(a) == figures(b), "where a hidden point lies means nothing"
    hidden = cases.visible.clone()
    hidden[:, 3] = False
    never = score(replace(cases, visible=hidden), name)
    assert never.counts["parts never visible"] == 1
    assert figures(never)[ON] < 0.8 * figures(score(cases, name))[ON]  # type: ignore[operator]


@pytest.mark.parametrize("name", EVERY)
def test_order_of_prototypes_changes_nothing_but_the_order(name: str) -> None:
    cases, order = world(24), [5, 2, 7, 0, 3, 6, 1, 4]
    turned = replace(cases, maps=cases.maps[:, order])
    if name in STABLE:  # noise is drawn for inputs, and the inputs are the maps: take none
        each = make_metric(name, **({"std": 0.0} if name == "segment_stability" else {}))
        first, other = (score(c, each, subject(order=o), noise=0.0) for c, o in ((cases, None), (turned, order)))
    else:
        first, other = (score(c, name, subject(order=o)) for c, o in ((cases, None), (turned, order)))
    assert first.value == pytest.approx(other.value)
    if first.per_prototype is not None and other.per_prototype is not None:
        assert torch.equal(first.per_prototype[order].nan_to_num(-1), other.per_prototype.nan_to_num(-1))


@pytest.mark.parametrize("name", EVERY)
def test_batches_change_nothing_and_a_seed_repeats(name: str) -> None:
    cases = world(23)
    whole, parts = (score(cases, name, batch_size=size, seed=5) for size in (64, 5))
    assert whole.value == pytest.approx(parts.value)
    assert whole.over_cases == pytest.approx(parts.over_cases) and whole.counts == parts.counts
    assert score(cases, name, seed=5).over_cases == whole.over_cases


@pytest.mark.parametrize("name", EVERY)
def test_one_case_is_judged_without_an_interval_over_cases(name: str) -> None:
    found = score(world().some([0]), name)
    assert found.value is not None and found.over_cases is None


@pytest.mark.parametrize("name", [*CONSISTENT, *STABLE])
def test_a_class_without_cases_is_left_out_and_counted(name: str) -> None:
    cases = world()
    first = cases.some([i for i in range(len(cases)) if cases.labels[i] == 0])
    found = score(first, name)
    assert figures(found)[4:] == [None] * 4
    assert found.counts["prototypes judged"] == 4
    assert found.counts["prototypes without a case of their class"] == 4
    assert found.value is not None


@pytest.mark.parametrize("name", EVERY)
def test_one_class_with_one_prototype(name: str) -> None:
    cases = world(12)
    one = replace(cases, maps=cases.maps[:, :1], labels=np.zeros(12, np.int64), classes=("only",))
    found = score(one, name)
    assert found.value is not None and found.over_prototypes is None


@pytest.mark.parametrize("name", EVERY)
def test_nothing_visible_and_nobody_labelled(name: str) -> None:
    cases = world(8)
    blind = score(replace(cases, visible=torch.zeros_like(cases.visible)), name)
    assert blind.value == {"consistency": 0.0, "segment_consistency": 0.0, "stability": 100.0}.get(
        name, 100.0 if name == "segment_stability" else None
    )
    unlabelled = replace(cases, labels=np.full(8, -1))
    if name in (*CONSISTENT, *STABLE):
        with pytest.raises(UsageError, match=f"{name} needs labelled cases"):
            score(unlabelled, name)
    elif name.startswith("purity"):
        assert score(unlabelled, name).value == score(cases, name).value
    else:
        assert score(unlabelled, name).value is None, "no class, no prototypes of it to go to"


def test_some_without_a_label_are_as_good_as_absent() -> None:
    cases = world(30)
    labels = cases.labels.copy()
    labels[10:] = -1
    for name in (*CONSISTENT, "keypoint_nmi", "keypoint_ari"):
        some, few = score(replace(cases, labels=labels), name), score(cases.some(slice(0, 10)), name)
        assert some.value == pytest.approx(few.value)


@pytest.mark.parametrize("name", [*CONSISTENT, "purity_all", "keypoint_nmi", "keypoint_ari"])
def test_cases_shown_twice_say_what_they_said_once(name: str) -> None:
    cases = world(20)
    twice = replace(
        cases, **{key: torch.cat([getattr(cases, key)] * 2) for key in ("maps", "cells", "visible")},
        labels=np.concatenate([cases.labels] * 2),
    )  # fmt: skip
    if name == "keypoint_ari":  # pairs of a point and its copy agree
        assert score(twice, name).value == pytest.approx(score(cases, name).value, abs=0.02)
    else:
        assert score(twice, name).value == pytest.approx(score(cases, name).value)


@pytest.mark.parametrize("name", EVERY)
def test_damaged_maps_are_refused_by_name(name: str) -> None:
    cases = world(6)
    cases.maps[4, 2, 0, 0] = float("nan")
    with pytest.raises(DataError, match="prototype row 2 holds NaN in case 4"):
        score(cases, name)


def test_purity_is_judged_by_the_training_cases_where_they_are_marked() -> None:
    test, train = world(20), world(40, seed=1)
    train = replace(train, cells=train.cells.clone())
    train.cells[:, 3] = torch.randint(9, SIDE, (40, 2), generator=torch.Generator().manual_seed(9))  # elsewhere
    model = subject()
    model.classes = test.classes
    by_train = audit(model, test, train, metrics=["purity"])["purity"]
    assert figures(by_train)[ON] != 1.0 and not any("audited cases" in note for note in by_train.notes)
    bare = replace(train, visible=torch.zeros_like(train.visible))
    assert audit(model, test, bare, metrics=["purity"])["purity"].value is None, "marked, and nothing to be seen"
    by_test = audit(model, test, metrics=["purity"])["purity"]
    assert figures(by_test)[ON] == 1.0 and any("audited cases" in note for note in by_test.notes)


def test_the_whole_audit_is_written_and_leaves_the_model_alone() -> None:
    model, cases = subject(), world(16)
    model.classes = cases.classes
    before = model.digest()
    result = audit(model, cases, metrics=EVERY)
    assert model.digest() == before
    assert set(json.loads(result.to_json())["metrics"]) == set(EVERY)
    for name in EVERY:
        assert any(" map" in note or "cells" in note for note in result[name].notes), "the size of a cell is told"


@pytest.mark.parametrize("method", ["protopnet", "pipnet"])
def test_untrained_models_on_real_birds_are_near_chance(method: str, shared_data: Path) -> None:
    """Directional: what nothing was learnt from has no parts; every figure is finite and inside its own bounds."""
    cases = archive(shared_data / "cub_birds6" / "cub_birds6.zip", "test").subset(range(0, 143, 4))
    model = get_method(method)().build(SmallEncoder(size=64), len(cases.classes))
    model.classes = cases.classes
    wanted = [name for name in EVERY if not name.startswith("segment")]
    result = audit(model, cases, metrics=[*wanted, "segment_consistency"] if method == "protopnet" else wanted)
    for name in result:
        found = result[name]
        for pair in (found.over_cases, found.over_prototypes):
            assert pair is None or found.value is None or pair[0] - 1e-9 <= found.value <= pair[1] + 1e-9, name
    purity, nmi = result["purity"], result["keypoint_nmi"]
    assert purity.value is not None and purity.value < 0.5
    assert nmi.value is not None and nmi.value < nmi.extras["key points dealt at random"] + 0.15
    assert result["consistency"].value is not None and result["consistency"].value < 50
