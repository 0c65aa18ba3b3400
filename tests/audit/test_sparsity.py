"""Sizes of explanations and abstention, for heads with weights and for heads without."""

from __future__ import annotations

import pytest
import torch

from protolearn.audit.sparsity import abstains, beyond, global_size, local_size, sparsity_ratio, with_weight
from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import dot
from protolearn.core.model import PrototypeModel
from protolearn.core.reasoning import Reasoning
from protolearn.core.scoring import ScoringSheet
from protolearn.encoders import FeatureEncoder
from protolearn.errors import UsageError


def model_of(weight: torch.Tensor) -> PrototypeModel:
    classes, count = weight.shape
    bank = PrototypeBank(torch.eye(count), torch.zeros(count, classes), learned=False)
    return PrototypeModel(FeatureEncoder(count), torch.nn.Identity(), bank, dot, LinearEvidence(weight))


def test_sizes_count_what_moves_a_score() -> None:
    model = model_of(torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 1.0, 1e-4]]))
    out = model(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 5.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert local_size(out).tolist() == [2, 1, 0]
    assert global_size(model) == 2
    model.bank.ban([0])
    assert global_size(model) == 1
    assert local_size(out.part(slice(0, 0))).tolist() == []


def test_a_head_that_reads_more_than_evidence_has_no_table_of_weights() -> None:
    class Reader(LinearEvidence):
        reads = ("evidence", "tokens")

    model = model_of(torch.eye(2))
    model.head = Reader(torch.eye(2))
    assert global_size(model) is None


def test_abstaining_takes_a_threshold() -> None:
    scores = torch.tensor([[0.3, 0.1], [0.05, 0.0], [torch.nan, 0.0]])
    assert abstains(scores, 0.1).tolist() == [False, True, True]
    assert abstains(scores).tolist() == [False, False, True]


def test_of_an_output_the_head_says_whether_it_knows() -> None:
    """Logits with a bias start anywhere: below 0 for every class they are an answer all the same."""
    inputs = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    bank = PrototypeBank(torch.eye(2), torch.zeros(2, 2), learned=False)
    heads = {
        LinearEvidence(-torch.eye(2)): [False, False],
        ScoringSheet(torch.eye(2)): [True, False],
        Reasoning(torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])): [True, False],
    }
    for head, expected in heads.items():
        out = PrototypeModel(FeatureEncoder(2), torch.nn.Identity(), bank, dot, head)(inputs)
        assert abstains(out).tolist() == expected == head.abstains(out.logits).tolist()
    assert abstains(out, 2.0).tolist() == [True, True]


def test_a_threshold_may_be_a_share_of_the_largest() -> None:
    values = torch.tensor([[1e-3, 2e-3, -5.0], [0.0, 0.0, 0.0]])
    assert beyond(values).tolist() == [[False, True, False], [False, False, False]]
    shares = beyond(values, relative=1e-4), beyond(1000 * values, relative=1e-4)
    assert torch.equal(*shares)
    assert shares[0].tolist() == [[True, True, False], [False, False, False]], "nothing is a share of nothing"
    assert beyond(torch.zeros(0, 3), relative=0.5).shape == (0, 3)
    assert beyond(torch.zeros(2, 0), relative=0.5).shape == (2, 0)
    for wrong in ({"least": -1.0}, {"least": float("nan")}, {"relative": 1.5}):
        with pytest.raises(UsageError, match="share lie in 0 to 1"):
            beyond(values, **wrong)


def test_weights_that_are_empty() -> None:
    weights = torch.tensor([[0.5, 1e-3, -0.5, 0.0], [0.0, 0.0, 0.0, 2e-3]])
    usable = torch.tensor([True, True, True, False])
    assert with_weight(weights, usable).tolist() == [True, False, True, False]
    # by the released form: what is left of relu(weights - 0.001), as a share of all
    left = torch.count_nonzero((weights - 1e-3).relu())
    assert sparsity_ratio(weights) == pytest.approx(float((weights.numel() - left) / weights.numel()))
    assert sparsity_ratio(torch.zeros(3, 0)) is None
