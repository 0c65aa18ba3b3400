"""Matching: what the fast path computes, against the plain table; gradients; memory; ties and masks."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from protolearn.core.matching import all_matches, best_match
from protolearn.core.measures import MEASURES, Distance, Measure, cosine, dot, squared_l2

WITHOUT_PRODUCT = Distance("taxicab", lambda x, p: torch.cdist(x, p, p=1), lambda x, p: (x - p).abs().sum(-1))
CASES = [*MEASURES.values(), WITHOUT_PRODUCT]


def plain(x: Tensor, p: Tensor, measure: Measure, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    table = measure.pairwise(x, p)
    return measure.nearest(table if mask is None else table.masked_fill(~mask.unsqueeze(-1), measure.farthest), 1)


def draw(drawn: bool, masked: bool, steps: int) -> tuple[Tensor, Tensor, Tensor | None]:
    x = torch.randn(3, steps, 4, dtype=torch.double, requires_grad=True)
    p = torch.randn(*((3,) if drawn else ()), 6, 4, dtype=torch.double, requires_grad=True)
    mask = torch.rand(3, steps) > 0.4 if masked else None
    if mask is not None:
        mask[0], mask[1, 0] = False, True
    return x, p, mask


@pytest.mark.parametrize("measure", CASES, ids=lambda m: m.name)
@pytest.mark.parametrize("drawn", [False, True], ids=["shared", "drawn"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("steps", [1, 5, 11])
def test_values_positions_and_gradients_equal_the_plain_table(
    measure: Measure, drawn: bool, masked: bool, steps: int
) -> None:
    x, p, mask = draw(drawn, masked, steps)
    want, where = plain(x, p, measure, mask)
    real = torch.isfinite(want)
    grad = torch.randn_like(want)
    wanted = torch.autograd.grad(want.masked_fill(~real, 0.0), (x, p), grad, retain_graph=True)
    for budget, exact in itertools.product([None, 64, 3000], [False, True]):
        best, at = best_match(x, p, measure, mask, budget=budget, exact=exact)
        assert torch.allclose(best[real], want[real])
        assert torch.equal(at[real], where[real])
        assert (best[~real] == measure.farthest).all()
        for got, expected in zip(torch.autograd.grad(best, (x, p), grad), wanted, strict=True):
            assert torch.allclose(got, expected)


@pytest.mark.parametrize("measure", CASES, ids=lambda m: m.name)
def test_numerical_gradients(measure: Measure) -> None:
    for steps in (3, 10):  # below and above the size where matched rows are summed without a product
        x, p, _ = draw(False, False, steps)
        assert torch.autograd.gradcheck(lambda x, p: best_match(x, p, measure)[0], (x, p))


def test_gradient_of_equal_vectors_is_exactly_zero() -> None:
    x = torch.rand(4, 20, 128) * 3
    p = x[0, :5].clone()
    for leaf in (x.requires_grad_(), p.requires_grad_()):
        best, _ = best_match(x, p, squared_l2)
        (grad,) = torch.autograd.grad(best[0].sum(), leaf)
        assert best[0].eq(0).all()
        assert grad.eq(0).all()


def test_only_one_side_may_need_gradients() -> None:
    x, p = torch.randn(2, 12, 3, requires_grad=True), torch.randn(4, 3)
    best_match(x, p, squared_l2)[0].sum().backward()
    assert x.grad is not None
    q = p.clone().requires_grad_()
    best_match(x.detach(), q, squared_l2)[0].sum().backward()
    assert q.grad is not None


@pytest.mark.parametrize("exact", [False, True])
def test_the_first_of_equal_tokens_wins(exact: bool) -> None:
    """Also on a picture that is the same everywhere, and where rounding differs between positions."""
    x = torch.rand(1, 1, 33).expand(2, 200, 33).contiguous()
    best, at = best_match(x, torch.rand(70, 33), squared_l2, exact=True)
    assert at.eq(0).all()
    tokens = torch.rand(3, 150, 65)
    tokens[:, 100:] = tokens[:, :50]
    best, at = best_match(tokens, tokens[0, 100:], squared_l2, exact=exact)
    assert torch.equal(at[0], torch.arange(50))
    assert best[0].eq(0).all()


def test_exact_values_do_not_depend_on_what_else_is_in_the_batch() -> None:
    x, p = torch.rand(20, 30, 96), torch.rand(90, 96)
    for measure in (squared_l2, cosine, dot):
        together, at = best_match(x, p, measure, exact=True)
        for i, budget in ((0, None), (7, 5000), (19, 100)):
            alone, where = best_match(x[i : i + 1], p[:50], measure, exact=True, budget=budget)
            assert torch.equal(alone[0], together[i, :50])
            assert torch.equal(where[0], at[i, :50])


def test_exactness_can_be_asked_for_some_pairs_only() -> None:
    x, p = torch.rand(6, 40, 32), torch.rand(30, 32)
    x[:, 20:] = x[:, :20]
    wanted = torch.rand(6, 30) > 0.5
    whole, at = best_match(x, p, squared_l2, exact=True)
    some, where = best_match(x, p, squared_l2, exact=True, among=wanted)
    assert torch.equal(some[wanted], whole[wanted])
    assert torch.equal(where[wanted], at[wanted])
    assert torch.allclose(some, whole, atol=1e-4)
    with pytest.raises(ValueError, match="goes with exact"):
        best_match(x, p, squared_l2, among=wanted)


def test_an_exact_comparison_finds_the_token_a_prototype_equals_whatever_its_length() -> None:
    """Near ties are judged by the size of what was multiplied, so short and long vectors are treated alike."""
    for size in (1e-3, 1.0, 1e3):
        base = torch.randn(1, 1, 64)
        x = size * (base + 1e-4 * torch.randn(1, 120, 64))
        for measure in (squared_l2, cosine):
            best, at = best_match(x, x[0], measure, exact=True)
            paired = measure.paired(x[0].unsqueeze(1), x[0].unsqueeze(0))
            assert torch.equal(best[0], measure.nearest(paired, 0)[0])
            if measure is squared_l2:
                assert torch.equal(at[0], torch.arange(120))
                assert best.eq(0).all()


def test_padding_may_hold_anything() -> None:
    x, p = torch.randn(2, 12, 3), torch.randn(4, 3)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[:, 7:] = False
    want, where = best_match(x[:, :7], p, squared_l2)
    for junk in (float("nan"), float("inf"), 0.0):
        dirty = x.clone()
        dirty[:, 7:] = junk
        dirty.requires_grad_()
        best, at = best_match(dirty, p, squared_l2, mask)
        assert torch.allclose(best, want)
        assert torch.equal(at, where)
        best.sum().backward()
        assert dirty.grad is not None
        assert dirty.grad.isfinite().all()
        assert torch.allclose(all_matches(dirty.detach(), p, squared_l2, mask).amin(1), want, atol=1e-6)


@pytest.mark.parametrize("measure", CASES, ids=lambda m: m.name)
@pytest.mark.parametrize("steps", [1, 3, 12])
@pytest.mark.parametrize("budget", [None, 64])
def test_nan_surfaces(measure: Measure, steps: int, budget: int | None) -> None:
    """A token that is not a number spoils its own input, visibly, and no other."""
    x, p = torch.randn(3, steps, 4), torch.randn(5, 4)
    x[1, steps // 2, 2] = float("nan")
    for exact in (False, True):
        best, at = best_match(x, p, measure, exact=exact, budget=budget)
        assert best[1].isnan().all()
        assert best[[0, 2]].isfinite().all()
        assert ((at >= 0) & (at < steps)).all()


def test_bfloat16_and_autocast_accumulate_in_float32() -> None:
    x, p = torch.randn(2, 30, 64), torch.randn(5, 64)
    want, where = best_match(x, p, squared_l2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        best, at = best_match(x, p, squared_l2)
    assert best.dtype == torch.float32
    assert torch.equal(best, want)
    assert torch.equal(at, where)
    half = best_match(x.bfloat16(), p.bfloat16(), squared_l2)[0]
    assert half.dtype == torch.float32
    assert torch.allclose(half, best_match(x.bfloat16().float(), p.bfloat16().float(), squared_l2)[0])


@pytest.mark.parametrize(
    ("values", "prototypes", "mask", "message"),
    [
        ((2, 0, 3), (4, 3), None, "at least one position"),
        ((2, 5, 3), (4, 2), None, r"\(P, 3\)"),
        ((2, 5, 3), (3, 4, 3), None, "3 sets of prototypes for 2 inputs"),
        ((2, 5, 3), (4, 3), (2, 4), "mask must be bool"),
    ],
)
def test_shapes_that_do_not_fit(
    values: tuple[int, ...], prototypes: tuple[int, ...], mask: tuple[int, ...] | None, message: str
) -> None:
    hidden = None if mask is None else torch.ones(mask, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        best_match(torch.zeros(values), torch.zeros(prototypes), squared_l2, hidden)


def test_no_prototypes_and_no_inputs() -> None:
    for b, p in ((2, 0), (0, 3), (0, 0)):
        x, protos = torch.randn(b, 4, 3, requires_grad=True), torch.randn(p, 3, requires_grad=True)
        best, at = best_match(x, protos, squared_l2)
        assert best.shape == at.shape == (b, p)
        best.sum().backward()
        assert x.grad is not None
        assert x.grad.eq(0).all()


MEMORY = """
import resource, sys, torch
from protolearn.core.matching import best_match
from protolearn.core.measures import squared_l2, cosine
torch.set_num_threads(1)
b, s, d, p, exact = map(int, sys.argv[1:])
for measure in (squared_l2, cosine):  # what is set up once, and code
    warm = torch.rand(4, 12, 8, requires_grad=True)
    best_match(warm, torch.rand(6, 8, requires_grad=True), measure, exact=bool(exact))[0].sum().backward()
x = torch.rand(b, s, d, requires_grad=True)
q = torch.rand(p, d, requires_grad=True)
held = [torch.full((b, p), 1.0) for _ in range(3)]  # results: value, int64 position
grads = [torch.full_like(x, 1.0), torch.full_like(q, 1.0)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
del held, grads
for measure in (squared_l2, cosine):
    best, at = best_match(x, q, measure, exact=bool(exact))
    best.backward(best.detach())
    x.grad = q.grad = best = at = None
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.fixture
def extra() -> Callable[..., float]:
    def measure(*sizes: int) -> float:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *map(str, sizes)], capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    return measure


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.parametrize(
    "sizes",
    [
        (64, 49, 256, 2000, 0),
        (2, 60_000, 256, 16, 0),
        (2000, 1, 512, 3000, 0),
        (4, 3000, 64, 3000, 0),
        (8, 196, 256, 500, 1),
    ],
    ids=["maps", "bags", "vectors", "long", "exact"],
)
def test_extra_memory_stays_under_50_mb(extra: Callable[..., float], sizes: tuple[int, ...]) -> None:
    assert extra(*sizes) < 50


@pytest.mark.parametrize("measure", CASES, ids=lambda m: m.name)
@pytest.mark.parametrize("steps", [4, 9])
def test_padding_may_hold_anything_in_the_backward_pass_too(measure: Measure, steps: int) -> None:
    """Short inputs are summed by a dense product, where 0 times NaN would be NaN."""
    x, p = torch.randn(3, steps, 5), torch.randn(6, 5)
    mask = torch.ones(3, steps, dtype=torch.bool)
    mask[:, -1] = False
    grads = []
    for junk in (0.0, float("nan"), float("inf")):
        dirty, vectors = x.clone(), p.clone().requires_grad_()
        dirty[:, -1] = junk
        dirty.requires_grad_()
        best_match(dirty, vectors, measure, mask)[0].sum().backward()
        assert dirty.grad is not None and vectors.grad is not None
        grads.append((dirty.grad, vectors.grad))
    for tokens, vectors in grads[1:]:
        assert torch.equal(tokens, grads[0][0])
        assert torch.equal(vectors, grads[0][1])


@pytest.mark.parametrize("steps", [4, 9])
def test_padding_does_not_spoil_what_the_neck_learns(steps: int) -> None:
    from protolearn.encoders import FeatureEncoder
    from protolearn.methods import get_method
    from protolearn.structures import Tokens

    model = get_method("protopnet")(prototypes_per_class=2, dim=4).build(FeatureEncoder(6), 3)
    x, mask = torch.randn(3, steps, 6), torch.ones(3, steps, dtype=torch.bool)
    mask[:, -1] = False
    found = []
    for junk in (0.0, float("nan")):
        model.zero_grad()
        out = model.run(Tokens(x.masked_fill(~mask.unsqueeze(-1), junk), mask=mask))
        out.logits.square().sum().backward()
        grads = [q.grad.clone() for q in (*model.neck.parameters(), model.bank.vectors) if q.grad is not None]
        assert len(grads) == 5
        found.append(grads)
    assert all(torch.equal(clean, dirty) for clean, dirty in zip(*found, strict=True))
