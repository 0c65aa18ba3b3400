"""What is audited answers in one form, whatever it is, and is not changed by being asked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.audit.planted import planted, spots

from protolearn.audit.look import Look, finite_maps
from protolearn.audit.subject import AdaptedSubject, ModelSubject, subject_of
from protolearn.encoders import SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.methods import get_method


def test_a_ledger_in_parts_is_the_whole_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    model = get_method("protopnet")(prototypes_per_class=3).build(SmallEncoder(size=16), 4)
    subject = ModelSubject(model)
    with subject.looking():
        look = subject.look(torch.rand(5, 3, 16, 16))
    whole = look.toward(torch.tensor([0, 1, 2, 3, 0]))
    monkeypatch.setattr("protolearn.core.matching.CHUNK_BYTES", 1)  # one case at a time
    assert torch.equal(look.toward(torch.tensor([0, 1, 2, 3, 0])), whole)
    assert len(list(look.ledgers())) == 5
    total = torch.cat([table for _, table in look.ledgers()]).sum(2) + subject.offset
    assert torch.allclose(total, look.logits, atol=1e-5)


def test_prototypes_of_a_class() -> None:
    ownership = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    weight = torch.tensor([[1.0, 0.0, 0.5, -1.0], [0.0, 1.0, -0.5, 2.0]])
    subject = planted(lambda x: torch.zeros(len(x), 4, 2, 2), ownership, weight)
    found = subject.of_class(torch.tensor([0, 1, -1]))
    assert found.tolist() == [[True, False, True, False], [False, True, False, True], [False] * 4]


def test_asking_leaves_modes_gradients_and_weights() -> None:
    model = get_method("protopnet")(prototypes_per_class=1).build(SmallEncoder(size=16), 2)
    model.train()
    model.encoder.eval()
    subject = ModelSubject(model)
    before, modes = subject.digest(), [m.training for m in model.modules()]
    with subject.looking():
        assert not any(m.training for m in model.modules())
        subject.look(torch.rand(2, 3, 16, 16))
    assert [m.training for m in model.modules()] == modes
    assert subject.digest() == before
    assert all(p.grad is None for p in model.parameters())
    model.bank.vectors.data[0, 0] += 1e-6
    assert subject.digest() != before


def test_maps_are_finite_or_refused() -> None:
    table = torch.tensor([[[[1.0, -math.inf], [0.5, 2.0]], [[-math.inf] * 2] * 2]])
    found = finite_maps(table)
    assert found[0, 0].tolist() == [[1.0, 0.5], [0.5, 2.0]]
    assert found[0, 1].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    table[0, 1, 0, 0] = math.nan
    with pytest.raises(DataError, match="prototype row 1 holds NaN in case 0"):
        finite_maps(table)
    table[0, 1, 0, 0] = math.inf  # an overflow, not a place that could not match
    with pytest.raises(DataError, match="prototype row 1 holds infinity in case 0"):
        finite_maps(table)


def test_an_adapter_is_checked() -> None:
    ownership = torch.eye(2)
    subject = planted(lambda x: spots(torch.zeros(len(x), 2).long(), torch.zeros(len(x), 2).long()), ownership)
    assert subject_of(subject) is subject
    with pytest.raises(UsageError, match="wrap another model"):
        subject_of(torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match="ownership must be"):
        AdaptedSubject(subject.module, lambda x: x, classes=["a"], ownership=ownership)
    wrong = AdaptedSubject(
        subject.module,
        lambda x: Look(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 3), None, lambda part: torch.zeros(1)),
        classes=["a", "b"],
        ownership=ownership,
    )
    with pytest.raises(UsageError, match=r"must hold scores \(1, 2\)"):
        wrong.look(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": torch.zeros(3, 2)}, {"offset": torch.zeros(3)}, {"usable": torch.ones(2) > 0},
        {"vectors": torch.zeros(2, 4)}, {"ids": [1, 2]},
    ],
)  # fmt: skip
def test_what_an_adapter_says_of_its_prototypes_must_fit(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} must be"):
        AdaptedSubject(torch.nn.Linear(1, 1), lambda x: x, classes=["a", "b"], ownership=torch.zeros(3, 2), **wrong)


def test_what_an_adapter_puts_out_must_fit() -> None:
    logits, scores = torch.zeros(4, 2), torch.zeros(4, 3)

    def subject(look: Look) -> AdaptedSubject:
        return AdaptedSubject(torch.nn.Linear(1, 1), lambda _: look, classes=["a", "b"], ownership=torch.zeros(3, 2))

    for wrong in (Look(scores, logits, scores, None, torch.zeros), Look(logits, scores, scores, None, torch.zeros)):
        with pytest.raises(UsageError, match="must hold scores"):
            subject(wrong).look(torch.zeros(4, 1))
    turned = subject(Look(logits, logits, scores, None, lambda part: torch.zeros(4, 3, 2)[part]))
    with pytest.raises(UsageError, match=r"a ledger must be \(b, C, P\) = \(4, 2, 3\), got \(4, 3, 2\)"):
        turned.look(torch.zeros(4, 1)).toward(torch.zeros(4, dtype=torch.long))
    right = subject(Look(logits, logits, scores, None, lambda part: torch.ones(4, 2, 3)[part]))
    assert right.look(torch.zeros(4, 1)).toward(torch.zeros(4, dtype=torch.long)).shape == (4, 3)
