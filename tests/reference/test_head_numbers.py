"""Non-parametric and generative heads against numbers from the authors' code (README.md says which)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from protolearn.audit.compatibility import average_accuracy, average_compatibility
from protolearn.core.distances import get_distance, mahalanobis, symmetric_matrix
from protolearn.core.gathering import TriangularMap, centred_unit
from protolearn.core.measures import Distance, dot, squared_l2
from protolearn.core.moments import TokenMoments, cross_covariance
from protolearn.core.neighbours import nearest_rows, neighbour_probabilities
from protolearn.core.similarities import NegativeLog
from protolearn.core.simplex import simplex
from protolearn.core.statistics import ClassStatistics, linear_form
from protolearn.core.votes import Votes, vote, vote_weights
from protolearn.encoders import FeatureEncoder
from protolearn.methods import get_method
from protolearn.objectives.classification import cross_entropy
from protolearn.objectives.compatibility import higher_order_compatibility
from protolearn.objectives.votes import (
    focal,
    hardness,
    log_probabilities,
    vote_likelihood,
    weighted_cross_entropy,
)
from protolearn.structures import Tokens

Numbers = dict[str, Tensor]
Load = Callable[[str], Numbers]


@pytest.fixture
def numbers(reference: Callable[[str], dict[str, np.ndarray]]) -> Load:
    return lambda name: {key: torch.from_numpy(value) for key, value in reference(name).items()}


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).detach().abs().max()) <= tolerance


# -- Nadaraya-Watson ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["euclidean", "hypersphere", "cosine", "dot", "clip"])
def test_votes_of_every_kernel(numbers: Load, kernel: str) -> None:
    want = numbers("nw_head")
    page = get_method("nw-head")(encoder_rate=None, kernel=kernel, balanced=False)
    model = page.build(FeatureEncoder(4), classes=int(want["C"])).double()
    bank = model.bank
    bank.keep(bank.rows(bank.grow(want["s"], torch.eye(3)[want["ys"]], groups=torch.zeros(7))))
    out = model.score(model.embed(Tokens(want["q"].unsqueeze(1))))
    close(log_probabilities(out.logits).detach(), want[f"logp_{kernel}"], 1e-6 if kernel == "clip" else 1e-10)
    if kernel == "euclidean":
        assert isinstance(model.head, Votes)
        close(model.head.weigh(out.similarities), want["weights"])
        present = torch.ones(3, dtype=torch.bool)
        close(vote_likelihood(out.logits, want["y"], present), want["loss_euclidean"])
    close(model.head.ledger(out).sum(2), out.logits)


# -- k nearest neighbours -------------------------------------------------------------------------------------------


def neighbours(want: Numbers, name: str, left_out: Tensor | None = None) -> Tensor:
    mean = want["bank"].mean(0)
    bank, queries = centred_unit(want["bank"], mean), centred_unit(want["q"], mean)
    values, rows = nearest_rows(queries, bank, squared_l2 if name == "l2" else dot, int(want["k"]), left_out=left_out)
    scores = (-values if name == "l2" else values) / float(want["T"])
    return neighbour_probabilities(scores, want["yb"][rows], 3)


def test_neighbours(numbers: Load) -> None:
    want = numbers("knn_augment")
    mean = want["bank"].mean(0)
    bank, queries = centred_unit(want["bank"], mean), centred_unit(want["q"], mean)
    close(-squared_l2.pairwise(queries, bank), want["sim_l2"])
    close(dot.pairwise(queries, bank), want["sim_cos"])
    close(neighbours(want, "l2"), want["p_knn"])
    close(neighbours(want, "cosine"), want["p_knn_cos"])
    close(neighbours(want, "l2", want["self_idx"]), want["p_knn_loo"])
    weights = vote_weights(want["sim_l2"] / want["T"], k=int(want["k"]))
    close(vote(weights, torch.eye(3)[want["yb"]]), want["p_knn"])


def test_neighbours_weigh_the_loss(numbers: Load) -> None:
    want = numbers("knn_augment")
    own = want["p_knn"].gather(1, want["y"].unsqueeze(1)).squeeze(1)
    weights = hardness(own, float(want["coeff"]), cap=100.0)
    close(weighted_cross_entropy(want["logits"], want["y"], weights), want["loss_reg"])
    close(weighted_cross_entropy(want["logits"], want["y"], focal(own, float(want["gamma"]))), want["loss_focal"])


def test_the_mixture_as_the_page_makes_it(numbers: Load) -> None:
    want = numbers("knn_augment")
    page = get_method("knn-augment")(k=int(want["k"]), coefficient=float(want["coeff"]))
    model = page.build(FeatureEncoder(4), classes=3).double()
    model.neck.layers.mean.copy_(want["bank"].mean(0))
    cases = model.neck.layers(want["bank"])
    model.bank.grow(cases, torch.eye(3)[want["yb"]], groups=torch.ones(15))
    out = model.run(Tokens(want["q"].unsqueeze(1)))
    # the classifier's weights are such that it gives the reference logits
    solved = torch.linalg.lstsq(torch.cat([want["q"], torch.ones(4, 1).double()], 1), want["logits"]).solution
    with torch.no_grad():
        model.head.classifier.weight.copy_(solved[:4].T)
        model.head.classifier.bias.copy_(solved[4])
    close(model.head.classify(out).detach(), want["logits"], 1e-9)
    close(model.head.read(out).detach(), want["mix"], 1e-9)
    close(model.head.ledger(out).sum(2).detach(), want["mix"], 1e-9)


# -- naive Bayes ----------------------------------------------------------------------------------------------------


def test_naive_bayes(numbers: Load) -> None:
    want = numbers("naive_bayes_head")
    statistics = ClassStatistics(3, 4).update(want["X1"], want["y1"])
    close(statistics.moments.means, want["mu1"])
    close(statistics.moments.variances + 1e-9, want["var1"])
    close(statistics.shared_gaussian().log_prior.exp(), want["prior1"])
    statistics.merge(ClassStatistics(3, 4).update(want["X2"], want["y2"]))
    close(statistics.moments.means, want["mu2"])
    close(statistics.moments.variances + 1e-9, want["var2"])
    close(statistics.moments.counts, want["counts2"].double())
    gaussian = statistics.shared_gaussian(1e-9)
    close(gaussian.variance, want["pooled"])
    close(gaussian.log_prior.exp(), want["prior2"])
    weight, bias = linear_form(gaussian)
    close(weight, want["W"])
    close(bias, want["b"])


def test_naive_bayes_scores_as_the_page_makes_them(numbers: Load) -> None:
    want = numbers("naive_bayes_head")
    page = get_method("naive-bayes-head")(relative=False)
    model = page.build(FeatureEncoder(4), classes=3).double()
    parts = [(Tokens(want[f"X{i}"].unsqueeze(1)), want[f"y{i}"]) for i in (1, 2)]
    page.initialise(model, parts, 0)
    out = model.run(Tokens(want["Q"].unsqueeze(1)))
    close(out.logits.detach(), want["scores"], 1e-7)
    close(model.head.probabilities(out.logits).detach(), want["posterior"], 1e-7)
    assert torch.equal(out.logits.argmax(1), want["pred"])
    close((model.head.ledger(out).sum(2) + model.head.offset()).detach(), want["scores"], 1e-7)


# -- moments --------------------------------------------------------------------------------------------------------


def moments(want: Numbers, centre: str) -> TokenMoments:
    made = TokenMoments(5, hidden=36, heads=4, centre=centre).double()  # type: ignore[arg-type]
    given = {
        "project.weight": "pw", "project.bias": "pb", "norm.weight": "lnw", "norm.bias": "lnb",
        "compress.0.weight": "cw1", "compress.2.weight": "cw2",
    }  # fmt: skip
    made.load_state_dict({name: want[key] for name, key in given.items()})
    return made


@pytest.mark.parametrize(("centre", "name"), [("scalar", "covs"), ("channel", "covs_paper")])
def test_covariances(numbers: Load, centre: str, name: str) -> None:
    want = numbers("moment_probing")
    close(moments(want, centre).covariances(want["X"][:, 1:]).detach(), want[name], 1e-9)


def test_logits_of_both_moments(numbers: Load) -> None:
    want = numbers("moment_probing")
    model = get_method("moment-probing")(hidden=36, centre="scalar").build(FeatureEncoder(5), classes=3).double()
    model.neck = moments(want, "scalar")
    with torch.no_grad():
        model.bank.vectors.zero_()
        model.bank.vectors[:3, :5], model.bank.vectors[3:, 5:] = want["c1w"], want["c2w"]
        model.head.bias.copy_((want["c1b"] + want["c2b"]) / 2)
    out = model.run(Tokens(want["X"][:, 1:], summary=want["cls"]))
    assert out.tokens is not None
    close(out.tokens.values[:, 0, 5:].detach(), want["flat"], 1e-9)
    close(out.logits.detach(), want["logits"], 1e-9)


def test_a_mask_leaves_positions_out() -> None:
    values = torch.rand(2, 6, 3, dtype=torch.double)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    padded = values.masked_fill(~mask.unsqueeze(-1), float("nan"))
    close(cross_covariance(padded, padded, mask), cross_covariance(values[:, :4], values[:, :4]))


# -- inverse powers of distances ------------------------------------------------------------------------------------

LAYERS = {  # the code's name: ours, eps
    "euclidean": ("squared_l2", 1e-4), "manhattan": ("manhattan", 1e-4), "cosine": ("cosine_distance", 1e-4),
    "hamming_soft": ("hamming_soft", 1e-8), "hamming_hard": ("hamming_hard", 1e-8),
    "chebyshev": ("chebyshev_soft", 1e-8), "chebyshev_smooth": ("chebyshev_smooth", 1e-8),
    "canberra": ("canberra", 1e-8), "canberra_weighted": ("canberra_weighted", 1e-8),
    "braycurtis": ("bray_curtis_signed", 1e-3), "braycurtis_abs": ("bray_curtis_abs", 1e-3),
    "braycurtis_normalized": ("bray_curtis_shares", 1e-3),
}  # fmt: skip


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_layers_of_the_code(numbers: Load, layer: str) -> None:
    want = numbers("harmonic")
    name, eps = LAYERS[layer]
    measure = get_distance(name)
    both = measure.pairwise(want["X"], want["W"]), measure.paired(want["X"].unsqueeze(1), want["W"])
    for distances in both:
        # hard bits may all agree: distance 0 is 1e-8 there, and the tolerance is that of a logarithm near it
        logits = NegativeLog(float(want["n"]), eps)(distances)
        close(logits.softmax(1), want[f"prob_{layer}"], 1e-7)
        reference = F.cross_entropy((want[f"prob_{layer}"] + 1e-8).log(), want["y"])
        close(reference, want[f"loss_{layer}"], 1e-12)
        close(cross_entropy(logits, want["y"]), want[f"loss_{layer}"], 2e-7 * 4)


def test_the_codes_minkowski_adds_eps_three_times(numbers: Load) -> None:
    from protolearn.core.distances import minkowski

    want = numbers("harmonic")
    distances = minkowski(1.5, eps=1e-4).pairwise(want["X"], want["W"])
    close((1 / distances), want["out_minkowski"])
    model = get_method("harmonic")(distance="minkowski", encoder_rate=None).build(FeatureEncoder(5), classes=3).double()
    with torch.no_grad():
        model.bank.vectors.copy_(want["W"])
        out = model.run(Tokens(want["X"].unsqueeze(1)))
    close(out.logits.softmax(1), want["prob_minkowski"], 1e-7)  # the page is the code's layer
    close(cross_entropy(out.logits, want["y"]), want["loss_minkowski"], 1e-6)


@pytest.mark.parametrize("kind", ["mahalanobis", "mahalanobis_diagonal", "mahalanobis_cholesky"])
def test_mahalanobis(numbers: Load, kind: str) -> None:
    want = numbers("harmonic")
    eye = torch.eye(5, dtype=torch.double)
    triangle = torch.tril(want["Pl"], -1) + torch.diag(want["Pl"].diagonal().clamp_min(1e-6))
    matrix = {
        "mahalanobis": symmetric_matrix(want["Pm"], 1e-2, 1e-5),
        "mahalanobis_diagonal": torch.diag(want["Pd"].exp() + 1e-6),
        "mahalanobis_cholesky": triangle @ triangle.T + 1e-6 * eye,
    }[kind]
    distances = mahalanobis(want["X"], want["W"], matrix, eps=1e-6)
    close(1 / (distances + 1e-6), want[f"out_{kind}"])
    close((-(distances + 1e-6).log()).softmax(1), want[f"prob_{kind}"])


def test_mahalanobis_as_the_page_makes_it(numbers: Load) -> None:
    """Euclid's distance after a map; the code's 1e-6 on the diagonal of ``L L'`` is left out."""
    want = numbers("harmonic")
    page = get_method("harmonic")(distance="mahalanobis_cholesky", encoder_rate=None)
    model = page.build(FeatureEncoder(5), classes=3).double()
    assert isinstance(model.neck.layers, TriangularMap)
    with torch.no_grad():
        model.neck.layers.free.copy_(want["Pl"])
        model.bank.vectors.copy_(model.neck.layers(want["W"]))
    out = model.run(Tokens(want["X"].unsqueeze(1)))
    close(out.logits.softmax(1).detach(), want["prob_mahalanobis_cholesky"], 1e-5)


TEXTBOOK = {
    "euclidean": "l2", "manhattan": "manhattan", "cosine": "cosine_distance", "minkowski": "minkowski",
    "chebyshev": "chebyshev", "canberra": "canberra", "braycurtis": "bray_curtis",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TEXTBOOK))
def test_textbook_distances(numbers: Load, name: str) -> None:
    want, measure = numbers("harmonic"), get_distance(TEXTBOOK[name])
    assert isinstance(measure, Distance)
    close(measure.pairwise(want["X"], want["W"]), want[f"true_{name}"])
    close(measure.paired(want["X"].unsqueeze(1), want["W"]), want[f"true_{name}"])


# -- simplex --------------------------------------------------------------------------------------------------------


def test_simplex_and_compatibility(numbers: Load) -> None:
    want = numbers("d_simplex")
    vertices = simplex(5, torch.double)
    close(vertices, want["W"], 3e-8)  # the code divides by norm + 1e-8
    close(F.linear(want["z"], want["W"]), want["logits"])
    close(cross_entropy(F.linear(want["z"], vertices), want["y"]), want["L_ce"], 1e-7)
    new = want["z_new"].clone().requires_grad_()
    loss = higher_order_compatibility(new, want["z_old"], want["y"], scale=float(want["mu"]))
    close(loss.detach(), want["L_hoc"])
    masked = higher_order_compatibility(new, want["z_old"], want["y"], scale=float(want["mu"]), leave_out=True)
    close(masked.detach(), want["L_hoc_masked"])
    lam = float(want["lam"])
    close(lam * want["L_ce"] + (1 - lam) * loss.detach(), want["total"])
    assert average_compatibility(want["M"]) == pytest.approx(float(want["AC"]), abs=1e-12)
    scores = torch.where(want["M"] == 0, float("nan"), want["M"])  # the code's mark of "not evaluated"
    assert average_accuracy(scores) == pytest.approx(float(want["AM"]), abs=1e-12)


def test_simplex_gradient(numbers: Load) -> None:
    """The code takes features as unit vectors already; ours are scaled first, which leaves the tangent part."""
    want = numbers("d_simplex")
    new = want["z_new"].clone().requires_grad_()
    higher_order_compatibility(new, want["z_old"], want["y"], scale=float(want["mu"])).backward()
    given = want["grad_new"]
    tangent = given - (given * want["z_new"]).sum(1, keepdim=True) * want["z_new"]
    assert new.grad is not None
    close(new.grad, tangent, 1e-9)
