"""Laws of the bank: ids, growth, merging, and a state dict that holds everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import LinearEvidence
from protolearn.structures import Box, Source


def source(case: str, distance: float = 0.25) -> Source:
    return Source(case, "ab" * 32, 3, Box(0.0, 1.0, 2.5, 4.0), distance, "cd" * 32, label=1)


def full_bank(count: int, learned: bool = True, spread: bool = True, dim: int = 3) -> PrototypeBank:
    """A bank in which every field differs from its default."""
    ownership = torch.rand(count, 2) * torch.tensor([1.0, 0.0])
    bank = PrototypeBank(
        torch.randn(count, dim), ownership, learned=learned, spread=torch.rand(count, dim) if spread else None
    )
    bank.counts += torch.arange(count) + 2.0
    bank.sources = [source(f"väg/{i}.png", i / 3) if i % 2 else None for i in range(count)]
    if count > 1:
        bank.active[1] = False
    bank.ban([0])
    return bank


def same(left: PrototypeBank, right: PrototypeBank) -> None:
    for name in ("vectors", "ownership", "spread", "counts", "active", "banned", "ids", "next_id"):
        one, two = getattr(left, name), getattr(right, name)
        assert (one is None and two is None) or torch.equal(one, two), name
    assert left.sources == right.sources


@given(st.integers(1, 6), st.booleans(), st.booleans())
def test_a_state_dict_holds_everything(count: int, learned: bool, spread: bool) -> None:
    bank = full_bank(count, learned, spread)
    other = PrototypeBank(
        torch.zeros(count, 3), torch.zeros(count, 2), learned=learned, spread=torch.ones(count, 3) if spread else None
    )
    other.load_state_dict(bank.state_dict())
    same(bank, other)


def test_into_a_bank_of_another_size_and_through_safetensors(tmp_path: Path) -> None:
    bank = full_bank(5)
    bank.prune([2])
    bank.grow(torch.randn(2, 3), torch.eye(3)[:2], [source("new"), None], spread=torch.ones(2, 3))
    save_file({name: tensor.contiguous() for name, tensor in bank.state_dict().items()}, tmp_path / "bank.safetensors")
    for size, learned in ((1, True), (9, True), (2, False)):
        other = PrototypeBank(torch.zeros(size, 3), torch.zeros(size, 1), learned=learned, spread=torch.ones(size, 3))
        other.load_state_dict(load_file(tmp_path / "bank.safetensors"))
        same(bank, other)
        assert isinstance(other.vectors, torch.nn.Parameter) == learned
        assert other.grow(torch.zeros(1, 3), torch.zeros(1, 3), spread=torch.ones(1, 3)).tolist() == [7]


def test_hostile_sources_are_refused() -> None:
    bank = full_bank(2)
    state = bank.state_dict()
    for text in ('{"a": 1}', "[null]", '[null, {"case": "x"}]', "[null, 3]", "not json", ""):
        bad = dict(state) | {"_extra_state": torch.tensor(list(text.encode()), dtype=torch.uint8)}
        with pytest.raises((ValueError, TypeError)):
            PrototypeBank(torch.zeros(2, 3), torch.zeros(2, 2), spread=torch.ones(2, 3)).load_state_dict(bad)


@given(st.lists(st.sampled_from(["prune", "merge", "grow"]), max_size=8), st.randoms(use_true_random=False))
def test_an_id_always_means_the_same_prototype_and_never_returns(steps: list[str], random: st.randoms) -> None:  # type: ignore[valid-type]
    bank = full_bank(4)
    named = {int(i): v.clone() for i, v in zip(bank.ids, bank.vectors.detach(), strict=True)}
    ever = set(named)
    for step in steps:
        ids = bank.ids.tolist()
        if step == "prune" and len(ids) > 1:
            gone = random.choice(ids)
            bank.prune([gone])
            del named[gone]
        elif step == "merge" and len(ids) > 1:
            first, second = random.sample(ids, 2)
            assert bank.merge([first, second]) == first
            named[first] = bank.vectors.detach()[bank.rows([first])[0]].clone()
            del named[second]
        elif step == "grow":
            (fresh,) = bank.grow(torch.randn(1, 3), torch.ones(1, bank.classes), spread=torch.ones(1, 3)).tolist()
            assert fresh not in ever
            ever.add(fresh)
            named[fresh] = bank.vectors.detach()[-1].clone()
        assert set(bank.ids.tolist()) == set(named)
        assert len(bank.sources) == len(bank)
        for key, vector in named.items():
            assert torch.equal(bank.vectors.detach()[bank.rows([key])[0]], vector)
    with pytest.raises(KeyError, match="no prototype has the id 999"):
        bank.rows([999])


def test_growing_adds_classes_and_keeps_the_rest() -> None:
    bank = full_bank(3, spread=False)
    before = bank.vectors.detach().clone()
    fresh = bank.grow(torch.ones(2, 3), torch.tensor([[0.0, 0, 0, 1], [0, 0, 1, 0]]), [source("a"), source("b")])
    assert (fresh.tolist(), bank.classes, len(bank)) == ([3, 4], 4, 5)
    assert torch.equal(bank.vectors.detach()[:3], before)
    assert bank.ownership[:3, 2:].eq(0).all()
    assert bank.owner().tolist()[3:] == [3, 2]
    assert bank.owned_by(torch.tensor([3, -1, 2])).int().tolist() == [[0, 0, 0, 1, 0], [0] * 5, [0, 0, 0, 0, 1]]
    assert isinstance(bank.vectors, torch.nn.Parameter)
    for wrong in ((torch.ones(1, 3), torch.ones(2, 4)), (torch.ones(1, 3), torch.ones(1, 2))):
        with pytest.raises(ValueError, match="cannot add"):
            bank.grow(*wrong)


def test_merging_keeps_the_moments_and_forgets_the_source() -> None:
    bank = PrototypeBank(torch.tensor([[0.0], [3.0], [9.0]]), torch.eye(3), learned=False, spread=torch.ones(3, 1))
    bank.counts += torch.tensor([1.0, 2.0, 5.0])
    bank.sources = [source("a"), source("b"), source("c")]
    assert bank.merge([1, 0]) == 1
    assert bank.ids.tolist() == [1, 2]
    assert bank.vectors.flatten().tolist() == pytest.approx([2.0, 9.0])
    assert bank.spread is not None
    assert bank.spread[0].item() == pytest.approx(1 + (1 * 4 + 2 * 1) / 3)
    assert bank.counts.tolist() == [3.0, 5.0]
    assert bank.sources[0] is None
    assert bank.ownership[0].tolist() == [1.0, 1.0, 0.0]
    assert bank.owner().tolist() == [-1, 2]


@pytest.mark.parametrize(
    ("vectors", "ownership", "spread", "message"),
    [
        (torch.zeros(3), torch.zeros(3, 1), None, r"\(P, D\) or \(B, P, D\)"),
        (torch.zeros(3, 2), torch.zeros(2, 1), None, "ownership must be"),
        (torch.zeros(3, 2), -torch.ones(3, 1), None, "not be negative"),
        (torch.zeros(3, 2), torch.zeros(3, 1), torch.zeros(3, 1), "spread must be"),
    ],
)
def test_shapes_that_do_not_fit(
    vectors: torch.Tensor, ownership: torch.Tensor, spread: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PrototypeBank(vectors, ownership, spread=spread)


def test_a_head_takes_the_size_of_what_it_loads() -> None:
    head = LinearEvidence(torch.randn(2, 5), torch.randn(2))
    other = LinearEvidence(torch.zeros(2, 3), torch.zeros(2))
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.weight, head.weight)
    evidence = torch.rand(4, 5)
    assert torch.allclose(other.contributions(evidence).sum(2) + other.offset(), other(evidence), atol=1e-6)
