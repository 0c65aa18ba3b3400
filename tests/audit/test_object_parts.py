"""Consistency and stability: planted prototypes, laws, and numbers from the authors' code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.audit.noise import disturb
from protolearn.audit.object_parts import consistency, part_hits, stability
from protolearn.errors import UsageError

SIZE, HALF = 56, 6


def planted(pictures: int = 60, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maps of four prototypes: always on key point 3; anywhere; in a corner without parts; of another class."""
    g = torch.Generator().manual_seed(seed)
    points = torch.randint(12, 50, (pictures, 5, 2), generator=g)
    visible = torch.rand(pictures, 5, generator=g) < 0.8
    visible[:, 3] = True
    maps = torch.zeros(pictures, 4, SIZE, SIZE)
    rows, anywhere = torch.arange(pictures), torch.randint(0, SIZE, (pictures, 2), generator=g)
    maps[rows, 0, points[:, 3, 1], points[:, 3, 0]] = 1.0
    maps[rows, 1, anywhere[:, 1], anywhere[:, 0]] = 1.0
    maps[:, 2, 0, 0] = 1.0
    counted = torch.ones(pictures, 4, dtype=torch.bool)
    counted[:, 3] = False
    return maps, counted, points, visible


def test_planted_prototypes() -> None:
    maps, counted, points, visible = planted()
    hits = part_hits(maps, counted, points, visible, size=SIZE, half_side=HALF)
    found = consistency(hits, counted, visible)
    assert found.consistent.tolist() == [True, False, False, False]
    assert found.rates[0, 3] == 1
    assert found.judged.tolist() == [True, True, True, False]
    assert found.score == pytest.approx(100 / 3)
    assert found.share_never_hitting == pytest.approx(1 / 3)
    unmoved = stability(hits, hits, counted)
    assert unmoved.score == 100
    assert unmoved.rates[:3].tolist() == [1, 1, 1], "one that meets no part is stable and inconsistent: read both"


def test_threshold_zero_takes_whoever_ever_hits_and_scores_fall_with_the_threshold() -> None:
    maps, counted, points, visible = planted()
    hits = part_hits(maps, counted, points, visible, size=SIZE, half_side=HALF)
    scores = [consistency(hits, counted, visible, threshold=t) for t in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert scores[0].consistent.tolist() == [True, True, False, False]
    assert all(a.score >= b.score for a, b in itertools.pairwise(scores))


def test_larger_regions_hit_more() -> None:
    maps, counted, points, visible = planted()
    hits = [part_hits(maps, counted, points, visible, size=SIZE, half_side=half) for half in (0, 3, 6, 20, SIZE)]
    assert all((a <= b).all() for a, b in itertools.pairwise(hits))
    rates = [consistency(h, counted, visible).rates for h in hits]
    assert all((a <= b + 1e-6).all() for a, b in itertools.pairwise(rates))


def test_what_cannot_be_seen_never_counts() -> None:
    maps, counted, points, visible = planted()
    hidden = visible.clone()
    hidden[:30, 3] = False
    hits = part_hits(maps, counted, points, hidden, size=SIZE, half_side=HALF)
    assert not hits[:30, :, 3].any()
    assert consistency(hits, counted, hidden).rates[0, 3] == 1, "out of numerator and denominator alike"
    hidden[:, 3] = False
    never = consistency(part_hits(maps, counted, points, hidden, size=SIZE, half_side=HALF), counted, hidden)
    assert never.rates[:, 3].eq(0).all()


def test_stability_falls_with_noise_on_average() -> None:
    """A smooth map, its peak on a key point, under growing noise; the mean of draws."""
    maps, counted, points, visible = planted(30)
    smooth = torch.nn.functional.avg_pool2d(maps, 9, 1, 4) * 40
    hits = part_hits(smooth, counted, points, visible, size=SIZE, half_side=HALF)
    means = []
    for std in (0.0, 0.1, 0.5, 2.0):
        g = torch.Generator().manual_seed(0)
        draws = [disturb(smooth, std=std, limit=100.0, generator=g) for _ in range(6)]
        scores = [
            stability(hits, part_hits(d, counted, points, visible, size=SIZE, half_side=HALF), counted).score
            for d in draws
        ]
        means.append(sum(scores) / len(scores))
    assert means[0] == 100
    assert all(a >= b for a, b in itertools.pairwise(means))
    assert means[-1] < 90


def test_noise_is_clipped_and_repeats() -> None:
    first, again = (disturb(torch.zeros(1000), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.abs().max() == 0.25
    assert 0.1 < float(first.std()) < 0.2
    with pytest.raises(UsageError, match="std and limit"):
        disturb(first, std=-1.0, generator=torch.Generator())


def test_a_flat_map_points_to_the_first_pixel_whatever_its_level() -> None:
    points, visible = torch.tensor([[[1.0, 1.0], [50.0, 50.0]]]), torch.ones(1, 2) > 0
    flat = torch.tensor([0.0, 0.1, -7.3, 1e4]).view(1, 4, 1, 1).expand(1, 4, 7, 7)
    hits = part_hits(flat, torch.ones(1, 4) > 0, points, visible, size=SIZE, half_side=HALF)
    assert hits.tolist() == [[[True, False]] * 4], "not to where rounding put it"


def test_nothing_to_judge_is_not_a_number_rather_than_zero() -> None:
    hits, nobody = torch.zeros(2, 3, 4, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    visible = torch.ones(2, 4, dtype=torch.bool)
    assert math.isnan(consistency(hits, nobody, visible).score)
    assert math.isnan(stability(hits, hits, nobody).score)
    with pytest.raises(UsageError, match="threshold"):
        consistency(hits, nobody, visible, threshold=2.0)
    with pytest.raises(ValueError, match="must be"):
        part_hits(torch.zeros(2, 3, 4, 4), nobody[:1], torch.zeros(2, 4, 2), visible)


def test_numbers_of_the_authors(reference: Callable[[str], dict[str, np.ndarray]]) -> None:
    want = {key: torch.from_numpy(np.asarray(value)) for key, value in reference("consistency_stability").items()}
    labels, (count, prototypes) = want["labels"], want["activation_maps"].shape[:2]
    each = prototypes // int(want["n_classes"])
    counted = (torch.arange(prototypes) // each).unsqueeze(0) == labels.unsqueeze(1)
    how = {"size": int(want["image_size"]), "half_side": int(want["half_side"])}
    visible = want["visible"].bool()
    hits, noisy = (
        part_hits(want[name], counted, want["keypoints_xy"], visible, **how)
        for name in ("activation_maps", "activation_maps_noisy")
    )
    rows = labels.unsqueeze(1) * each + torch.arange(each)
    for got, name in ((hits, "hits"), (noisy, "hits_noisy")):
        assert torch.equal(got[torch.arange(count).unsqueeze(1), rows].long(), want[name])
    found = consistency(hits, counted, visible, threshold=float(want["threshold"]))
    assert torch.allclose(found.rates.double(), want["hit_rate"], atol=1e-6)
    assert torch.equal(found.consistent.long(), want["consistent"])
    assert found.score == pytest.approx(float(want["consistency_score"]))
    moved = stability(hits, noisy, counted)
    assert torch.allclose(moved.rates, want["stability"])
    assert moved.score == pytest.approx(float(want["stability_score"]), abs=1e-4)
