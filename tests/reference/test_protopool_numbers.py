"""Slots, focal similarity and every term of a shared pool against numbers made elsewhere (README.md says how)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.matching import mean_match
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import LogRatio
from protolearn.core.slots import SlotHead, choose, focal_similarity
from protolearn.methods import get_method
from protolearn.objectives.slots import slot_orthogonality
from protolearn.structures import Output, Tokens

Numbers = dict[str, Tensor]


@pytest.fixture
def want(reference: Callable[[str], dict[str, np.ndarray]]) -> Numbers:
    return {key: torch.from_numpy(value) for key, value in reference("protopool").items()}


class Given(nn.Module):
    def forward(self, maps: Tensor) -> Tokens:
        return Tokens(maps.flatten(2).transpose(1, 2).contiguous())


def output(want: Numbers) -> Output:
    """The model in evaluation: no noise, and a scale that undoes the temperature."""
    scores = want["proto_slot_map"]
    head = SlotHead(scores, LogRatio(1e-4), epochs=0, stop=0.5).double()
    head.weight.data.copy_(want["last_layer"])
    bank = PrototypeBank(want["prototypes"], torch.zeros(scores.shape[1], scores.shape[0]))
    model = PrototypeModel(Given(), nn.Identity(), bank, squared_l2, head, similarity=LogRatio(1e-4))
    return model.eval()(want["features"])


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance


def test_slots(want: Numbers) -> None:
    close(choose(want["proto_slot_map"], 0.5), want["slot_probs"])
    drawn = choose(want["proto_slot_map"], want["gumbel_scale"], noise=want["gumbel_noise"])
    close(drawn, want["slot_probs_gumbel"])


def test_distances_and_focal_similarity(want: Numbers) -> None:
    out = output(want)
    assert out.distances is not None
    assert out.average is not None
    close(out.distances.detach(), want["min_distance"])
    close(out.average.detach(), want["avg_distance"])
    close(mean_match(want["features"].flatten(2).transpose(1, 2), want["prototypes"], squared_l2), want["avg_distance"])
    found = focal_similarity(want["min_distance"], want["avg_distance"], want["slot_probs"], LogRatio(1e-4))
    close(found, want["focal_similarity"])


def test_logits_and_ledger(want: Numbers) -> None:
    out = output(want)
    close(out.logits.detach(), want["logits"])
    close(out.head.ledger(out).sum(2).detach(), want["logits"])


def test_terms_and_total(want: Numbers) -> None:
    out, method = output(want), get_method("protopool")()
    terms = method.objective(out, want["labels"])
    close(terms["cross_entropy"].detach(), want["cross_entropy"])
    close(terms["cluster"].detach(), want["cluster_paper"])
    close(terms["separation"].detach(), want["separation_paper"])
    close(terms["orthogonality"].detach(), want["orthogonal"])
    close(terms["l1"].detach(), want["l1"])
    close(method.loss(terms).detach(), want["total"], 1e-9)
    close(slot_orthogonality(want["proto_slot_map"]), want["orthogonal"])


def test_settling(want: Numbers) -> None:
    head = SlotHead(want["proto_slot_map"], LogRatio(1e-4)).double()
    counts = head.settle()
    assert torch.equal(head.scores.argmax(1), want["hard_slot"])
    expected = torch.stack([torch.bincount(row, minlength=7) for row in want["hard_slot"]]).T
    assert torch.equal(counts, expected.double())
