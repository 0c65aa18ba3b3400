"""Agreement of prototypes with key points: scikit-learn's figures, planted divisions, nothing to judge."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from tests.audit.planted import planted, seen, setting
from torch import Tensor
from torch.nn import functional as F

from protolearn.audit.keypoints import assigned, table_ari, table_nmi, values_at
from protolearn.audit.marks import Marks
from protolearn.audit.metric import Score, make_metric
from protolearn.audit.subject import AdaptedSubject
from protolearn.errors import UsageError

SIDE, PARTS = 16, ("beak", "wing", "tail")
BOTH = ["keypoint_nmi", "keypoint_ari"]
FIGURES = [(table_nmi, normalized_mutual_info_score), (table_ari, adjusted_rand_score)]


def test_values_are_those_of_the_enlarged_map() -> None:
    g = torch.Generator().manual_seed(0)
    maps, points = torch.rand(3, 5, 7, 9, generator=g), torch.rand(3, 20, 2, generator=g)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    fine = F.interpolate(maps, size=(56, 56), mode="bilinear")
    pixel = (points * 56).long().clamp_max(55)
    want = torch.stack([fine[b, :, pixel[b, :, 1], pixel[b, :, 0]] for b in range(3)])
    assert torch.allclose(values_at(maps, points, size=56), want, atol=1e-5)
    with pytest.raises(UsageError, match="size must be"):
        values_at(maps, points, size=0)


def test_key_points_go_to_the_highest_of_those_that_compete() -> None:
    values = torch.tensor([[[1.0, 3.0, 0.0], [2.0, 1.0, 0.0], [9.0, 9.0, 9.0]]])
    assert assigned(values, torch.tensor([[True, True, False]])).tolist() == [[1, 0, 3]]
    assert assigned(values, torch.tensor([[True, True, True]])).tolist() == [[2, 2, 2]]
    assert assigned(values, torch.tensor([[False, True, False]])).tolist() == [[1, 1, 1]], "alone, it takes all"
    assert assigned(values, torch.zeros(1, 3) > 0).tolist() == [[-1, -1, -1]]
    assert assigned(values[:, :0], torch.zeros(1, 0) > 0).tolist() == [[-1, -1, -1]]


def figure(ours: Callable[..., Tensor], table: Tensor, group: Tensor | None = None) -> float:
    return float(ours(table[None], torch.zeros(len(table), dtype=torch.int64) if group is None else group))


@pytest.mark.parametrize(("ours", "theirs"), FIGURES)
def test_figures_from_counts_are_scikit_learns(ours: Callable[..., Tensor], theirs: Callable[..., float]) -> None:
    g = torch.Generator().manual_seed(1)
    for trial in range(40):
        labels, parts = int(torch.randint(1, 7, (), generator=g)), int(torch.randint(2, 6, (), generator=g))
        size = int(torch.randint(2, 60, (), generator=g))
        label, part = (torch.randint(k, (size,), generator=g) for k in (labels, parts))
        if trial % 3 == 0:
            part = label.clamp_max(parts - 1)
        if len(part.unique()) < 2:
            continue
        table = torch.zeros(labels, parts, dtype=torch.float64)
        table.index_put_((label, part), torch.ones(size, dtype=torch.float64), accumulate=True)
        assert figure(ours, table) == pytest.approx(theirs(part, label), abs=1e-9)
        thrice = theirs(part.repeat(3), label.repeat(3))
        assert figure(ours, 3 * table) == pytest.approx(thrice, abs=1e-9), "counts may be of what is drawn again"


@pytest.mark.parametrize(("ours", "theirs"), FIGURES)
def test_groups_are_averaged_by_their_key_points(ours: Callable[..., Tensor], theirs: Callable[..., float]) -> None:
    first, second, lone = torch.tensor([[8.0, 1.0], [2.0, 3.0]]), torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 7.0]])
    table = torch.cat([first, second, lone, torch.tensor([[4.0, 0.0], [1.0, 3.0]])]).double()
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    one = [figure(ours, table[group == k]) for k in range(3)]
    assert figure(ours, table, group) == pytest.approx((14 * one[0] + 12 * one[1] + 8 * one[2]) / 34)
    assert np.isnan(figure(ours, table[2:3])), "one part alone tells nothing"


def world(count: int = 60, seed: int = 0, classes: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Key points well apart, in thirds of the picture; visible at random; labels."""
    g = torch.Generator().manual_seed(seed)
    cells = torch.stack([
        torch.randint(SIDE, (count, 3), generator=g),
        torch.randint(4, (count, 3), generator=g) + torch.tensor([0, 6, 12]),
    ], 2)  # fmt: skip
    visible = torch.rand(count, 3, generator=g) < 0.8
    visible[:2] = True
    return cells, visible, torch.arange(count) % classes


def blobs(cells: Tensor) -> Tensor:
    """Maps ``(n, N, SIDE, SIDE)`` that fall off with the distance from a cell."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    far = (columns - cells[..., 0, None, None]) ** 2 + (rows - cells[..., 1, None, None]) ** 2
    return torch.exp(-far / 8.0)


def run(
    name: str, subject: AdaptedSubject, maps: Tensor, cells: Tensor, visible: Tensor, labels: Tensor,
    *, batch: int = 1000, **settings: object,
) -> Score:  # fmt: skip
    metric = make_metric(name, **settings)
    metric.start(setting(subject, PARTS, len(maps)))
    for i in range(0, len(maps), batch):
        part = slice(i, i + batch)
        metric.update(seen(subject, maps[part], labels[part], Marks(PARTS, (cells[part] + 0.5) / SIDE, visible[part])))
    return metric.result()


def shared(count: int) -> AdaptedSubject:
    return planted(lambda x: x, torch.zeros(count, 2), torch.ones(2, count))


def owned(classes: int, each: int) -> AdaptedSubject:
    return planted(lambda x: x, torch.eye(classes).repeat_interleave(each, 0))


@pytest.mark.parametrize("name", BOTH)
def test_shared_prototypes_on_parts_are_perfect_in_any_order(name: str) -> None:
    cells, visible, labels = world()
    for order in ([0, 1, 2], [2, 0, 1]):
        found = run(name, shared(3), blobs(cells)[:, order], cells, visible, labels, batch=7)
        assert found.value == pytest.approx(1.0)
        assert found.over_cases == pytest.approx((1.0, 1.0))
        assert found.extras["commonest part"] == {str(k): PARTS[part] for k, part in enumerate(order)}
        assert found.counts["key points"] == int(visible.sum())
        assert found.counts["prototypes that take a key point"] == 3
        assert found.extras["key points dealt at random"] < 0.1
        assert any("All prototypes compete" in note for note in found.notes)


@pytest.mark.parametrize("name", BOTH)
def test_random_maps_are_near_chance(name: str) -> None:
    cells, visible, labels = world(400)
    g = torch.Generator().manual_seed(3)
    found = run(name, shared(4), torch.rand(400, 4, SIDE, SIDE, generator=g), cells, visible, labels)
    assert found.value == pytest.approx(found.extras["key points dealt at random"], abs=0.02)
    assert found.value == pytest.approx(0.0, abs=0.02)
    assert found.over_cases is not None and found.over_cases[0] <= found.value <= found.over_cases[1]


@pytest.mark.parametrize("name", BOTH)
def test_classes_divide_apart_whatever_they_call_their_prototypes(name: str) -> None:
    """The prototypes of class 1 stand in another order than those of class 0; naming them by place would mix parts."""
    cells, visible, labels = world(classes=3)
    table = blobs(cells)
    maps = torch.cat([table, table[:, [1, 2, 0]], table[:, [2, 0, 1]]], 1)
    for group in range(3):
        maps[labels != group, 3 * group : 3 * group + 3] += 10.0  # those of other classes shout, and are not heard
    found = run(name, owned(3, 3), maps, cells, visible, labels)
    assert found.value == pytest.approx(1.0)
    assert found.counts["classes judged"] == 3
    assert found.extras["commonest part"]["3"] == "wing"
    everyone = run(name, owned(3, 3), maps, cells, visible, labels, among="all")
    assert everyone.value is not None and everyone.value < 0.9
    assert found.over_prototypes == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("name", BOTH)
def test_prototypes_may_stand_in_any_order(name: str) -> None:
    cells, visible, labels = world()
    g = torch.Generator().manual_seed(5)
    maps, order = blobs(cells) + 2.0 * torch.rand(60, 3, SIDE, SIDE, generator=g), [1, 2, 0]
    first = run(name, shared(3), maps, cells, visible, labels)
    assert first.value is not None and 0.1 < first.value < 0.95
    assert run(name, shared(3), maps[:, order], cells, visible, labels).value == pytest.approx(first.value)
    assert run(name, shared(3), maps, cells, visible, labels, batch=11).over_cases == first.over_cases


@pytest.mark.parametrize("name", BOTH)
def test_what_cannot_be_seen_never_counts(name: str) -> None:
    cells, visible, labels = world()
    maps = blobs(cells)
    elsewhere = cells.clone()
    elsewhere[~visible] = 0
    a, b = (run(name, shared(3), maps, where, visible, labels).value for where in (cells, elsewhere))
    assert a == b
    hidden = visible.clone()
    hidden[:, 1] = False
    assert run(name, shared(3), maps, cells, hidden, labels).counts["parts never visible"] == 1


@pytest.mark.parametrize("name", BOTH)
def test_nothing_to_judge_is_said(name: str) -> None:
    cells, visible, labels = world(6)
    maps = blobs(cells)
    only = visible.clone()
    only[:, 1:] = False
    for found in (
        run(name, shared(3), maps, cells, torch.zeros_like(visible), labels),
        run(name, shared(3), maps, cells, only, labels),
        run(name, owned(2, 3), maps.repeat(1, 2, 1, 1), cells, visible, torch.full((6,), -1)),
    ):
        assert found.value is None and found.over_cases is None and "No two parts" in found.notes[0]
    unlabelled = run(name, owned(2, 3), maps.repeat(1, 2, 1, 1), cells, visible, torch.full((6,), -1))
    assert unlabelled.counts["key points without a prototype to go to"] == int(visible.sum())


@pytest.mark.parametrize("name", BOTH)
def test_one_case_one_prototype_and_level_maps(name: str) -> None:
    cells, visible, labels = world(2)
    one = run(name, shared(3), blobs(cells)[:1], cells[:1], visible[:1], labels[:1])
    assert one.value == pytest.approx(1.0) and one.over_cases is None
    alone = run(name, shared(1), blobs(cells)[:, :1], cells, visible, labels)
    assert alone.value == pytest.approx(0.0) and alone.over_prototypes is None
    level = run(name, shared(3), torch.zeros(2, 3, SIDE, SIDE), cells, visible, labels)
    assert level.value == pytest.approx(0.0)
    assert level.counts["key points where no prototype stands out"] == int(visible.sum())
    assert level.counts["prototypes that take a key point"] == 0
    classes = run(name, owned(3, 1), blobs(cells), cells, visible, labels)
    assert classes.counts["classes judged"] == 2, "a class without a case is left out"


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(UsageError, match="needs prototypes that belong to classes"):
        make_metric("keypoint_nmi", among="own").start(setting(shared(2), PARTS))
    with pytest.raises(UsageError, match="no choice of prototypes is called 'mine'"):
        make_metric("keypoint_ari", among="mine").start(setting(shared(2), PARTS))
