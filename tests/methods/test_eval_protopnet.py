"""What a faithful EvalProtoPNet must show: laws of its head and its alignment, and directions on real pictures."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from protolearn.audit.noise import disturb
from protolearn.audit.object_parts import consistency, part_hits, stability
from protolearn.core.method import Project, Train
from protolearn.data import digits
from protolearn.data.archive import archive
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method, make_method
from protolearn.tasks.verify import verify
from protolearn.training.fit import Fit, fit

EvalProtoPNet = get_method("eval-protopnet")


def trained(alignment: float = 0.5, **changes: object) -> Fit:
    settings = {
        "prototypes_per_class": 2, "dim": 16, "warm_epochs": 2, "epochs": 6, "encoder_rate": 1e-3, "neck_rate": 1e-2,
        "prototype_rate": 1e-2, "step": 0, "alignment_weight": alignment, "alignment_margin": 0.0, **changes,
    }  # fmt: skip
    train = digits("train").subset(range(0, 1200, 6))
    encoder = SmallEncoder(shallow=0, size=16)
    return fit(EvalProtoPNet(**settings), train, encoder=encoder, batch_size=40, seed=0, quiet=True, device="cpu")


@pytest.mark.slow
def test_alignment_makes_deep_features_keep_the_places_of_shallow_ones() -> None:
    """With the term on, deep and early self-similarity agree better; the warm epochs, encoder frozen, have no term."""
    ends = []
    for alignment in (0.5, 0.0):
        done = trained(alignment)
        joint = [row for row in done.history if row["phase"] == "joint"]
        assert all("alignment" in row for row in joint)
        assert all("alignment" not in row for row in done.history if row["phase"] == "warm")
        ends.append(joint[-1]["alignment"])
    assert ends[0] < 0.9 * ends[1]


@pytest.mark.slow
def test_alignment_raises_stability_and_how_often_a_part_is_hit_on_birds(shared_data: Path) -> None:
    """Directional, with a small encoder from scratch and a weight strong enough to show in ten epochs; two seeds."""
    train, test = (archive(shared_data / "cub_birds6" / "cub_birds6.zip", part) for part in ("train", "test"))

    def judged(seed: int, weight: float) -> tuple[float, float]:
        method = EvalProtoPNet(
            prototypes_per_class=5, warm_epochs=2, epochs=12, encoder_rate=1e-3, step=0,
            alignment_weight=weight, alignment_margin=0.0,
        )  # fmt: skip
        encoder = SmallEncoder(shallow=0, size=64, strides=(2, 2, 2))
        model = fit(method, train, encoder=encoder, batch_size=30, seed=seed, quiet=True, device="cpu").model.eval()
        shown = test.with_transform(model.encoder.preprocess)
        pictures, marks = zip(*(shown.annotated(i) for i in range(len(shown))), strict=True)
        inputs, points = torch.stack(pictures), torch.from_numpy(np.stack([mark.points for mark in marks]))
        counted, visible = model.bank.owned_by(torch.from_numpy(test.labels.copy())), points[:, :, 2] > 0

        @torch.no_grad()
        def hits(x: torch.Tensor) -> torch.Tensor:
            tokens = model.embed(model.encode(x))
            maps = model.maps(tokens).unflatten(2, tokens.grid)
            return part_hits(maps, counted, points[:, :, :2], visible, size=64, half_side=10)

        clean, draw = hits(inputs), torch.Generator().manual_seed(0)
        noisy = [stability(clean, hits(disturb(inputs, generator=draw)), counted).score for _ in range(3)]
        return sum(noisy) / len(noisy), float(consistency(clean, counted, visible).rates.amax(1).mean())

    off, on = (np.mean([judged(seed, weight) for seed in (0, 1)], 0) for weight in (0.0, 5.0))
    assert on[0] > off[0], "stability"
    assert on[1] > off[1], "mean over prototypes of the rate of the part that each hits most"


def test_alignment_moves_the_encoder_alone_and_not_its_early_map() -> None:
    model = EvalProtoPNet(prototypes_per_class=2, dim=8).build(SmallEncoder(dim=16, shallow=1), classes=3)
    out = model(torch.rand(4, 3, 16, 16))
    term = model_terms(model, out)["alignment"]
    term.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert grads["encoder.net.6.weight"].abs().sum() > 0, "the layer after the early map"
    assert all(g is None or g.eq(0).all() for name, g in grads.items() if name.startswith(("neck", "bank", "head")))
    early = out.encoded.extras["shallow"]
    assert early.requires_grad, "the term itself does not follow it"


def model_terms(model, out, labels=None):  # type: ignore[no-untyped-def]
    method = EvalProtoPNet(prototypes_per_class=2, dim=8, alignment_margin=0.0)
    return method.objective(out, torch.tensor([0, 1, 2, 0]) if labels is None else labels)


def test_without_an_early_map_the_term_is_left_out_and_said_so() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    method = EvalProtoPNet(prototypes_per_class=2, dim=8)
    with_encoder = method.build(SmallEncoder(dim=16), classes=3)(torch.rand(4, 3, 16, 16))
    with pytest.warns(UserWarning, match="shallow"):
        assert "alignment" not in method.objective(with_encoder, labels)
    frozen = method.build(FeatureEncoder(6), classes=3)(torch.rand(4, 5, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        terms = method.objective(frozen, labels)
        off = EvalProtoPNet(prototypes_per_class=2, dim=8, alignment_weight=0.0).objective(with_encoder, labels)
    assert set(terms) == set(off) == set(method.weights()) - {"alignment"}
    assert method.loss(terms).isfinite()


def test_prototypes_are_of_unit_length_and_weights_of_a_class_sum_to_its_number() -> None:
    done = trained(epochs=2, head_rate=0.1, encoder_rate=None)
    model = done.model
    assert (model.bank.vectors.detach().norm(dim=1) - 1).abs().max() < 1e-6
    mixing = model.head.mixing().detach()
    assert mixing.sum(1).tolist() == pytest.approx([2.0] * 10)
    assert mixing.max() > 1.01, "it was trained"
    given = digits("train").subset(range(0, 1200, 6)).with_transform(model.encoder.preprocess)
    out = model(torch.stack([given[i].inputs for i in range(20)]))
    torch.testing.assert_close(out.head.ledger(out).sum(2) + out.head.offset(), out.logits)
    assert (out.head.ledger(out) >= 0).all(), "no evidence against"


@pytest.mark.parametrize("project", ["record", "move"])
def test_prototypes_are_recorded_or_moved_and_verify_either_way(project: str) -> None:
    done = trained(epochs=2, encoder_rate=None, project=project)
    sources = done.model.bank.sources
    assert all(source is not None and source.moved == (project == "move") for source in sources)
    assert verify(done.model, digits("train").subset(range(0, 1200, 6))).ok


@pytest.mark.parametrize("classes", [1, 3])
def test_every_batch_gives_finite_terms(classes: int) -> None:
    method = EvalProtoPNet(prototypes_per_class=1, dim=4)
    model = method.build(SmallEncoder(dim=8, shallow=0), classes)
    for labels in (torch.zeros(3, dtype=torch.long), torch.full((3,), -1)):
        model.zero_grad()
        terms = method.objective(model(torch.rand(3, 3, 8, 8)), labels)
        method.loss(terms).backward()
        assert all(term.isfinite() for term in terms.values())
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_schedule_is_the_authors() -> None:
    warm, joint, end = EvalProtoPNet().phases()
    assert isinstance(warm, Train)
    assert isinstance(joint, Train)
    assert (warm.epochs, joint.epochs, end) == (5, 7, Project(move=False))
    assert warm.rates == {"neck": 3e-3, "prototypes": 3e-3, "head": 1e-6}
    assert joint.rates == {"encoder": 1e-4, **warm.rates}
    assert [joint.factor(done) for done in (0, 1, 2, 5)] == pytest.approx([1, 1, 0.2, 0.04])
    default = EvalProtoPNet().weights()
    assert warm.coefficients(default, 0, 0) == {**default, "alignment": 0.0}
    assert joint.coefficients(default, 0, 0) == default
    assert make_method(EvalProtoPNet(epochs=6).settings()) == EvalProtoPNet(epochs=6)


def test_initial_weights_are_the_papers() -> None:
    model = EvalProtoPNet().build(SmallEncoder(shallow=0), classes=3, seed=4)
    assert model.bank.vectors.shape == (30, 64)
    assert model.head.weight.eq(1).all()
    assert [type(layer).__name__ for layer in model.neck] == ["Linear", "Sigmoid"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dim": 0}, "dim must be at least 1"),
        ({"epochs": 3}, "epochs .* at least warm_epochs = 5, got 3"),
        ({"project": "push"}, "project must be record or move"),
        ({"start": "zero"}, "start must be"),
        ({"alignment_margin": -0.1}, "alignment_margin must be"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=f"eval-protopnet: {words}"):
        EvalProtoPNet(**settings)
