"""The contrast of several prototypes a group: shares, direction, margin, and batches that a training run can meet."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protolearn.objectives.soft_triple import group_similarity, shares, soft_triple

HOW = {"sharpness": 10.0, "scale": 8.0, "margin": 0.1}


@pytest.mark.parametrize("case", ["a", "b"])
def test_the_numbers_of_the_authors_code(reference: Callable[[str], dict[str, np.ndarray]], case: str) -> None:
    want = {key: torch.from_numpy(value) for key, value in reference("soft_triple").items() if value.dtype.kind in "fi"}
    scale, smooth, margin = want[f"settings_{case}"].tolist()
    centres = want["centres"].T.clone().requires_grad_()
    member = torch.arange(4).repeat_interleave(int(want["per_class"]))
    loss = soft_triple(
        want["x"], centres, member, want["y"], 4, sharpness=1 / smooth, scale=scale, margin=margin
    )  # fmt: skip
    loss.backward()
    assert loss.item() == pytest.approx(float(want[f"loss_{case}"]), abs=1e-12)
    assert centres.grad is not None
    assert torch.allclose(centres.grad, want[f"grad_centres_{case}"].T, atol=1e-12)


def loop(vectors: Tensor, prototypes: Tensor, member: list[int], targets: list[int], groups: int) -> float:
    found = []
    for x, target in zip(vectors.double(), targets, strict=True):
        similar = []
        for g in range(groups):
            cosines = [
                float(x @ p / x.norm() / p.norm()) for p, m in zip(prototypes.double(), member, strict=True) if m == g
            ]
            weights = [math.exp(HOW["sharpness"] * c) for c in cosines]
            similar.append(
                sum(w * c for w, c in zip(weights, cosines, strict=True)) / sum(weights) if cosines else None
            )
        if target < 0 or similar[target] is None:
            continue
        levels = [HOW["scale"] * (s - HOW["margin"] * (g == target)) for g, s in enumerate(similar) if s is not None]
        own = HOW["scale"] * (similar[target] - HOW["margin"])
        found.append(math.log(sum(math.exp(v) for v in levels)) - own)
    return sum(found) / len(found) if found else 0.0


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 10**6))
def test_it_equals_a_plain_loop(cases: int, groups: int, count: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    vectors, prototypes = torch.randn(cases, 3, generator=g), torch.randn(count, 3, generator=g)
    member = torch.randint(-1, groups, (count,), generator=g)  # groups without a prototype, prototypes of no group
    targets = torch.randint(-1, groups, (cases,), generator=g)
    leaf = prototypes.clone().requires_grad_()
    value = soft_triple(vectors, leaf, member, targets, groups, **HOW)
    assert value.item() == pytest.approx(loop(vectors, prototypes, member.tolist(), targets.tolist(), groups), abs=1e-4)
    if value.requires_grad:
        value.backward()
        assert leaf.grad is None or bool(leaf.grad.isfinite().all())


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.floats(0, 50), st.integers(0, 10**6))
def test_shares_of_a_group_sum_to_one(cases: int, groups: int, each: int, sharpness: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    similar = torch.randn(cases, groups * each, generator=g) * 10
    member = torch.arange(groups).repeat_interleave(each)
    part = shares(similar, member, groups, sharpness)
    assert torch.allclose(part.view(cases, groups, each).sum(2), torch.ones(cases, groups), atol=1e-5)
    mean = group_similarity(similar, member, groups, sharpness)
    table = similar.view(cases, groups, each)
    assert bool((mean <= table.amax(2) + 1e-4).all()), "a mean is never above its largest member"
    assert bool((mean >= table.mean(2) - 1e-4).all()), "the softmax leans towards the larger ones"


def test_it_falls_towards_the_own_group_and_a_margin_raises_it() -> None:
    prototypes, member = torch.eye(4), torch.tensor([0, 0, 1, 1])
    far, near = torch.tensor([[0.2, 0.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.2, 0.0]])
    values = []
    for step in torch.linspace(0, 1, 6):
        values.append(soft_triple(far + step * (near - far), prototypes, member, torch.tensor([0]), 2, **HOW).item())
    assert values == sorted(values, reverse=True)
    margins = [soft_triple(near, prototypes, member, torch.tensor([0]), 2, **{**HOW, "margin": m}).item()
               for m in (0.0, 0.1, 0.3)]  # fmt: skip
    assert margins == sorted(margins)
    assert margins[0] < margins[-1]


def test_prototypes_that_may_not_be_used_do_not_count() -> None:
    prototypes, member = torch.eye(3), torch.tensor([0, 1, 0])
    x, y = torch.tensor([[0.3, 0.2, 1.0]]), torch.tensor([0])
    usable = torch.tensor([True, True, False])
    less = soft_triple(x, prototypes, member, y, 2, usable=usable, **HOW)
    assert less.item() == pytest.approx(soft_triple(x, prototypes[:2], member[:2], y, 2, **HOW).item())
    nobody = soft_triple(x, prototypes, member, y, 2, usable=torch.tensor([False, True, False]), **HOW)
    assert nobody.item() == 0.0
    assert soft_triple(x, prototypes, member, torch.tensor([-1]), 2, **HOW).item() == 0.0
    nan = soft_triple(x * float("nan"), prototypes, member, y, 2, **HOW)
    assert nan.isnan(), "an error must surface"
