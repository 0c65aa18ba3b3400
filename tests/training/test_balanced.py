"""Labelled and unlabelled cases drawn alike, two views that are the same, numbers that change over a phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.method import Method, Phase, Ramp, Train
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import Negative
from protolearn.data import Cases, digits, features
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.structures import Output
from protolearn.training.fit import fit
from protolearn.training.record import TrainingWarning
from protolearn.training.steps import balance, epoch_order


@dataclass(frozen=True)
class Watching(Method):
    """Remembers what its objective is shown."""

    slug: ClassVar[str] = "watching"
    seen: ClassVar[list[tuple[Output, Tensor]]] = []

    encoder_rate: float | None = None

    def build(self, encoder: Encoder, classes: int, seed: int = 0) -> PrototypeModel:
        bank = PrototypeBank.per_class(classes, 1, encoder.dim, generator=torch.Generator().manual_seed(seed))
        head = LinearEvidence.from_ownership(bank.ownership)
        return PrototypeModel(encoder, nn.Dropout(0.5), bank, squared_l2, head, similarity=Negative())

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        self.seen.append((out, labels))
        return {"size": out.evidence.square().mean()}

    def weights(self) -> dict[str, float]:
        return {"size": 1.0}

    def phases(self) -> list[Phase]:
        rates: Mapping[str, float] = {"prototypes": 1e-3, "neck": 1e-3}
        if self.encoder_rate is not None:
            rates = {**rates, "encoder": self.encoder_rate}
        return [Train("watch", 3, rates, pairs="same_view", balanced=True, scheduled={"share": Ramp(0.0, 1.0, over=3)})]


def watched(cases: Cases, encoder: Encoder, **settings: float) -> list[tuple[Output, Tensor]]:
    Watching.seen.clear()
    with pytest.warns(TrainingWarning, match="have no label"):
        fit(Watching(**settings), cases, encoder=encoder, batch_size=20, quiet=True, device="cpu")
    return list(Watching.seen)


def few_known() -> Cases:
    draw = np.random.default_rng(0)
    labels = np.where(np.arange(210) < 30, np.arange(210) % 3, -1)
    return features(draw.normal(size=(210, 6)).astype(np.float32), labels, classes=["a", "b", "c"])


def test_a_batch_holds_labelled_and_unlabelled_cases_alike_in_two_views() -> None:
    seen = watched(few_known(), FeatureEncoder(6))
    assert len(seen) == 3 * 10  # 210 draws in whole batches of 20
    known = [float((labels >= 0).float().mean()) for _, labels in seen]
    assert 0.4 < float(np.mean(known)) < 0.6
    for out, labels in seen:
        assert out.paired and len(labels) == 40 and torch.equal(*labels.chunk(2))
        assert out.encoded is not None and torch.equal(*out.encoded.values.chunk(2))
        assert not torch.equal(*out.evidence.chunk(2)), "dropout makes the views differ"
        assert out.cases[:20] == out.cases[20:]


def test_scheduled_numbers_change_from_epoch_to_epoch() -> None:
    seen = watched(few_known(), FeatureEncoder(6))
    assert [out.scheduled["share"] for out, _ in seen[::10]] == [0.0, 0.5, 1.0]
    assert seen[0][0].part(slice(0, 2)).scheduled == {"share": 0.0}


def test_the_loop_over_pictures_does_the_same() -> None:
    cases = digits("train").subset(range(60))
    held = cases.with_classes(cases.classes)
    held.labels = np.where(np.arange(60) < 20, cases.labels, -1)
    seen = watched(held, SmallEncoder(dim=8, size=16), encoder_rate=1e-3)
    assert len(seen) == 3 * 3
    for out, labels in seen:
        assert out.paired and len(labels) == 40 and torch.equal(*labels.chunk(2))
        assert out.inputs is not None and torch.equal(*out.inputs.chunk(2))
    assert [out.scheduled["share"] for out, _ in seen[::3]] == [0.0, 0.5, 1.0]


def test_odds() -> None:
    labels = torch.tensor([0, 1, -1, -1, -1, -1])
    odds = balance(labels)
    assert odds is not None and float(odds[labels >= 0].sum()) == pytest.approx(float(odds[labels < 0].sum()))
    assert balance(labels[:2]) is None and balance(labels[2:]) is None
    order = torch.cat(epoch_order(6, 2, 0, odds))
    assert len(order) == 6 and torch.equal(order, torch.cat(epoch_order(6, 2, 0, odds)))
    assert torch.cat(epoch_order(6, 2, 0, torch.tensor([0.0, 0, 1, 0, 0, 0]))).tolist() == [2] * 6
    assert len(torch.cat(epoch_order(3, 8, 0, torch.ones(3)))) == 3
