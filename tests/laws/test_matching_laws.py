"""Laws of comparing, matching, pooling and weighing, for any size, mask and measure."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import bank_for, model_of, seeds, token_sets
from torch import Tensor

from protolearn.core import pooling
from protolearn.core.bank import PrototypeBank
from protolearn.core.matching import all_matches, best_match
from protolearn.core.measures import MEASURES, Distance, Measure, cosine, squared_l2
from protolearn.core.pooling import Pooling, max_pool
from protolearn.core.similarities import Exponential, LogRatio, Negative
from protolearn.structures import Tokens

measures = st.sampled_from(list(MEASURES.values()))
POOLINGS: dict[str, Pooling] = {
    "max": pooling.max_pool,
    "mean": pooling.mean_pool,
    "sum": pooling.sum_pool,
    "top_k": partial(pooling.top_k_pool, k=3),
    "log_sum_exp": partial(pooling.log_sum_exp_pool, sharpness=2.0),
    "noisy_or": pooling.noisy_or_pool,
}


@given(token_sets(masked=False), seeds)
def test_a_distance_is_zero_between_equals_only_and_never_negative(tokens: Tokens, seed: int) -> None:
    x = tokens.values
    own, _ = best_match(x, x, squared_l2)
    assert own.eq(0).all()
    assert all_matches(x, x, squared_l2).diagonal(dim1=1, dim2=2).eq(0).all()
    other = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)) * x.abs().amax() * 1e-3
    best, _ = best_match(x[:, :1], other[:, :1], squared_l2)
    assert (best > 0).all()
    assert (all_matches(x, other, squared_l2) >= 0).all()


@given(token_sets(), seeds, measures, st.booleans(), st.booleans(), st.integers(1, 600))
def test_chunked_equals_unchunked(
    tokens: Tokens, seed: int, measure: Measure, drawn: bool, exact: bool, budget: int
) -> None:
    p = bank_for(tokens, seed, drawn=drawn).vectors.detach()
    whole, at = best_match(tokens.values, p, measure, tokens.mask, exact=exact)
    parts, where = best_match(tokens.values, p, measure, tokens.mask, exact=exact, budget=budget)
    size = float(tokens.values.abs().amax() + p.abs().amax())
    assert torch.allclose(whole, parts, rtol=1e-5, atol=1e-6 * size**2)
    if exact:
        assert torch.equal(whole, parts)
        assert torch.equal(at.where(whole.isfinite(), at[0, 0]), where.where(whole.isfinite(), at[0, 0]))


@given(token_sets(masked=True), seeds, measures)
def test_a_masked_position_never_wins_and_never_counts(tokens: Tokens, seed: int, measure: Measure) -> None:
    assert tokens.mask is not None
    p = bank_for(tokens, seed).vectors.detach()
    best, at = best_match(tokens.values, p, measure, tokens.mask)
    real = tokens.mask.any(1)
    assert tokens.mask.gather(1, at)[real].all()
    assert (best[~real] == measure.farthest).all()
    # whatever is written there
    changed = tokens.values.masked_fill(~tokens.mask.unsqueeze(-1), 1e3)
    again, where = best_match(changed, p, measure, tokens.mask)
    assert torch.equal(best, again)
    assert torch.equal(at, where)


@given(token_sets(), seeds, measures)
def test_permuting_positions_leaves_the_match_and_maps_its_place(tokens: Tokens, seed: int, measure: Measure) -> None:
    p = bank_for(tokens, seed).vectors.detach()
    order = torch.randperm(tokens.values.shape[1], generator=torch.Generator().manual_seed(seed))
    mask = None if tokens.mask is None else tokens.mask[:, order]
    best, at = best_match(tokens.values, p, measure, tokens.mask, exact=True)
    shuffled, where = best_match(tokens.values[:, order], p, measure, mask, exact=True)
    assert torch.equal(best, shuffled)
    table = all_matches(tokens.values, p, measure, tokens.mask)
    tied = (table - table.gather(1, at.unsqueeze(1))).abs().le(1e-5 * (1 + best.abs().unsqueeze(1))).sum(1) > 1
    assert (torch.equal(order[where], at)) or (tied | best.isinf())[order[where] != at].all()


@given(token_sets(), seeds)
def test_cosine_does_not_see_lengths(tokens: Tokens, seed: int) -> None:
    p = bank_for(tokens, seed).vectors.detach()
    factor = torch.rand(tokens.values.shape[:2], generator=torch.Generator().manual_seed(seed)).unsqueeze(-1) + 0.5
    want = all_matches(tokens.values, p, cosine)
    assert torch.allclose(all_matches(tokens.values * factor, p * 7.0, cosine), want, atol=1e-5)
    assert (want.abs() <= 1 + 1e-5).all()


@pytest.mark.parametrize("name", POOLINGS)
@given(token_sets(masked=True), seeds)
def test_pooling_sees_real_positions_only(name: str, tokens: Tokens, seed: int) -> None:
    assert tokens.mask is not None
    pool, table = POOLINGS[name], torch.rand(*tokens.mask.shape, 3, generator=torch.Generator().manual_seed(seed))
    got = pool(table, tokens.mask)
    junk = table.masked_fill(~tokens.mask.unsqueeze(-1), float("nan"))
    assert torch.equal(got, pool(junk, tokens.mask))
    order = torch.randperm(table.shape[1], generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(got, pool(table[:, order], tokens.mask[:, order]), atol=1e-6)
    for b, kept in enumerate(tokens.mask):
        alone = pool(table[b : b + 1, kept]) if kept.any() else None
        if alone is not None:
            assert torch.allclose(got[b], alone[0], atol=1e-6)
        else:
            assert (got[b] == (float("-inf") if name in ("max", "log_sum_exp") else 0.0)).all()


def test_pooling_by_hand() -> None:
    table = torch.tensor([[[0.1], [0.5], [0.3], [0.9]]])
    assert pooling.mean_pool(table).item() == pytest.approx(0.45)
    assert pooling.top_k_pool(table, k=2).item() == pytest.approx(0.7)
    assert pooling.noisy_or_pool(table).item() == pytest.approx(1 - 0.9 * 0.5 * 0.7 * 0.1)
    want = torch.log(torch.exp(3 * table).mean()) / 3
    assert pooling.log_sum_exp_pool(table, sharpness=3.0).item() == pytest.approx(want.item())


def test_log_ratio_at_zero_far_away_and_between() -> None:
    similar = LogRatio()
    assert similar(torch.tensor(0.0)).item() == pytest.approx(9.2103, abs=5e-5)
    assert similar(torch.tensor(float("inf"))).item() == 0.0
    d = torch.logspace(-6, 6, 500, dtype=torch.double)
    assert torch.allclose(similar(d), torch.log((d + 1) / (d + 1e-4)))


@given(st.lists(st.floats(0, 1e6, width=32), min_size=2, max_size=9))
def test_similarities_never_rise_with_distance(distances: list[float]) -> None:
    d = torch.tensor(distances).sort().values
    for falls in (LogRatio(), Negative(), Exponential(3.0)):
        assert (falls(d).diff() <= 0).all()


@given(token_sets(), seeds, measures, st.sampled_from(sorted(POOLINGS)))
def test_contributions_sum_to_the_logit(tokens: Tokens, seed: int, measure: Measure, name: str) -> None:
    model = model_of(bank_for(tokens, seed), measure, POOLINGS[name])
    with torch.no_grad():
        out = model.score(tokens)
        total = model.head.contributions(out.evidence).sum(2) + model.head.offset()
        size = model.head.contributions(out.evidence).abs().sum(2) + 1
    assert out.logits.isfinite().all()
    assert ((total - out.logits).abs() <= 1e-5 * size).all()


@given(
    token_sets(), seeds, st.sampled_from([squared_l2, cosine]), st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3))
)
def test_banned_and_inactive_prototypes_bring_nothing(
    tokens: Tokens, seed: int, measure: Measure, banned: set[int], idle: set[int]
) -> None:
    model = model_of(bank_for(tokens, seed), measure)
    with torch.no_grad():
        before = model.score(tokens)
        model.bank.ban(sorted(banned))
        model.bank.active[sorted(idle)] = False
        out = model.score(tokens)
        gone = sorted(banned | idle)
        assert out.evidence[:, gone].eq(0).all()
        assert out.similarities[:, gone].eq(float("-inf")).all()
        if isinstance(measure, Distance):
            assert out.distances is not None
            assert out.distances[:, gone].eq(float("inf")).all()
        assert not model.bank.owned_by(torch.tensor([0, 1]))[:, gone].any()
        zeroed = model.head.weight.clone()
        zeroed[:, gone] = 0.0
        assert torch.allclose(out.logits, before.evidence @ zeroed.T, atol=1e-4)
        model.bank.unban(sorted(banned))
        model.bank.active[:] = True
        assert torch.equal(model.score(tokens).logits, before.logits)


@given(token_sets(), seeds, measures)
def test_pruning_equals_zeroed_columns(tokens: Tokens, seed: int, measure: Measure) -> None:
    model = model_of(bank_for(tokens, seed), measure)
    with torch.no_grad():
        evidence = model.score(tokens).evidence
        weight = model.head.weight.clone()
        weight[:, [1, 2]] = 0.0
        model.prune([1, 2])
        assert torch.allclose(model.score(tokens).logits, evidence @ weight.T, rtol=1e-4, atol=1e-4)


@given(token_sets(), seeds, measures)
def test_prototypes_drawn_for_each_input_score_and_backpropagate(tokens: Tokens, seed: int, measure: Measure) -> None:
    bank = bank_for(tokens, seed, drawn=True)
    source = bank.vectors.clone().requires_grad_()
    model = model_of(PrototypeBank(source * 2.0, bank.ownership), measure)
    x = tokens.values.clone().requires_grad_()
    out = model.score(tokens.replace(values=x))
    for b in range(len(x)):
        single = None if tokens.mask is None else tokens.mask[b : b + 1]
        one = model_of(PrototypeBank(source[b].detach() * 2.0, bank.ownership), measure).score(
            Tokens(x[b : b + 1], single)
        )
        assert torch.allclose(one.logits[0], out.logits[b], rtol=1e-4, atol=1e-3)
    out.logits.sum().backward()
    for leaf in (x, source):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert not [name for name in model.state_dict() if name == "bank.vectors"]


@given(token_sets(masked=False), seeds, measures)
def test_one_of_everything(tokens: Tokens, seed: int, measure: Measure) -> None:
    """One class, one prototype of it, one position, one input."""
    one = Tokens(tokens.values[:1, :1])
    model = model_of(bank_for(one, seed, classes=1, per_class=1), measure)
    out = model.score(one)
    assert out.logits.shape == (1, 1)
    assert out.positions.tolist() == [[0]]
    out.logits.sum().backward()
    assert torch.isfinite(out.logits).all()


@pytest.mark.parametrize("name", POOLINGS)
def test_nan_surfaces_in_the_logits_of_its_own_input(name: str) -> None:
    values = torch.rand(3, 9, 4)
    values[1, 5, 0] = float("nan")
    for measure in (squared_l2, cosine):
        model = model_of(bank_for(Tokens(torch.rand(3, 9, 4)), 0), measure, POOLINGS[name])
        logits = model.score(Tokens(values)).logits
        assert logits[1].isnan().all()
        assert logits[[0, 2]].isfinite().all()


def test_autocast_changes_no_comparison() -> None:
    x = torch.randn(2, 30, 64)
    bank = bank_for(Tokens(x), 0)
    for measure in MEASURES.values():
        want: Tensor = all_matches(x, bank.vectors.detach(), measure)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = all_matches(x, bank.vectors.detach(), measure)
            pooled, _ = best_match(x, bank.vectors, measure)
        assert got.dtype == pooled.dtype == torch.float32
        assert torch.equal(got, want)
        assert torch.allclose(pooled, measure.nearest(want, 1)[0], rtol=1e-5)


@pytest.fixture
def coarse_products() -> Iterator[None]:
    """Let matrix products drop digits, as Lightning advises on graphics cards and some processors do too."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def test_coarse_matrix_products_change_no_comparison(coarse_products: None) -> None:
    x, p = torch.rand(4, 30, 256), torch.rand(60, 256)
    want = squared_l2.paired(x.double().unsqueeze(2), p.double())
    for table in (all_matches(x, p, squared_l2), all_matches(x, p, squared_l2, exact=False)):
        assert torch.allclose(table.double(), want, atol=1e-3)
    assert torch.allclose(best_match(x, p, squared_l2)[0].double(), want.amin(1), atol=1e-4)
    leaf = x.clone().requires_grad_()
    best, at = best_match(leaf, p, squared_l2)
    best.sum().backward()
    hits = x.new_zeros(4, 30, 60).scatter_(1, at.unsqueeze(1), 1.0)
    expected = 2 * (hits.sum(2, keepdim=True) * x - (hits.unsqueeze(-1) * p).sum(2))
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, expected, atol=1e-4)
    assert torch.get_float32_matmul_precision() == "medium"


def test_max_pooling_by_matching_equals_the_table() -> None:
    tokens = Tokens(torch.randn(3, 20, 8), torch.rand(3, 20) > 0.2)
    for measure in (squared_l2, cosine):
        model = model_of(bank_for(tokens, 1), measure)
        maps = model.maps(tokens)
        table = model.similarity(all_matches(tokens.values, model.bank.vectors.detach(), measure, tokens.mask))
        assert torch.equal(maps, table.transpose(1, 2))
        assert torch.allclose(max_pool(table, tokens.mask), model.score(tokens).similarities, atol=1e-5)
