"""Refitting the head after prototypes were taken out: the head moves, nothing else does."""

from __future__ import annotations

import pytest
import torch

from protolearn.core.bank import unit_norm
from protolearn.core.model import PrototypeModel
from protolearn.data import digits
from protolearn.encoders import SmallEncoder
from protolearn.errors import UsageError
from protolearn.explain.explain import explain
from protolearn.methods import get_method
from protolearn.training.refit import refit_head


def built(**settings: object) -> PrototypeModel:
    method = get_method("csr")(concepts_from="classes", prototypes_per_concept=2, dim=8, **settings)
    model = method.build(SmallEncoder(), 10, seed=0)
    model.method, model.classes = method, digits("train").classes
    return model


def test_only_the_head_moves_and_the_loss_falls() -> None:
    model, train = built(), digits("train").subset(range(120))
    model.prune([0, 3, 7])
    model.bank.ban([4])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    history = refit_head(model, train, epochs=6, rate=0.1, quiet=True, device="cpu")
    assert history[-1]["cross_entropy"] < history[0]["cross_entropy"]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert model.head.weight.shape == (10, 17)
    assert [row["phase"] for row in model.metadata["history"]] == ["refit"] * 6
    (found,) = explain(model, train, [0])
    assert not {row.prototype for row in found.rows} & {0, 3, 4, 7}
    assert found.total == pytest.approx(found.logit, abs=1e-4)
    assert all(p.requires_grad for p in model.head.parameters())
    assert not model.training


def test_a_model_made_by_hand_has_nothing_to_minimise() -> None:
    model = built()
    model.method = None
    with pytest.raises(UsageError, match="by hand"):
        refit_head(model, digits("train").subset(range(20)), quiet=True, device="cpu")


def test_unit_length_is_its_own_image() -> None:
    vectors = torch.randn(200, 33, generator=torch.Generator().manual_seed(0)) * 5
    once = unit_norm(vectors)
    assert torch.allclose(once.norm(dim=1), torch.ones(200), atol=1e-6)
    assert torch.equal(unit_norm(once), once)
    assert unit_norm(torch.zeros(1, 3)).eq(0).all()
