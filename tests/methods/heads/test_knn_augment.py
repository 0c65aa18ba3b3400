"""What a faithful k-NN augmentation must show: the classifier without it, hard cases, and a mixture that helps."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.core.votes import MixedVotes, vote
from protolearn.encoders import FeatureEncoder
from protolearn.errors import UsageError
from protolearn.explain import explain
from protolearn.methods import get_method
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.votes import hardness
from protolearn.training.fit import Fit, fit

from .pixel_digits import accuracy, answer, few, inputs, pixels

Knn = get_method("knn-augment")


def train(rows: np.ndarray, **settings: object) -> Fit:
    method = Knn(**{"epochs": 20, "head_rate": 3e-2, "temperature": 0.1, **settings})
    cases = pixels("train", rows=rows)
    return fit(method, cases, encoder=FeatureEncoder(64), quiet=True, device="cpu", batch_size=50)


@lru_cache
def trained() -> Fit:
    return train(np.arange(300))


def head_of(done: Fit) -> MixedVotes:
    assert isinstance(done.model.head, MixedVotes)
    return done.model.head


def test_without_neighbours_it_is_the_plain_classifier() -> None:
    done = train(np.arange(100), coefficient=0.0, epochs=3)
    out = answer(done.model, pixels("test", 50))
    plain = head_of(done).classify(out)
    torch.testing.assert_close(out.logits, plain.softmax(1))
    labels = torch.from_numpy(pixels("test", 50).labels.copy())
    terms = done.model.method.objective(out, labels)
    torch.testing.assert_close(terms["weighted_cross_entropy"], cross_entropy(plain, labels))


def test_the_mixture_is_explained_by_neighbours_and_classifier() -> None:
    model, test = trained().model, pixels("test", 30)
    out = answer(model, test)
    torch.testing.assert_close(out.logits.sum(1), torch.ones(30))
    ledger = model.head.ledger(out)
    torch.testing.assert_close(ledger.sum(2) + model.head.offset(), out.logits)
    cases = model.bank.groups == 1
    torch.testing.assert_close(ledger[:, :, cases].sum((1, 2)), torch.full((30,), 0.1))
    assert int((ledger[:, :, cases].sum(1) > 0).sum(1).max()) <= 20
    why = explain(model, test, [0])[0]
    assert why.total == pytest.approx(why.logit, abs=1e-6)
    assert why.probability == pytest.approx(why.logit, abs=1e-6)
    assert [s is not None and s.case.startswith("train/") for s in model.bank.sources] == cases.tolist()


def weights_of(done: Fit, cases: object, labels: Tensor) -> Tensor:
    """Return p_knn of each training case's own label, the case left out, in one batch as training sees it."""
    out = answer(done.model, cases).replace(cases=tuple(cases.ids))  # type: ignore[arg-type, attr-defined]
    bank = done.model.bank
    assert bank.groups is not None
    allowed = (bank.groups == 1).expand(len(labels), -1).clone()
    rows = bank.rows_of(out.cases)
    assert bool((rows >= 0).all())
    allowed[torch.arange(len(labels)), rows] = False
    votes = vote(head_of(done).weigh(out.similarities, allowed), bank.ownership)
    return votes.gather(1, labels.unsqueeze(1)).squeeze(1)


def test_a_mislabelled_case_has_no_friend_and_the_greatest_weight() -> None:
    from protolearn.data.features import features

    plain = pixels("train", 200)
    labels = plain.labels.copy()
    zero = int(np.flatnonzero(labels == 0)[3])
    labels[zero] = 7
    values = inputs(plain)
    cases = features(values, labels, classes=plain.classes, ids=plain.ids, name="one wrong")
    done = fit(Knn(epochs=0, k=5), cases, encoder=FeatureEncoder(64), quiet=True, device="cpu")
    own = weights_of(done, cases, torch.from_numpy(labels))
    assert float(own[zero]) == 0.0
    weight = hardness(own, 0.1, cap=10.0)
    assert float(weight[zero]) == float(weight.max()) == 2.0
    # and the objective uses just these weights
    out = answer(done.model, cases).replace(cases=tuple(cases.ids))
    each = F.cross_entropy(head_of(done).classify(out), torch.from_numpy(labels), reduction="none")
    got = Knn(k=5).objective(out, torch.from_numpy(labels))["weighted_cross_entropy"]
    torch.testing.assert_close(got, (each * weight).mean())


def test_a_case_never_counts_for_itself() -> None:
    """With one neighbour, a case that found itself would always have p = 1."""
    cases = pixels("train", 100)
    done = fit(Knn(epochs=0, k=1), cases, encoder=FeatureEncoder(64), quiet=True, device="cpu")
    own = weights_of(done, cases, torch.from_numpy(cases.labels.copy()))
    assert 0 < int((own == 0).sum()) < 50
    out = answer(done.model, cases)
    labels = torch.from_numpy(cases.labels.copy())
    known = Knn(k=1).objective(out.replace(cases=tuple(cases.ids)), labels)["weighted_cross_entropy"]
    strange = Knn(k=1).objective(out, labels)["weighted_cross_entropy"]
    assert float(known.detach()) > float(strange.detach()), "without ids the cases cannot be told from new ones"


def mixture(per_class: int, seed: int) -> tuple[float, float, float]:
    """Return accuracies of classifier, neighbours, and the mixture at its best coefficient on held-out digits."""
    done = train(few(per_class, seed), reweight="none", k=5)
    out, labels = answer(done.model, pixels("test")), pixels("test").labels
    head = head_of(done)
    classifier = head.classify(out).softmax(1)
    assert done.model.bank.groups is not None
    near = vote(head.weigh(out.similarities, done.model.bank.groups == 1), done.model.bank.ownership)
    half = np.arange(len(labels)) % 2 == 0

    def right(p: Tensor, rows: np.ndarray) -> float:
        return float((p.argmax(1).numpy() == labels)[rows].mean())

    shares = np.linspace(0, 1, 11)
    best = max(shares, key=lambda a: right(float(a) * near + (1 - float(a)) * classifier, half))
    mixed = float(best) * near + (1 - float(best)) * classifier
    return right(classifier, ~half), right(near, ~half), right(mixed, ~half)


def test_the_mixture_is_no_worse_than_its_parts() -> None:
    """The coefficient is chosen on half of the test digits and judged on the other half, over several draws."""
    found = np.mean([mixture(10, seed) for seed in range(4)], 0)
    assert found[2] >= found[:2].max() - 0.005


def test_the_mixture_gains_most_with_few_cases() -> None:
    """Against the classifier alone."""
    gains = {}
    for per_class in (3, 60):
        found = np.mean([mixture(per_class, seed) for seed in range(3)], 0)
        gains[per_class] = found[2] - found[0]
    assert gains[3] > gains[60]


def test_it_learns_and_starts_from_nothing() -> None:
    assert accuracy(trained().model, pixels("test")) > 0.88
    untrained = Knn().build(FeatureEncoder(64), classes=10)
    out = answer(untrained, pixels("test", 5))
    torch.testing.assert_close(out.logits, head_of_model(untrained).classify(out).softmax(1))
    torch.testing.assert_close(untrained.head.ledger(out).sum(2), out.logits)


def head_of_model(model: object) -> MixedVotes:
    head = model.head  # type: ignore[attr-defined]
    assert isinstance(head, MixedVotes)
    return head


@pytest.mark.parametrize("reweight", ["log", "focal", "none"])
@pytest.mark.parametrize("similarity", ["l2", "cosine"])
def test_variants_train(reweight: str, similarity: str) -> None:
    done = train(np.arange(100), reweight=reweight, similarity=similarity, epochs=3)
    losses = [row["weighted_cross_entropy"] for row in done.history]
    assert losses[-1] < losses[0]


def test_cosine_is_half_the_squared_distance() -> None:
    """On unit vectors -d^2 = 2 cos - 2: the same neighbours, and the same votes at half the temperature."""
    one = train(np.arange(100), epochs=0, similarity="l2", temperature=0.2)
    other = train(np.arange(100), epochs=0, similarity="cosine", temperature=0.1)
    test = pixels("test", 30)
    torch.testing.assert_close(answer(one.model, test).logits, answer(other.model, test).logits, rtol=1e-3, atol=1e-4)


def test_wrong_settings() -> None:
    for name, value in (("k", 0), ("coefficient", 1.5), ("temperature", 0.0), ("similarity", "dot")):
        with pytest.raises(UsageError, match=name):
            Knn(**{name: value})
