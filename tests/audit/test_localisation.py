"""Heat on objects: planted maps, laws, wrong input, and numbers from the authors' code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.audit.planted import planted, seen, setting
from torch import Tensor

from protolearn.audit.heat import evidence_map, heat, mean_map, pull, uneven
from protolearn.audit.localisation import FIGURES, Localised, localise
from protolearn.audit.look import Look
from protolearn.audit.marks import Marks
from protolearn.audit.metric import METRICS, Metric, Score, make_metric
from protolearn.data import Annotation, digits
from protolearn.encoders import SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.methods import get_method
from protolearn.tasks.audit import audit

NAMES = {
    "content_heat": "content_heat",
    "content_heat_share": "content_heat_share",
    "oirr": "oirr",
    "iou": "iou",
    "pointing_game": "pointing",
}


def disc(side: int = 32, count: int = 1) -> Tensor:
    """Objects ``(B, side, side)``: a disc a little off the middle."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    one = (y - side * 0.4).square() + (x - side * 0.55).square() < (side * 0.25) ** 2
    return one.expand(count, side, side).clone()


def every(maps: Tensor) -> Tensor:
    return torch.ones(maps.shape[:2], dtype=torch.bool)


def figures(found: Localised) -> Tensor:
    return torch.stack([getattr(found, name) for name in FIGURES])


def test_a_map_that_is_the_mask() -> None:
    objects = disc(count=2)
    maps = torch.stack([objects.float(), -3 + 5 * objects.float(), 1 - objects.float()], 1)
    found = localise(maps, every(maps), objects)
    for k in (0, 1):  # neither scale nor level matters
        assert found.content_heat[:, k].tolist() == pytest.approx([1, 1])
        assert found.content_heat_share[:, k].tolist() == pytest.approx([1, 1])
        assert found.oirr[:, k].tolist() == pytest.approx([0, 0], abs=1e-6)
        assert found.iou[:, k].tolist() == pytest.approx([1, 1])
        assert found.pointing[:, k].tolist() == [1, 1]
    # the opposite: no heat inside, so that the ratio has no value
    assert found.content_heat[:, 2].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert found.oirr[:, 2].isnan().all() and found.iou[:, 2].eq(0).all() and found.pointing[:, 2].eq(0).all()


def test_what_points_nowhere_is_not_judged() -> None:
    objects = disc(count=1)
    maps = torch.rand(1, 6, 4, 4)
    maps[0, 1] = 0.7  # uniform
    maps[0, 2] = 0.0  # never fires
    maps[0, 3, 2, 2] = float("nan")
    maps[0, 4, 1, 1] = float("inf")
    maps[0, 5] = 1e6 + 0.03 * torch.rand(4, 4)  # differs by rounding alone
    found = figures(localise(maps, every(maps), objects))
    assert not found[:, 0, 0].isnan().any()
    assert found[:, 0, 1:].isnan().all()
    shown, judged = heat(maps, (32, 32))
    assert judged.tolist() == [[True] + [False] * 5]
    assert shown[0, 1:].eq(0).all() and shown[0, 0].min() == 0 and shown[0, 0].max() == 1
    assert torch.equal(uneven(maps), judged)


@pytest.mark.parametrize("cells", [1, 5])
def test_objects_without_or_of_all_pixels(cells: int) -> None:
    maps = torch.rand(3, 2, 4, cells)
    maps[:, :, 0] = 2.0
    objects = torch.stack([torch.zeros(16, 16), torch.ones(16, 16), disc(16)[0]]).bool()
    found = localise(maps, every(maps), objects)
    assert figures(found)[:, 0].isnan().all(), "there is no object"
    assert found.oirr[1].isnan().all(), "there is no background"
    assert found.content_heat_share[1].tolist() == pytest.approx([1, 1])
    assert found.pointing[1].tolist() == [1, 1]
    assert not figures(found)[:, 2].isnan().any()
    assert found.iou[2].max() <= 1 and found.content_heat[2].max() <= 1


def plainly(maps: Tensor, objects: Tensor, threshold: float) -> dict[str, float]:
    """One map and one object, by torch's own interpolation and NumPy."""
    fine = torch.nn.functional.interpolate(maps[None, None].double(), size=objects.shape, mode="bicubic")[0, 0].numpy()
    h, g = (fine - fine.min()) / (fine.max() - fine.min()), objects.numpy()
    hot = h >= threshold
    y, x = np.unravel_index(h.argmax(), h.shape)
    return {
        "content_heat": h[g].mean(),
        "content_heat_share": h[g].sum() / h.sum(),
        "oirr": h[~g].mean() / h[g].mean(),
        "iou": (hot & g).sum() / ((hot | g).sum() + 1e-8),
        "pointing": float(g[y, x]),
    }


@given(st.integers(0, 10_000), st.sampled_from([(4, 4), (3, 7), (8, 8)]), st.floats(0.2, 0.9))
def test_all_at_once_equals_one_by_one(number: int, grid: tuple[int, int], threshold: float) -> None:
    g = torch.Generator().manual_seed(number)
    maps = torch.rand(3, 4, *grid, generator=g, dtype=torch.float64)
    objects, counted = torch.rand(3, 20, 24, generator=g) < 0.3, torch.rand(3, 4, generator=g) < 0.7
    found = localise(maps, counted, objects, threshold=threshold)
    for b in range(3):
        for p in range(4):
            got = {name: float(getattr(found, name)[b, p]) for name in FIGURES}
            if not counted[b, p]:
                assert all(math.isnan(value) for value in got.values())
            else:
                assert got == pytest.approx(plainly(maps[b, p], objects[b], threshold), abs=1e-6)


def test_it_is_the_same_in_chunks_and_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, objects = torch.rand(5, 6, 4, 4), disc(count=5).roll(torch.arange(5).tolist()[3], 1)
    whole = figures(localise(maps, every(maps), objects))
    order = torch.randperm(6)
    assert torch.allclose(figures(localise(maps[:, order], every(maps), objects)), whole[:, :, order])
    monkeypatch.setattr("protolearn.audit.localisation.CACHE_BYTES", 1)
    assert torch.allclose(figures(localise(maps, every(maps), objects)), whole)
    none = localise(maps[:0], every(maps)[:0], objects[:0])
    assert none.iou.shape == (0, 6)


def test_wrong_requests() -> None:
    maps = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match="must be"):
        localise(maps, every(maps)[:1], disc(count=2))
    with pytest.raises(UsageError, match="threshold above 0"):
        localise(maps, every(maps), disc(count=2), threshold=0.0)


def test_the_mean_map_leaves_out_what_does_not_count() -> None:
    maps = torch.rand(2, 3, 4, 4)
    maps[:, 2] = float("nan")
    counted = torch.tensor([[True, True, False], [False, False, False]])
    assert torch.allclose(mean_map(maps, counted)[0], maps[0, :2].mean(0))
    assert mean_map(maps, counted)[1].eq(0).all()


def test_evidence_is_what_speaks_for_the_class_more_than_for_others() -> None:
    entries = torch.tensor([[[2.0, 1.0, 5.0], [0.0, 1.0, -1.0]]])
    logits = entries.sum(2)
    look = Look(logits, logits.softmax(1), torch.ones(1, 3), None, lambda part: entries[part])
    assert pull(look, torch.tensor([0])).tolist() == [[1.0, 0.0, 3.0]]
    alone = Look(logits[:, :1], logits[:, :1], torch.ones(1, 3), None, lambda part: entries[part, :1])
    assert pull(alone, torch.tensor([0])).tolist() == [[2.0, 1.0, 5.0]]
    maps = torch.rand(1, 3, 4, 4)
    maps[0, 1] = float("nan")
    scaled = (maps - maps.amin((2, 3), keepdim=True)) / (maps.amax((2, 3)) - maps.amin((2, 3)))[..., None, None]
    found = evidence_map(maps, torch.tensor([[1.0, 9.0, -2.0]]))
    assert torch.allclose(found, scaled[:, 0] - 2 * scaled[:, 2], atol=1e-6)


def test_numbers_of_the_authors(reference: Callable[[str], dict[str, np.ndarray]]) -> None:
    want = {
        key: torch.from_numpy(np.asarray(v)) for key, v in reference("mask_deletion").items() if v.dtype.kind != "U"
    }
    maps = torch.cat([want["maps_trivial"], want["maps_support"]]).unsqueeze(0)
    objects = want["object_mask"].bool().unsqueeze(0)
    together = mean_map(maps, every(maps))
    assert torch.allclose(heat(together, objects.shape[1:])[0][0], want["heatmap"], atol=1e-6)
    found = localise(together.unsqueeze(1), torch.ones(1, 1, dtype=torch.bool), objects)
    for name in ("content_heat", "content_heat_share", "oirr", "iou"):
        assert float(getattr(found, name)) == pytest.approx(float(want[name]), rel=1e-6)


# ----- as metrics -------------------------------------------------------------------------------------------------


def marks(objects: Tensor, known: Tensor | None = None, kind: str = "mask") -> Marks:
    count = len(objects)
    known = torch.ones(count, dtype=torch.bool) if known is None else known
    return Marks((), torch.zeros(count, 0, 2), torch.zeros(count, 0, dtype=torch.bool), objects, known, kind)


def scored(name: str, table: Tensor, labels: Tensor, ownership: Tensor, about: Marks, split: int = 0) -> Score:
    """Run a metric over planted maps, in one batch or in two."""
    subject = planted(lambda inputs: table[inputs[:, 0].long()], ownership)
    inputs = torch.arange(len(table)).float().unsqueeze(1)
    each: Metric = make_metric(name)
    each.start(setting(subject, count=len(table)))
    for rows in (slice(0, split), slice(split, None)) if split else (slice(None),):
        assert about.objects is not None and about.known is not None
        part = Marks((), about.points[rows], about.visible[rows], about.objects[rows], about.known[rows], about.kind)
        batch = seen(subject, inputs[rows], labels[rows], part)
        indices = torch.arange(len(table))[rows]
        each.update(type(batch)("cases", indices, batch.inputs, batch.labels, batch.look, batch.marks))
    return each.result()


@pytest.mark.parametrize("name", NAMES)
def test_each_metric_averages_its_figure(name: str) -> None:
    g = torch.Generator().manual_seed(1)
    table, labels = torch.rand(9, 4, 4, 4, generator=g), torch.arange(9) % 2
    ownership, objects = torch.eye(2).repeat_interleave(2, 0), disc(16, 9)
    score = scored(name, table, labels, ownership, marks(objects))
    counted = (ownership.T > 0)[labels]
    figure = NAMES[name]
    together = getattr(localise(mean_map(table, counted).unsqueeze(1), counted[:, :1] | True, objects), figure)[:, 0]
    own = getattr(localise(table, counted, objects), figure)
    assert score.per_case is not None and torch.allclose(score.per_case, together)
    assert score.value == pytest.approx(float(together.mean()))
    assert score.per_prototype is not None
    assert torch.allclose(score.per_prototype, own.nanmean(0), atol=1e-6)
    assert score.extras["own maps, mean over prototypes"] == pytest.approx(float(own.nanmean(0).mean()), abs=1e-6)
    assert score.over_cases is not None and score.over_cases[0] <= score.value <= score.over_cases[1]
    low, high = score.extras["own maps, interval over prototypes"]
    assert low <= score.extras["own maps, mean over prototypes"] <= high
    assert score.counts["cases judged"] == 9 and score.counts["prototypes judged"] == 4
    split = scored(name, table, labels, ownership, marks(objects), split=4)
    assert split.value == pytest.approx(score.value) and split.per_case is not None
    assert torch.allclose(split.per_case, score.per_case)
    assert "nothing finer is localised" in score.notes[0] and "4 x 4" in score.notes[0]


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_judged_is_counted_and_left_out(name: str) -> None:
    table, objects = torch.rand(6, 3, 4, 4), disc(16, 6)
    table[:, 1] = 0.0  # the second prototype never fires
    table[3] = 0.25  # nothing fires in the fourth case
    objects[2] = False
    labels = torch.tensor([0, 1, 0, 0, -1, 2])
    ownership = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0]])
    known = torch.tensor([True, True, True, True, True, True])
    score = scored(name, table, labels, ownership, marks(objects, known, "box"))
    assert score.counts["cases judged"] == 1
    assert score.counts["cases without a marked object"] == 1
    assert score.counts["unlabelled cases"] == 1
    assert score.counts["labelled cases without a prototype"] == 1  # nobody owns the third class
    assert score.counts["labelled cases whose figure is undefined"] == 2
    assert score.counts["prototypes whose map is flat in every case"] == 1
    assert score.per_case is not None and score.per_case.isnan().tolist() == [False] + [True] * 5
    assert score.per_prototype is not None and score.per_prototype.isnan().tolist() == [False, True, False]
    assert any("boxes" in note for note in score.notes)


@pytest.mark.parametrize("name", NAMES)
def test_one_case_and_none(name: str) -> None:
    one = scored(name, torch.rand(1, 1, 4, 4), torch.tensor([0]), torch.ones(1, 1), marks(disc(16)))
    assert one.value is not None and one.over_cases is None
    none = scored(name, torch.rand(1, 1, 4, 4), torch.tensor([-1]), torch.ones(1, 1), marks(disc(16)))
    assert none.value is None and "Nothing was judged" in none.notes[-1]


def test_a_map_with_nan_stops_the_audit() -> None:
    table = torch.rand(2, 1, 4, 4)
    table[1, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="holds NaN in case 1"):
        scored("iou", table, torch.tensor([0, 0]), torch.ones(1, 1), marks(disc(16, 2)))


def marked_digits() -> Any:
    part = digits("test").subset(range(12))
    found = {}
    for i, case in enumerate(part.ids):
        width, height = part.picture(i).size
        mask = np.zeros((height, width), np.uint8)
        mask[1 : height - 1, 1 : width - 1] = i != 3
        found[case] = Annotation(mask=mask)
    return part.with_annotations(found)


def test_through_an_audit_of_a_real_model() -> None:
    cases = marked_digits()
    model = get_method("protopnet")(prototypes_per_class=2).build(SmallEncoder(), 10)
    model.classes = cases.classes
    before = {name: values.clone() for name, values in model.state_dict().items()}
    found = audit(model, cases, metrics=list(NAMES), batch_size=5)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    other = audit(model, cases, metrics=["iou"], batch_size=12)
    assert found["iou"].value == pytest.approx(other["iou"].value, abs=1e-6)
    for name in NAMES:
        assert found[name].value is not None and found[name].counts["cases without a marked object"] == 1
    json.loads(found.to_json())
    with pytest.raises(UsageError, match=r"oirr needs object masks .*look at 'deletion' or 'neighbour_purity'"):
        audit(model, digits("test").subset(range(4)), metrics=["oirr"])


def test_every_metric_here_is_registered_with_its_variant() -> None:
    for name in NAMES:
        about = METRICS[name].about
        assert about.needs == ("maps", "labels", "objects") and about.instead == ("deletion", "neighbour_purity")
        assert "mean over the prototypes of its true class" in about.variant
