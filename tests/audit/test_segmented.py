"""Regions by quantile: loops over pixels, planted areas, masks of parts, and noise that is not clipped."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from tests.audit.planted import planted, seen, setting
from torch import Tensor
from torch.nn import functional as F

from protolearn.audit.marks import Marks
from protolearn.audit.metric import Metric, make_metric
from protolearn.audit.metrics.segmented import SegmentStability
from protolearn.audit.segmented import quantile_masks, segment_hits, segment_overlaps
from protolearn.errors import UsageError

SIZE = 32
YES = torch.ones(1, 1) > 0


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mode", ["bicubic", "nearest"])
def test_masks_are_those_of_a_sort_of_all_pixels(mode: str) -> None:
    maps = drawn(5, 7, 9)
    torch_mode = {"bicubic": "bicubic", "nearest": "nearest-exact"}[mode]
    fine = F.interpolate(maps[:, None], size=(SIZE, 48), mode=torch_mode)[:, 0]
    masks = quantile_masks(maps, size=(SIZE, 48), mode=mode)
    for each, mask in zip(fine, masks, strict=True):
        place = 0.8 * (each.numel() - 1)
        ordered = each.flatten().sort().values
        low, high = ordered[int(place)], ordered[int(place) + 1]
        assert not mask[each < low].any() and mask[each > high].all()
        assert mask.float().mean() <= 0.2 + 1e-6


def test_scale_and_offset_do_not_matter_and_a_lower_quantile_marks_more() -> None:
    maps = drawn(4, 7, 7)
    masks = [quantile_masks(maps, size=(SIZE, SIZE), quantile=q) for q in (0.5, 0.7, 0.8, 0.95)]
    assert all((a >= b).all() for a, b in itertools.pairwise(masks))
    assert masks[0].float().mean() == pytest.approx(0.5, abs=0.01)
    shifted = quantile_masks(4.0 * maps - 8.0, size=(SIZE, SIZE))
    assert (shifted != masks[2]).float().mean() < 0.002  # rounding at the quantile itself


@pytest.mark.parametrize("floor", [0.0, 0.3, -7.1])
def test_level_maps_mark_nothing_and_level_floors_stay_out(floor: float) -> None:
    maps = torch.full((2, 7, 7), floor)
    maps[1, 3, 3] += 1.0
    masks = quantile_masks(maps, size=(224, 224))
    assert not masks[0].any()
    assert masks[1, 3 * 32 + 16, 3 * 32 + 16]
    far = masks[1].clone()
    far[32:192, 32:192] = False  # as far as one cell reaches in a bicubic map, ripples included
    assert not far.any(), "rounding is no region"
    near = quantile_masks(maps, size=(224, 224), mode="nearest")
    assert near[1].sum() == 32 * 32 and not near[0].any()


def test_a_key_point_is_a_part_of_one_pixel() -> None:
    maps, points = drawn(6, 3, 7, 7), drawn(6, 10, 2, seed=1) * SIZE
    counted, visible = drawn(6, 3, seed=2) < 0.6, drawn(6, 10, seed=3) < 0.8
    hits = segment_hits(maps, counted, points, visible, size=SIZE)
    parts = torch.zeros(6, 10, SIZE, SIZE, dtype=torch.bool)
    for b in range(6):
        for n in range(10):
            x, y = points[b, n].long().tolist()
            parts[b, n, y, x] = visible[b, n]
    assert torch.equal(hits, segment_overlaps(maps, counted, parts))
    assert hits.any() and not hits[~counted].any()
    assert not (hits & ~visible.unsqueeze(1)).any()


def test_larger_parts_are_met_more_and_empty_ones_never() -> None:
    maps = drawn(4, 2, 7, 7)
    counted = torch.ones(4, 2, dtype=torch.bool)
    parts = torch.zeros(4, 4, SIZE, SIZE, dtype=torch.bool)
    for k, side in enumerate((0, 3, 12, SIZE)):
        parts[:, k, :side, :side] = True
    hits = segment_overlaps(maps, counted, parts)
    assert all((hits[..., a] <= hits[..., a + 1]).all() for a in range(3))
    assert not hits[..., 0].any() and hits[..., 3].all()


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, counted = drawn(4, 3, 7, 7), drawn(4, 3, seed=1) < 0.7
    points, visible = drawn(4, 5, 2, seed=2) * SIZE, torch.ones(4, 5) > 0
    parts = drawn(4, 5, SIZE, SIZE, seed=3) < 0.01
    whole = segment_hits(maps, counted, points, visible, size=SIZE), segment_overlaps(maps, counted, parts)
    monkeypatch.setattr("protolearn.audit.segmented.chunk_rows", lambda row_bytes: 2)
    assert torch.equal(whole[0], segment_hits(maps, counted, points, visible, size=SIZE))
    assert torch.equal(whole[1], segment_overlaps(maps, counted, parts))


def test_wrong_requests() -> None:
    maps = drawn(1, 1, 7, 7)
    with pytest.raises(UsageError, match="quantile must be"):
        quantile_masks(maps[0], quantile=1.0)
    with pytest.raises(UsageError, match="did you mean 'bicubic'"):
        quantile_masks(maps[0], mode="bicubik")
    with pytest.raises(ValueError, match="must be"):
        segment_hits(maps, YES, torch.zeros(1, 2, 2), torch.zeros(1, 3) > 0)
    with pytest.raises(ValueError, match="must be"):
        segment_overlaps(maps, YES, torch.zeros(2, 2, 4, 4) > 0)
    nobody = segment_hits(maps[:0], YES[:0], torch.zeros(0, 2, 2), torch.zeros(0, 2) > 0)
    assert nobody.shape == (0, 1, 2)


def listened(metric: Metric, batch: int, count: int = 12) -> tuple[float | None, Tensor]:
    """Return the score, and every input of the looks under noise minus the clean one, in the order of the cases."""
    heard: list[Tensor] = []
    subject = planted(lambda x: heard.append(x.clone()) or x, torch.ones(2, 1))  # type: ignore[func-returns-value]
    inputs, points = drawn(count, 2, 8, 8), drawn(count, 3, 2, seed=1)
    metric.start(setting(subject, ("a", "b", "c"), count, draws=2))
    noise = []
    for i in range(0, count, batch):
        part = slice(i, i + batch)
        marks = Marks(("a", "b", "c"), points[part], torch.ones(len(points[part]), 3) > 0)
        shown = seen(subject, inputs[part], torch.zeros(len(points[part]), dtype=torch.int64), marks)
        shown = replace(shown, indices=torch.arange(count)[part])
        heard.clear()
        metric.update(shown)
        noise.append(torch.stack([each - inputs[part] for each in heard], 1))
    return metric.result().value, torch.cat(noise)


def test_noise_is_not_clipped_and_depends_on_the_case_alone() -> None:
    value, noise = listened(make_metric("segment_stability"), 12)
    assert noise.shape == (12, 2, 2, 8, 8)
    assert float(noise.abs().max()) > 0.5 and float(noise.std()) == pytest.approx(0.2, abs=0.02)
    flat = noise.flatten(2).flatten(0, 1)
    assert len({tuple(row.tolist()) for row in flat}) == 24, "every case and draw has noise of its own"
    other, again = listened(make_metric("segment_stability"), 5)
    assert value == other and torch.allclose(noise, again, atol=1e-6)
    assert value is not None and 0 < value < 100
    calm, _ = listened(SegmentStability(std=0.0), 12)
    assert calm == 100.0
