from __future__ import annotations

import pytest
import torch

import protolearn.audit.overlap as module
from protolearn.audit.overlap import map_overlaps, shown
from protolearn.errors import UsageError


def test_against_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases that count different prototypes, in chunks of one."""
    monkeypatch.setattr(module, "chunk_rows", lambda row_bytes: 1)
    maps, counted = torch.randn(6, 7, 4, 5), torch.rand(6, 7) < 0.6
    maps[2, 1] = 3.0
    table = torch.full((6, 7, 7), float("nan"))
    for found in map_overlaps(maps, counted):
        for b, case in enumerate(found.cases.tolist()):
            for i, p in enumerate(found.prototypes.tolist()):
                for j, q in enumerate(found.prototypes.tolist()):
                    assert (found.iou[b, i, j] == 0) or bool(found.judged[b, i, j])
                    table[case, p, q] = found.iou[b, i, j] if found.judged[b, i, j] else float("nan")
    for b in range(6):
        for p in range(7):
            for q in range(7):
                flat = (b == 2) and 1 in (p, q)
                if p == q or not (counted[b, p] and counted[b, q]) or flat:
                    assert table[b, p, q].isnan()
                    continue
                one, two = ((m - m.min()) / (m.max() - m.min()) >= 0.5 for m in (maps[b, p], maps[b, q]))
                assert float(table[b, p, q]) == pytest.approx(float((one & two).sum() / (one | two).sum()))


def test_scale_and_offset_of_a_map_do_not_matter() -> None:
    maps = torch.randn(2, 3, 4, 4)
    assert torch.equal(shown(maps)[0], shown(5 * maps - 100)[0])


def test_chance_is_what_random_regions_overlap_by() -> None:
    """Two regions of a quarter of many cells each, laid at random: a sixteenth over seven sixteenths."""
    maps = (torch.rand(1, 2, 200, 200) < 0.25).float()
    found = next(iter(map_overlaps(maps, torch.ones(1, 2) > 0)))
    assert float(found.chance[0, 0, 1]) == pytest.approx(1 / 7, abs=0.01)
    assert float(found.iou[0, 0, 1]) == pytest.approx(1 / 7, abs=0.01)


def test_nothing_to_compare() -> None:
    assert list(map_overlaps(torch.rand(3, 1, 2, 2), torch.ones(3, 1) > 0)) == []
    assert list(map_overlaps(torch.rand(3, 4, 2, 2), torch.zeros(3, 4) > 0)) == []
    flat = next(iter(map_overlaps(torch.ones(1, 2, 2, 2), torch.ones(1, 2) > 0)))
    assert not flat.judged.any()
    with pytest.raises(UsageError, match="threshold"):
        list(map_overlaps(torch.rand(1, 2, 2, 2), torch.ones(1, 2) > 0, threshold=0.0))
    with pytest.raises(ValueError, match="must be"):
        list(map_overlaps(torch.rand(1, 2, 2), torch.ones(1, 2) > 0))
