"""A prototype that speaks for its twins: no score and no sum of the ledger changes, and the others have no say left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import ClassSoftmaxEvidence, FixedEvidence, Head, LinearEvidence, NearestOfClass
from protolearn.core.measures import cosine_in_parts, squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.pooling import max_pool
from protolearn.core.scoring import ScoringSheet
from protolearn.core.similarities import LogRatio, Negative
from protolearn.core.slots import SlotHead
from protolearn.core.votes import Votes
from protolearn.encoders import FeatureEncoder

OWNER = torch.tensor([0, 0, 0, 1, 1, 2])


def bank() -> PrototypeBank:
    """Six prototypes of three classes; rows 1 and 2 are twins of row 0."""
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).abs()
    vectors[1:3] = vectors[0]
    return PrototypeBank(vectors, torch.nn.functional.one_hot(OWNER).float())


def settled() -> SlotHead:
    draw = torch.Generator().manual_seed(0)
    head = SlotHead.random(3, 6, 4, LogRatio(), generator=draw)
    head.scores.data[0, 0, 0] = head.scores.data[0, 1, 1] = head.scores.data[1, 2, 0] = 99.0
    head.settle()
    head.weight.data += 0.2 * torch.randn(head.weight.shape, generator=draw)
    return head


def drawn() -> torch.Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


HEADS: dict[str, Callable[[], Head]] = {
    "linear": lambda: LinearEvidence(drawn(), torch.tensor([0.1, 0.2, 0.3])),
    "centred": lambda: LinearEvidence(drawn(), centred=True),
    "fixed": lambda: FixedEvidence(drawn()),
    "sheet": lambda: ScoringSheet(drawn(), clip=0.1),
    "nearest": lambda: NearestOfClass(OWNER, 3),
    "slots": settled,
}


def model_of(head: Head) -> PrototypeModel:
    similarity = LogRatio() if not isinstance(head, SlotHead) else Negative()
    return PrototypeModel(
        FeatureEncoder(4), torch.nn.Identity(), bank(), squared_l2, head, similarity=similarity, pooling=max_pool
    ).eval()


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_no_score_changes(name: str) -> None:
    model = model_of(HEADS[name]())
    inputs = torch.rand(9, 5, 4, generator=torch.Generator().manual_seed(2))
    before = model(inputs)
    ledger = model.head.ledger(before)
    assert model.head.absorb(0, torch.tensor([1, 2]))
    between = model(inputs)
    assert torch.allclose(between.logits, before.logits, atol=1e-5)
    model.prune([1, 2])
    after = model(inputs)
    assert torch.allclose(after.logits, before.logits, atol=1e-5)
    table = model.head.ledger(after)
    assert torch.allclose(table[..., 0], ledger[..., :3].sum(2), atol=1e-5)
    assert torch.allclose(table[..., 1:], ledger[..., 3:], atol=1e-5)


def test_a_head_that_cannot_changes_nothing() -> None:
    owned = torch.nn.functional.one_hot(OWNER)
    unsettled = SlotHead.random(3, 6, 2, LogRatio())
    for head in (ClassSoftmaxEvidence(owned), NearestOfClass(OWNER, 3), Votes(bank()), unsettled):
        before = {key: value.clone() for key, value in head.state_dict().items()}
        assert not head.absorb(0, torch.tensor([1, 3]))
        assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


def test_points_below_nothing_take_none_from_a_twin() -> None:
    sheet = ScoringSheet(torch.tensor([[2.0, -1.0, -3.0], [-1.0, 0.5, 0.0]]))
    assert sheet.absorb(0, torch.tensor([1]))
    assert sheet.weight.tolist() == [[2.0, 0.0, 0.0], [0.5, 0.0, 0.0]]
    assert sheet.raw[:, 2].tolist() == [-3.0, 0.0]


def test_the_cosine_in_parts_of_no_pairs_is_empty() -> None:
    assert cosine_in_parts(2).paired(torch.zeros(0, 8), torch.zeros(0, 8)).shape == (0,)
