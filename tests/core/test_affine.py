"""Transforms that are drawn, applied and undone."""

from __future__ import annotations

import torch

from protolearn.core.affine import inverse, random_affine, warp


def test_a_transform_is_a_rotation_an_enlargement_and_a_shift_of_square_pixels() -> None:
    draw = torch.Generator().manual_seed(3)
    size = (20, 40)
    theta = random_affine(size, generator=draw, degrees=90, translate=0.1, scale=(1.2, 1.2))
    # in pixels, with axes x, y
    to_pixels = torch.diag(torch.tensor([size[1] / 2, size[0] / 2]))
    turn = to_pixels @ theta[:, :2] @ torch.linalg.inv(to_pixels)
    assert torch.allclose(turn @ turn.T, torch.eye(2) / 1.2**2, atol=1e-5)
    assert torch.linalg.det(turn) > 0
    shift = -torch.linalg.inv(theta[:, :2]) @ theta[:, 2]
    assert bool((shift.abs() <= 2 * 0.1 + 1e-6).all())
    again = inverse(inverse(theta.unsqueeze(0)))
    assert torch.allclose(again[0], theta, atol=1e-5)
    other = random_affine(size, generator=draw, degrees=90, translate=0.1, scale=(1.2, 1.2))
    assert not torch.allclose(theta, other)


def test_a_quarter_turn_and_back() -> None:
    quarter = torch.tensor([[[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]])
    picture = torch.rand(1, 2, 5, 5)
    turned = warp(picture, quarter)
    assert torch.allclose(turned, picture.rot90(1, (2, 3)), atol=1e-5) or torch.allclose(
        turned, picture.rot90(-1, (2, 3)), atol=1e-5
    )
    assert torch.allclose(warp(turned, inverse(quarter)), picture, atol=1e-5)
