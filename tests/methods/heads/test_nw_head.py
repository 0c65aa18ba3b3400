"""What a faithful Nadaraya-Watson head must show: votes that explain themselves, and supports that teach invariance."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.core.method import Project, Train
from protolearn.core.votes import Votes
from protolearn.data.features import FeatureCases, features
from protolearn.encoders import FeatureEncoder
from protolearn.errors import UsageError
from protolearn.explain import explain
from protolearn.methods import get_method
from protolearn.training.fit import Fit, fit

from .pixel_digits import accuracy, answer, grey, inputs, pixels

NWHead = get_method("nw-head")


def train(cases: FeatureCases | None = None, seed: int = 0, **settings: object) -> Fit:
    cases = pixels("train", 300) if cases is None else cases
    method = NWHead(**{"encoder_rate": None, **settings})
    encoder = FeatureEncoder(cases[0].inputs.shape[-1])
    return fit(method, cases, encoder=encoder, quiet=True, device="cpu", batch_size=100, seed=seed)


@lru_cache
def full() -> Fit:
    return train(balanced=False)


def test_votes_sum_to_one_and_the_weights_reproduce_them() -> None:
    model, test = full().model, pixels("test", 60)
    out = answer(model, test)
    assert isinstance(model.head, Votes)
    weights = model.head.weigh(out.similarities)
    torch.testing.assert_close(weights.sum(1), torch.ones(60))
    torch.testing.assert_close(out.logits.sum(1), torch.ones(60))
    torch.testing.assert_close(weights @ model.bank.ownership, out.logits)
    torch.testing.assert_close(model.head.ledger(out).sum(2) + model.head.offset(), out.logits)
    why = explain(model, test, [3])[0]
    assert why.total == pytest.approx(why.logit, abs=1e-6)
    assert why.probability == pytest.approx(why.logit, abs=1e-6)
    assert all(row.source is not None and row.source.distance == 0 for row in why.rows)


def test_all_cases_give_the_formula_however_they_are_chunked() -> None:
    test, cases = pixels("test", 60), pixels("train", 300)
    whole = torch.softmax(-torch.cdist(inputs(test), inputs(cases)), 1)
    votes = whole @ torch.eye(10)[torch.from_numpy(cases.labels.copy())]
    torch.testing.assert_close(answer(full().model, test).logits, votes, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        parts = torch.cat([full().model(inputs(test)[i : i + 7]).logits for i in range(0, 60, 7)])
    torch.testing.assert_close(parts, votes, rtol=1e-4, atol=1e-5)


def test_one_centre_a_class_is_a_nearest_prototype_classifier() -> None:
    """k-means with one centre gives the class mean; the vote is a softmax over minus the distances to the means."""
    model, cases, test = train(mode="cluster", shots=1).model, pixels("train", 300), pixels("test", 60)
    labels = torch.from_numpy(cases.labels.copy())
    means = torch.stack([inputs(cases)[labels == c].mean(0) for c in range(10)])
    want = torch.softmax(-torch.cdist(inputs(test), means), 1)
    torch.testing.assert_close(answer(model, test).logits, want, rtol=1e-4, atol=1e-5)
    assert all(source is not None and not source.moved for source in model.bank.sources), "a centre is no case"


@pytest.mark.parametrize(
    ("mode", "supports"), [("full", 70), ("random", 30), ("cluster", 30), ("cluster_cases", 30), ("knn", 300)]
)
def test_modes(mode: str, supports: int) -> None:
    model = train(mode=mode, shots=3, per_class=7).model
    assert len(model.bank) == supports
    real = [source for source in model.bank.sources if source is not None and source.moved]
    assert len(real) == (0 if mode == "cluster" else supports)
    if mode == "knn":
        out = answer(model, pixels("test", 10))
        assert (model.head.weigh(out.similarities) > 0).sum(1).tolist() == [20] * 10
    owners = torch.bincount(model.bank.owner(), minlength=10)
    assert owners.min() > 0
    assert accuracy(model, pixels("test")) > 0.6
    if mode == "cluster_cases":
        values = {tuple(row.tolist()) for row in inputs(pixels("train", 300))}
        assert all(tuple(vector.tolist()) in values for vector in model.bank.vectors)


def test_balance_holds_a_large_class_back() -> None:
    """Nine tenths zeros: without balance, they are voted for too often."""
    labels = grey("train")[1]
    rows = np.concatenate([np.flatnonzero(labels == c)[: 90 if c == 0 else 10] for c in range(10)])
    cases = pixels("train", rows=rows)
    test = pixels("test")
    share = {
        even: float((answer(train(cases, balanced=even).model, test).logits.argmax(1) == 0).float().mean())
        for even in (False, True)
    }
    assert abs(share[True] - 0.1) < abs(share[False] - 0.1)


def test_the_step_votes_with_the_rest_of_the_batch() -> None:
    """By hand: a case never votes for itself, an unlabelled one not at all, a class of one case is left out."""
    method = NWHead(encoder_rate=None, balanced=False)
    model = method.build(FeatureEncoder(3), classes=3)
    values = torch.randn(5, 3).requires_grad_()
    labels = torch.tensor([0, 0, 1, -1, 2])
    terms = method.objective(model(values), labels)
    scores = -torch.cdist(values, values)
    picked = []
    for query in (0, 1):
        others = [j for j in (0, 1, 2, 4) if j != query]
        weights = scores[query, others].softmax(0)
        picked.append(-(weights[[j in (0, 1) for j in others]].sum() + 1e-12).log())
    torch.testing.assert_close(terms["votes"], torch.stack(picked).mean(), rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(terms["votes"], values)
    assert bool((grad[[0, 1, 2, 4]].abs().sum(1) > 0).all()), "supports get gradients as queries do"
    assert grad[3].eq(0).all()


def test_odd_batches() -> None:
    method = NWHead(encoder_rate=None)
    model = method.build(FeatureEncoder(3), classes=3)
    for count, labels in ((1, [0]), (3, [1, 1, 1]), (3, [-1, -1, -1]), (2, [0, 1])):
        values = torch.zeros(count, 3, requires_grad=True)  # all distances 0, where the root has no gradient
        terms = method.objective(model(values), torch.tensor(labels))
        terms["votes"].backward() if terms["votes"].requires_grad else None
        assert all(bool(torch.isfinite(term)) for term in terms.values())
        assert values.grad is None or bool(torch.isfinite(values.grad).all())


def coloured(part: str, count: int, seed: int) -> FeatureCases:
    """Digits with one of ten colours; in training it tells the class, by another rule in each of two environments."""
    draw = np.random.default_rng(seed)
    values, labels = (array[:count] for array in grey(part))
    place = draw.integers(0, 2, count)
    told = np.where(place == 1, (labels + 3) % 10, labels)
    free = draw.integers(0, 10, count)
    colours = np.where(draw.random(count) < 0.9, told, free) if part == "train" else free
    rows = np.concatenate([values, 3.0 * np.eye(10)[colours]], 1).astype(np.float32)
    cases = features(rows, labels, classes=[str(c) for c in range(10)], name=f"coloured/{part}")
    return cases.with_targets({"environment": place[:, None].astype(np.float32)})


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_supports_of_one_environment_teach_to_ignore_colour(seed: int) -> None:
    found = {}
    for environments in ("mixed", "single"):
        done = train(
            coloured("train", 800, 0), seed=seed, environments=environments, dim=16, rate=1e-2, optimizer="adam",
            epochs=20,
        )  # fmt: skip
        found[environments] = accuracy(done.model, coloured("test", 300, 1))
    assert found["single"] > found["mixed"] + 0.02, "where colours mean nothing"


def test_environments_need_a_target_and_vote_apart() -> None:
    cases = coloured("train", 200, 0)
    model = train(cases, environments="single", per_class=5).model
    assert model.bank.groups is not None
    assert model.bank.groups.unique().tolist() == [0, 1]
    out = answer(model, coloured("test", 20, 1))
    torch.testing.assert_close(model.head.ledger(out).sum(2), out.logits)
    with pytest.raises(UsageError, match="environment"):
        train(environments="single")


def test_training_helps_and_supports_are_embedded_again() -> None:
    settings = {"dim": 8, "rate": 1e-2, "optimizer": "adam", "kernel": "clip", "refresh": 5}
    before, after = train(epochs=0, **settings), train(epochs=15, **settings)
    test = pixels("test")
    assert accuracy(after.model, test) > accuracy(before.model, test)
    assert after.history[-1]["left_out_accuracy"] > after.history[0]["left_out_accuracy"]
    model = after.model
    ids = {case: row for row, case in enumerate(pixels("train", 300).ids)}
    rows = [ids[source.case] for source in model.bank.sources if source is not None]
    with torch.no_grad():
        again: Tensor = model.neck(inputs(pixels("train", 300)).unsqueeze(1))[:, 0]
    torch.testing.assert_close(model.bank.vectors, again[rows], rtol=1e-4, atol=1e-5)
    assert all(source.encoder == model.fingerprint() for source in model.bank.sources if source is not None)


def test_the_schedule_is_the_papers_and_wrong_settings_are_refused() -> None:
    plan = NWHead().phases()
    learn = [phase for phase in plan if isinstance(phase, Train)]
    assert sum(phase.epochs for phase in learn) == 200
    assert {(phase.optimizer, phase.rates["encoder"]) for phase in learn} == {("sgd", 1e-3)}
    assert plan[-1].name == "supports"
    assert isinstance(NWHead(mode="cluster_cases").phases()[-1], Project)
    for name, value in (("kernel", "rbf"), ("mode", "hnsw"), ("shots", 0), ("dim", 0), ("environments", "some")):
        with pytest.raises(UsageError, match=name):
            NWHead(**{name: value})


@pytest.mark.parametrize("settings", [{"kernel": "clip"}, {"learn_scale": True, "mode": "knn", "neighbours": 5}])
def test_a_scale_alone_is_learned_where_nothing_else_is(settings: dict[str, object]) -> None:
    done = train(pixels("train", 100), epochs=3, rate=0.1, optimizer="adam", **settings)
    assert isinstance(done.model.head, Votes) and done.model.head.log_scale is not None
    start = 1 / 0.07 if settings.get("kernel") == "clip" else 1.0
    assert abs(done.model.head.log_scale.exp().item() / start - 1) > 0.05
    assert done.history[-1]["votes"] < done.history[0]["votes"]


def test_the_nearest_are_chosen_before_classes_are_balanced() -> None:
    """Nine near cases of a large class, one far one of a small: the small class must not crowd into the nearest 3."""
    model = NWHead(encoder_rate=None, mode="knn", neighbours=3).build(FeatureEncoder(1), 2)
    labels = [0] * 90 + [1] * 2
    values = torch.tensor([[0.1 * i] for i in range(90)] + [[3.05], [9.0]])
    model.bank.keep(model.bank.rows(model.bank.grow(values, torch.eye(2)[labels], groups=torch.zeros(92))))
    out = model(torch.zeros(1, 1, 1))
    near = out.similarities[0].topk(3).indices
    assert set((model.head.weigh(out.similarities)[0] > 0).nonzero().flatten().tolist()) == set(near.tolist())


def test_balance_counts_within_an_environment_and_without_the_rejected() -> None:
    model = NWHead(encoder_rate=None, environments="single").build(FeatureEncoder(1), 2)
    labels = [0] * 90 + [1] * 10 + [0] * 10 + [1] * 90
    place = torch.tensor([0] * 100 + [1] * 100)
    values = torch.tensor([[float(label)] for label in labels])
    model.bank.keep(model.bank.rows(model.bank.grow(values, torch.eye(2)[labels], groups=place)))
    out = model(torch.zeros(1, 1, 1))
    want = torch.tensor([1.0, torch.tensor(-1.0).exp()])  # in either environment both classes have the same say
    torch.testing.assert_close(out.logits[0], want / want.sum())
    mixed = NWHead(encoder_rate=None).build(FeatureEncoder(1), 2)
    mixed.bank.keep(mixed.bank.rows(mixed.bank.grow(torch.zeros(4, 1), torch.eye(2)[[0, 0, 0, 1]], groups=place[:4])))
    similarities = torch.zeros(1, 4)
    similarities[0, :2] = float("-inf")  # rejected: one case a class is left
    torch.testing.assert_close(mixed.head(similarities), torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_leaves_the_terms_alone(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    values = 20 * torch.randn(1, 64, generator=draw) + torch.randn(8, 64, generator=draw)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])
    method = NWHead(encoder_rate=None)
    model = method.build(FeatureEncoder(64), 3)
    plain = method.objective(model(values), labels)["votes"]
    with torch.autocast("cpu", dtype=dtype):
        low = method.objective(model(values), labels)["votes"]
    torch.testing.assert_close(low, plain, rtol=1e-4, atol=1e-4)
