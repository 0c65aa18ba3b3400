"""Learning vector quantisation against numbers from prototorch (README.md says which): by graph and by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import NearestOfClass
from protolearn.core.measures import squared_l2
from protolearn.core.metrics import Metric, Omega, Relevances
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import Inverse
from protolearn.interop.shallow.descent import Descent, State
from protolearn.objectives.quantisation import quantisation
from protolearn.structures import Output, Tokens

KINDS = ["glvq", "grlvq", "gmlvq"]
TRANSFERS = ["identity", "sigmoid"]
Numbers = dict[str, Tensor]


@pytest.fixture
def want(reference: Callable[[str], dict[str, np.ndarray]]) -> Numbers:
    return {name: torch.from_numpy(value) for name, value in reference("lvq").items() if value.dtype.kind in "fi"}


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


class Given(nn.Module):
    def forward(self, x: Tensor) -> Tokens:
        return Tokens(x.unsqueeze(1))


def model_of(want: Numbers, kind: str) -> PrototypeModel:
    bank = PrototypeBank(want["prototypes"], torch.eye(3).double()[want["prototype_labels"]])
    metric: Metric | None = None
    if kind == "gmlvq":
        metric = Omega(5, 3)
        metric.weight = nn.Parameter(want["omega"].T.clone())
    if kind == "grlvq":
        metric = Relevances(5)
        metric.weight = nn.Parameter(want["relevances"].square())
    head = NearestOfClass(bank.owner(), 3)
    return PrototypeModel(Given(), nn.Sequential(), bank, squared_l2, head, similarity=Inverse(), metric=metric)


def cost_of(out: Output, want: Numbers, transfer: str) -> Tensor:
    own = out.bank.owned_by(want["y"])
    return quantisation(out.distances, own, ~own, transfer, 10.0) * len(want["y"])


def to_theirs(by_metric: Tensor, want: Numbers, kind: str) -> Tensor:
    """Their matrix is transposed, their relevances are the roots of ours."""
    return by_metric.T if kind == "gmlvq" else 2.0 * want["relevances"] * by_metric


@pytest.mark.parametrize("kind", KINDS)
def test_distances_and_predictions(want: Numbers, kind: str) -> None:
    model = model_of(want, kind)
    out = model(want["x"])
    close(out.distances, want[f"{kind}_distances"])
    assert torch.equal(out.logits.argmax(1), want[f"{kind}_predicted"])
    close(model.measure.pairwise(want["x"], model.bank.vectors), want[f"{kind}_distances"])
    pairs = model.measure.paired(want["x"].unsqueeze(1), model.bank.vectors)
    close(pairs, want[f"{kind}_distances"])


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("kind", KINDS)
def test_cost_and_gradients_by_graph(want: Numbers, kind: str, transfer: str) -> None:
    model = model_of(want, kind)
    cost = cost_of(model(want["x"]), want, transfer)
    close(cost, want[f"{kind}_{transfer}_loss"])
    cost.backward()
    close(model.bank.vectors.grad, want[f"{kind}_{transfer}_by_prototypes"])
    if model.metric is not None:
        close(to_theirs(model.metric.weight.grad, want, kind), want[f"{kind}_{transfer}_by_metric"])


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_hand(want: Numbers, kind: str, transfer: str) -> None:
    state = State(want["prototypes"].clone(), torch.ones(6, dtype=torch.bool), 3)
    state.omega = want["omega"].T.clone() if kind == "gmlvq" else None
    state.relevances = want["relevances"].square() if kind == "grlvq" else None
    rule = Descent(state, transfer=transfer, sharpness=10.0, rate=0.1, metric_rate=0.1)
    by_vectors, by_metric = rule.gradients(want["x"], want["y"].unsqueeze(1))
    close(by_vectors * len(want["y"]), want[f"{kind}_{transfer}_by_prototypes"])
    if by_metric is not None:
        close(to_theirs(by_metric * len(want["y"]), want, kind), want[f"{kind}_{transfer}_by_metric"])
