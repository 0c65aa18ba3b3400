"""Redundancy of prototypes and purity of channels as metrics: planted duplicates, neighbours, sources."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.audit.measured import channels, drawn_maps, measure
from torch import Tensor

from protolearn.audit.look import Look
from protolearn.audit.subject import AdaptedSubject, ModelSubject
from protolearn.encoders import SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.methods import get_method


def test_planted_duplicates_are_found_by_every_measure() -> None:
    """Prototype 1 is prototype 0 again: vector, maps, evidence, nearest place."""
    ownership, parts = drawn_maps()
    vectors = torch.randn(6, 16)
    vectors[1] = vectors[0]
    for maps, _ in parts.values():
        maps[:, 1] = maps[:, 0]
    subject = channels(ownership, vectors=vectors)
    found = measure("prototype_cosine", subject, parts)
    assert found.extras["twins"] == {"0": 1, "1": 0}
    assert found.extras["largest"] == pytest.approx(1.0)
    assert found.extras["largest over pairs of one class"] == pytest.approx(1.0)
    assert found.extras["largest over pairs of two classes"] < 0.95
    gram = measure("orthogonality", subject, parts)
    assert gram.extras["by class"]["class 0"] == pytest.approx(2.0)
    assert all(gram.extras["by class"][c] < 2 for c in ("class 1", "class 2"))
    rises = measure("evidence_correlation", subject, parts)
    assert rises.extras["twins"] == {"0": 1, "1": 0}
    overlap = measure("map_overlap", subject, parts)
    assert overlap.extras["pair with the largest"] == [0, 1]
    assert overlap.extras["largest mean overlap of a pair"] == 1.0
    assert overlap.value is not None
    assert overlap.value < 0.6
    shared = measure("shared_sources", subject, parts)
    assert shared.extras["prototypes at one place"] == [[0, 1]]
    assert shared.value == pytest.approx(2 / 6)
    assert shared.counts["prototypes too many"] == 1


def test_orthogonal_prototypes() -> None:
    subject = channels(torch.eye(3).repeat_interleave(2, 0), vectors=3 * torch.eye(6))
    assert measure("orthogonality", subject, {}).value == pytest.approx(0.0, abs=1e-12)
    assert measure("prototype_cosine", subject, {}).value == pytest.approx(0.0, abs=1e-12)
    three = channels(torch.ones(3, 1), vectors=torch.ones(3, 2))
    assert measure("orthogonality", three, {}).value == pytest.approx(6.0), "3 x 3 ones less the identity"
    interval = measure("orthogonality", three, {}).over_prototypes
    assert interval == pytest.approx((6.0, 6.0))


def test_one_class_and_unowned_prototypes() -> None:
    vectors = torch.randn(5, 8)
    single = measure("prototype_cosine", channels(torch.ones(5, 1), vectors=vectors), {})
    assert single.extras["mean over pairs of two classes"] is None
    assert single.extras["mean over pairs of one class"] == pytest.approx(single.value)
    unowned = channels(torch.zeros(5, 2), torch.rand(2, 5), vectors=vectors)
    assert measure("prototype_cosine", unowned, {}).counts["pairs of one class"] == 0
    assert measure("orthogonality", unowned, {}).value is None


def test_intervals_of_a_correlation_hold_the_truth() -> None:
    """Two independent and two coupled scores: over many cases the interval is narrow and holds the mean of pairs."""
    g = torch.Generator().manual_seed(2)
    base = torch.randn(4000, 4, generator=g)
    base[:, 1] = base[:, 0] + 0.5 * base[:, 1]
    maps = base.view(4000, 4, 1, 1)
    found = measure(
        "evidence_correlation", channels(torch.eye(4)), {"cases": (maps, torch.zeros(4000).long())}, batch=1000
    )
    want = np.corrcoef(base.numpy().T)[np.triu_indices(4, 1)].mean()
    assert found.value == pytest.approx(want, abs=1e-6)
    assert found.over_cases is not None
    low, high = found.over_cases
    assert low < want < high
    assert high - low < 0.05


def test_neighbours_are_those_of_the_projection_rule() -> None:
    """Counts of own neighbours equal those of the library's pruning, for a model with real tokens."""
    from protolearn.core.projection import NearestTokens, impure, own_neighbours

    model = get_method("protopnet")(prototypes_per_class=2, dim=8).build(SmallEncoder(size=16), 3)
    inputs, labels = torch.rand(40, 3, 16, 16), torch.arange(40) % 3
    found = measure("neighbour_purity", ModelSubject(model), {"train": (inputs, labels)})
    search = NearestTokens(model.bank, model.measure, 6, own_class=False)
    with torch.no_grad():
        search.update(model.eval().embed(model.encode(inputs)), labels, torch.arange(40))
    own = own_neighbours(search.result, model.bank.ownership)
    assert found.per_prototype is not None
    assert torch.allclose(found.per_prototype, own.double() / 6)
    pruned = impure(search.result, model.bank.ownership, 3)
    assert found.extras["prototypes that would be pruned"] == model.bank.ids[pruned].tolist()
    assert found.extras["share that would be pruned"] == pytest.approx(float(pruned.double().mean()))


def test_unlabelled_training_cases_are_no_neighbours() -> None:
    maps = torch.zeros(8, 2, 1, 1)
    maps[:, 0, 0, 0] = torch.arange(8.0)
    maps[:, 1, 0, 0] = -torch.arange(8.0)
    labels = torch.tensor([1, 1, 1, 0, 0, 0, -1, -1])
    subject = channels(torch.eye(2))
    found = measure("neighbour_purity", subject, {"train": (maps, labels)}, k=3)
    assert found.per_prototype is not None
    assert found.per_prototype.tolist() == [1.0, 1.0]
    six = measure("neighbour_purity", subject, {"train": (maps, labels)})
    assert six.value == 0.5
    few = measure("neighbour_purity", subject, {"train": (maps[:4], labels[:4])})
    assert "fewer than the 6" in few.notes[0]
    none = measure("neighbour_purity", subject, {"train": (maps, torch.full((8,), -1))})
    assert none.value is None
    assert none.notes == ("No training case is labelled.",)


def test_sources_by_record_and_by_nearness_agree_after_projection() -> None:
    from protolearn.structures import Source

    model = get_method("protopnet")(prototypes_per_class=2, dim=8).build(SmallEncoder(size=16), 3).eval()
    inputs, labels = torch.rand(12, 3, 16, 16), torch.arange(12) % 3
    tokens = model.embed(model.encode(inputs)).values.detach()
    cases, places = [0, 0, 4, 1, 2, 5], [3, 3, 1, 0, 2, 2]
    with torch.no_grad():
        model.bank.vectors.copy_(tokens[cases, places])
    model.bank.sources = [Source(f"{c}", f"{c}" * 4, s, None, 0.0, "e", 0) for c, s in zip(cases, places, strict=True)]
    found = measure("shared_sources", ModelSubject(model), {"train": (inputs, labels)})
    assert found.extras["prototypes at one place"] == [[0, 1]]
    assert found.value == pytest.approx(2 / 6) == found.extras["share by the record of the projection"]
    elsewhere = measure("shared_sources", ModelSubject(model), {"cases": (inputs, labels)})
    assert "No training cases were given" in elsewhere.notes[0]


def test_purity_of_channels_rises_with_a_rotation_that_makes_them_pure() -> None:
    """Channels mixed by an orthogonal matrix are less pure than the ones they are mixed of."""
    pure = torch.zeros(12, 4, 3, 3)
    for i in range(12):
        pure[i, i % 4].view(-1)[i % 9] = 1.0 + i
        pure[i, (i + 1) % 4].view(-1)[(i + 4) % 9] = 0.5
    turn = torch.linalg.qr(torch.randn(4, 4)).Q
    mixed = torch.einsum("kd,bdhw->bkhw", turn, pure)
    parts = {"train": (pure, torch.zeros(12).long())}
    subject = channels(torch.ones(4, 1))
    for select in ("score", "sum"):
        clean = measure("channel_purity", subject, parts, select=select, n=3)
        assert clean.value == pytest.approx(1.0)
        assert clean.extras["purity if all were equally active"] == 0.5
        blurred = measure("channel_purity", subject, {"train": (mixed, torch.zeros(12).long())}, select=select, n=3)
        assert blurred.value is not None
        assert blurred.value < 0.99
    with pytest.raises(UsageError, match="score"):
        measure("channel_purity", subject, parts, select="scores")


def test_selection_by_sum_finds_broad_weak_cases() -> None:
    peaked, broad = torch.zeros(1, 2, 4, 4), torch.full((1, 2, 4, 4), 0.2)
    peaked[0, 0, 0, 0] = 1.0
    broad[0, 0, 0, 0] = 0.3
    parts = {"train": (torch.cat([peaked, broad]), torch.zeros(2).long())}
    subject = channels(torch.ones(2, 1))
    by_score, by_sum = (measure("channel_purity", subject, parts, select=s, n=1) for s in ("score", "sum"))
    assert by_score.per_prototype is not None
    assert by_sum.per_prototype is not None
    assert float(by_score.per_prototype[0]) == pytest.approx(1.0)
    assert float(by_sum.per_prototype[0]) == pytest.approx(0.3 / math.hypot(0.3, 0.2))


def test_prototypes_that_never_fire_share_nothing_and_have_no_neighbours() -> None:
    ownership, parts = drawn_maps()
    for maps, _ in parts.values():
        maps[:, 2:4] = 0.0
    subject = channels(ownership, vectors=torch.randn(6, 4))
    shared = measure("shared_sources", subject, parts)
    assert shared.value == 0.0
    assert shared.counts["prototypes as near to every case"] == 2
    near = measure("neighbour_purity", subject, parts)
    assert near.per_prototype is not None
    assert near.per_prototype.isnan().tolist() == [False, False, True, True, False, False]
    assert near.counts["prototypes as near to every case"] == 2
    assert measure("evidence_correlation", subject, parts).counts["prototypes judged"] == 4
    overlap = measure("map_overlap", subject, parts)
    assert overlap.counts["prototypes judged"] == 4
    assert measure("channel_purity", subject, parts).counts["prototypes whose maps are the same everywhere"] == 2


def test_scores_that_are_not_a_number_are_left_out_or_refused() -> None:
    ownership = torch.eye(2)

    def look(inputs: Tensor) -> Look:
        scores = inputs.flatten(1)[:, :2].clone()
        scores[:, 1] = float("nan")
        return Look(scores, scores, scores, None, lambda part: scores[part, None])

    subject = AdaptedSubject(torch.nn.Identity(), look, classes=["a", "b"], ownership=ownership)
    parts = {"cases": (torch.rand(6, 4), torch.zeros(6).long()), "train": (torch.rand(6, 4), torch.zeros(6).long())}
    found = measure("evidence_correlation", subject, parts)
    assert found.value is None
    assert found.counts["prototypes whose score never changes"] == 1
    for name in ("shared_sources", "neighbour_purity"):
        with pytest.raises(DataError, match="row 1 scores NaN"):
            measure(name, subject, parts)
