"""Kidney-stone parts: ProtoPNet's base to the last digit, a guess that is off unless asked for, and descriptors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from protolearn.data import digits
from protolearn.encoders import SmallEncoder
from protolearn.errors import UsageError
from protolearn.explain.characteristics import global_characteristics, local_characteristics
from protolearn.methods import get_method, make_method
from protolearn.tasks.verify import verify
from protolearn.training.fit import Fit, fit

Parts = get_method("kidney-stone-parts")
Base = get_method("protopnet")
QUICK = {
    "prototypes_per_class": 2, "dim": 16, "warm_epochs": 6, "project_at": (6,), "last_layer_epochs": 6,
    "encoder_rate": None, "neck_rate": 1e-2, "prototype_rate": 1e-2, "head_rate": 1e-2,
}  # fmt: skip


def trained(cls: type, **changes: object) -> Fit:
    train = digits("train").subset(range(0, 1200, 12))
    return fit(cls(**{**QUICK, **changes}), train, encoder=SmallEncoder(), batch_size=40, quiet=True, device="cpu")


def test_without_the_guess_it_is_the_base_number_for_number() -> None:
    one, other = trained(Parts), trained(Base)
    for (name, left), (_, right) in zip(
        one.model.state_dict().items(), other.model.state_dict().items(), strict=True
    ):  # fmt: skip
        assert torch.equal(left, right), name
    assert [row["loss"] for row in one.history] == [row["loss"] for row in other.history]


def test_defaults_and_schedule_are_the_bases() -> None:
    base = {f.name: f.default for f in dataclasses.fields(Base)}
    for field in dataclasses.fields(Parts):
        if not field.name.startswith("guessed"):
            assert field.default == base[field.name], field.name
    assert Parts().phases() == Base().phases()
    assert Parts().guessed_loss is False


def test_the_guess_is_a_term_of_its_own_named_as_one() -> None:
    plain, guess = trained(Parts), trained(Parts, guessed_loss=True, guessed_weight=2.0)
    assert "guessed_icnn" not in plain.history[0]
    values = [row["guessed_icnn"] for row in guess.history if row["phase"] == "warm"]
    assert values[-1] < values[0]
    assert not torch.equal(plain.model.bank.vectors, guess.model.bank.vectors)
    assert "unverified" in Parts.verified
    assert "guess" in Parts.verified
    model = Parts(guessed_loss=True, **QUICK).build(SmallEncoder(), 10)
    terms = Parts(guessed_loss=True).objective(model(torch.rand(3, 3, 32, 32)), torch.tensor([1, 1, 1]))
    assert terms["guessed_icnn"].item() == 0.0, "one class in the batch: nothing to compare"


def test_prototypes_are_cases_and_descriptors_say_what_they_look_at() -> None:
    done = trained(Parts)
    train, test = digits("train").subset(range(0, 1200, 12)), digits("test").subset(range(0, 359, 9))
    assert verify(done.model, train).ok
    found = global_characteristics(done.model, test)
    assert found.importance.shape == (20, 6)
    assert np.isfinite(found.importance).all()
    table = dict(zip(found.names, found.importance.T, strict=True))
    assert not table["hue"].any()
    assert not table["saturation"].any(), "digits are grey"
    assert (table["shape"] > 0).mean() > 0.8, "bending a digit makes it less alike to nearly every prototype"
    nothing = local_characteristics(done.model, test, [0, 1], strength=0.0)
    assert not nothing.phi.any()


def test_settings_round_trip_and_wrong_ones_are_refused() -> None:
    method = Parts(guessed_loss=True, project_at=(3, 5))
    assert make_method({**method.settings(), "project_at": [3, 5]}) == method
    for settings, words in (
        ({"dim": 0}, "dim must be at least 1"),
        ({"project_at": (5, 3)}, "project_at must be rising"),
        ({"guessed_weight": -1.0}, "guessed_weight must be at least 0"),
    ):
        with pytest.raises(UsageError, match=f"kidney-stone-parts: {words}"):
            Parts(**settings)
