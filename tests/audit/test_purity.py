"""Purity: numbers from the authors' code, the geometry of patches, planted prototypes, and what cannot be judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.audit.planted import planted, seen, setting, spots
from torch import Tensor

from protolearn.audit.marks import Marks
from protolearn.audit.metric import Metric, Score, make_metric
from protolearn.audit.pairs import Pairs
from protolearn.audit.purity import (
    cell_patches,
    in_patches,
    merged,
    merged_sides,
    peak_cells,
    purity_of,
)
from protolearn.audit.subject import AdaptedSubject
from protolearn.core.top_cases import TopCases
from protolearn.errors import DataError, UsageError

PARTS = ("beak", "left eye", "tail", "right eye")
SIDE = 28


@pytest.mark.parametrize("variant", ["topk", "all"])
def test_numbers_of_the_authors(reference: Callable[[str], dict[str, np.ndarray]], variant: str) -> None:
    want = {key: torch.from_numpy(np.asarray(value)) for key, value in reference("purity").items()}
    maps, size = want["maps"], int(want["image_size"])
    prototypes, parts = maps.shape[1], want["visible"].shape[1]
    cells, points_somewhere = peak_cells(maps)
    scores = maps.flatten(2).amax(2)
    eligible = points_somewhere & (want["class_weight"].amax(0) > 1e-5)
    if variant == "topk":
        top = TopCases(prototypes, int(want["k"]))
        scores = scores.masked_fill(~eligible, float("-inf"))
        for i in range(len(maps)):  # a case at a time, as it would stream by
            top.update(scores[i : i + 1], torch.tensor([i]), cell=cells[i : i + 1])
        prototype = top.found.nonzero(as_tuple=True)[0]
        case, cell = top.cases[top.found], top.columns["cell"][top.found]
    else:
        case, prototype = (eligible & (scores > 0.5)).nonzero(as_tuple=True)
        cell = cells[case, prototype]
    patches = cell_patches(cell, (maps.shape[2], maps.shape[3]), size=size)
    assert torch.equal(torch.cat([prototype[:, None], case[:, None], patches], 1), want[f"{variant}_patches"])
    left, right = want["left_right_pairs"].T.tolist()
    kept = [k for k in range(parts) if k not in left]
    group = torch.tensor([kept.index(dict(zip(left, right, strict=True)).get(k, k)) for k in range(parts)])
    points = want["keypoints_xy"] / want["image_width_height"][:, None].double() * size
    hits = merged(in_patches(points[case], want["visible"][case], patches), group, len(kept))
    pairs = Pairs(case, prototype, len(maps), prototypes)
    found = purity_of(pairs.total(hits), pairs.total(merged(want["visible"].bool()[case], group, len(kept))))
    assert torch.allclose(found.purest, want[f"{variant}_purity"], rtol=1e-6, equal_nan=True)
    assert torch.allclose(found.most_hit, want[f"{variant}_purity_most_hit"], rtol=1e-6, equal_nan=True)
    figures = [
        *(float(f(v)) for v in (found.purest, found.most_hit) for f in (np.nanmean, np.nanstd)),
        int(found.judged.sum()),
        found.pure,
    ]
    assert figures == pytest.approx(want[f"{variant}_summary"].tolist(), rel=1e-6)


@pytest.mark.parametrize(("variant", "settings"), [("topk", {"k": 3}), ("all", {})])
def test_the_metric_gives_the_authors_numbers(
    reference: Callable[[str], dict[str, np.ndarray]], variant: str, settings: dict[str, int]
) -> None:
    """The same numbers through the metric, batches of two, points as shares of the input's sides."""
    want = {key: torch.from_numpy(np.asarray(value)) for key, value in reference("purity").items()}
    names = ["a", "b", "left wing", "right wing", "c"]
    subject = planted(lambda x: x, torch.zeros(4, 3), want["class_weight"].float())
    points = (want["keypoints_xy"] / want["image_width_height"][:, None]).float()
    found = run(
        make_metric("purity" if variant == "topk" else "purity_all", **settings),
        subject, want["maps"].float(), points, want["visible"].bool(), parts=names, batch=2,
    )  # fmt: skip
    summary = want[f"{variant}_summary"].tolist()
    assert torch.allclose(found.per_prototype, want[f"{variant}_purity"], rtol=1e-6, equal_nan=True)
    assert found.value == pytest.approx(summary[0])
    assert found.extras["std over prototypes"] == pytest.approx(summary[1])
    assert found.extras["purity of the most hit part"] == pytest.approx(summary[2])
    assert found.extras["std of the purity of the most hit part"] == pytest.approx(summary[3])
    assert found.counts["prototypes judged"] == summary[4]
    assert found.counts["prototypes with a purity above 0.5"] == summary[5]


def run(
    metric: Metric,
    subject: AdaptedSubject,
    maps: Tensor,
    points: Tensor,
    visible: Tensor,
    *,
    parts: Sequence[str] = PARTS,
    batch: int = 1000,
) -> Score:
    metric.start(setting(subject, tuple(parts), len(maps)))
    for i in range(0, len(maps), batch):
        part = slice(i, i + batch)
        marks = Marks(tuple(parts), points[part], visible[part])
        metric.update(seen(subject, maps[part], torch.zeros(len(maps[part]), dtype=torch.int64), marks))
    return metric.result()


def world(count: int = 200, seed: int = 0) -> tuple[AdaptedSubject, Tensor, Tensor, Tensor]:
    """Prototypes: on the tail; on either eye; anywhere; never firing; without weight. The maps are the inputs."""
    g = torch.Generator().manual_seed(seed)
    cells = torch.randint(SIDE, (count, len(PARTS), 2), generator=g)  # column, row
    points = (cells + 0.5) / SIDE
    visible = torch.rand(count, len(PARTS), generator=g) < 0.7
    visible[:, 2] = True
    eye = torch.where(torch.rand(count, generator=g) < 0.5, 1, 3)
    visible[torch.arange(count), eye] = True
    places = torch.stack([
        cells[:, 2], cells[torch.arange(count), eye], torch.randint(SIDE, (count, 2), generator=g),
        torch.zeros(count, 2, dtype=torch.int64), cells[:, 0],
    ], 1)  # fmt: skip
    maps = spots(places[..., 1], places[..., 0], SIDE) * (0.6 + 0.4 * torch.rand(count, 5, 1, 1, generator=g))
    maps[:, 3] = 0.0
    weight = torch.tensor([[1.0, 0.5, 0.0, 1.0, 1e-6], [0.0, 0.0, 1.0, 0.0, 0.0]])
    return planted(lambda x: x, torch.zeros(5, 2), weight), maps, points, visible


@pytest.mark.parametrize("name", ["purity", "purity_all"])
def test_planted_prototypes(name: str) -> None:
    subject, maps, points, visible = world()
    found = run(make_metric(name), subject, maps, points, visible, batch=64)
    each = found.per_prototype
    assert each is not None and each[:2].tolist() == [1.0, 1.0]
    assert each[2] < 0.4, "near chance: 10 cases, 3 parts, a patch of a fiftieth of the picture"
    assert each[3:].isnan().all()
    assert found.value == pytest.approx(float(each[:3].mean()))
    assert found.extras["purity of patches at random places"] < 0.4
    assert found.extras["purest part"]["0"] == "tail" and found.extras["purest part"]["1"] == "eye"
    assert found.counts["prototypes judged"] == 3
    assert found.counts["prototypes that never fire"] == 1
    assert found.counts["prototypes without a weight"] == 1
    assert found.over_cases is not None and found.over_cases[0] <= found.value <= found.over_cases[1]
    assert found.over_prototypes is not None and found.over_prototypes[1] <= 1
    assert any("32 x 32 pixels of 224: 4.00 x 4.00 cells of a 28 x 28 map" in note for note in found.notes)


def test_random_places_come_near_chance_when_many_cases_are_judged() -> None:
    subject, maps, points, visible = world(3000)
    found = run(make_metric("purity_all"), subject, maps, points, visible)
    chance = (33 / 224) ** 2
    assert found.per_prototype is not None
    assert float(found.per_prototype[2]) == pytest.approx(chance, abs=0.03)
    assert found.extras["purity of patches at random places"] == pytest.approx(chance, abs=0.03)


def test_batches_do_not_matter_and_a_seed_repeats() -> None:
    subject, maps, points, visible = world(60)
    first, other = (run(make_metric("purity"), subject, maps, points, visible, batch=b) for b in (1000, 7))
    assert first.value == other.value and first.over_cases == other.over_cases
    assert torch.equal(first.per_prototype.nan_to_num(-1), other.per_prototype.nan_to_num(-1))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["purity", "purity_all"])
def test_order_of_prototypes_does_not_matter(name: str) -> None:
    subject, maps, points, visible = world(60)
    order = torch.tensor([2, 4, 0, 3, 1])
    assert subject.weights is not None
    turned = planted(lambda x: x, torch.zeros(5, 2), subject.weights[:, order])
    first = run(make_metric(name), subject, maps, points, visible)
    other = run(make_metric(name), turned, maps[:, order], points, visible)
    assert first.per_prototype is not None and other.per_prototype is not None
    assert torch.equal(first.per_prototype[order].nan_to_num(-1), other.per_prototype.nan_to_num(-1))
    assert first.value == pytest.approx(other.value)


def test_a_part_that_cannot_be_seen_never_counts() -> None:
    subject, maps, points, visible = world(60)
    hidden = visible.clone()
    hidden[:, 2] = False
    found = run(make_metric("purity"), subject, maps, points, hidden)
    assert found.per_prototype is not None and found.per_prototype[0] < 0.5
    assert found.counts["parts never visible"] == 1
    half = visible.clone()
    half[::2, 2] = False  # out of numerator and denominator alike
    assert run(make_metric("purity"), subject, maps, points, half).per_prototype[0] == 1  # type: ignore[index]
    nothing = run(make_metric("purity"), subject, maps, points, torch.zeros_like(visible))
    assert nothing.value is None and nothing.over_cases is None and "nothing" not in nothing.counts
    assert nothing.counts["prototypes whose cases show no part"] == 3
    assert any("No prototype has a case" in note for note in nothing.notes)


def test_one_case_one_prototype_and_never_firing() -> None:
    subject, maps, points, visible = world(1)
    found = run(make_metric("purity"), subject, maps, points, visible)
    assert found.value is not None and found.over_cases is None
    assert any("3 prototypes are judged by fewer than 10 cases" in note for note in found.notes)
    one = planted(lambda x: x[:, :1], torch.zeros(1, 2), torch.ones(2, 1))
    alone = run(make_metric("purity"), one, maps, points, visible)
    assert alone.value == 1.0 and alone.over_prototypes is None
    silent = run(make_metric("purity"), one, torch.zeros_like(maps), points, visible)
    assert silent.value is None and silent.counts["prototypes that never fire"] == 1


def test_scores_that_are_no_presence_are_said_to_be_none() -> None:
    subject, maps, points, visible = world(20)
    found = run(make_metric("purity_all"), subject, maps * 30 - 9, points, visible)
    assert any("presumes scores from 0 to 1" in note for note in found.notes)
    faint = run(make_metric("purity_all"), subject, maps * 0.1, points, visible)
    assert faint.value is None and faint.counts["prototypes without a case to judge by"] == 3


def test_a_head_without_weights_counts_every_prototype_in_use() -> None:
    subject, maps, points, visible = world(20)
    subject.weights = None
    subject.usable = torch.tensor([True, True, False, True, True])
    found = run(make_metric("purity"), subject, maps, points, visible)
    assert found.per_prototype is not None
    assert found.per_prototype.isnan().tolist() == [False, False, True, True, False]
    assert any("no weights" in note for note in found.notes)


def test_twice_the_same_cases_leave_the_purity_of_a_fixed_place() -> None:
    subject, maps, points, visible = world(30)
    once = run(make_metric("purity_all"), subject, maps, points, visible)
    twice = run(make_metric("purity_all"), subject, *(torch.cat([x, x]) for x in (maps, points, visible)))
    assert once.value == pytest.approx(twice.value)


@pytest.mark.parametrize("cells", [2, 7, 14, 26, 28, 100])
def test_patches_lie_in_the_picture_and_move_on(cells: int) -> None:
    every = torch.arange(cells * cells)
    patches = cell_patches(every, (cells, cells)).view(cells, cells, 4)
    assert patches.min() >= 0 and patches.max() == 224
    assert (patches[..., 1] - patches[..., 0] == 32).all() and (patches[..., 3] - patches[..., 2] == 32).all()
    assert patches[-1, -1].tolist() == [192, 224, 192, 224] and patches[0, 0].tolist() == [0, 32, 0, 32]
    rows, columns = patches[:, 0, 0], patches[0, :, 2]
    assert torch.equal(rows, columns) and (rows.diff() >= 0).all()
    skip = round(192 / (cells - 1))
    inner = range(1, cells - 1)
    want = [(u - 1) * skip + 4 if cells == 26 else min(u * skip, 192) for u in inner]
    assert rows[1:-1].tolist() == want


def test_patches_of_other_grids() -> None:
    assert cell_patches(torch.tensor([5]), (2, 4)).tolist() == [[192, 224, 64, 96]]
    assert cell_patches(torch.tensor([0]), (1, 1)).tolist() == [[96, 128, 96, 128]]
    with pytest.raises(UsageError, match="a patch must be"):
        cell_patches(torch.tensor([0]), (7, 7), size=16)


def test_borders_count_and_hidden_points_do_not() -> None:
    patch = torch.tensor([32, 64, 96, 128])
    points = torch.tensor([[96.0, 32.0], [128.0, 64.0], [95.0, 40.0], [100.0, 65.0], [100.0, 40.0]])
    shown = torch.tensor([1, 1, 1, 1, 0]) > 0
    assert in_patches(points, shown, patch).tolist() == [True, True, False, False, False]
    heights = torch.arange(50, 500)  # of pictures: a coordinate on a border survives being a share in single precision
    edge = ((heights.double() * 32 / 224) / heights).float() * 224
    assert in_patches(torch.stack([torch.full_like(edge, 100.0), edge], -1), torch.ones(len(edge)) > 0, patch).all()


def test_peaks_take_the_leftmost_then_the_topmost() -> None:
    maps = torch.zeros(1, 3, 3, 3)
    maps[0, 0, 2, 0] = maps[0, 0, 0, 1] = 1.0  # lower left before upper middle
    maps[0, 1, 1, 2] = maps[0, 1, 2, 2] = 1.0
    cells, somewhere = peak_cells(maps)
    assert cells.tolist() == [[6, 5, 0]] and somewhere.tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("parts", "names", "group"),
    [
        (["left_eye", "right_eye"], ("eye",), [0, 0]),
        (["Right Wing", "nape", "Left Wing"], ("Wing", "nape"), [0, 1, 0]),
        (["left", "right"], ("right",), [0, 0]),
        (["left leg", "cleft", "beak", "Beak"], ("left leg", "cleft", "beak", "Beak"), [0, 1, 2, 3]),
        ([], (), []),
    ],
)
def test_sides_are_merged_by_name(parts: list[str], names: tuple[str, ...], group: list[int]) -> None:
    found = merged_sides(parts)
    assert found[0] == names and found[1].tolist() == group


def test_damage_is_named() -> None:
    subject, maps, points, visible = world(2)
    broken: Any = maps.clone()
    broken[1, 0, 3, 3] = float("nan")
    with pytest.raises(DataError, match="holds NaN in case 1"):
        run(make_metric("purity"), subject, broken, points, visible)
    metric = make_metric("purity")
    metric.start(setting(subject, PARTS, 2))
    for size in (28, 14):
        batch = seen(subject, torch.rand(1, 5, size, size), torch.tensor([0]), Marks(PARTS, points[:1], visible[:1]))
        if size == 28:
            metric.update(batch)
            continue
        with pytest.raises(UsageError, match="maps of one size"):
            metric.update(batch)
