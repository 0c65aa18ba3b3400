"""A network may run in half precision; what is compared and weighed may not: scores differ by less than it resolves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from protolearn.core.encoder import Encoder
from protolearn.core.model import PrototypeModel
from protolearn.methods import get_method
from protolearn.structures import Tokens
from protolearn.training.steps import minimised


class Given(Encoder):
    """Tokens as they are, or in half precision as a network under autocast makes them."""

    dim = 16

    def forward(self, inputs: torch.Tensor) -> Tokens:
        half = torch.is_autocast_enabled("cpu")
        values = inputs.bfloat16() if half else inputs
        return Tokens(values, grid=(3, 3), summary=values.mean(1))

    def spec(self) -> dict[str, object]:
        return {}


METHODS = {
    "protopnet": {"dim": 16},
    "st-protopnet": {"dim": 16, "enlarge": 1},
    "eval-protopnet": {"dim": 16},
    "protopool": {"prototypes": 20, "dim": 16},
    "prototree": {"depth": 4, "dim": 16},
    "pipnet": {"prototypes": 12},
    "cbc": {"components": 12},
    "pdiscoformer": {"parts": 3, "gumbel": False},
    "nw-head": {},
}


@contextmanager
def halved() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def built(slug: str) -> PrototypeModel:
    return get_method(slug)(**METHODS[slug]).build(Given(), 10, 0).eval()


@pytest.mark.parametrize("slug", METHODS)
def test_heads_and_losses_are_not_rounded_under_autocast(slug: str) -> None:
    method, model = get_method(slug)(**METHODS[slug]), built(slug)
    x, labels = 3 * torch.randn(16, 9, 16), torch.arange(16) % 10
    with halved():
        out = model(x)
        _, values = minimised(method, out, labels)
    assert out.logits.dtype == torch.float32
    assert torch.equal(out.logits, model.head.read(out)), (
        "the same as the head gives for this evidence without autocast"
    )
    _, again = minimised(method, out, labels)
    for name, value in values.items():
        assert torch.equal(value, again[name]), name


def test_leads_survive_half_precision() -> None:
    """Scores of a class all but tie with many components: rounded to eight bits most leads are gone."""
    model = built("cbc")
    with halved(), torch.no_grad():
        out = model(3 * torch.randn(64, 9, 16))
    rounded = out.logits.bfloat16().float()
    assert bool((rounded.argmax(1) != out.logits.argmax(1)).any()), "else this would show nothing"
    head = model.head.double()
    fine = head.read(out.replace(evidence=out.evidence.double()))
    assert torch.equal(out.logits.argmax(1), fine.argmax(1))
