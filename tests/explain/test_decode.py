"""Decoded prototypes in pictures and pages: they show what the decoder makes, and say that it is no training case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from protolearn.core.method import Project
from protolearn.core.model import PrototypeModel
from protolearn.data import Cases, digits
from protolearn.encoders import ConvAutoencoder, FeatureEncoder
from protolearn.errors import UsageError
from protolearn.explain import Painter, explain, report, save_explanation
from protolearn.explain.decode import decoded_pictures, drawn_pictures, prototype_strip
from protolearn.methods import get_method
from protolearn.training.project import project


@pytest.fixture(scope="module")
def train() -> Cases:
    return digits("train").subset(range(40))


@pytest.fixture(scope="module")
def model(train: Cases) -> PrototypeModel:
    """Untrained, with the nearest training cases on record."""
    encoder = ConvAutoencoder(size=8, maps=(4, 4), spread=None)
    made = get_method("prototype-autoencoder")(prototypes=3).build(encoder, classes=10)
    made.classes = train.classes
    project(made, train.with_transform(encoder.preprocess), Project(rule="any", move=False))
    return made.eval()


def test_a_decoded_picture_is_the_decoders(model: PrototypeModel) -> None:
    with torch.no_grad():
        values = model.decoder(model.bank.vectors)
    for picture, value in zip(decoded_pictures(model), values, strict=True):
        assert np.array_equal(np.asarray(picture)[..., 0], (value[0] * 255).round().to(torch.uint8).numpy())


def test_prototypes_stay_and_their_nearest_cases_are_on_record(model: PrototypeModel, train: Cases) -> None:
    shown = train.with_transform(model.encoder.preprocess)
    with torch.no_grad():
        out = model(torch.stack([shown[i].inputs for i in range(len(shown))]))
    for row, source in enumerate(model.bank.sources):
        assert source is not None
        assert not source.moved
        assert source.case == train.ids[int(out.distances[:, row].argmin())]
        assert source.distance == pytest.approx(float(out.distances[:, row].min()), rel=1e-4)


def test_the_strip_shows_decoded_prototypes_above_their_nearest_cases(model: PrototypeModel, train: Cases) -> None:
    plain, both = prototype_strip(model, side=64), prototype_strip(model, Painter(model, train), side=64)
    assert both.height - plain.height == 72
    assert both.width == plain.width
    third = decoded_pictures(model)[2].resize((64, 64), 0)
    x, y = 14 + 96 + 2 * 72, 14 + 40
    assert np.array_equal(np.asarray(both.crop((x, y, x + 64, y + 64))), np.asarray(third.convert("RGB")))


def test_pages_say_what_is_decoded_and_what_is_only_near(model: PrototypeModel, train: Cases, tmp_path: Path) -> None:
    page = save_explanation(model, train, 0, tmp_path / "why.html", sources=train).read_text(encoding="utf-8")
    assert "prototype 0, decoded" in page
    assert "nearest case digits/" in page
    assert "from digits/" not in page
    told = report(model, train, None, tmp_path / "report.html", quiet=True).read_text(encoding="utf-8")
    assert "as the decoder shows it" in told
    assert "prototype 2, decoded" in told
    assert "Redundant: stands on the same token" not in told
    drawn = save_explanation(model, train, 0, tmp_path / "why.png", sources=train)
    assert drawn.stat().st_size > 1000
    found = explain(model, train, [0])[0]
    assert found.total == pytest.approx(found.logit, abs=1e-4)


def test_draws_of_a_distribution_differ_and_repeat() -> None:
    encoder = ConvAutoencoder(size=8, maps=(4, 4), spread=None)
    made = get_method("prob-psenn")(law="diagonal").build(encoder, classes=2)
    first, again = (drawn_pictures(made, 1, 4, torch.Generator().manual_seed(0)) for _ in range(2))
    assert len(first) == 4
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])
    assert prototype_strip(made, draws=3, side=32).height > prototype_strip(made, side=32).height


def test_models_without_such_a_decoder_are_refused_in_words() -> None:
    made = get_method("prototype-autoencoder")(prototypes=3).build(FeatureEncoder(5), classes=2)
    with pytest.raises(UsageError, match="no decoder to pictures"):
        decoded_pictures(made)
    assert Painter(made).decoded(0) is None
