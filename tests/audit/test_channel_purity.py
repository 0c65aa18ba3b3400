from __future__ import annotations

import pytest
import torch

from protolearn.audit.channel_purity import channel_purity


def test_against_a_loop() -> None:
    maps = torch.randn(4, 5, 3, 3)
    found = channel_purity(maps)
    for b in range(4):
        for k in range(5):
            v, u = divmod(int(maps[b, k].argmax()), 3)
            assert float(found[b, k]) == pytest.approx(float(maps[b, k, v, u] / maps[b, :, v, u].norm()), abs=1e-6)


def test_one_that_fires_alone_is_pure() -> None:
    maps = torch.zeros(1, 4, 2, 2)
    for k in range(4):
        maps[0, k].view(-1)[k] = 1.0 + k
    assert channel_purity(maps).tolist() == [[1.0] * 4]
    together = maps[:, :1].expand(1, 4, 2, 2)
    assert torch.allclose(channel_purity(together), torch.full((1, 4), 0.5))


def test_permutation_and_scale() -> None:
    maps, order = torch.randn(3, 6, 4, 4), torch.randperm(6)
    assert torch.allclose(channel_purity(maps)[:, order], channel_purity(maps[:, order]))
    assert torch.allclose(channel_purity(7 * maps), channel_purity(maps))


def test_without_a_peak_there_is_no_purity() -> None:
    maps = torch.rand(2, 3, 2, 2)
    maps[0, 1] = 4.0
    maps[1] = 0.0
    found = channel_purity(maps)
    assert found.isnan().tolist() == [[False, True, False], [True] * 3]
    assert not channel_purity(torch.rand(1, 2, 1, 1)).isnan().any(), "one place is where it is"


def test_only_usable_prototypes_count() -> None:
    maps = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])
    assert float(channel_purity(maps, torch.tensor([True, False]))[0, 0]) == 1.0
    with pytest.raises(ValueError, match="must be"):
        channel_purity(maps[0])
