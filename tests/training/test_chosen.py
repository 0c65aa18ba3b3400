"""Phases that go through chosen pairs of a case and a prototype."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.method import Choose, Method, Phase, Train, TrainingTokens
from protolearn.core.model import PrototypeModel
from protolearn.core.necks import make_neck
from protolearn.core.similarities import Negative
from protolearn.data import Augment, digits, features
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import TrainingError, UsageError
from protolearn.structures import Output
from protolearn.training.fit import Fit, fit

SEEN: list[tuple[str, int]] = []
"""Every pair that a step was about: id of the case, row of the bank."""


@dataclass(frozen=True)
class Pairs(Method):
    """Pulls prototypes to the cases that are listed for them."""

    listed: tuple[tuple[int, int], ...] = ()
    choosing: bool = True
    cases: int = 10
    slug = "pairs"

    def build(self, encoder: FeatureEncoder, classes: int, seed: int = 0) -> PrototypeModel:
        bank = PrototypeBank(torch.zeros(3, encoder.dim), torch.ones(3, classes))
        neck = make_neck("identity", encoder.dim, encoder.dim)
        head = LinearEvidence.from_ownership(bank.ownership)
        return PrototypeModel(encoder, neck, bank, squared_l2, head, similarity=Negative())

    def choose(self, model: PrototypeModel, batches: TrainingTokens, phase: Choose) -> Tensor:
        assert sum(len(labels) for _, labels in batches) == self.cases
        return torch.tensor(self.listed)

    def objective(self, out: Output, labels: Tensor) -> dict[str, Tensor]:
        assert out.chosen is not None
        assert out.distances is not None
        assert len(set(out.cases)) == len(out.cases), "a case is run once a step, for all its pairs"
        SEEN.extend((out.cases[row], prototype) for row, prototype in out.chosen.tolist())
        return {"distance": out.distances[out.chosen[:, 0], out.chosen[:, 1]].mean()}

    def weights(self) -> dict[str, float]:
        return {"distance": 1.0}

    def phases(self) -> list[Phase]:
        before: list[Phase] = [Choose()] if self.choosing else []
        return [*before, Train("pull", 2, {"prototypes": 0.1}, chosen=True)]


def train(method: Pairs, **more: int) -> Fit:
    SEEN.clear()
    values = torch.arange(10.0).view(10, 1, 1).expand(10, 1, 2).numpy()
    cases = features(values, [0, 1] * 5, ids=[f"case {i}" for i in range(10)])
    return fit(method, cases, encoder=FeatureEncoder(2), quiet=True, device="cpu", **more)  # type: ignore[arg-type]


def test_each_pair_comes_once_an_epoch_however_often_its_case_does() -> None:
    listed = ((0, 0), (0, 1), (0, 2), (7, 1), (3, 1))
    done = train(Pairs(listed), batch_size=2)
    wanted = sorted((f"case {case}", prototype) for case, prototype in listed)
    assert sorted(SEEN[:5]) == sorted(SEEN[5:]) == wanted
    assert len(done.history) == 2
    assert "accuracy" not in done.history[0]
    assert float(done.model.bank.vectors[1].detach().min()) > 0, "towards the cases 7 and 3"
    assert float(done.model.bank.vectors[0].detach().abs().max()) == 0, "case 0 is where it was"


@pytest.mark.parametrize("listed", [((10, 0),), ((0, 3),), ((-1, 0),), ((0, 0, 0),), ()])
def test_what_is_not_there_cannot_be_chosen(listed: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(TrainingError, match="choose"):
        train(Pairs(listed))


def test_there_must_be_a_choice_first() -> None:
    with pytest.raises(UsageError, match="Choose"):
        train(Pairs(((0, 0),), choosing=False))


def test_chosen_pairs_are_of_cached_tokens() -> None:
    with pytest.raises(UsageError, match="chosen"):
        Train("both", rates={"encoder": 1.0}, chosen=True)
    with pytest.raises(UsageError, match="chosen"):
        Train("both", rates={"neck": 1.0}, chosen=True, pairs=True)


def test_several_views_of_a_case_take_turns() -> None:
    SEEN.clear()
    cases = digits("train").subset(range(10))
    cases = cases.subset(cases.labels < 3).with_classes(cases.classes[:3])
    method = Pairs(((0, 0), (1, 1), (2, 2)), cases=len(cases))
    done = fit(method, cases, encoder=SmallEncoder(dim=4), augment=Augment(), views=2, quiet=True, device="cpu")  # type: ignore[arg-type]
    assert len(SEEN) == 6
    assert all(row["distance"] >= 0 for row in done.history)


def test_a_part_of_an_output_is_about_no_pairs() -> None:
    model = Pairs().build(FeatureEncoder(2), 2)
    out = model(torch.zeros(3, 1, 2)).replace(chosen=torch.tensor([[2, 0]]))
    assert out.part(slice(0, 1)).chosen is None
    assert len(out.part(slice(0, 1)).logits) == 1
