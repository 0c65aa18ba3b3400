"""The certificate against attacks, against its own loops, and in the cases where a radius is infinite or nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.certificate import certified_radius, radius_by_bisection, radius_closed_form
from protolearn.core.encoder import Encoder
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.reasoning import Reasoning, agreement, reasoning
from protolearn.core.similarities import RadialBasis
from protolearn.structures import Tokens


def scores(x: Tensor, components: Tensor, sigma: Tensor, shares: Tensor) -> Tensor:
    return agreement((-(x.unsqueeze(1) - components).square().sum(2) / sigma).exp(), shares)


def random_head(seed: int, inputs: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    dims, count, classes = (int(torch.randint(1, top, (), generator=g)) for top in (6, 9, 5))
    classes += 1
    x = torch.randn(inputs, dims, generator=g, dtype=torch.float64)
    components = torch.randn(count, dims, generator=g, dtype=torch.float64)
    sigma = 0.2 + 3 * torch.rand(count, generator=g, dtype=torch.float64)
    sharpness = float(torch.rand((), generator=g)) * 6
    shares = reasoning(sharpness * torch.randn(2, classes, count, generator=g, dtype=torch.float64))
    return x, components, sigma, shares


def attacked(x: Tensor, head: tuple[Tensor, ...], keep: Tensor, radius: Tensor, seed: int) -> Tensor:
    """Return the smallest lead of the kept class that random moves and projected gradients find within the radius."""
    g = torch.Generator().manual_seed(seed)

    def lead(moved: Tensor) -> Tensor:
        s = scores(moved, *head)
        others = s.masked_fill(torch.nn.functional.one_hot(keep, s.shape[1]).bool(), float("-inf")).amax(1)
        return s.gather(1, keep.unsqueeze(1)).squeeze(1) - others

    smallest = lead(x)
    for start in range(6):
        move = torch.nn.functional.normalize(torch.randn(x.shape, generator=g, dtype=x.dtype), dim=1)
        move = move * radius.unsqueeze(1) * (1.0 if start % 2 else 0.1)
        for _ in range(25):
            leaf = move.clone().requires_grad_()
            value = lead(x + leaf)
            smallest = torch.minimum(smallest, value.detach())
            (slope,) = torch.autograd.grad(value.sum(), leaf)
            move = move - 0.25 * radius.unsqueeze(1) * torch.nn.functional.normalize(slope, dim=1, eps=1e-300)
            length = move.norm(dim=1, keepdim=True).clamp_min(1e-300)
            move = move * (radius.unsqueeze(1) / length).clamp_max(1.0)
        smallest = torch.minimum(smallest, lead(x + move))
    return smallest


@pytest.mark.parametrize("block", range(6))
def test_no_attack_within_the_radius_changes_a_decision(block: int) -> None:
    tight = 0
    for seed in range(block * 10, block * 10 + 10):
        x, *head = random_head(seed)
        before = scores(x, *head)
        keep = before.argmax(1)
        distances = (x.unsqueeze(1) - head[0]).norm(dim=2)
        searched = radius_by_bisection(distances, head[1], head[2], keep).amin(1)
        closed = radius_closed_form(distances, head[1], head[2], keep).amin(1)
        assert bool((closed >= 0).all())
        assert bool((searched >= closed - 1e-9).all()), "the closed form is the looser one"
        finite = searched.isfinite()
        assert bool((attacked(x[finite], tuple(head), keep[finite], 0.999 * searched[finite], seed) >= 0).all())
        tight += int((attacked(x[finite], tuple(head), keep[finite], 3 * searched[finite] + 0.1, seed) < 0).sum())
    assert tight > 0, "an attack that never succeeds, however far it may go, would prove nothing"


def test_between_two_components_on_a_line_the_radius_is_exact() -> None:
    """One component for each class: the boundary is half way, and the worst move goes straight at it."""
    shares = reasoning(torch.tensor([[[0.0, -math.inf], [-math.inf, 0.0]]], dtype=torch.float64))
    x = torch.linspace(0.0, 1.4, 8, dtype=torch.float64).unsqueeze(1)
    at = torch.tensor([0.0, 3.0], dtype=torch.float64)
    radius = radius_by_bisection((x - at).abs(), torch.ones(2), shares, torch.zeros(len(x), dtype=torch.long))[:, 1]
    assert torch.allclose(radius, 1.5 - x.squeeze(1), atol=1e-9)


@given(st.integers(0, 10**6))
def test_the_closed_form_is_odd_and_says_who_leads(seed: int) -> None:
    x, *head = random_head(seed, inputs=6)
    s = scores(x, *head)
    distances = (x.unsqueeze(1) - head[0]).norm(dim=2)
    classes = s.shape[1]
    table = torch.stack(
        [radius_closed_form(distances, head[1], head[2], torch.full((len(x),), c)) for c in range(classes)], 1
    )  # (B, kept, rival)
    for c in range(classes):
        for rival in range(classes):
            if c != rival:
                assert torch.allclose(table[:, c, rival], -table[:, rival, c], atol=1e-9)
                lead = s[:, c] - s[:, rival]
                clear = lead.abs() > 1e-12
                assert torch.equal(table[clear, c, rival] > 0, lead[clear] > 0)


@pytest.mark.parametrize("far", [10.0, 1e3, 1e6])
def test_far_inputs_underflow_but_keep_a_finite_radius(far: float) -> None:
    shares = reasoning(torch.tensor([[[0.0, 2.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, -1.0]]]).double())
    distances = torch.tensor([[far, far + 1.0]], dtype=torch.float64)
    base = shares[1].sum(1)
    keep = base.argmax().unsqueeze(0)  # with nothing detected, what is expected to be absent decides
    searched = radius_by_bisection(distances, torch.ones(2, dtype=torch.float64), shares, keep).amin()
    closed = radius_closed_form(distances, torch.ones(2, dtype=torch.float64), shares, keep).amin()
    assert 0.9 * far - 3 < searched < far + 1.0
    assert 0 < closed <= searched + 1e-9


def test_infinite_and_zero_radii() -> None:
    at, ones = torch.tensor([[1.0, 1.0]]), torch.ones(2)
    same = torch.full((2, 2, 2), 0.25)
    assert radius_by_bisection(at, ones, same, torch.tensor([0])).tolist() == [[math.inf, math.inf]], "classes alike"
    always = torch.tensor([[[0.5, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])  # the second class has no evidence
    for radius in (radius_by_bisection, radius_closed_form):
        assert radius(at, ones, always, torch.tensor([0]))[0, 1].item() == math.inf
        assert radius(at, ones, always, torch.tensor([1]))[0, 0].item() <= 0.0, "it never leads"
    only_one_class = reasoning(torch.zeros(2, 1, 2))
    assert radius_by_bisection(at, ones, only_one_class, torch.tensor([0])).tolist() == [[math.inf]]
    no_component = torch.tensor([[math.inf, 1.0]])  # it cannot be found, and no move brings it nearer
    one = radius_by_bisection(no_component, ones, reasoning(torch.randn(2, 3, 2)), torch.tensor([0]))
    assert not bool(one.isnan().any())


def test_the_closed_form_has_finite_gradients() -> None:
    for seed in range(20):
        x, components, sigma, shares = random_head(seed, inputs=8)
        x[0], x[1] = components[0], 1e4
        leaves = [t.float().requires_grad_() for t in (components, sigma, shares)]
        distances = torch.cdist(x.float(), leaves[0])
        radius = radius_closed_form(distances, leaves[1], leaves[2], torch.zeros(len(x), dtype=torch.long))
        (1.0 - radius.amin(1)).clamp_min(0.0).mean().backward()
        assert all(bool(leaf.grad.isfinite().all()) for leaf in leaves if leaf.grad is not None)


def test_wrong_shapes_are_named() -> None:
    shares = reasoning(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"distances must be \(B, 4\)"):
        radius_by_bisection(torch.zeros(1, 3), torch.ones(4), shares, torch.tensor([0]))
    with pytest.raises(ValueError, match="class indices below 3"):
        radius_closed_form(torch.zeros(1, 4), torch.ones(4), shares, torch.tensor([-1]))
    with pytest.raises(ValueError, match="positive"):
        radius_closed_form(torch.zeros(1, 4), torch.zeros(4), shares, torch.tensor([0]))


class Rows(Encoder):
    """Features as they are."""

    dim = 1

    def forward(self, inputs: Tensor) -> Tokens:
        return Tokens(inputs.view(-1, 1, 1))

    def spec(self) -> dict[str, object]:
        return {}


def on_a_line(at: tuple[float, float], theta: list[list[list[float]]]) -> PrototypeModel:
    """Two components of width 1 on a line, in single precision."""
    bank = PrototypeBank(torch.tensor(at).unsqueeze(1), torch.zeros(2, 2))
    head = Reasoning(torch.tensor(theta))
    return PrototypeModel(Rows(), nn.Identity(), bank, squared_l2, head, similarity=RadialBasis(torch.ones(2))).eval()


ABSENCE = [[[1.0, -1.0], [-1.0, 1.0]], [[-1.0, 1.0], [1.0, -1.0]]]
PRESENCE = [[[20.0, -20.0], [-20.0, 20.0]]]


@pytest.mark.parametrize(
    ("model", "at"), [(on_a_line((-5.0, 0.0), ABSENCE), 4.0), (on_a_line((-30.0, 0.0), PRESENCE), 10.1)]
)
@torch.no_grad()
def test_no_attack_in_single_precision_either_where_classes_are_all_but_tied(model: PrototypeModel, at: float) -> None:
    """Far from both components the scores are equal up to rounding, and the lead is lost there, not by any move."""
    x = torch.cat([torch.linspace(-1.0, 1.0, 41), torch.linspace(at - 3, at + 3, 121)])
    out = model(x)
    radius = certified_radius(out).float()
    keep = out.logits.argmax(1)
    assert bool((radius[:41] > 0).any()), "a certificate that is always 0 would prove nothing"
    within = radius.clamp_max(50.0).unsqueeze(1) * torch.linspace(-0.999, 0.999, 401)
    moved = model((x.unsqueeze(1) + within).flatten()).logits.argmax(1).view(len(x), -1)
    assert int((moved != keep.unsqueeze(1)).sum()) == 0
    exact = radius_by_bisection(out.distances.double().sqrt(), torch.ones(2), model.head.shares(), keep).amin(1)  # type: ignore[union-attr, operator]
    beyond = exact.float().clamp_max(50.0).unsqueeze(1) * torch.linspace(-0.999, 0.999, 401)
    flips = model((x.unsqueeze(1) + beyond).flatten()).logits.argmax(1).view(len(x), -1) != keep.unsqueeze(1)
    assert int(flips.sum()) > 0, "the attack finds what scores taken as exact would promise"
    assert bool((radius <= exact).all())


def test_allowing_for_rounding_costs_little_where_there_is_a_lead() -> None:
    for seed in range(10):
        x, *head = random_head(seed)
        keep = scores(x, *head).argmax(1)
        distances = (x.unsqueeze(1) - head[0]).norm(dim=2)
        exact = radius_by_bisection(distances, head[1], head[2], keep).amin(1)
        careful = radius_by_bisection(distances, head[1], head[2], keep, rounding=torch.finfo(torch.float32)).amin(1)
        clear = exact.isfinite() & (exact > 1e-3)
        assert bool((careful <= exact).all())
        assert float(((exact - careful) / exact)[clear].median()) < 1e-3


def test_with_rounding_classes_that_are_alike_have_no_radius() -> None:
    at, ones, limits = torch.tensor([[1.0, 1.0]]), torch.ones(2), torch.finfo(torch.float32)
    same = torch.full((2, 2, 2), 0.25)
    assert radius_by_bisection(at, ones, same, torch.tensor([0]), rounding=limits).tolist() == [[math.inf, 0.0]]
    ahead = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[0.5, 0.5], [0.0, 0.0]]])  # nothing ever speaks for the other
    always = torch.stack([ahead[1] * 0.5, ahead[1] * 0.5])
    assert radius_by_bisection(at, ones, always, torch.tensor([0]), rounding=limits)[0, 1].item() == math.inf
    coarse = torch.finfo(torch.bfloat16)
    many = torch.full((1, 300), 1.0), torch.ones(300), reasoning(torch.randn(2, 3, 300)), torch.tensor([0])
    assert radius_by_bisection(*many, rounding=coarse)[0, 1:].tolist() == [0.0, 0.0]
