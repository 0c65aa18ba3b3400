"""What explaining may cost; the table with peers is in benchmarks/."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import LogRatio
from protolearn.explain.regions import percentile_boxes, upsample
from protolearn.structures import Tokens


class Backbone(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model("resnet18", pretrained=False, features_only=True)

    def forward(self, inputs: torch.Tensor) -> Tokens:
        found = self.net(inputs)[-1]
        return Tokens(found.flatten(2).transpose(1, 2), grid=tuple(found.shape[2:]), input_size=tuple(inputs.shape[2:]))


def quickest(call: Callable[[], Any], times: int = 7) -> float:
    call()
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


@pytest.mark.slow
def test_a_hundred_maps_and_boxes_cost_at_most_twice_the_forward_pass() -> None:
    bank = PrototypeBank.per_class(10, 10, 512)
    head = LinearEvidence.from_ownership(bank.ownership)
    model = PrototypeModel(Backbone(), torch.nn.Identity(), bank, squared_l2, head, similarity=LogRatio()).eval()
    picture = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        tokens = model.embed(model.encode(picture))
        forward = quickest(lambda: model(picture))
        maps = quickest(lambda: percentile_boxes(upsample(model.maps(tokens), (7, 7), (224, 224))))
    assert maps <= 2 * forward, f"maps {1e3 * maps:.1f} ms, forward {1e3 * forward:.1f} ms"
