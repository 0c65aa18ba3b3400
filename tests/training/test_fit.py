"""What a training freezes, logs, warns about and refuses."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from protolearn.core.method import Method, Phase, Project, Prune, Ramp, Train
from protolearn.core.model import PrototypeModel
from protolearn.data import Cases, arrays, digits
from protolearn.data.features import features
from protolearn.encoders import FeatureEncoder, make_encoder
from protolearn.errors import DataError, TrainingError, UsageError
from protolearn.methods import get_method
from protolearn.structures import Tokens
from protolearn.training.fit import fit
from protolearn.training.material import CachedTokens
from protolearn.training.options import choose_device
from protolearn.training.project import nearest_cases, project, prune
from protolearn.training.record import TrainingWarning
from protolearn.training.steps import epoch_order, set_modes

ProtoPNet = get_method("protopnet")
SHORT = {"prototypes_per_class": 2, "dim": 8, "warm_epochs": 1, "project_at": (2,), "last_layer_epochs": 2}


@pytest.fixture(scope="module")
def train() -> Cases:
    return digits("train").subset(range(0, 1200, 8))


def small() -> nn.Module:
    return make_encoder({"encoder": "small", "seed": 1})


@pytest.fixture(scope="module")
def trained(train: Cases) -> PrototypeModel:
    return fit(ProtoPNet(**SHORT, encoder_rate=None), train, encoder=small(), quiet=True, device="cpu").model


def test_every_prototype_is_a_training_token_of_its_class(train: Cases, trained: PrototypeModel) -> None:
    plain = train.with_transform(trained.encoder.preprocess)
    owner = trained.bank.owner().tolist()
    for row, source in enumerate(trained.bank.sources):
        assert source is not None
        case = plain.index(source.case)
        assert plain.labels[case] == owner[row] == source.label
        out = trained(plain[case].inputs.unsqueeze(0))
        assert out.distances is not None
        assert out.tokens is not None
        token = out.tokens.values[0, source.position]
        assert torch.allclose(token, trained.bank.vectors[row], atol=1e-6)
        assert out.distances[0, row] < 1e-4
        assert source.content == train.content(train.index(source.case))
        assert source.encoder == trained.fingerprint()


def test_projecting_again_changes_nothing(train: Cases, trained: PrototypeModel) -> None:
    vectors, sources = trained.bank.vectors.detach().clone(), list(trained.bank.sources)
    report = project(trained, train.with_transform(trained.encoder.preprocess), batch_size=17)
    assert torch.equal(vectors, trained.bank.vectors)
    assert [(s.case, s.position) for s in sources if s] == [(s.case, s.position) for s in trained.bank.sources if s]
    assert report.largest_distance == 0.0


def test_projection_does_not_depend_on_order_batches_or_workers(train: Cases) -> None:
    found = []
    for order, size, workers in ((range(len(train)), 7, 0), (reversed(range(len(train))), 64, 2)):
        model = ProtoPNet(**SHORT).build(small(), 10)
        cases = train.subset(list(order)).with_transform(model.encoder.preprocess)
        project(model, cases, batch_size=size, workers=workers)
        found.append([(s.case, s.position, s.content) for s in model.bank.sources if s is not None])
    assert found[0] == found[1]


def test_distinct_and_group_projection(train: Cases) -> None:
    model = ProtoPNet(**{**SHORT, "prototypes_per_class": 4}).build(small(), 10)
    with torch.no_grad():
        model.bank.vectors.copy_(model.bank.vectors[:1].expand_as(model.bank.vectors))  # all want the same token
    cases = train.with_transform(model.encoder.preprocess)
    crowded = project(model, cases)
    assert crowded.duplicates
    assert not project(model, cases, Project(distinct=True)).duplicates
    with pytest.raises(UsageError, match="groups"):
        project(model, cases, Project(rule="group"))
    patients = [f"patient {i % 5}" for i in range(len(train))]
    grouped = arrays(
        np.stack([np.asarray(train.picture(i)) for i in range(len(train))]), train.labels, groups=patients
    ).with_transform(model.encoder.preprocess)
    report = project(model, grouped, Project(rule="group"))
    moved = [row for row, key in enumerate(model.bank.ids.tolist()) if key not in report.kept]
    owners = model.bank.owner().tolist()
    taken = [(owners[row], patients[grouped.index(model.bank.sources[row].case)]) for row in moved]
    assert len(moved) > 30
    assert len(set(taken)) == len(taken)


def test_class_without_cases_keeps_its_prototypes(train: Cases) -> None:
    model = ProtoPNet(**SHORT).build(small(), 10)
    before = model.bank.vectors.detach().clone()
    without = train.subset(np.flatnonzero(train.labels != 3)).with_transform(model.encoder.preprocess)
    report = project(model, without)
    assert report.kept == (6, 7)
    assert torch.equal(before[6:8], model.bank.vectors[6:8])
    assert model.bank.sources[6] is None


def test_pruning_spares_pure_prototypes_and_equals_zeroed_columns(train: Cases) -> None:
    model = fit(ProtoPNet(**SHORT, encoder_rate=None), train, encoder=small(), quiet=True, device="cpu").model
    cases = train.with_transform(model.encoder.preprocess)
    nearest = nearest_cases(model, cases, 6)
    own = torch.from_numpy(cases.labels.copy())[nearest.cases] == model.bank.owner().unsqueeze(1)
    pure = set(model.bank.ids[own.all(1)].tolist())
    inputs = torch.stack([cases[i].inputs for i in range(8)])
    whole = model(inputs)
    ids = model.bank.ids.clone()
    gone = prune(model, cases, Prune(k=6, minimum=5))
    assert gone
    assert not pure & set(gone)
    assert set(gone) <= set(ids[own.sum(1) < 5].tolist())
    zeroed = whole.evidence.clone()
    zeroed[:, torch.isin(ids, torch.tensor(gone))] = 0
    kept = ~torch.isin(ids, torch.tensor(gone))
    torch.testing.assert_close(model(inputs).logits, zeroed[:, kept] @ model.head.weight.T)


def test_frozen_parts_keep_weights_and_statistics(train: Cases) -> None:
    class Normed(nn.Sequential):
        pass

    model = ProtoPNet(**SHORT).build(small(), 10)
    model.neck = Normed(nn.Linear(model.encoder.dim, 8), nn.BatchNorm1d(8))
    set_modes(model, Train("head only", rates={"head": 1e-3}))
    assert not model.neck[1].training
    assert not any(p.requires_grad for p in model.neck.parameters())
    set_modes(model, Train("neck", rates={"neck": 1e-3}, freeze_batch_norm=True))
    assert model.neck.training
    assert not model.neck[1].training


def test_the_two_loops_take_the_same_steps(train: Cases) -> None:
    """Lightning over pictures with an encoder that cannot move, and the plain loop over its cached tokens."""

    @dataclasses.dataclass(frozen=True)
    class Still(ProtoPNet):  # type: ignore[misc, valid-type]
        network: bool = False

        def phases(self) -> list[Phase]:
            rates = {"encoder": 0.0, "neck": 1e-2} if self.network else {"neck": 1e-2}
            return [Train("same", 2, {**rates, "prototypes": 1e-2}, freeze_batch_norm=True)]

    vectors = [
        fit(Still(**SHORT, network=network), train, encoder=small(), quiet=True, device="cpu").model.bank.vectors
        for network in (False, True)
    ]
    torch.testing.assert_close(*vectors, rtol=1e-4, atol=1e-5)


def test_history_names_every_term_and_is_written(train: Cases, tmp_path: Path) -> None:
    method = ProtoPNet(**SHORT, encoder_rate=1e-3)
    done = fit(
        method, train, encoder=small(), validation=digits("test").subset(range(40)), directory=tmp_path,
        tensorboard=True, quiet=True, device="cpu",
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [row["phase"] for row in rows] == ["warm", "joint", "last_layer", "last_layer"]
    for name in ("cross_entropy", "cluster", "separation", "l1", "loss", "accuracy", "validation_accuracy"):
        assert all(np.isfinite(float(row[name])) for row in rows)
    weights = method.weights()
    for row in done.history:
        assert row["loss"] == pytest.approx(sum(weights[name] * row[name] for name in weights), rel=1e-4)
    assert any((tmp_path / "tensorboard").iterdir())
    assert done.model.metadata["data"]["cases"] == len(train)
    cost = done.model.metadata["projections"][0]
    assert 0 <= cost["accuracy_after"] <= 1, "known although the encoder was trained and no token is cached"


def test_a_finished_training_is_not_repeated_and_another_is_refused(train: Cases, tmp_path: Path) -> None:
    method = ProtoPNet(**SHORT, encoder_rate=None)
    how = {"directory": tmp_path, "quiet": True, "device": "cpu"}
    first = fit(method, train, encoder=small(), **how)
    again = fit(method, train, encoder=small(), **how)
    assert again.history == first.history
    assert torch.equal(first.model.bank.vectors, again.model.bank.vectors)
    with pytest.raises(UsageError, match="other settings"):
        fit(method, train, encoder=small(), seed=1, **how)
    assert fit(method, train, encoder=small(), seed=1, resume=False, **how).history != first.history


def test_a_term_that_is_not_finite_stops_training_and_is_named(train: Cases, tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Broken(ProtoPNet):  # type: ignore[misc, valid-type]
        def objective(self, out, labels):  # type: ignore[no-untyped-def]
            terms = super().objective(out, labels)
            terms["cluster"] = terms["cluster"] * (float("nan") if out.tokens is None else 1.0)
            return terms

    with pytest.raises(TrainingError, match=r"cluster became not finite in phase 'last_layer'.*last good state"):
        fit(Broken(**SHORT, encoder_rate=None), train, encoder=small(), directory=tmp_path, quiet=True, device="cpu")
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_patience_ends_a_phase(train: Cases) -> None:
    method = ProtoPNet(**{**SHORT, "last_layer_epochs": 50}, encoder_rate=None, head_rate=1.0)
    done = fit(method, train, encoder=small(), patience=2, quiet=True, device="cpu")
    assert sum(row["phase"] == "last_layer" for row in done.history) < 50


def test_suspicious_data_is_warned_about(train: Cases) -> None:
    both = train.subset(range(5))
    with pytest.warns(TrainingWarning, match="also in"):
        fit(ProtoPNet(**SHORT, encoder_rate=None), train, encoder=small(), validation=both, quiet=True, device="cpu")


def test_collapsed_prototypes_are_warned_about(train: Cases) -> None:
    @dataclasses.dataclass(frozen=True)
    class Collapsing(ProtoPNet):  # type: ignore[misc, valid-type]
        def build(self, encoder, classes, seed=0):  # type: ignore[no-untyped-def]
            model = super().build(encoder, classes, seed)
            with torch.no_grad():
                model.bank.vectors.fill_(0.5)
            return model

    method = Collapsing(**{**SHORT, "warm_epochs": 0, "project_at": (1,)}, encoder_rate=None, prototype_rate=0.0)
    with pytest.warns(TrainingWarning, match="collapsed"):
        fit(method, train, encoder=small(), quiet=True, device="cpu")


def test_wrong_input_is_refused(train: Cases) -> None:
    method = ProtoPNet(**SHORT)
    with pytest.raises(DataError, match=r"no cases"):
        fit(method, train.subset([]), encoder=small(), quiet=True)
    with pytest.raises(DataError, match="one class"):
        fit(method, train.subset(np.flatnonzero(train.labels == 1)), encoder=small(), quiet=True)
    with pytest.raises(UsageError, match="batch_size"):
        fit(method, train, encoder=small(), batchsize=3)
    with pytest.raises(UsageError, match="device"):
        choose_device("tpu")
    with pytest.raises(UsageError, match="views"):
        fit(method, train, encoder=small(), views=3, quiet=True)
    with pytest.raises(UsageError, match="prototypes"):
        fit(ProtoPNet(prototypes_per_class=10_000), train, encoder=small(), quiet=True)


def test_unlabelled_cases_count_for_nothing(train: Cases) -> None:
    labels = train.labels.copy()
    labels[::2] = -1
    pictures = np.stack([np.asarray(train.picture(i)) for i in range(len(train))])
    cases = arrays(pictures, labels, classes=train.classes)
    done = fit(ProtoPNet(**SHORT, encoder_rate=None), cases, encoder=small(), quiet=True, device="cpu")
    assert all(source is not None and source.label >= 0 for source in done.model.bank.sources if source)


def test_features_train_without_pictures() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 3
    values = draw.normal(size=(60, 4, 6)).astype(np.float32) + labels[:, None, None] * 3
    done = fit(
        ProtoPNet(**SHORT, encoder_rate=None), features(values, labels),
        encoder=make_encoder({"encoder": "features", "dim": 6}), quiet=True, device="cpu",
    )  # fmt: skip
    assert isinstance(done.model.method, Method)
    assert done.model.bank.sources[0] is not None
    assert done.model.bank.sources[0].region is None


def test_every_case_comes_once_an_epoch() -> None:
    order = torch.cat(epoch_order(23, 5, seed=4))
    assert sorted(order.tolist()) == list(range(23))
    assert not torch.equal(order, torch.cat(epoch_order(23, 5, seed=5)))


@pytest.mark.parametrize("masked", [False, True])
def test_tokens_reduced_once_train_as_tokens_reduced_in_every_step(masked: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    values, mask = torch.randn(2, 9, 5, 12, generator=draw), torch.rand(2, 9, 5, generator=draw) < 0.7
    mask[..., 0] = True

    class Store:
        views = 2

        def __len__(self) -> int:
            return 9

        def tokens(self, indices: np.ndarray, view: int | np.ndarray = 0) -> Tokens:
            return Tokens(values[view, indices], mask[view, indices] if masked else None)

    model = ProtoPNet(neck="principal", axes=6, dim=4).build(FeatureEncoder(12), 2)
    model.neck[0].fit([Tokens(values[0])])
    cases, views, found = torch.tensor([7, 0, 3]), torch.tensor([1, 0, 1]), []
    for kept_bytes in (0, 2 * 9 * 5 * 6 * 4):
        material = CachedTokens(model, Store(), torch.device("cpu"), kept_bytes)
        assert (material.reduced is None) == (kept_bytes == 0)
        model.zero_grad()
        out = material(cases, views)
        out.logits.square().sum().backward()
        found.append((out.distances, out.positions, out.logits, model.neck[1].weight.grad.clone()))
    for every_step, once in zip(*found, strict=True):
        assert torch.allclose(every_step, once, atol=1e-5)


def test_validation_is_judged_by_what_the_phase_minimises() -> None:
    """Terms that a phase does not count must not stop it: patience watches the phase's own loss."""
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    cases = features(x, np.arange(40) % 2, classes=["a", "b"], name="n")
    settings = {"dim": 2, "encoder_rate": None, "rate": 1e-9, "autoencoder_epochs": 2, "epochs": 1, "law": "diagonal"}
    done = fit(
        get_method("prob-psenn")(**settings), cases, validation=cases, encoder=FeatureEncoder(6), quiet=True,
        device="cpu", batch_size=40,
    )  # fmt: skip
    alone = [row for row in done.history if row["phase"] == "autoencoder"]
    for row in alone:
        assert row["validation_loss"] == pytest.approx(row["loss"], rel=1e-4)
        assert row["loss"] == pytest.approx(row["reconstruction"], rel=1e-6)


def test_alternating_weights_are_judged_by_their_mean() -> None:
    phase = Train("t", 4, {"head": 1.0}, weights=({"a": 1.0}, {"b": Ramp(0.0, 1.0)}))
    assert phase.mean_coefficients({"a": 9.0, "b": 9.0}, epoch=1) == {"a": 0.5, "b": 0.25}
    assert Train("t", 1, {"head": 1.0}).mean_coefficients({"a": 9.0}, 0) == {"a": 9.0}


def test_a_banned_prototype_is_not_reported_as_left_behind() -> None:
    cases = digits("train").subset(range(60))
    encoder = make_encoder({"encoder": "small"})
    model = get_method("protopnet")(prototypes_per_class=2, dim=8).build(encoder, 10)
    model.bank.ban([0])
    assert project(model, cases.with_transform(encoder.preprocess)).kept == ()
