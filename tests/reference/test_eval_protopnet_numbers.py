"""EvalProtoPNet's formulas against numbers from the authors' code (README.md says which)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank, unit_norm
from protolearn.core.heads import ClassSoftmaxEvidence
from protolearn.core.maps import fold_blocks
from protolearn.core.measures import projection_length
from protolearn.core.model import PrototypeModel
from protolearn.methods.parts.eval_protopnet import EvalProtoPNet
from protolearn.structures import Output, Tokens

Numbers = dict[str, Tensor]


@pytest.fixture
def want(reference: Callable[[str], dict[str, np.ndarray]]) -> Numbers:
    return {key: torch.from_numpy(value) for key, value in reference("eval_protopnet").items()}


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert got.shape == expected.shape
    assert (got.detach() - expected).abs().max() <= tolerance


def tokens_of(maps: Tensor) -> Tokens:
    return Tokens(maps.flatten(2).transpose(1, 2).contiguous(), grid=(maps.shape[2], maps.shape[3]))


def score(want: Numbers) -> Output:
    classes, count = want["sa_weights"].shape
    bank = PrototypeBank(want["prototypes"], torch.eye(classes).repeat_interleave(count, 0), constraint=unit_norm)
    head = ClassSoftmaxEvidence(bank.ownership).double()
    with torch.no_grad():
        head.weight.copy_(want["sa_weights"].flatten())
    model = PrototypeModel(nn.Identity(), nn.Identity(), bank, projection_length, head)
    deep = tokens_of(want["deep"]).replace(extras={"shallow": want["shallow"]})
    return model.score(tokens_of(want["z"])).replace(encoded=deep)


def test_scores_evidence_and_logits(want: Numbers) -> None:
    out = score(want)
    close(out.similarities, want["scores"])
    assert torch.equal(out.positions, want["activation_map"].flatten(2).argmax(2))
    close(out.logits, want["logits"])
    classes, count = want["sa_weights"].shape
    ledger = out.head.ledger(out).unflatten(2, (classes, count))
    close(ledger[:, torch.arange(classes), torch.arange(classes)], want["evidence"])
    assert ledger[:, 0, 1:].eq(0).all(), "nothing from other classes"


def test_early_map_is_regrouped(want: Numbers) -> None:
    close(fold_blocks(want["shallow"], (4, 4)).transpose(1, 2), want["shallow_grouped"].flatten(2), 0.0)


def test_every_term_and_the_total(want: Numbers) -> None:
    """The prototypes of the reference are unit rows, so that their Gram matrix is of the same ones."""
    method = EvalProtoPNet(alignment_margin=float(want["tau"]))
    terms = method.objective(score(want), want["labels"])
    for term, name in (
        ("cross_entropy", "cross_entropy"), ("cluster", "cluster"), ("separation", "separation"),
        ("orthogonality", "orth"), ("alignment", "sdfa"),
    ):  # fmt: skip
        close(terms[term], want[name])
    assert set(terms) == set(method.weights())
    close(method.loss(terms), want["total"])
