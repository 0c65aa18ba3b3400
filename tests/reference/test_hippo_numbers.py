"""Edits of bags against the numbers of the authors' code, in double precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.explain.bag_edits import Bag, necessity
from protolearn.explain.bag_scorers import BagFunction, BagScorer, PooledBags
from protolearn.explain.bag_search import greedy_removal

Numbers = dict[str, Tensor]
RULES = {"minimize": "minimise", "maximize": "maximise", "smallest_difference": "smallest change"}


@pytest.fixture(scope="module")
def numbers(reference: Callable[[str], dict[str, np.ndarray]]) -> Numbers:
    return {name: torch.from_numpy(array) for name, array in reference("hippo").items()}


def parts(w: Numbers) -> tuple[Callable[[Tensor], Tensor], ...]:
    """The gated attention model of the reference: embedding, attention before the softmax, classifier."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}_w"].T + w[f"{name}_b"]

    def attention(h: Tensor) -> Tensor:
        return linear(linear(h, "V").tanh() * linear(h, "U").sigmoid(), "w")

    return (lambda x: linear(x, "enc").relu()), attention, (lambda z: linear(z, "head"))


def scorers(w: Numbers) -> dict[str, BagScorer]:
    embed, attention, head = parts(w)

    def logits(bags: Tensor) -> Tensor:
        h = embed(bags)
        return head((attention(h).softmax(-2) * h).sum(-2))

    return {
        "function": BagFunction(logits, gives="logits"),
        "batched": BagFunction(logits, gives="logits", batched=True),
        "probabilities": BagFunction(lambda bag: logits(bag).softmax(-1), gives="probabilities"),
        "closed form": PooledBags(embed, head, attention=attention),
    }


HOW = ["function", "batched", "probabilities", "closed form"]


@pytest.mark.parametrize("how", HOW)
def test_leave_one_out(numbers: Numbers, how: str) -> None:
    scorer, bag, target = scorers(numbers)[how], numbers["bag"], int(numbers["target"])
    torch.testing.assert_close(scorer(bag).probabilities, numbers["probabilities"], rtol=1e-9, atol=1e-12)
    found = scorer.without_each(bag)
    torch.testing.assert_close(found.probabilities, numbers["leave_one_out"], rtol=1e-9, atol=1e-12)
    if how == "probabilities":
        assert found.logits is None
    else:
        assert found.logits is not None
        torch.testing.assert_close(found.logits, numbers["leave_one_out_logits"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(scorer(bag).logits, numbers["logits"], rtol=1e-9, atol=1e-12)
    for i, expected in enumerate(numbers["necessity"].tolist()):
        assert necessity(scorer, Bag.of_values(bag), [i], target).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("rule", sorted(RULES))
def test_greedy_search(numbers: Numbers, rule: str, how: str) -> None:
    scorer, target, rounds = scorers(numbers)[how], int(numbers["target"]), int(numbers["rounds"])
    found = greedy_removal(scorer, numbers["bag"], target, rule=RULES[rule], rounds=rounds)
    assert found.removals.tolist() == numbers[f"greedy_{rule}_removed"].tolist()
    torch.testing.assert_close(found.probabilities, numbers[f"greedy_{rule}_outputs"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("rule", sorted(RULES))
def test_constant_instances_stay_in_every_round(numbers: Numbers, rule: str, how: str) -> None:
    scorer, target, rounds = scorers(numbers)[how], int(numbers["target"]), int(numbers["rounds"])
    found = greedy_removal(
        scorer, numbers["bag"], target, rule=RULES[rule], rounds=rounds, constant=numbers["constant"]
    )  # fmt: skip
    assert found.removals.tolist() == numbers[f"constant_{rule}_removed_paper"].tolist()
    torch.testing.assert_close(found.probabilities, numbers[f"constant_{rule}_outputs_paper"], rtol=1e-9, atol=1e-12)
    released = numbers[f"constant_{rule}_outputs"]  # its first row has seen them, the others have not
    torch.testing.assert_close(found.probabilities[0], released[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(released[1:], numbers[f"greedy_{rule}_outputs"][1:], rtol=1e-9, atol=1e-12)
