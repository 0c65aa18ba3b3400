"""ProtoGCD: the authors' numbers, what its terms do, and new digits found among unlabelled ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from protolearn.audit.discovery import discovery_score
from protolearn.core.bank import PrototypeBank, unit_norm
from protolearn.core.discovery import seeded_k_means
from protolearn.core.heads import FixedEvidence
from protolearn.core.method import Ramp, Train
from protolearn.core.updates import k_means
from protolearn.data import features
from protolearn.encoders import FeatureEncoder
from protolearn.errors import UsageError
from protolearn.methods.discovery.protogcd import ProtoGCD
from protolearn.objectives.self_labelling import adaptive_targets, cross_view, crowding, uneven_use
from protolearn.structures import Output, Tokens
from protolearn.training.fit import Fit, fit

Reference = Callable[[str], dict[str, np.ndarray]]
OLD = (0, 1, 2, 3, 4)
SMALL: dict[str, Any] = {"hidden": 128, "projection": 64, "epochs": 30, "hard_epochs": 15}


@pytest.fixture
def want(reference: Reference) -> dict[str, Tensor]:
    return {name: torch.from_numpy(a) for name, a in reference("protogcd").items() if a.dtype.kind in "fib"}


def output(want: dict[str, Tensor]) -> Output:
    """Return the two views of the reference as a model's output."""
    logits = want["logits"].clone().requires_grad_()
    bank = PrototypeBank(want["w"], torch.eye(len(want["w"])), constraint=unit_norm)
    head = FixedEvidence(torch.eye(len(want["w"]), dtype=torch.double) / float(want["temp_s"]))
    tokens = Tokens(want["x"].unsqueeze(1), extras={"projection": want["proj"]})
    places = torch.zeros_like(logits, dtype=torch.long)
    return Output(
        tokens, None, logits, places, logits, head(logits), bank, head, paired=True,
        scheduled={"hard": float(want["ratio"])},
    )  # fmt: skip


def test_every_term_and_the_total_are_the_released_code_s(want: dict[str, Tensor]) -> None:
    method = ProtoGCD(
        supervised=float(want["lam"]), evenness_weight=float(want["w_ent"]), crowding_weight=float(want["w_sep"])
    )
    labels = torch.where(want["mask_lab"], want["y"], -1).repeat(2)
    terms = method.objective(output(want), labels)
    names = {
        "pseudo_labels": "L_dapl", "evenness": "L_ent", "crowding": "L_sep", "cross_entropy": "L_cls",
        "contrast": "L_con", "supervised_contrast": "L_supcon",
    }  # fmt: skip
    for ours, theirs in names.items():
        assert float(terms[ours].detach()) == pytest.approx(float(want[theirs]), rel=1e-6), ours
    assert float(method.loss(terms).detach()) == pytest.approx(float(want["L_total"]), rel=1e-6)


def test_pseudo_labels_and_gradients_are_the_released_code_s(want: dict[str, Tensor]) -> None:
    ratio, count = float(want["ratio"]), len(want["y"])
    for view in (slice(0, count), slice(count, None)):
        torch.testing.assert_close(
            adaptive_targets(want["logits"][view], ratio), want["targets"][view], rtol=1e-6, atol=1e-12
        )
    for term, name in (("pseudo_labels", "grad_logits_dapl"), ("evenness", "grad_logits_ent")):
        out = output(want)
        terms = ProtoGCD().objective(out, torch.full((2 * count,), -1))
        terms[term].backward()
        torch.testing.assert_close(out.evidence.grad, want[name], rtol=1e-6, atol=1e-12)


def test_pseudo_labels_go_from_soft_to_hard() -> None:
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    soft, hard = adaptive_targets(logits, 0.0), adaptive_targets(logits, 1.0)
    torch.testing.assert_close(soft, (logits / 0.05).softmax(1))
    torch.testing.assert_close(hard, F.one_hot(logits.argmax(1), 6).float())
    half = adaptive_targets(logits, 0.5)
    single = (half == 1).any(1)
    assert int(single.sum()) == 10
    top = soft.topk(2, dim=1).values
    ratio = top[:, 0] / (top[:, 1] + 1e-6)
    assert float(ratio[single].min()) >= float(ratio[~single].max())


def test_the_share_of_hard_labels_rises_as_in_the_code() -> None:
    learn = next(phase for phase in ProtoGCD().phases() if isinstance(phase, Train))
    straight = np.concatenate([np.linspace(0.0, 1.0, 100), np.ones(100)])
    assert [learn.numbers(epoch)["hard"] for epoch in range(200)] == pytest.approx(straight.tolist())
    rates = [learn.rates["prototypes"] * learn.factor(epoch) for epoch in (0, 100, 199)]
    cosine = [1e-4 + (0.1 - 1e-4) * 0.5 * (1 + np.cos(np.pi * epoch / 200)) for epoch in (0, 100, 199)]
    assert rates == pytest.approx(cosine)
    assert Ramp(0.2, 1.0, over=1).at(0, 5) == 0.2 and Ramp(0.2, 1.0, over=1).at(1, 5) == 1.0


def test_no_gradient_reaches_the_teacher() -> None:
    first, second = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
    student, fixed = F.log_softmax(first / 0.1, 1), (second.detach() / 0.05).softmax(1)
    other, fixed_other = F.log_softmax(second / 0.1, 1), (first.detach() / 0.05).softmax(1)
    plain = (-(fixed * student).sum(1).mean() - (fixed_other * other).sum(1).mean()) / 2
    wanted = torch.autograd.grad(plain, (first, second))
    found = torch.autograd.grad(cross_view(first, second, 0.0), (first, second))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_use_is_even_only_where_the_mean_prediction_is_uniform() -> None:
    sure = 10 * torch.eye(4)
    assert float(uneven_use(sure)) == pytest.approx(0.0, abs=1e-6)
    assert float(uneven_use(torch.zeros(3, 4))) == pytest.approx(0.0, abs=1e-6)
    assert float(uneven_use(sure[[0, 1, 2]])) > 0.1
    assert float(uneven_use(sure[[0, 0]])) == pytest.approx(np.log(4), rel=1e-4)
    collapsed = uneven_use((1e4 * torch.eye(4)[[0, 0]]).requires_grad_())
    assert bool(collapsed.isfinite()), "shares that are 0 do no harm"


def test_terms_of_nothing_are_0() -> None:
    none = torch.zeros(0, 4)
    for term in (cross_view(none, none, 1.0), uneven_use(none), crowding(torch.rand(1, 4)), crowding(none)):
        assert float(term) == 0


def test_wrong_settings_are_refused() -> None:
    for settings in ({"views": "dropout"}, {"hard_stop": 1.5}, {"temperature": 0.0}, {"init": "somewhere"}):
        with pytest.raises(UsageError, match=next(iter(settings)) if "views" not in settings else "dropout"):
            ProtoGCD(**settings)


@cache
def digits_half_known() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, labels (half of the first five digits) and the truth."""
    values, truth = load_digits(return_X_y=True)
    shown = np.isin(truth, OLD) & (np.random.default_rng(0).random(len(truth)) < 0.5)
    return (values / 16).astype(np.float32), np.where(shown, truth, -1), truth


@cache
def trained(seed: int = 0, every: int = 1, **settings: Any) -> Fit:
    values, labels, _ = digits_half_known()
    classes = [str(k) for k in OLD] + [f"new {k}" for k in range(1, 6)]
    cases = features(values[::every], labels[::every], classes=classes, name="digits")
    method = ProtoGCD(**{**ProtoGCD.recipes["frozen"].method, **SMALL, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(method, cases, encoder=FeatureEncoder(64), batch_size=128, seed=seed, quiet=True, device="cpu")


def predicted(done: Fit) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = done.model.eval()(torch.from_numpy(digits_half_known()[0])).logits.argmax(1).numpy()
    return found


@pytest.mark.slow
def test_new_digits_are_found_better_than_by_k_means_on_the_same_features() -> None:
    values, labels, truth = digits_half_known()
    free = labels < 0
    unit = F.normalize(torch.from_numpy(values), dim=1)
    centred = F.normalize(torch.from_numpy(values - values.mean(0)), dim=1)
    draw = torch.Generator().manual_seed(0)
    rivals = [k_means(x, 10, generator=draw, restarts=10, iterations=100).rows for x in (unit, centred)]
    rivals += [seeded_k_means(x, torch.from_numpy(labels), 10, generator=draw).rows for x in (unit, centred)]
    others = [discovery_score(rows.numpy()[free], truth[free], OLD).all for rows in rivals]
    ours = [discovery_score(predicted(trained(seed))[free], truth[free], OLD) for seed in (0, 1)]
    mean = np.mean([score.all for score in ours if score.all is not None])
    assert mean > max(all_ for all_ in others if all_ is not None) + 0.03, (mean, others)


def test_old_classes_keep_their_prototypes_without_any_matching() -> None:
    _, labels, truth = digits_half_known()
    old_free = (labels < 0) & np.isin(truth, OLD)
    assert (predicted(trained())[old_free] == truth[old_free]).mean() > 0.9
    model = trained().model
    assert model.classes[5:] == ("new 1", "new 2", "new 3", "new 4", "new 5")
    assert [source is not None for source in model.bank.sources] == [True] * 10


def test_without_the_evenness_term_prototypes_go_unused() -> None:
    quick = {"every": 3, "init": "drawn", "epochs": 20, "hard_epochs": 10}
    with_term, without = (trained(evenness_weight=weight, **quick) for weight in (2.0, 0.0))
    used = [len(np.unique(predicted(done))) for done in (with_term, without)]
    assert used[0] == 10 > used[1]


def test_the_crowding_term_drives_prototypes_apart() -> None:
    quick = {"every": 3, "epochs": 15, "hard_epochs": 8}
    largest = []
    for weight in (0.0, 0.1, 1.0):
        vectors = trained(crowding_weight=weight, **quick).model.bank.vectors.detach()
        cosines = F.normalize(vectors, dim=1) @ F.normalize(vectors, dim=1).T
        largest.append(float((cosines - 2 * torch.eye(10)).max()))
    assert largest[0] > largest[1] > largest[2]
