"""Places where prototypes are most at home, of models with distances, similarities, or no places at all."""

from __future__ import annotations

import pytest
import torch

from protolearn.audit.look import Look
from protolearn.audit.nearest import nearest_places
from protolearn.audit.subject import ModelSubject
from protolearn.encoders import SmallEncoder
from protolearn.methods import get_method


@pytest.mark.parametrize("name", ["protopnet", "pipnet"])
def test_places_of_a_model_are_the_peaks_of_its_maps(name: str) -> None:
    model = get_method(name)().build(SmallEncoder(size=16), 3)
    subject = ModelSubject(model)
    with subject.looking():
        look = subject.look(torch.rand(5, 3, 16, 16))
    values, places = nearest_places(look)
    assert look.maps is not None
    peak = look.maps.flatten(2).max(2)
    if name == "protopnet":
        assert torch.equal(values.argsort(0), peak.values.argsort(0)), "negative distances rank cases alike"
    else:
        assert torch.allclose(values, peak.values, atol=1e-5)
    near = look.maps.flatten(2).gather(2, places.unsqueeze(2)).squeeze(2)
    assert torch.allclose(near, peak.values, atol=1e-5)
    bare = Look(look.logits, look.probabilities, look.scores, look.maps, look.ledger)
    assert torch.equal(nearest_places(bare)[0], peak.values)
    none = nearest_places(Look(look.logits, look.probabilities, look.scores, None, look.ledger))
    assert torch.equal(none[0], look.scores)
    assert none[1].eq(0).all()
