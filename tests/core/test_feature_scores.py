"""Laws of novelty scores: what they are invariant to, what they reduce to, and what they do on degenerate features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.core.scorer import SCORERS, View, make_scorer
from protolearn.encoders import SmallEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method

make_scorer("msp")  # registers them all
FITTED = sorted(set(SCORERS) - {"nearest_prototype", "remembering", "nac"})  # nac reads inputs


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussians(count: int, width: int = 6, seed: int = 0) -> tuple[View, Tensor]:
    """Three known classes, far apart, behind a linear classifier that tells them apart; not negative."""
    labels = torch.arange(count) % 3
    centres = 6 * torch.eye(3, width)
    features = (centres[labels] + 0.5 * torch.randn(count, width, generator=draw(seed))).clamp_min(0)
    weight, bias = centres / 3, torch.full((3,), -3.0)
    return View(features, features @ weight.T + bias, torch.rand(count, 3), weight, bias), labels


def foreign(count: int, like: View, seed: int = 1) -> View:
    width = like.features.shape[1]
    features = (8 * torch.eye(width)[-1] + 0.5 * torch.randn(count, width, generator=draw(seed))).clamp_min(0)
    assert like.weight is not None
    return View(features, F.linear(features, like.weight, like.bias), torch.rand(count, 3), like.weight, like.bias)


def auroc(known: Tensor, unknown: Tensor) -> float:
    return float((known.unsqueeze(1) > unknown).double().mean())


@pytest.mark.parametrize("name", FITTED)
def test_what_is_far_is_told_apart(name: str) -> None:
    train, labels = gaussians(300)
    test, _ = gaussians(100, seed=2)
    settings = {"knn": {"k": 5}, "vim": {"dim": 3}, "ash": {"percentile": 50.0, "kind": "p"}}.get(name, {})
    score = make_scorer({"name": name, **settings}).fit(train, labels)
    assert auroc(score.score(test), score.score(foreign(100, train))) > 0.99


@pytest.mark.parametrize("name", FITTED)
def test_batches_and_order_do_not_matter(name: str) -> None:
    train, labels = gaussians(60)
    score = make_scorer(name).fit(train, labels)
    whole = score.score(train)
    back = torch.arange(59, -1, -1)
    assert torch.allclose(score.score(train.part(back)), whole[back], atol=1e-3)
    assert torch.allclose(
        torch.cat([score.score(train.part(slice(k, k + 7))) for k in range(0, 60, 7)]), whole, atol=1e-3
    )
    again = make_scorer(name).fit(train.part(back), labels[back])
    assert torch.allclose(again.score(train), whole, atol=1e-3)


def test_a_tied_covariance_undoes_any_linear_map_and_a_unit_length_does_not() -> None:
    train, labels = gaussians(300)
    test, _ = gaussians(50, seed=3)
    mix = torch.eye(6) + 0.7 * torch.randn(6, 6, generator=draw(4))

    def mapped(view: View) -> View:
        return View(view.features @ mix + 3.0, view.logits)

    for name, invariant in (("mahalanobis", True), ("relative_mahalanobis", True), ("knn", False)):
        plain = make_scorer(name).fit(train, labels).score(test)
        moved = make_scorer(name).fit(mapped(train), labels).score(mapped(test))
        assert torch.allclose(plain, moved, rtol=2e-3, atol=2e-3) == invariant, name


def test_the_relative_distance_is_the_distance_less_the_background() -> None:
    train, labels = gaussians(200)
    test, _ = gaussians(30, seed=5)
    one = make_scorer("mahalanobis").fit(train, torch.zeros_like(labels))  # everything one class: the background
    each, relative = (make_scorer(n).fit(train, labels) for n in ("mahalanobis", "relative_mahalanobis"))
    assert torch.allclose(relative.score(test), each.score(test) - one.score(test), atol=1e-3)


def test_what_alters_nothing_is_energy() -> None:
    train, labels = gaussians(100)
    energy = make_scorer("energy").score(train)
    assert torch.allclose(make_scorer({"name": "react", "percentile": 100.0}).fit(train, labels).score(train), energy)
    assert torch.allclose(make_scorer({"name": "ash", "percentile": 0.0, "kind": "p"}).score(train), energy)
    whole = make_scorer({"name": "vim", "dim": 6}).fit(train, labels)
    assert torch.allclose(whole.score(train), energy)
    assert float(whole.alpha) == 0.0


def test_through_a_model_they_see_altered_tokens() -> None:
    model = get_method("protopnet")(prototypes_per_class=1).build(SmallEncoder(size=16), 3).eval()
    inputs = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        plain = make_scorer("energy")
        model.scorer = plain
        energy = model.novelty(inputs).confidence
        model.scorer = make_scorer({"name": "ash", "percentile": 0.0, "kind": "p"})
        assert torch.allclose(model.novelty(inputs).confidence, energy)
        assert torch.allclose(model.novelty(model(inputs)).confidence, energy)
        model.scorer = make_scorer({"name": "ash", "percentile": 80.0})
        assert not torch.allclose(model.novelty(inputs).confidence, energy)


@pytest.mark.parametrize("name", FITTED)
def test_degenerate_features(name: str) -> None:
    """Constant columns, more columns than rows, one class, one row a class: finite all the same."""
    few, labels = gaussians(3, width=20)
    flat = few.features.clone()
    flat[:, 4:] = 7.0
    constant = View(flat, few.logits, few.evidence, few.weight, few.bias)
    for view, known in ((few, labels), (constant, labels), (constant, torch.zeros(3, dtype=torch.long))):
        if name == "relative_mahalanobis" and not known.any():
            with pytest.raises(UsageError, match="several classes"):  # both its Gaussians would be the same
                make_scorer(name).fit(view, known)
            continue
        score = make_scorer(name).fit(view, known)
        found = score.score(view)
        assert torch.isfinite(found).all() and found.shape == (3,)


def test_wrong_requests() -> None:
    train, labels = gaussians(10)
    with pytest.raises(UsageError, match="not fitted"):
        make_scorer("mahalanobis").score(train)
    with pytest.raises(UsageError, match="need labelled cases"):
        make_scorer("mahalanobis").fit(train, torch.full((10,), -1))
    bad = View(train.features.clone().index_fill_(0, torch.tensor([3]), float("nan")), train.logits)
    with pytest.raises(UsageError, match="NaN or infinity"):
        make_scorer("mahalanobis").fit(bad, labels)
    with pytest.raises(UsageError, match="needs several classes"):
        make_scorer("msp").score(View(train.features, train.logits[:, :1]))
    for spec, words in (
        ({"name": "knn", "k": 0}, "k must be"),
        ({"name": "react", "percentile": 0.0}, "percentile must"),
        ({"name": "ash", "percentile": 100.0}, "percentile must"),
        ({"name": "ash", "kind": "q"}, "kind must be"),
        ({"name": "vim", "dim": -1}, "dim must be"),
        ({"name": "ssd", "centre": "median"}, "centre must be"),
    ):
        with pytest.raises(UsageError, match=words):
            make_scorer(spec)
