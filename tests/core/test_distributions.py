"""Laws of prototypes that are distributions, of what is drawn from them, and of what the draws say about doubt."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.distributions import LawKind, MixtureLaw, PrototypeLaw, make_law
from protolearn.core.gaussians import class_moments, factor_of
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.sampling import calibrate_refusal, contribution_spread, draw, predictive, sampled_evidence
from protolearn.core.similarities import Negative
from protolearn.core.uncertainty import Refusal, decompose
from protolearn.encoders import FeatureEncoder
from protolearn.errors import UsageError
from protolearn.structures import Tokens

KINDS: tuple[LawKind, ...] = ("diagonal", "full", "mixture")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitted(kind: LawKind, seed: int = 0, count: int = 2) -> tuple[PrototypeLaw, torch.Tensor]:
    """Return a law of prototypes in three dimensions, each fitted to codes of its own, and their vectors."""
    g = generator(seed)
    law, vectors = make_law(kind, count, 3, generator=g), torch.zeros(count, 3)
    for row in range(count):
        codes = torch.randn(200, 3, generator=g) @ torch.randn(3, 3, generator=g) + 2 * row
        vectors[row] = law.fit(row, codes, g)
    return law, vectors


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_moments_of_the_law(kind: LawKind) -> None:
    law, vectors = fitted(kind)
    drawn = law.sample(vectors, 20_000, generator(1)).detach()
    covariance = law.covariance().detach()
    shift = torch.zeros_like(vectors)
    if isinstance(law, MixtureLaw):
        shift = (law.shares()[:, 1:] * law.offset).detach()
    torch.testing.assert_close(drawn.mean(0), vectors + shift, atol=0.1, rtol=0)
    for row in range(2):
        torch.testing.assert_close(torch.cov(drawn[:, row].T), covariance[row], atol=0.25, rtol=0.06)


@pytest.mark.parametrize("kind", KINDS)
def test_densities_agree_with_torch_distributions(kind: LawKind) -> None:
    law, vectors = fitted(kind)
    codes = torch.randn(5, 3)
    if isinstance(law, MixtureLaw):
        factors = law.raw.tril(-1) + torch.diag_embed(nn.functional.softplus(law.raw.diagonal(dim1=-2, dim2=-1)) + 1e-5)
        means = torch.stack([vectors, vectors + law.offset], dim=1)
        wanted = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(law.shares()),
            torch.distributions.MultivariateNormal(means, scale_tril=factors),
        ).log_prob(codes.unsqueeze(1))
    else:
        wanted = torch.distributions.MultivariateNormal(vectors, law.covariance()).log_prob(codes.unsqueeze(1))
    torch.testing.assert_close(law.log_prob(vectors, codes), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_keeps_mean_and_covariance_of_the_codes(kind: LawKind) -> None:
    """Of a mixture, of its two parts together."""
    codes = torch.randn(300, 3, generator=generator(2)) @ torch.tensor(
        [[1.0, 0.3, 0.0], [0.0, 2.0, 0.5], [0.0, 0.0, 0.7]]
    )
    law = make_law(kind, 1, 3, generator=generator())
    vector = law.fit(0, codes, generator())
    moments = class_moments(codes, torch.zeros(300, dtype=torch.long), 1)
    covariance, mean = law.covariance()[0].detach(), vector
    if isinstance(law, MixtureLaw):
        assert float(law.shares()[0, 0].detach()) >= 0.5
        mean = vector + (law.shares()[0, 1] * law.offset[0]).detach()
    torch.testing.assert_close(mean, moments.means[0], atol=1e-4, rtol=0)
    wanted = moments.covariances[0]
    if kind == "diagonal":
        wanted = torch.diag(wanted.diagonal())
    torch.testing.assert_close(covariance, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_fit_to_next_to_nothing_is_finite(kind: LawKind, count: int) -> None:
    law = make_law(kind, 1, 4, generator=generator())
    vector = law.fit(0, torch.ones(count, 4), generator(), 0.01)
    assert torch.equal(vector, torch.ones(4))
    density = law.log_prob(vector.unsqueeze(0), torch.zeros(2, 4))
    assert density.isfinite().all()
    density.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in law.parameters())


def test_a_floor_raises_what_hardly_varies_and_nothing_else() -> None:
    covariance = torch.diag(torch.tensor([1.0, 2.0, 0.0]))
    factor = factor_of(covariance, 0.01)
    torch.testing.assert_close(factor @ factor.T, torch.diag(torch.tensor([1.0, 2.0, 0.01])))
    exact = factor_of(torch.diag(torch.tensor([1.0, 2.0, 0.5])), 0.01)
    torch.testing.assert_close(exact @ exact.T, torch.diag(torch.tensor([1.0, 2.0, 0.5])))
    with pytest.raises(ValueError, match="NaN"):
        factor_of(torch.full((2, 2), float("nan")))


def test_moments_of_a_class_without_codes_are_marked() -> None:
    found = class_moments(torch.rand(3, 2), torch.tensor([0, 2, -1]), 4)
    assert found.counts.tolist() == [1, 0, 1, 0]
    assert found.means[1].eq(0).all()
    assert not found.covariances.isnan().any()


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_multiplies_every_covariance(kind: LawKind) -> None:
    law, _ = fitted(kind)
    before = law.covariance().detach()
    law.scale_by(4.0)
    torch.testing.assert_close(law.covariance().detach(), 4 * before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_law_is_pruned_grown_and_saved_with_its_bank(kind: LawKind) -> None:
    law, vectors = fitted(kind, count=4)
    bank = PrototypeBank(vectors, torch.eye(4), law=law)
    codes = torch.randn(6, 3)
    before = law.log_prob(bank.vectors, codes)
    bank.prune([1])
    torch.testing.assert_close(law.log_prob(bank.vectors, codes), before[:, [0, 2, 3]])
    bank.grow(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
    assert law.sample(bank.vectors, 5, generator()).shape == (5, 4, 3)
    assert all(p.requires_grad for p in law.parameters())
    other = PrototypeBank(torch.zeros(9, 3), torch.ones(9, 4), law=make_law(kind, 9, 3, generator=generator()))
    other.load_state_dict(bank.state_dict())
    assert other.law is not None
    torch.testing.assert_close(other.law.log_prob(other.vectors, codes), law.log_prob(bank.vectors, codes))


def model(kind: LawKind = "full", scale: float = 1.0) -> PrototypeModel:
    law, vectors = fitted(kind, count=3)
    law.scale_by(scale)
    bank = PrototypeBank(vectors, torch.eye(3), law=law)
    head = LinearEvidence.from_ownership(bank.ownership, own=0.2, other=0.0)
    return PrototypeModel(FeatureEncoder(3), nn.Identity(), bank, squared_l2, head, similarity=Negative())


def tokens(count: int = 8) -> Tokens:
    return Tokens(2 * torch.randn(count, 1, 3, generator=generator(5)) + 2)


@pytest.mark.parametrize("kind", KINDS)
def test_without_variance_the_averaged_prediction_is_the_point_models(kind: LawKind) -> None:
    one = model(kind, scale=1e-12)
    out = one.score(tokens())
    found = predictive(one, tokens(), 7, generator())
    torch.testing.assert_close(found.mean, out.logits.softmax(1), rtol=1e-3, atol=2e-3)
    points = PrototypeModel(
        one.encoder,
        one.neck,
        PrototypeBank(one.bank.vectors, torch.eye(3)),
        squared_l2,
        one.head,
        similarity=Negative(),
    )
    torch.testing.assert_close(points.score(tokens()).logits, out.logits, rtol=1e-5, atol=1e-5)
    assert float(found.uncertainty.epistemic.max()) < 1e-4


def test_the_averaged_prediction_settles_as_one_over_the_draws() -> None:
    one, g = model(), generator(7)

    def variance(samples: int) -> float:
        runs = torch.stack([predictive(one, tokens(), samples, g).mean for _ in range(120)])
        return float(runs.var(0).mean())

    few, many = variance(4), variance(64)
    assert few / many == pytest.approx(16, rel=0.35)


def test_more_variance_is_more_epistemic_uncertainty() -> None:
    plain, wide = (predictive(model(scale=s), tokens(40), 200, generator()).uncertainty for s in (1.0, 4.0))
    assert float(wide.epistemic.mean()) > float(plain.epistemic.mean())


@given(st.integers(1, 4), st.integers(1, 6), st.integers(2, 5), st.integers(0, 10**6))
def test_uncertainty_parts_are_not_negative_and_add_up(batch: int, samples: int, classes: int, seed: int) -> None:
    logits = 5 * torch.randn(batch, samples, classes, generator=generator(seed), dtype=torch.double)
    found = decompose(logits.softmax(-1))
    assert (found.epistemic >= 0).all()
    assert (found.aleatoric >= 0).all()
    torch.testing.assert_close(found.total, found.aleatoric + found.epistemic)
    assert (found.total <= torch.tensor(classes, dtype=torch.double).log() + 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_of_draws_add_up_and_their_interval_holds_them(kind: LawKind) -> None:
    one, shown = model(kind), tokens(3)
    spread = contribution_spread(one, shown, 400, generator(1), level=0.8)
    evidence = sampled_evidence(one.bank, shown, draw(one, 400, generator(1)), squared_l2, Negative())
    logits = one.head(evidence)
    torch.testing.assert_close(spread.mean.sum(-1) + one.head.offset(), logits.mean(1), rtol=1e-4, atol=1e-4)
    every = one.head.contributions(evidence.flatten(0, 1)).view(3, 400, 3, 3)
    inside = ((every >= spread.low.unsqueeze(1)) & (every <= spread.high.unsqueeze(1))).float().mean(1)
    changing = spread.high > spread.low
    torch.testing.assert_close(inside[changing], torch.full_like(inside[changing], 0.8), atol=0.02, rtol=0)


def test_banned_prototypes_bring_nothing_in_any_draw() -> None:
    one = model()
    one.bank.ban([1])
    evidence = sampled_evidence(one.bank, tokens(), draw(one, 5, generator()), squared_l2, Negative())
    assert evidence[..., 1].eq(0).all()
    assert evidence[..., 0].ne(0).all()


def test_points_have_nothing_to_draw_from() -> None:
    bank = PrototypeBank(torch.eye(3), torch.eye(3))
    head = LinearEvidence.from_ownership(bank.ownership)
    points = PrototypeModel(FeatureEncoder(3), nn.Identity(), bank, squared_l2, head, similarity=Negative())
    with pytest.raises(UsageError, match="points"):
        predictive(points, tokens())
    with pytest.raises(UsageError, match="samples"):
        predictive(model(), tokens(), 0)


def test_refusal_refuses_the_doubtful_share_and_is_kept_in_the_metadata() -> None:
    one = model()
    rule = calibrate_refusal(one, tokens(200), 0.9, generator=generator(3))
    doubt = predictive(one, tokens(200), 30, generator(3)).uncertainty
    assert float(rule(doubt).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert Refusal.from_dict(one.metadata["refusal"]) == rule
    with pytest.raises(UsageError, match="epistemic"):
        calibrate_refusal(one, tokens(), score="epistmic")
    with pytest.raises(UsageError, match="quantile"):
        calibrate_refusal(one, tokens(), 1.5)
    with pytest.raises(UsageError, match="finite"):
        Refusal.calibrate(torch.tensor([float("nan")]))
