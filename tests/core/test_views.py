"""Any network seen through an adapter: features, logits and classifier are its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from protolearn.core.activation_coverage import ActivationCoverage
from protolearn.core.scorer import make_scorer
from protolearn.core.views import ModelViews, NetworkViews, views_of
from protolearn.encoders import SmallEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method


class Net(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True))
        self.head = nn.Linear(6, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("bias", [True, False])
def test_both_ways_to_name_the_features_see_the_same(bias: bool) -> None:
    net, x = Net(bias).eval(), torch.rand(5, 3, 8, 8)
    by_module, by_classifier = NetworkViews(net, "body", "head"), NetworkViews(net, classifier="head")
    one, other = by_module.run(x), by_classifier.run(x)
    assert torch.allclose(one.features, other.features, atol=1e-6)
    assert torch.equal(one.logits, net(x))
    assert one.weight is not None and torch.equal(one.weight, net.head.weight)
    assert one.bias is not None and one.bias.shape == (4,)
    alone = NetworkViews(net, "body", classes=list("abcd")).run(x)
    assert alone.weight is None and torch.equal(alone.features, one.features)
    assert by_module.classes == ("0", "1", "2", "3")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_the_network_answers_what_it_knows() -> None:
    net, x = Net().eval(), torch.rand(40, 3, 8, 8)
    views = NetworkViews(net, classifier="head")
    with pytest.raises(UsageError, match="fit a novelty score first"):
        views.novelty(x)
    labels = torch.arange(40) % 4
    for name in ("msp", "energy", "mahalanobis", "relative_mahalanobis", "knn", "vim", "react", "ash", "ssd"):
        views.scorer = make_scorer(name).fit(views.run(x), labels)
        confidence = views.novelty(x).confidence
        views.scorer.calibrate(confidence, 0.9)
        found = views.novelty(x).known
        assert found is not None and int(found.sum()) == 36, name
    views.scorer = ActivationCoverage(layers=["body"], bins=10).fit_inputs(net, [x])
    assert views.novelty(x).confidence.shape == (40,)


@torch.no_grad()
def test_models_of_the_library_are_seen_as_they_are() -> None:
    model = get_method("protopnet")(prototypes_per_class=1).build(SmallEncoder(dim=8, size=16), 3).eval()
    views, x = views_of(model), torch.rand(4, 3, 16, 16)
    assert isinstance(views, ModelViews) and views_of(views) is views
    views.scorer = make_scorer("react").fit(views.view(views.run(x)), torch.zeros(4))
    assert model.scorer is views.scorer
    ran = views.run(x)
    assert torch.equal(views.confidence(model.scorer, ran, x), model.novelty(x).confidence)
    assert torch.allclose(views.probabilities(ran).sum(1), torch.ones(4).double())
    model.scorer = make_scorer({"name": "knn", "features": "embedded"}).fit(views.view(ran, "embedded"), torch.zeros(4))
    assert torch.equal(views.confidence(model.scorer, ran, x), model.novelty(x).confidence)


def test_wrong_requests() -> None:
    net, x = Net().eval(), torch.rand(5, 3, 8, 8)
    with pytest.raises(UsageError, match="did you mean 'body'"):
        NetworkViews(net, "bdy", "head")
    with pytest.raises(UsageError, match="must be a linear layer"):
        NetworkViews(net, classifier="body")
    with pytest.raises(UsageError, match="name the module"):
        NetworkViews(net)
    with pytest.raises(UsageError, match="name the classes"):
        NetworkViews(net, "body")
    with pytest.raises(UsageError, match=r"logits \(B, 3\)"):
        NetworkViews(net, "body", classes=list("abc")).run(x)
    with pytest.raises(UsageError, match="does not make the logits of these features"):
        NetworkViews(net, "body.0", "head").run(x)
    views = NetworkViews(net, classifier="head")
    with pytest.raises(UsageError, match="no embedded features"):
        views.view(views.run(x), "embedded")
    views = NetworkViews(net, "body", classes=list("abcd"))
    with pytest.raises(UsageError, match="give the classifier's weight"):
        views.confidence(make_scorer("ash"), views.run(x), x)
    with pytest.raises(UsageError, match="NetworkViews"):
        views_of(net)
