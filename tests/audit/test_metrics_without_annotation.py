"""Metrics that need no annotation: what holds for all of them, on planted models."""

from __future__ import annotations

import math

import pytest
import torch
from tests.audit.measured import channels, drawn_maps, measure
from torch import Tensor, nn

from protolearn.audit.metric import METRICS, Score
from protolearn.audit.subject import ModelSubject
from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import cosine
from protolearn.core.model import PrototypeModel
from protolearn.encoders import SmallEncoder

OF_VECTORS = ("prototype_cosine", "orthogonality")
OF_CASES = (
    "evidence_correlation", "map_overlap", "shared_sources", "neighbour_purity", "channel_purity", "pac", "pca",
    "pca_w", "pca_shared", "shift_agreement", "continuity", "continuity_moves", "cross_run_stability",
)  # fmt: skip
EVERY = OF_VECTORS + OF_CASES

Part = tuple[Tensor, Tensor]


def same(one: Score, two: Score, order: Tensor | None = None) -> None:
    assert one.value is not None
    assert two.value == pytest.approx(one.value, abs=1e-6)
    assert two.counts == one.counts
    if one.per_prototype is not None:
        want = one.per_prototype if order is None else one.per_prototype[order]
        assert two.per_prototype is not None
        assert torch.allclose(two.per_prototype, want, equal_nan=True)
    if one.per_case is not None:
        assert two.per_case is not None
        assert torch.allclose(two.per_case, one.per_case, equal_nan=True)


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_prototypes_and_cases_decides_nothing_and_the_model_stays(name: str) -> None:
    ownership, parts = drawn_maps()
    vectors, usable = torch.randn(6, 4), torch.tensor([1, 1, 1, 1, 0, 1]) > 0
    weight = ownership.T + 0.1 * torch.randn(3, 6)
    twin = channels(ownership[torch.tensor([3, 0, 2, 1, 5, 4])], vectors=torch.randn(6, 4))
    subject = channels(ownership, weight, vectors, usable=usable)
    subject.module.train()
    before = subject.digest(), twin.digest(), torch.get_rng_state()
    first = measure(name, subject, parts, twin=twin)
    assert (subject.digest(), twin.digest()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2]), "draws come from the metric's own generator"
    assert first.value is not None
    assert math.isfinite(first.value)

    again = measure(name, subject, parts, twin=twin)
    same(first, again)
    assert (again.over_prototypes, again.over_cases, again.extras) == (
        first.over_prototypes, first.over_cases, first.extras,
    )  # fmt: skip
    if name in OF_CASES:
        same(first, measure(name, subject, parts, batch=7, twin=twin))
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    other = channels(ownership[order], weight[:, order], vectors[order], order.tolist(), usable[order])
    moved = {part: (inputs[:, order], labels) for part, (inputs, labels) in parts.items()}
    if name == "continuity":
        # noise of a planted input belongs to its channel
        same(measure(name, subject, parts, std=0.0), measure(name, other, moved, std=0.0), order)
    elif name == "cross_run_stability":
        twin = channels(ownership[order], vectors=vectors[order])  # its inputs are permuted too
        same(measure(name, subject, parts, twin=channels(ownership)), measure(name, other, moved, twin=twin), order)
    else:
        same(first, measure(name, other, moved, twin=twin), order)


@pytest.mark.parametrize("name", EVERY)
def test_every_score_is_whole(name: str) -> None:
    """Lengths, intervals around the value, plain extras, notes in sentences."""
    ownership, parts = drawn_maps()
    subject = channels(ownership, vectors=torch.randn(6, 4))
    found = measure(name, subject, parts, twin=channels(ownership.flip(0), vectors=torch.randn(6, 4)))
    about = METRICS[name].about
    assert about.variant
    assert about.source
    assert found.value is not None
    assert found.per_prototype is None or found.per_prototype.shape == (6,)
    if found.per_case is not None:
        assert "cases" in about.passes
        assert found.per_case.shape == (24,)
    for pair in (found.over_prototypes, found.over_cases):
        if pair is not None:
            assert pair[0] <= pair[1]
    if name not in ("pca", "pca_w", "pca_shared", "shift_agreement"):
        assert found.per_prototype is not None
        assert found.over_prototypes is not None
        if name not in ("orthogonality", "pac", "cross_run_stability"):
            assert float(found.per_prototype.nanmean()) == pytest.approx(found.value, rel=0.2, abs=0.05)
    assert all(isinstance(count, int) for count in found.counts.values())
    assert all(note.endswith((".", "!")) for note in found.notes)
    for other in about.instead:
        assert other in METRICS


@pytest.mark.parametrize("name", EVERY)
def test_nothing_to_judge_is_said_and_never_nan(name: str) -> None:
    """One prototype of one class and one case; prototypes that never fire; unlabelled cases; none usable."""
    one = torch.ones(1, 1)
    few = {part: (torch.rand(1, 1, 4, 4), torch.zeros(1, dtype=torch.long)) for part in ("cases", "train", "shifted")}
    dead = {part: (torch.zeros(5, 6, 4, 4), torch.full((5,), -1)) for part in ("cases", "train", "shifted")}
    ownership = torch.eye(3).repeat_interleave(2, 0)
    nobody = torch.zeros(6, dtype=torch.bool)
    flat = {part: (torch.ones(5, 6, 1, 1), torch.arange(5) % 3) for part in ("cases", "train", "shifted")}
    tried = (
        (channels(one, vectors=torch.rand(1, 3)), few),
        (channels(ownership, vectors=torch.zeros(6, 3)), dead),
        (channels(ownership, vectors=torch.rand(6, 3), usable=nobody), drawn_maps()[1]),
        (channels(torch.zeros(6, 3), torch.rand(3, 6), vectors=torch.ones(6, 3)), drawn_maps()[1]),
        (channels(ownership, vectors=torch.ones(6, 3)), flat),
    )
    for subject, parts in tried:
        found = measure(name, subject, parts, twin=subject)
        assert found.value is None or math.isfinite(found.value)
        if found.value is None and name not in ("pca_w", "pca_shared", "pac"):
            assert found.notes
        for pair in (found.over_prototypes, found.over_cases):
            assert pair is None or all(map(math.isfinite, pair))


@pytest.mark.parametrize("name", OF_CASES)
def test_prototypes_drawn_from_each_input(name: str) -> None:
    """They are no vectors to compare, and everything that reads scores and maps works."""
    owner = torch.eye(2).repeat_interleave(2, 0)
    model = PrototypeModel(
        SmallEncoder(dim=6, size=16), nn.Identity(), PrototypeBank(torch.randn(8, 4, 6), owner), cosine,
        LinearEvidence.from_ownership(owner),
    )  # fmt: skip
    subject = ModelSubject(model)
    assert subject.vectors is None
    inputs, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 2
    parts = {"cases": (inputs, labels), "train": (inputs, labels), "shifted": (inputs, labels)}
    found = measure(name, subject, parts, batch=8, twin=subject)
    assert found.value is not None
    assert math.isfinite(found.value)
    if name == "pac":
        assert found.value == pytest.approx(1.0)
