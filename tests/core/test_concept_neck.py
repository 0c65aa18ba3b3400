"""The neck with concept maps beside its projector: attention over real places, and who learns from whom."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from protolearn.core.concepts import ConceptNeck, softmax_attention
from protolearn.structures import Tokens


def test_attention_is_a_mean_of_real_tokens() -> None:
    values = torch.tensor([[[1.0], [3.0], [float("nan")]]])
    scores = torch.tensor([[[0.0, 50.0], [0.0, 0.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    found = softmax_attention(values, scores, mask)
    assert found[0, :, 0].tolist() == pytest.approx([2.0, 1.0])
    assert softmax_attention(values, scores, torch.zeros(1, 3, dtype=torch.bool)).eq(0).all()


def test_vectors_follow_the_maps_and_teach_them_nothing() -> None:
    neck = ConceptNeck(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        neck.project.weight.copy_(torch.eye(2))
        neck.maps.weight.copy_(torch.tensor([[100.0, 0.0]]))
    tokens = Tokens(torch.tensor([[[1.0, 5.0], [0.0, 7.0]]]))
    found = neck.on_tokens(tokens)
    assert found.extras["concept_vectors"][0, 0].tolist() == pytest.approx([1.0, 5.0]), "the place the map points to"
    assert torch.equal(found.values, neck(tokens.values))
    found.extras["concept_vectors"].sum().backward()
    assert neck.maps.weight.grad is None
    assert neck.project.weight.grad is not None
    flat = ConceptNeck(neck.project, neck.maps, temperature=1e6).on_tokens(tokens)
    assert flat.extras["concept_vectors"][0, 0].tolist() == pytest.approx([0.5, 6.0], abs=1e-3), "too warm: a mean"
    with pytest.raises(ValueError, match="temperature"):
        ConceptNeck(neck.project, neck.maps, temperature=0.0)
