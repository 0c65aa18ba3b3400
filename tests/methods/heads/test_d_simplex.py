"""What a faithful d-simplex head must show: vertices that stay, models that share a gallery, and a term that helps."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protolearn.audit.compatibility import average_accuracy, average_compatibility, search_accuracy
from protolearn.core.method import Train
from protolearn.core.model import PrototypeModel
from protolearn.core.simplex import simplex
from protolearn.encoders import FeatureEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method
from protolearn.objectives.compatibility import higher_order_compatibility
from protolearn.training.fit import Fit, fit

from .pixel_digits import accuracy, answer, grey, inputs, pixels

DSimplex = get_method("d-simplex")


def train(rows: np.ndarray | None = None, seed: int = 0, epochs: int = 15, **more: object) -> Fit:
    method = DSimplex(preallocated=16, encoder_rate=None, rate=0.3, epochs=epochs, **more)
    cases = pixels("train", rows=np.arange(600) if rows is None else rows)
    return fit(method, cases, encoder=FeatureEncoder(64), quiet=True, device="cpu", batch_size=50, seed=seed)


@lru_cache
def trained(seed: int = 0) -> PrototypeModel:
    return train(seed=seed).model


def features_of(model: PrototypeModel, part: str = "test") -> Tensor:
    tokens = answer(model, pixels(part)).tokens
    assert tokens is not None
    return tokens.values[:, 0]


def labels(part: str = "test") -> Tensor:
    return torch.from_numpy(grey(part)[1].copy())


def test_vertices_stay_where_they_are() -> None:
    assert torch.equal(trained().bank.vectors, simplex(16))
    assert not list(trained().bank.parameters())
    assert accuracy(trained(), pixels("test")) > 0.85


def test_a_new_class_takes_the_next_vertex_and_moves_no_other() -> None:
    few, many = (DSimplex(preallocated=16).build(FeatureEncoder(64), classes=c) for c in (3, 10))
    assert torch.equal(few.bank.vectors, many.bank.vectors)
    assert torch.equal(few.bank.ownership, many.bank.ownership[:, :3])
    assert few.bank.owner().tolist()[-3:] == [2, 1, 0], "labels are written from the end"
    assert few.bank.active.sum() == 3


def test_the_loss_counts_vertices_without_a_class() -> None:
    model = DSimplex(preallocated=16, encoder_rate=None).build(FeatureEncoder(64), classes=10)
    cases = pixels("train", 30)
    wanted = torch.from_numpy(cases.labels.copy())
    out = model(inputs(cases))
    assert out.tokens is not None
    every = F.linear(out.tokens.values[:, 0], simplex(16))
    got = DSimplex(preallocated=16).objective(out, wanted)["cross_entropy"]
    torch.testing.assert_close(got, F.cross_entropy(every, 15 - wanted))
    torch.testing.assert_close(out.logits, every.flip(1)[:, :10])
    torch.testing.assert_close(model.head.ledger(out).sum(2), out.logits)


def learnt(seed: int, rows: np.ndarray, classes: int) -> Tensor:
    """Return test features of an ordinary network: the same map, with a classifier that is learned with it."""
    values, wanted = torch.from_numpy(grey("train")[0][rows]), labels("train")[rows]
    torch.manual_seed(seed)
    body, head = nn.Linear(64, 15, bias=False), nn.Linear(15, classes, bias=False)
    optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.3, momentum=0.9)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(head(body(values)), wanted).backward()
        optimizer.step()
    with torch.no_grad():
        return body(torch.from_numpy(grey("test")[0]))


def test_models_made_apart_can_search_in_each_others_gallery() -> None:
    """With vertices in common far above the 0.1 of chance; with classifiers of their own about chance."""
    ours, wanted = [features_of(trained(seed)) for seed in (0, 1)], labels()
    own = search_accuracy(ours[0], wanted, ours[0], wanted)
    assert search_accuracy(ours[1], wanted, ours[0], wanted) > 0.9 * own
    theirs = [learnt(seed, np.arange(600), 10) for seed in range(4)]
    across = [search_accuracy(theirs[a], wanted, theirs[b], wanted) for a in range(4) for b in range(4) if a != b]
    assert float(np.mean(across)) < 0.25
    assert search_accuracy(theirs[0], wanted, theirs[0], wanted) > 0.8


def chain(steps: tuple[tuple[int, int], ...], found: list[Tensor]) -> Tensor:
    """Return scores of each model in its own and every older gallery, over the classes that the older one has seen."""
    wanted, scores = labels(), torch.full((len(steps), len(steps)), float("nan"))
    for t in range(len(steps)):
        for k in range(t + 1):
            seen = wanted < steps[k][0]
            scores[t, k] = search_accuracy(found[t][seen], wanted[seen], found[k][seen], wanted[seen])
    return scores


@pytest.mark.parametrize("steps", [((10, 50), (10, 200), (10, 800)), ((4, 600), (7, 600), (10, 600))])
def test_a_chain_of_models_is_more_compatible_with_vertices_in_common(steps: tuple[tuple[int, int], ...]) -> None:
    """Models made anew on more cases, then on more classes.

    Over classes that the older model has never seen (not asked here) neither kind is compatible.
    """
    known, fixed, learned = grey("train")[1], [], []
    for step, (classes, count) in enumerate(steps):
        rows = np.flatnonzero(known[:count] < classes)
        fixed.append(features_of(train(rows, seed=step).model))
        learned.append(learnt(step, rows, classes))
    one, other = chain(steps, fixed), chain(steps, learned)
    assert average_compatibility(other) == 0.0
    assert average_compatibility(one) > 0.0
    assert average_accuracy(one) > average_accuracy(other) + 0.2


def test_the_term_falls_as_matching_pairs_come_together_and_leaves_the_old_model_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    new, old = torch.randn(12, 6, generator=draw), torch.randn(12, 6, generator=draw).requires_grad_()
    wanted = torch.arange(12) % 4
    terms = [
        float(higher_order_compatibility((1 - share) * new + share * old.detach(), old, wanted))
        for share in (0.0, 0.3, 0.6, 1.0)
    ]
    assert terms == sorted(terms, reverse=True)
    new.requires_grad_()
    higher_order_compatibility(new, old, wanted).backward()
    assert old.grad is None
    assert new.grad is not None
    assert bool((new.grad != 0).any())


def test_odd_batches_of_the_term() -> None:
    values = torch.randn(3, 4)
    for leave_out in (False, True):
        one_class = higher_order_compatibility(values, values, torch.zeros(3, dtype=torch.long), leave_out=leave_out)
        assert bool(torch.isfinite(one_class))
        nobody = higher_order_compatibility(values, values, torch.full((3,), -1), leave_out=leave_out)
        assert float(nobody) == 0.0


def test_with_a_previous_model() -> None:
    """It is lower than without the term, and weighs 0.9."""
    old = train(np.arange(300), seed=3, epochs=5).model
    cases = pixels("train", 300)
    before = features_of_cases(old, cases)
    wanted, left = torch.from_numpy(cases.labels.copy()), {}
    for compatible in (False, True):
        method = DSimplex(preallocated=16, encoder_rate=None, rate=0.05, epochs=10, compatible=compatible)
        given = cases.with_targets({"previous": before.numpy()})
        done = fit(method, given, encoder=FeatureEncoder(64), quiet=True, device="cpu", batch_size=50, seed=9)
        after = features_of_cases(done.model, cases)
        left[compatible] = float(higher_order_compatibility(after, before, wanted))
        assert set(method.weights()) <= set(done.history[-1])
    assert left[True] < left[False] - 0.1
    with pytest.raises(UsageError, match="previous"):
        fit(method, cases, encoder=FeatureEncoder(64), quiet=True, device="cpu")


def features_of_cases(model: PrototypeModel, cases: object) -> Tensor:
    tokens = answer(model, cases).tokens  # type: ignore[arg-type]
    assert tokens is not None
    return tokens.values[:, 0]


def test_the_schedule_is_the_papers_and_wrong_settings_are_refused() -> None:
    plan = DSimplex().phases()[0]
    assert isinstance(plan, Train)
    assert (plan.epochs, plan.optimizer, plan.momentum, plan.decay["encoder"]) == (70, "sgd", 0.9, 5e-4)
    assert plan.factor(0) == 1.0
    assert plan.factor(70) == pytest.approx(1e-2)
    with pytest.raises(UsageError, match="preallocated must be at least the 20 classes"):
        DSimplex(preallocated=16).build(FeatureEncoder(4), classes=20)
    with pytest.raises(UsageError, match="balance"):
        DSimplex(balance=1.5)
