"""Edits of bags: provenance, effects and searches, on planted models and on one trained to find a digit in bags."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from protolearn.encoders import FeatureEncoder
from protolearn.errors import DataError, UsageError
from protolearn.explain.bag_edits import Bag, Effect, exchange, keep_only, necessity, sufficiency
from protolearn.explain.bag_effects import over_bags
from protolearn.explain.bag_scorers import BagFunction, BagScorer, BagScores, PooledBags, model_of_bags
from protolearn.explain.bag_search import greedy_removal, remove_most_important
from protolearn.methods import get_method

SIZE = 15
"""Instances in a bag of digits; one to three of a positive one are zeros, none of a negative one."""


class Bags(NamedTuple):
    values: Tensor
    positive: Tensor
    labels: Tensor


def draw_bags(pictures: np.ndarray, digits: np.ndarray, count: int, seed: int) -> Bags:
    g = np.random.default_rng(seed)
    zeros, rest = np.flatnonzero(digits == 0), np.flatnonzero(digits != 0)
    values, positive = [], []
    for b in range(count):
        many = int(g.integers(1, 4)) if b % 2 else 0
        rows = np.concatenate([g.choice(zeros, many, replace=False), g.choice(rest, SIZE - many, replace=False)])
        rows = g.permutation(rows)
        values.append(pictures[rows] / 16.0)
        positive.append(digits[rows] == 0)
    found = torch.from_numpy(np.stack(positive))
    return Bags(torch.from_numpy(np.stack(values)).float(), found, found.any(1).long())


class Attention(nn.Module):
    """Attention over instances, then a linear classifier; dropout would show a model asked in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1))
        self.score = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 1))
        self.head = nn.Linear(32, 2)

    def forward(self, bags: Tensor) -> Tensor:
        h = self.embed(bags)
        return self.head((self.score(h).softmax(-2) * h).sum(-2))


@pytest.fixture(scope="module")
def trained() -> tuple[Attention, Bags]:
    """A model that finds zeros in bags of real digits, and bags of digits it has not seen."""
    raw = load_digits()
    torch.manual_seed(0)
    seen = draw_bags(raw.data[:1200], raw.target[:1200], 400, 0)
    model = Attention()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=1e-4)
    for _ in range(40):
        for part in torch.randperm(400).split(40):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(seen.values[part]), seen.labels[part]).backward()
            optimiser.step()
    return model, draw_bags(raw.data[1200:], raw.target[1200:], 100, 1)


def additive(part: Callable[[Tensor], Tensor]) -> BagFunction:
    return BagFunction(lambda bag: part(bag).sum(0), gives="logits")


# -- a bag and its history --------------------------------------------------------------------------------------------


def test_every_instance_keeps_its_origin() -> None:
    first = Bag.of_values(torch.arange(5.0).unsqueeze(1), "a")
    second = Bag.of_values(10 + torch.arange(3.0).unsqueeze(1), "b")
    edited = first.drop([1, 3]).insert(second.keep([2, 0])).replace([0], second.keep([1])).insert(first.keep([4]))
    names = {"a": first, "b": second}
    assert edited.origins() == [("b", 1), ("a", 2), ("a", 4), ("b", 2), ("b", 0), ("a", 4)]
    for value, (name, index) in zip(edited.values, edited.origins(), strict=True):
        assert torch.equal(value, names[name].values[index])
    assert edited.name == "a"
    assert edited.edits == (
        "dropped 2 of 5", "inserted 2 from b", "replaced 1 of 5 by some from b", "inserted 1 from a",
    )  # fmt: skip
    assert first.origins() == [("a", i) for i in range(5)], "the bag itself is not edited"


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 8))
def test_replacing_keeps_the_size(seed: int, count: int, others: int) -> None:
    g = torch.Generator().manual_seed(seed)
    bag, other = (Bag.of_values(torch.rand(n, 2, generator=g), name) for n, name in ((count, "a"), (others, "b")))
    gone = torch.randperm(count, generator=g)[: 1 + seed % count]
    new = bag.replace(gone, other, torch.Generator().manual_seed(seed))
    assert len(new) == count
    came = [index for name, index in new.origins() if name == "b"]
    assert len(came) == len(gone)
    assert len(set(came)) == min(len(gone), others), "none twice as long as there are enough"
    assert all(new.origins()[i] == ("a", i) for i in range(count) if i not in gone.tolist())
    again = bag.replace(gone, other, torch.Generator().manual_seed(seed))
    assert torch.equal(new.values, again.values)


def test_what_cannot_be_done_to_a_bag() -> None:
    bag = Bag.of_values(torch.rand(3, 2), "slide")
    for wrong in ([3], [-1], [0, 0], [], [True, False, True], torch.tensor([0.5]), torch.zeros(1, 1, dtype=torch.long)):
        with pytest.raises(UsageError):
            bag.drop(wrong)
    with pytest.raises(UsageError, match="nothing would be left of slide"):
        bag.drop([0, 1, 2])
    with pytest.raises(UsageError, match="instances of 3 numbers, slide of 2"):
        bag.insert(Bag.of_values(torch.rand(1, 3), "other"))
    with pytest.raises(UsageError, match="2 instances go and 3 come"):
        bag.replace([0, 1], bag)
    with pytest.raises(UsageError, match="at least one instance"):
        Bag.of_values(torch.zeros(0, 2))
    with pytest.raises(DataError, match="instance 1 of the bag holds NaN"):
        Bag.of_values(torch.tensor([[1.0], [float("nan")]]))


# -- scorers ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(2, 12), st.booleans(), st.booleans())
def test_closed_forms_equal_brute_force(seed: int, count: int, attends: bool, constant: bool) -> None:
    torch.manual_seed(seed)
    embed, head, attention = nn.Linear(3, 4).double(), nn.Linear(4, 2).double(), nn.Linear(4, 1).double()
    attention.weight.data *= 1 + 30 * (seed % 7)

    def logits(bags: Tensor) -> Tensor:
        h = embed(bags)
        return head((attention(h).softmax(-2) * h).sum(-2) if attends else h.mean(-2))

    bag, always = torch.randn(count, 3).double(), torch.randn(2, 3).double() if constant else None
    quick = PooledBags(embed, head, attention=attention if attends else None)
    for batched in (False, True):
        slow = BagFunction(logits, gives="logits", batched=batched)
        one, other = (scorer.without_each(bag, always) for scorer in (quick, slow))
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(one.probabilities, other.probabilities, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(quick(bag).logits, slow(bag).logits, rtol=1e-9, atol=1e-12)
    assert quick.weights(bag).sum().item() == pytest.approx(1.0)


def test_a_module_is_asked_in_eval_mode_and_left_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Flatten(0), nn.Linear(6, 2))
    model[2].eval()
    scorer = BagFunction(model, gives="logits")
    bag = Bag.of_values(torch.rand(3, 2))
    assert exchange(scorer, bag, [0], bag.keep([0]), 0).value == 0.0, "no noise of dropout"
    assert model.training and model[0].training and not model[2].training


def test_noise_of_the_model_is_no_effect() -> None:
    drop = nn.Dropout(0.5)  # hidden in a function, so nobody can put it into eval mode
    scorer = BagFunction(lambda bag: drop(bag).sum(0), gives="logits")
    with pytest.raises(UsageError, match="two answers to one bag"):
        necessity(scorer, Bag.of_values(torch.rand(30, 2)), [0], 0)


def test_what_a_function_must_return() -> None:
    bag = Bag.of_values(torch.rand(3, 2))
    with pytest.raises(UsageError, match="logits or probabilities"):
        BagFunction(lambda bag: bag, gives="odds")
    with pytest.raises(UsageError, match=r"\(C,\) for a bag, got \(3, 2\)"):
        necessity(BagFunction(lambda bag: bag, gives="logits"), bag, [0], 0)
    with pytest.raises(UsageError, match=r"\(1, C\) for 1 bags"):
        necessity(BagFunction(lambda bags: bags[0], gives="logits", batched=True), bag, [0], 0)
    with pytest.raises(DataError, match="do not lie in 0 to 1"):
        necessity(BagFunction(lambda bag: bag.sum(0) + 1, gives="probabilities"), bag, [0], 0)
    with pytest.raises(DataError, match="is not finite"):
        necessity(BagFunction(lambda bag: bag.sum(0) * float("nan"), gives="logits"), bag, [0], 0)
    with pytest.raises(UsageError, match="no class 2"):
        necessity(BagFunction(lambda bag: bag.sum(0), gives="logits"), bag, [0], 2)
    with pytest.raises(UsageError, match="one number an instance"):
        PooledBags(nn.Identity(), nn.Linear(2, 2), attention=nn.Linear(2, 2))(bag.values)
    for scorer in (BagFunction(lambda bag: bag.sum(0), gives="logits"), PooledBags(nn.Identity(), nn.Identity())):
        with pytest.raises(UsageError, match="cannot lose it"):
            scorer.without_each(bag.values[:1])
        with pytest.raises(UsageError, match="2 wide"):
            scorer.without_each(bag.values, torch.zeros(1, 3))


def test_a_prototype_model_over_bags() -> None:
    model = get_method("protopnet")(prototypes_per_class=2, dim=4).build(FeatureEncoder(3), 2)
    scorer, values = model_of_bags(model), torch.rand(6, 3)
    found = scorer.without_each(values)
    assert model.training
    model.eval()
    for i in range(6):
        rest = model(values[torch.arange(6) != i].unsqueeze(0)).logits[0].double()
        torch.testing.assert_close(found.logits[i], rest, rtol=1e-5, atol=1e-6)


# -- effects ----------------------------------------------------------------------------------------------------------


def test_effects_of_an_additive_model_are_the_contributions() -> None:
    layer = nn.Linear(3, 2, bias=False)
    scorer, bag = additive(layer), Bag.of_values(torch.randn(7, 3), "slide")
    parts = layer(bag.values).detach().double()
    for i in range(7):
        assert necessity(scorer, bag, [i], 1).logit_value == pytest.approx(parts[i, 1].item(), abs=1e-5)
    whole = keep_only(scorer, bag, [2, 5], 0)
    assert whole.logit_value == pytest.approx(parts[[2, 5], 0].sum().item(), abs=1e-5)
    extra = Bag.of_values(torch.randn(2, 3), "other")
    gained = layer(extra.values).detach().double().sum(0)
    assert sufficiency(scorer, bag, extra, 0).logit_value == pytest.approx(gained[0].item(), abs=1e-5)
    swapped = exchange(scorer, bag, [0, 4], extra, 0)
    assert swapped.logit_value == pytest.approx((parts[[0, 4], 0].sum() - gained[0]).item(), abs=1e-5)
    assert len(swapped.edited) == 7
    plain = json.loads(json.dumps(swapped.to_dict()))
    assert plain["effect"] == pytest.approx(plain["before"]["probabilities"][0] - plain["after"]["probabilities"][0])
    assert plain["edits"][-1] == "replaced 2 of 7 by some from other"


def test_a_saturated_probability_hides_what_the_logit_shows() -> None:
    scorer = BagFunction(lambda bag: torch.cat([bag.sum(0), -bag.sum(0)]), gives="logits")
    effect = necessity(scorer, Bag.of_values(torch.tensor([[30.0], [30.0]])), [0], 0)
    assert effect.value < 1e-12
    assert effect.logit_value == 30.0
    no_logits = BagFunction(lambda bag: torch.stack([bag.mean(), 1 - bag.mean()]), gives="probabilities")
    assert necessity(no_logits, Bag.of_values(torch.rand(3, 1)), [0], 0).logit_value is None
    with pytest.raises(UsageError, match="no logits"):
        greedy_removal(no_logits, torch.rand(3, 1), 0, on="logit")


def test_a_single_score_decides_at_a_half() -> None:
    scorer = BagFunction(lambda bag: bag.sum(0), gives="logits", probabilities=torch.sigmoid)
    effect = necessity(scorer, Bag.of_values(torch.tensor([[2.0], [-1.0]])), [0], 0)
    assert effect.flipped
    assert effect.before.decision() == 1 and effect.after.decision() == 0


def test_effects_over_bags() -> None:
    def effect(before: float, after: float, target: int = 0) -> Effect:
        scores = [BagScores(torch.tensor([p, 1 - p], dtype=torch.float64), None) for p in (before, after)]
        return Effect("necessity", target, *scores, Bag.of_values(torch.zeros(1, 1)))

    falls = [
        effect(0.9, 0.1),
        effect(0.8, 0.3),
        effect(0.7, 0.65),
        effect(0.6, 0.4),
        effect(0.9, 0.7),
        effect(0.9, 0.8),
    ]
    found = over_bags(falls)
    assert found.count == 6
    assert found.mean == pytest.approx(np.mean([0.8, 0.5, 0.05, 0.2, 0.2, 0.1]))
    assert found.p_value == pytest.approx(2 / 2**6), "all six fall: the most extreme of 64 sign patterns, two-sided"
    assert found.flipped == pytest.approx(3 / 6)
    assert found.interval is not None and found.interval[0] < found.mean < found.interval[1]
    assert found.mean_logit is None
    none = over_bags([effect(0.5, 0.5)] * 3)
    assert (none.p_value, none.statistic, none.mean) == (None, None, 0.0)
    assert over_bags([]).mean is None
    json.dumps(over_bags([]).to_dict())
    with pytest.raises(UsageError, match="several"):
        over_bags([effect(0.5, 0.4), effect(0.5, 0.4, target=1)])


# -- searches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["minimise", "maximise", "smallest change"])
@pytest.mark.parametrize("on", ["probability", "logit"])
@pytest.mark.parametrize("closed", [True, False])
def test_a_greedy_search_is_what_it_says(rule: str, on: str, closed: bool) -> None:
    torch.manual_seed(3)
    embed, head, attention = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(4, 1)
    scorer: BagScorer = PooledBags(embed, head, attention=attention)
    if not closed:
        scorer = BagFunction(lambda bag: head(attention(embed(bag)).softmax(0).T @ embed(bag))[0], gives="logits")
    bag, constant = torch.randn(8, 3), torch.randn(2, 3)
    found = greedy_removal(scorer, bag, 1, rule=rule, on=on, constant=Bag.of_values(constant))
    assert sorted(found.removals.tolist()) == sorted(set(found.removals.tolist()))
    assert len(found.removals) == 7, "one stays; constant instances never go"
    assert int(found.removals.max()) < 8
    assert found.logits is not None
    left = list(range(8))
    for k in range(8):
        whole = scorer(torch.cat([bag[left], constant]))
        torch.testing.assert_close(found.probabilities[k], whole.probabilities, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.logits[k], whole.logits, rtol=1e-5, atol=1e-6)
        if k == 7:
            break
        each = [float(scorer(torch.cat([bag[[j for j in left if j != i]], constant])).of(1, on)) for i in left]
        now = float(whole.of(1, on))
        cost = {"minimise": each, "maximise": [-p for p in each], "smallest change": [abs(p - now) for p in each]}[rule]
        assert cost[left.index(int(found.removals[k]))] == pytest.approx(min(cost), abs=1e-6), "exhaustive"
        left.remove(int(found.removals[k]))
    json.dumps(found.to_dict())


def test_short_bags_and_wrong_searches() -> None:
    scorer = BagFunction(lambda bag: torch.cat([bag.mean(0), -bag.mean(0)]), gives="logits")
    one = greedy_removal(scorer, torch.ones(1, 1), 0)
    assert one.removals.tolist() == [] and one.probabilities.shape == (1, 2) and one.flips_after() is None
    wide = greedy_removal(scorer, torch.tensor([[1.0], [-2.0], [4.0]]), 0)  # d = 1: a bag is done when one is left
    assert wide.removals.tolist() == [2, 0] and wide.flips_after() == 1
    assert greedy_removal(scorer, torch.ones(4, 1), 0, rounds=0).removals.tolist() == []
    assert greedy_removal(scorer, torch.ones(4, 1), 0).removals.tolist() == [0, 1, 2], "the first wins a tie"
    with pytest.raises(UsageError, match="did you mean 'minimise'"):
        greedy_removal(scorer, torch.ones(3, 1), 0, rule="minimize")
    with pytest.raises(UsageError, match="rounds"):
        greedy_removal(scorer, torch.ones(3, 1), 0, rounds=-1)
    with pytest.raises(UsageError, match="no class 7"):
        greedy_removal(scorer, torch.ones(3, 1), 7)
    g = torch.Generator()
    for importance, shares in ((torch.ones(2), [0.5]), (torch.ones(3), [1.0]), (torch.ones(3) / 0, [0.5])):
        with pytest.raises(UsageError):
            remove_most_important(scorer, torch.ones(3, 1), importance, 0, shares=shares, generator=g)


# -- a model that has learned something real --------------------------------------------------------------------------


def test_positive_instances_are_necessary_and_sufficient(trained: tuple[Attention, Bags]) -> None:
    model, bags = trained
    scorer = PooledBags(model.embed, model.head, attention=model.score)
    right = [b for b in range(100) if scorer(bags.values[b]).decision() == int(bags.labels[b])]
    assert len(right) >= 90, "a good model"
    g = torch.Generator().manual_seed(0)
    without, at_random, gained, swapped, alone = [], [], [], [], []
    negative = [Bag.of_values(bags.values[b], f"bag {b}") for b in right if bags.labels[b] == 0]
    for n, b in enumerate(b for b in right if bags.labels[b] == 1):
        bag = Bag.of_values(bags.values[b], f"bag {b}")
        zeros = bags.positive[b].nonzero().squeeze(1)
        without.append(necessity(scorer, bag, zeros, 1))
        at_random.append(necessity(scorer, bag, torch.randperm(SIZE, generator=g)[: len(zeros)], 1))
        other = negative[n % len(negative)]
        gained.append(sufficiency(scorer, other, bag.keep(zeros), 1))
        swapped.append(exchange(scorer, bag, zeros, other, 1, g))
        alone.append(keep_only(scorer, bag, zeros, 1))
    kinds = {"without": without, "random": at_random, "gained": gained, "swapped": swapped, "alone": alone}
    shares = {name: over_bags(each) for name, each in kinds.items()}
    assert shares["without"].flipped >= 0.9
    assert shares["random"].flipped <= 0.2
    assert shares["gained"].flipped >= 0.9
    assert shares["swapped"].flipped >= 0.9, "not the size of the bag, its content"
    assert shares["alone"].flipped <= 0.1 and shares["alone"].mean > 0.9
    assert shares["without"].p_value < 1e-6
    assert shares["without"].mean_logit > 5 * abs(shares["random"].mean_logit)


def test_search_and_attention_find_the_positive_instances(trained: tuple[Attention, Bags]) -> None:
    model, bags = trained
    scorer = PooledBags(model.embed, model.head, attention=model.score)
    slow = BagFunction(model, gives="logits", batched=True)
    chosen = [b for b in range(100) if bags.labels[b] == 1 and scorer(bags.values[b]).decision() == 1][:20]
    first, found, chance = [], [], []
    for b in chosen:
        search = greedy_removal(scorer, bags.values[b], 1, rounds=3, on="logit")
        assert (
            search.removals.tolist() == greedy_removal(slow, bags.values[b], 1, rounds=3, on="logit").removals.tolist()
        )
        first.append(bool(bags.positive[b, search.removals[0]]))
        share = float(bags.positive[b].sum()) / SIZE
        (removed,) = remove_most_important(
            scorer, bags.values[b], scorer.weights(bags.values[b]), 1, shares=[share], draws=10,
            generator=torch.Generator().manual_seed(b),
        )  # fmt: skip
        assert removed.count == int(bags.positive[b].sum())
        found.append(removed.flipped)
        chance.append(removed.random_flipped)
        json.dumps(removed.to_dict())
        irrelevant = greedy_removal(scorer, bags.values[b], 1, rule="smallest change", rounds=5, on="logit")
        assert not bool(bags.positive[b, irrelevant.removals].all())
        assert irrelevant.flips_after() is None
    assert np.mean(first) >= 0.9
    assert np.mean(found) >= 0.8
    assert np.mean(chance) <= 0.3
