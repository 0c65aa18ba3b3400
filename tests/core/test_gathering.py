"""One vector for a whole input, and maps of it; heads whose weights are fixed."""

from __future__ import annotations

import torch
from torch import nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.gathering import CentredUnit, DiagonalMap, Pooled, Scaled, TriangularMap, summarise
from protolearn.core.heads import FixedEvidence
from protolearn.core.moments import Blocks
from protolearn.structures import Source, Tokens


def test_a_summary_is_taken_where_the_encoder_gives_one() -> None:
    values, summary = torch.rand(2, 5, 3), torch.rand(2, 7)
    assert torch.equal(summarise(Tokens(values, summary=summary)), summary)
    torch.testing.assert_close(summarise(Tokens(values)), values.mean(1))
    mask = torch.tensor([[True, True, False, False, False], [False] * 5])
    found = summarise(Tokens(values, mask=mask))
    torch.testing.assert_close(found[0], values[0, :2].mean(0))
    assert found[1].eq(0).all(), "an input without a real position"


def test_one_token_that_has_no_place() -> None:
    tokens = Tokens(torch.rand(2, 6, 3), grid=(2, 3), input_size=(20, 30))
    found = Pooled(nn.Linear(3, 4)).on_tokens(tokens)
    assert found.values.shape == (2, 1, 4)
    assert found.grid is None
    assert found.region(0) is None
    assert found.summary is not None
    torch.testing.assert_close(found.summary, tokens.values.mean(1))


def test_maps_begin_as_they_should() -> None:
    values = torch.rand(4, 3)
    assert torch.equal(Scaled(3)(values), values)
    torch.testing.assert_close(DiagonalMap(3)(values), values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(TriangularMap(3)(values), 0.1 * values)
    torch.testing.assert_close(CentredUnit(3)(values).norm(dim=1), torch.ones(4))


def test_a_triangle_keeps_its_diagonal_positive() -> None:
    layer = TriangularMap(2)
    with torch.no_grad():
        layer.free.copy_(torch.tensor([[-3.0, 5.0], [2.0, 1.0]]))
    found = layer(torch.eye(2)).detach()
    assert found[0, 1] == 0, "above the diagonal there is nothing"
    assert float(found[0, 0]) > 0


def test_fixed_weights_are_no_parameters_and_follow_the_bank() -> None:
    head = FixedEvidence(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]), torch.zeros(2))
    assert [name for name, _ in head.named_parameters()] == ["bias"]
    evidence = torch.rand(4, 3)
    torch.testing.assert_close(head.contributions(evidence).sum(2) + head.offset(), head(evidence))
    other = FixedEvidence(torch.zeros(2, 5), torch.ones(2))
    head.keep(torch.tensor([0, 2]))
    other.load_state_dict(head.state_dict())
    assert other.weight.tolist() == [[1.0, 2.0], [0.0, 0.0]]


def test_blocks_hold_after_pruning() -> None:
    groups = torch.tensor([0, 0, 1, 1])
    bank = Blocks([1, 2]).hold(PrototypeBank(torch.ones(4, 3), torch.eye(2).repeat(2, 1), groups=groups))
    bank.prune([1])
    with torch.no_grad():
        bank.vectors.fill_(1.0)
    bank.constrain()
    assert bank.vectors.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]


def test_rows_are_found_by_case() -> None:
    bank = PrototypeBank(torch.zeros(3, 1), torch.eye(3))
    bank.sources[1] = Source("a", "", 0, None, 0.0, "")
    bank.sources[2] = Source("b", "", 0, None, 0.0, "")
    assert bank.rows_of(["b", "strange", "a"]).tolist() == [2, -1, 1]
