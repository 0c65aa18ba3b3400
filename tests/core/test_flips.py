"""What flips a decision: against trying every set, and against trying the amount itself."""

from __future__ import annotations

from itertools import combinations

import torch
from hypothesis import given
from hypothesis import strategies as st

from protolearn.core.flips import change_needed, smallest_removal


@given(st.integers(0, 10**6), st.integers(2, 5), st.booleans())
def test_beyond_the_change_the_target_leads_and_below_it_does_not(seed: int, classes: int, whole: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, classes, generator=g, dtype=torch.float64)
    weights = torch.randn(3, classes, 4, generator=g, dtype=torch.float64)
    if whole:  # equal weights and equal scores
        logits, weights = logits.round(), weights.round()
    targets = torch.randint(0, classes, (3,), generator=g)
    found = change_needed(logits, weights, targets)

    def leads(b: int, k: int, delta: float) -> bool:
        scores = logits[b] + delta * weights[b, :, k]
        others = [c for c in range(classes) if c != int(targets[b])]
        return bool((scores[targets[b]] > scores[others]).all())

    for b in range(3):
        for k in range(4):
            delta = float(found[b, k])
            if found[b, k].isnan():
                steps = torch.linspace(0, 50, 2001, dtype=torch.float64).unsqueeze(1)
                scores = logits[b] + steps * weights[b, :, k]
                others = [c for c in range(classes) if c != int(targets[b])]
                assert not bool((scores[:, targets[b]] > scores[:, others].amax(1)).any())
                continue
            assert delta >= 0
            if delta > 0:
                assert not leads(b, k, delta * (1 - 1e-6))
            slope = weights[b, targets[b], k] - weights[b, :, k]
            gap = logits[b] - logits[b, targets[b]]
            ends = [float(gap[c] / slope[c]) for c in range(classes) if slope[c] < 0]
            step = min(1e-6, *(0.5 * (end - delta) for end in ends)) if ends else 1e-6
            assert step > 0
            assert leads(b, k, delta + step)


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 6), st.booleans())
def test_no_smaller_set_does_it(seed: int, classes: int, prototypes: int, one_rival: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    ledger = torch.randn(2, classes, prototypes, generator=g, dtype=torch.float64)
    logits = ledger.sum(2) + torch.randn(classes, generator=g, dtype=torch.float64)
    predicted = logits.argmax(1)
    rivals = None
    if one_rival:
        rivals = torch.nn.functional.one_hot((predicted + 1) % classes, classes).bool()
    found = smallest_removal(ledger, logits, predicted, rivals)
    for b in range(2):

        def flips(chosen: tuple[int, ...], b: int = b) -> bool:
            left = logits[b] - ledger[b][:, list(chosen)].sum(1)
            allowed = [c for c in range(classes) if c != int(predicted[b]) and (rivals is None or bool(rivals[b, c]))]
            return any(bool(left[c] > left[predicted[b]] + 1e-12) for c in allowed)

        sizes = [n for n in range(prototypes + 1) if any(flips(c) for c in combinations(range(prototypes), n))]
        size = int(found.size[b])
        assert size == (sizes[0] if sizes else -1)
        if size > 0:
            chosen = tuple(found.order[b, :size].tolist())
            assert flips(chosen)
            left = logits[b] - ledger[b][:, list(chosen)].sum(1)
            assert left[found.rival[b]] > left[predicted[b]]
        else:
            assert found.rival[b] == -1


def test_nothing_to_take_away() -> None:
    none = smallest_removal(torch.zeros(2, 3, 0), torch.rand(2, 3), torch.tensor([0, 1]))
    assert none.size.tolist() == [-1, -1]
    one = smallest_removal(torch.ones(1, 1, 4), torch.ones(1, 1), torch.tensor([0]))
    assert one.size.tolist() == [-1], "one class: nothing to change to"
    bias = smallest_removal(torch.zeros(1, 2, 3), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert bias.size.tolist() == [-1], "the bias alone decides"
