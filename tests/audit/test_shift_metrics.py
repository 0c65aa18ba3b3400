"""Shift, continuity and agreement of two trainings as metrics."""

from __future__ import annotations

import pytest
import torch
from tests.audit.measured import channels, drawn_maps, measure
from tests.audit.planted import Planted, planted
from torch import Tensor

from protolearn.audit.look import Look
from protolearn.audit.subject import AdaptedSubject, ModelSubject
from protolearn.encoders import SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.methods import get_method


def test_consistency_of_activations_on_the_same_and_rescaled_cases() -> None:
    ownership, parts = drawn_maps()
    subject = channels(ownership)
    maps, labels = parts["cases"]
    for factor in (1.0, 12.5):
        found = measure("pac", subject, {"cases": (maps, labels), "shifted": (factor * maps, labels)})
        assert found.value == pytest.approx(1.0)
        assert found.over_prototypes == pytest.approx((1.0, 1.0))
        assert found.over_cases == pytest.approx((1.0, 1.0))
    shuffled = {"cases": (maps, labels), "shifted": (maps.roll(1, 0), labels)}
    other = measure("pac", subject, shuffled)
    assert other.value is not None
    assert other.value < 0.97
    stays = measure("shift_agreement", subject, {"cases": (maps, labels), "shifted": (maps, labels)})
    assert stays.value == 1.0
    assert stays.extras["relative change of the true class's evidence, mean"] == pytest.approx(0.0)
    with pytest.raises(DataError, match="same cases"):
        measure("pac", subject, {"cases": (maps, labels), "shifted": (maps[:3], labels[:3])})


def test_alignment_with_owners_and_with_shared_prototypes() -> None:
    ownership, parts = drawn_maps()
    subject = channels(10 * ownership)
    strong = {part: (20 * maps, labels) for part, (maps, labels) in parts.items()}
    assert (measure("pca", subject, strong).value or 0) > 0.9
    assert (measure("pca_w", subject, strong).value or 0) == pytest.approx(1.0), "others have no weight for the class"
    found = measure("pca", subject, strong)
    assert found.extras["share of all prototypes that belong to the true class"] == pytest.approx(2 / 6)
    assert found.extras["under shift"] is not None
    alone = measure("pca", subject, {"cases": strong["cases"]})
    assert "under shift" not in alone.extras
    shared = channels(torch.zeros(6, 3), ownership.T - 0.5)
    assert measure("pca", shared, parts).value is None
    assert "pca_shared" in measure("pca_w", shared, parts).notes[0]
    assert (measure("pca_shared", shared, strong).value or 0) > 0.9
    maps, labels = parts["cases"]
    half = labels.where(torch.arange(24) % 2 == 0, -1)
    some = measure("pca", subject, {"cases": (maps, half)})
    assert some.counts["cases judged"] == 12
    assert some.per_case is not None
    assert some.per_case.isnan().sum() == 12


def test_without_noise_shift_or_crop_a_prototype_stays() -> None:
    ownership, parts = drawn_maps()
    subject = channels(ownership)
    still = measure("continuity", subject, parts, std=0.0)
    assert still.value == 1.0
    assert still.extras["distance of the peaks, share of the side"] == 0.0
    assert still.extras["rank correlation of the scores over prototypes"] == pytest.approx(1.0)
    moved = measure("continuity_moves", subject, parts, pixels=0, crop=1.0)
    assert moved.value == 1.0
    assert moved.counts["peaks that left the picture"] == 0
    values = [measure("continuity", subject, parts, std=std).value or 0 for std in (0.0, 0.1, 5.0)]
    assert values[0] >= values[1] > values[2]
    chance = still.extras["overlap of two regions laid at random"]
    assert 0.05 < chance < 0.3


def test_a_model_that_moves_with_the_picture_is_continuous_and_one_that_does_not_is_not() -> None:
    """Peaks of single pixels follow a shift exactly; peaks that stay where they are do not follow it."""
    maps = torch.zeros(10, 2, 56, 56)
    for i in range(10):
        maps[i, :, 20 + i, 30 - i] = 1.0
    ownership = torch.eye(2)
    parts = {"cases": (maps, torch.zeros(10).long())}
    follows = measure("continuity_moves", channels(ownership), parts, pixels=16, crop=0.8)
    assert follows.extras["overlap by alteration"]["shift"] > 0.99
    assert follows.extras["overlap by alteration"]["crop"] > 0.9
    net = Planted(torch.eye(2))

    def fixed(inputs: Tensor) -> Look:
        scores = torch.ones(len(inputs), 2) * torch.tensor([2.0, 1.0])
        return Look(
            scores, scores.softmax(1), scores, maps[:1].expand(len(inputs), -1, -1, -1), lambda _: scores[:, None]
        )

    stuck = AdaptedSubject(net, fixed, classes=["a", "b"], ownership=ownership)
    found = measure("continuity_moves", stuck, parts, pixels=56, crop=1.0)
    shift = found.extras["overlap by alteration"]["shift"]
    assert shift == pytest.approx((16 * 16) / (2 * 72 * 72 - 16 * 16), abs=0.02)
    assert found.extras["overlap by alteration"]["crop"] == 1.0


def test_peaks_that_leave_the_picture_are_not_judged_and_a_lost_peak_counts() -> None:
    maps = torch.zeros(4, 1, 8, 8)
    maps[:, 0, 7, 7] = 1.0
    found = measure(
        "continuity_moves", channels(torch.ones(1, 1)), {"cases": (maps, torch.zeros(4).long())}, pixels=56, crop=0.5
    )
    assert found.counts["peaks that left the picture"] == 8, "a shift to the lower right, and the crop"
    assert found.counts["peaks compared"] == 4
    cells = planted(lambda inputs: torch.nn.functional.avg_pool2d(inputs, 8), torch.ones(1, 1))
    fine = torch.nn.functional.interpolate(maps, scale_factor=8)
    near = measure("continuity_moves", cells, {"cases": (fine, torch.zeros(4).long())}, pixels=8, crop=0.95)
    assert near.counts["peaks that left the picture"] == 0, "most of the corner's cell still shows"
    assert near.counts["peaks compared"] == 12
    net = Planted(torch.ones(1, 1))
    blind = [False]

    def look(inputs: Tensor) -> Look:
        seen = torch.zeros_like(inputs) if blind[0] else inputs
        blind[0] = True
        scores = seen.amax((2, 3))
        return Look(scores, scores, scores, seen, lambda part: scores[part, None])

    subject = AdaptedSubject(net, look, classes=["a"], ownership=torch.ones(1, 1))
    lost = measure("continuity_moves", subject, {"cases": (maps, torch.zeros(4).long())}, pixels=0, crop=1.0)
    assert lost.value == 0.0
    assert lost.counts["maps that became the same everywhere"] == 12


def test_inputs_that_are_no_pictures_cannot_move() -> None:
    net = Planted(torch.eye(2))

    def look(inputs: Tensor) -> Look:
        maps = inputs.view(-1, 2, 2, 2)
        scores = maps.amax((2, 3))
        return Look(scores, scores.softmax(1), scores, maps, lambda part: scores[part, None])

    subject = AdaptedSubject(net, look, classes=["a", "b"], ownership=torch.eye(2))
    found = measure("continuity_moves", subject, {"cases": (torch.rand(5, 8), torch.zeros(5).long())})
    assert found.value is None
    assert "not pictures" in found.notes[0]
    with pytest.raises(UsageError, match="pixels lie"):
        measure("continuity_moves", subject, {"cases": (torch.rand(5, 8), torch.zeros(5).long())}, pixels=-1)


def test_a_second_training_that_found_the_same_prototypes() -> None:
    """By cases where the embedding differs; a prototype that never fires has no partner, and none is invented."""
    ownership, parts = drawn_maps(cases=60)
    maps, labels = parts["cases"]
    maps = maps.clone()
    maps[:, 5] = 0.0
    subject = channels(ownership)
    order = torch.tensor([2, 0, 1, 3, 5, 4])

    def look(inputs: Tensor) -> Look:
        scores = inputs[:, order].amax((2, 3)) ** 3
        return Look(scores[:, :3], scores[:, :3].softmax(1), scores, None, lambda part: scores[part, None])

    twin = AdaptedSubject(torch.nn.Identity(), look, classes=subject.classes, ownership=ownership[order])
    found = measure("cross_run_stability", subject, {"cases": (maps, labels)}, twin=twin)
    assert found.value == 1.0
    assert found.extras["compared by"] == "cases"
    assert found.extras["matches"] == {"0": 1, "1": 2, "2": 0, "3": 3, "4": 5}
    assert found.extras["share of matches of one class"] == 1.0
    assert found.extras["Jaccard index if the second model's cases were shuffled"] < 0.5
    assert found.counts["prototypes whose score never changes"] == 1
    assert found.per_prototype is not None
    assert found.per_prototype[5].isnan()


def test_one_embedding_is_compared_by_vectors_and_another_by_cases() -> None:
    method = get_method("protopnet")(prototypes_per_class=2, dim=8)
    one, two = (method.build(SmallEncoder(size=16), 3) for _ in range(2))
    two.encoder.load_state_dict(one.encoder.state_dict())
    two.neck.load_state_dict(one.neck.state_dict())
    parts = {"cases": (torch.rand(30, 3, 16, 16), torch.arange(30) % 3)}
    with torch.no_grad():
        two.bank.vectors.copy_(one.bank.vectors.flip(0))
    subject, twin = ModelSubject(one), ModelSubject(two)
    found = measure("cross_run_stability", subject, parts, twin=twin)
    assert found.extras["compared by"] == "vectors"
    assert found.value == pytest.approx(1.0)
    assert found.extras["Jaccard index of the highest cases"] == pytest.approx(1.0)
    assert list(found.extras["matches"].values()) == [5, 4, 3, 2, 1, 0]
    assert found.extras["cosine if the second model's coordinates were shuffled"] < 0.999
    with torch.no_grad():
        next(two.neck.parameters()).add_(0.01)
    other = measure("cross_run_stability", subject, parts, twin=twin)
    assert other.extras["compared by"] == "cases"
    assert other.value is not None
    assert other.value < 1.0
