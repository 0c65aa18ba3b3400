"""Search among cached tokens: exact by default, the same through faiss."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch

from protolearn.core.measures import cosine, dot, get_measure, squared_l2
from protolearn.core.neighbours import neighbour_probabilities
from protolearn.encoders.search import nearest_cases
from protolearn.errors import MissingExtra, UsageError


@pytest.mark.parametrize("measure", [squared_l2, cosine, dot])
@pytest.mark.parametrize("itself", [False, True])
def test_faiss_gives_the_same_answers(measure: Any, itself: bool) -> None:
    pytest.importorskip("faiss")
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(3000, 16, generator=draw)
    labels = torch.randint(0, 5, (3000,), generator=draw)
    asked = rows[:200] if itself else torch.randn(200, 16, generator=draw)
    left_out = torch.arange(200) if itself else None
    found = {how: nearest_cases(asked, rows, measure, 20, left_out=left_out, search=how) for how in ("exact", "faiss")}
    torch.testing.assert_close(found["faiss"][0], found["exact"][0], rtol=1e-4, atol=1e-4)
    assert float((found["faiss"][1] == found["exact"][1]).double().mean()) > 0.995, "but for rounding"
    sign = -1 if measure is squared_l2 else 1
    one, other = (neighbour_probabilities(sign * near, labels[at], 5) for near, at in found.values())
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    if itself:
        assert bool((found["faiss"][1] != torch.arange(200).unsqueeze(1)).all())


def test_without_faiss_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **how: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **how)

    monkeypatch.setattr(builtins, "__import__", missing)
    rows = torch.rand(5, 2)
    with pytest.raises(MissingExtra, match=r"protolearn\[scale\]"):
        nearest_cases(rows, rows, squared_l2, 1, search="faiss")
    assert nearest_cases(rows, rows, squared_l2, 1)[1].flatten().tolist() == [0, 1, 2, 3, 4]


def test_what_cannot_be() -> None:
    rows = torch.rand(5, 2)
    with pytest.raises(UsageError, match="exact or faiss"):
        nearest_cases(rows, rows, squared_l2, 1, search="annoy")
    with pytest.raises(UsageError, match="k must be at least 1"):
        nearest_cases(rows, rows, squared_l2, 0)
    with pytest.raises(UsageError, match="nothing to find"):
        nearest_cases(rows[:1], rows[:1], squared_l2, 1, left_out=torch.tensor([0]))
    assert nearest_cases(rows, rows, squared_l2, 99)[1].shape == (5, 5), "as many as there are"
    pytest.importorskip("faiss")
    with pytest.raises(UsageError, match="does not know projection_length"):
        nearest_cases(rows, rows, get_measure("projection_length"), 1, search="faiss")
