"""Semi-supervised k-means: laws, the authors' numbers, odd data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.core.discovery import Move, centre_margin, class_means, consensus, seeded_k_means
from protolearn.core.updates import k_means, plus_plus
from protolearn.encoders.search import nearest_centres
from protolearn.errors import UsageError

Reference = Callable[[str], dict[str, np.ndarray]]
MOVES: tuple[Move, ...] = ("all", "new", "apart")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(classes: int = 10, each: int = 30, dim: int = 8, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    draw = generator(7)
    centres = 4 * torch.randn(classes, dim, generator=draw)
    truth = torch.arange(classes).repeat_interleave(each)
    return centres[truth] + spread * torch.randn(len(truth), dim, generator=draw), truth


def half_known(truth: Tensor, old: int) -> Tensor:
    """Every second case of the first classes is labelled."""
    known = (truth < old) & (torch.arange(len(truth)) % 2 == 0)
    return torch.where(known, truth, -1)


def test_the_released_algorithm_gives_the_same(reference: Reference) -> None:
    """Labels, centres and inertia after one step and at the end, from the same start."""
    want = {name: torch.from_numpy(a) for name, a in reference("gpc").items() if a.dtype.kind in "fi"}
    values = torch.cat([want["xl"], want["xu"]])
    ranks = torch.unique(want["yl"], return_inverse=True)[1]
    given = torch.cat([ranks, torch.full((len(want["xu"]),), -1)])
    how = {"start": want["init"], "given": given, "tolerance": 0.0, "generator": generator()}
    before = k_means(values, 4, iterations=0, **how)  # type: ignore[arg-type]
    assert torch.equal(before.rows, want["step1_labels"])
    assert before.inertia == pytest.approx(float(want["step1_inertia"]), rel=1e-6)
    after = k_means(values, 4, iterations=1, **how)  # type: ignore[arg-type]
    torch.testing.assert_close(after.centres, want["step1_centres"], rtol=1e-6, atol=1e-9)
    final = k_means(values, 4, iterations=100, **how)  # type: ignore[arg-type]
    assert torch.equal(final.rows, want["final_labels"])
    torch.testing.assert_close(final.centres, want["final_centres"], rtol=1e-6, atol=1e-9)
    assert final.inertia == pytest.approx(float(want["final_inertia"]), rel=1e-6)


def test_it_starts_at_the_class_means_as_the_released_algorithm_does(reference: Reference) -> None:
    want = {name: torch.from_numpy(a) for name, a in reference("gpc").items() if a.dtype.kind in "fi"}
    means, present = class_means(torch.cat([want["xl"], want["xu"]]), torch.cat([want["yl"], -torch.ones(30).long()]))
    torch.testing.assert_close(means, want["init"][: len(present)], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("move", MOVES)
def test_labelled_cases_never_leave_their_class(move: Move) -> None:
    values, truth = blobs(spread=3.0)  # blobs that overlap, so that many lie nearer to another centre
    labels = half_known(truth, 5)
    found = seeded_k_means(values, labels, 10, generator=generator(), move=move)
    known = labels >= 0
    assert torch.equal(found.classes[found.rows[known]], labels[known])
    assert found.classes.tolist() == [0, 1, 2, 3, 4, -1, -1, -1, -1, -1]
    assert found.counts.sum() == len(values)


@pytest.mark.parametrize("move", ["all", "new"])
def test_it_finds_separate_blobs(move: Move) -> None:
    values, truth = blobs()
    found = seeded_k_means(values, half_known(truth, 5), 10, generator=generator(), move=move)
    pairs = torch.unique(torch.stack([truth, found.rows]), dim=1)
    assert pairs.shape[1] == 10
    assert torch.equal(found.rows[truth < 5], truth[truth < 5])


def test_apart_gives_unlabelled_cases_to_new_clusters_alone() -> None:
    values, truth = blobs()
    labels = torch.where(truth < 5, truth, -1)
    found = seeded_k_means(values, labels, 10, generator=generator(), move="apart")
    assert bool((found.rows[truth >= 5] >= 5).all())
    assert torch.unique(torch.stack([truth, found.rows]), dim=1).shape[1] == 10


@pytest.mark.parametrize("move", ["new", "apart"])
def test_known_centres_stay_where_they_are(move: Move) -> None:
    values, truth = blobs(spread=2.0)
    labels = half_known(truth, 5)
    found = seeded_k_means(values, labels, 9, generator=generator(), move=move)
    assert torch.equal(found.centres[:5], class_means(values, labels)[0])
    rows = found.rows >= 5
    means = torch.stack([values[rows & (found.rows == k)].mean(0) for k in range(5, 9)])
    torch.testing.assert_close(found.centres[5:], means, rtol=1e-3, atol=1e-3)


def test_with_nothing_known_it_is_k_means() -> None:
    values, _ = blobs()
    none = torch.full((len(values),), -1)
    plain = k_means(values, 10, generator=generator(), iterations=100, tolerance=1e-5, restarts=10)
    for move in MOVES:
        found = seeded_k_means(values, none, 10, generator=generator(), move=move)
        assert torch.equal(found.rows, plain.rows)
        assert found.inertia == pytest.approx(plain.inertia, rel=1e-5)
        assert found.classes.tolist() == [-1] * 10


def test_more_runs_are_never_worse_and_the_same_seed_repeats_itself() -> None:
    values, truth = blobs(spread=2.0)
    labels = half_known(truth, 3)
    one = seeded_k_means(values, labels, 12, generator=generator(), restarts=1)
    ten, again = (seeded_k_means(values, labels, 12, generator=generator(), restarts=10) for _ in range(2))
    assert ten.inertia <= one.inertia
    assert torch.equal(ten.rows, again.rows) and torch.equal(ten.centres, again.centres)


def test_no_cluster_is_left_empty_while_free_cases_differ() -> None:
    values = torch.cat([torch.zeros(5, 2), torch.randn(12, 2, generator=generator())])
    labels = torch.tensor([0, 0, 0, 0, 0] + [-1] * 12)
    for seed in range(10):
        found = seeded_k_means(values, labels, 12, generator=generator(seed), restarts=1)
        assert bool((found.counts > 0).all()) and bool(found.centres.isfinite().all())


def test_odd_data() -> None:
    same = torch.ones(8, 3)
    labels = torch.tensor([0, 0, 0, -1, -1, -1, -1, -1])
    for move in MOVES:
        found = seeded_k_means(same, labels, 3, generator=generator(), move=move)
        assert bool(found.centres.isfinite().all()) and found.inertia == 0
    everything = seeded_k_means(same, torch.zeros(8, dtype=torch.long), 1, generator=generator())
    assert everything.counts.tolist() == [8]
    single = seeded_k_means(same[:1], torch.tensor([-1]), 1, generator=generator())
    assert single.rows.tolist() == [0]
    with pytest.raises(UsageError, match="leave no room"):
        seeded_k_means(same, labels, 1, generator=generator(), move="apart")
    with pytest.raises(UsageError, match="ask for fewer"):
        seeded_k_means(same, labels, 7, generator=generator())
    with pytest.raises(UsageError, match="move must be"):
        seeded_k_means(same, labels, 2, generator=generator(), move="none")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="NaN"):
        seeded_k_means(torch.full((8, 3), float("nan")), labels, 2, generator=generator())
    with pytest.raises(ValueError, match="free tokens"):
        k_means(same, 5, generator=generator(), first=same[:1], given=torch.zeros(8, dtype=torch.long))


def test_further_centres_are_drawn_far_from_the_first() -> None:
    values = torch.cat([torch.zeros(50, 1), torch.full((50, 1), 9.0)])
    drawn = plus_plus(values, 2, generator(), first=torch.zeros(1, 1))
    assert drawn.flatten().tolist() == [0.0, 9.0]
    weights = torch.cat([torch.ones(50), torch.zeros(50)])
    drawn = plus_plus(values + torch.arange(100.0).unsqueeze(1) / 1000, 2, generator(), weights, torch.zeros(1, 1))
    assert float(drawn[1]) < 1


def test_faiss_and_torch_find_the_same_centre() -> None:
    pytest.importorskip("faiss")
    values, centres = torch.randn(300, 16, generator=generator()), torch.randn(20, 16, generator=generator(1))
    one, other = (nearest_centres(values, centres, search) for search in ("exact", "faiss"))
    assert torch.equal(one[1], other[1])
    torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(nearest_centres(values.double(), centres.double())[1], one[1])
    with pytest.raises(UsageError, match="search must be"):
        nearest_centres(values, centres, "flann")


def test_the_margin_is_0_on_borders_and_1_on_centres() -> None:
    centres = torch.tensor([[0.0], [2.0], [2.0]])
    rows, margin = centre_margin(torch.tensor([[0.0], [1.0], [2.0]]), centres)
    assert rows[0] == 0 and margin.tolist() == [1.0, 0.0, 0.0]  # the last has two centres at the same place
    assert centre_margin(torch.rand(3, 2), torch.rand(1, 2))[1].tolist() == [1.0] * 3


def test_consensus_of_equal_halves_is_1_and_an_absent_class_has_0() -> None:
    values, truth = blobs()
    here = truth < 6
    half = torch.arange(len(truth)) % 2 == 0
    known, free = values[here & half], values[~half & (truth != 2)]
    rows = truth[~half & (truth != 2)]
    found = consensus(known, truth[here & half], free, rows, 10)
    assert found[[0, 1, 3, 4, 5]].tolist() == pytest.approx([1.0] * 5, abs=0.05)
    assert float(found[2]) < 0.6
    assert consensus(known[:0], truth[:0], free, rows, 10).shape == (0,)
