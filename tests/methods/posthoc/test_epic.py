"""EPIC: the network's logits stay what they were, and its channels become purer."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from protolearn.core.method import Choose, Train
from protolearn.core.model import PrototypeModel
from protolearn.core.rotation import ChannelRotation, RotationKind
from protolearn.data import Cases, arrays, digits, features
from protolearn.data.archive import archive
from protolearn.data.transforms import Preprocess
from protolearn.encoders import FeatureEncoder, NamedNetwork, TrainedNetwork
from protolearn.errors import UsageError
from protolearn.explain import explain
from protolearn.explain.channels import channel_gallery, purity_before_after
from protolearn.methods.posthoc.epic import EPIC
from protolearn.training import record
from protolearn.training.fit import Fit, fit
from protolearn.training.folder import load, save
from protolearn.training.refit import refit_head

KINDS: tuple[RotationKind, ...] = ("orthogonal", "invertible")
SHORT: dict[str, Any] = {"first": 12, "last": 5, "stages": 3, "rate": 3e-2}


class Classified(FeatureEncoder):
    """Features with the linear layer that some network put on their mean."""

    def __init__(self, dim: int, classes: int, seed: int = 0, order: Tensor | None = None) -> None:
        super().__init__(dim)
        draw = torch.Generator().manual_seed(seed)
        weight, bias = torch.randn(classes, dim, generator=draw), torch.randn(classes, generator=draw)
        self.classifier = (weight if order is None else weight[:, order]), bias


def planted(count: int = 80, dim: int = 8, *, seed: int = 0, order: Tensor | None = None) -> Cases:
    """Return cases whose places each show one of ``dim`` sources, mixed by a rotation into ``dim`` channels."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.linalg.qr(torch.randn(dim, dim, generator=draw))[0]
    places = torch.randint(dim, (count, 6), generator=draw)
    strength = 0.5 + torch.rand(count, 6, 1, generator=draw)
    values = nn.functional.one_hot(places, dim) * strength @ mixing.T
    values = values if order is None else values[..., order]
    labels = np.arange(count) % 3
    return features(values.numpy().astype(np.float32), labels, ids=[f"{i:03d}" for i in range(count)])


def run(method: EPIC, cases: Cases, encoder: Any = None, **more: Any) -> Fit:
    encoder = Classified(8, len(cases.classes)) if encoder is None else encoder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", record.TrainingWarning)
        return fit(method, cases, encoder=encoder, quiet=True, device="cpu", **more)


def inputs(cases: Cases, encoder: Any) -> Tensor:
    shown = cases if encoder.preprocess is None else cases.with_transform(encoder.preprocess)
    return torch.stack([shown[i].inputs for i in range(len(shown))])


@torch.no_grad()
def logits(model: PrototypeModel, x: Tensor) -> Tensor:
    return model.eval()(x).logits


@pytest.mark.parametrize(("kind", "least"), [("orthogonal", 0.95), ("invertible", 0.8)])
def test_mixed_sources_are_taken_apart_and_no_logit_changes(kind: RotationKind, least: float) -> None:
    cases = planted()
    encoder = Classified(8, 3)
    weight, bias = encoder.classifier  # type: ignore[misc]
    x = inputs(cases, encoder)
    wanted = x.mean(1) @ weight.T + bias
    model = run(EPIC(rotation=kind, first=20, last=5, stages=8, epochs=10, rate=2e-2), cases, encoder).model
    torch.testing.assert_close(logits(model, x), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model, x).argmax(1), wanted.argmax(1))
    change = purity_before_after(model, cases)
    assert change.before.mean_purity < 0.7
    assert change.after.mean_purity > least
    assert model.neck.defect() < 1e-5  # type: ignore[operator]


def test_before_training_it_is_the_network_with_its_own_purity() -> None:
    cases, encoder = planted(), Classified(8, 3)
    model = EPIC().build(encoder, 3)
    assert isinstance(model.neck, ChannelRotation)
    assert torch.equal(model.neck.matrix(), torch.eye(8))
    change = purity_before_after(model, cases)
    assert torch.equal(change.before.purity, change.after.purity)
    x = inputs(cases, encoder)
    lengths = x.norm(dim=-1)
    top, at = x.max(1)
    raw = (top / lengths.gather(1, at)).double()
    for channel, chosen in enumerate(change.before.cases):
        best = x.double().sum(1)[:, channel].argsort(descending=True)[:5]
        assert [int(case) for case in chosen] == best.tolist()
        torch.testing.assert_close(change.before.purity[channel], raw[best, channel], rtol=1e-5, atol=1e-6)


def test_orthogonal_after_every_step_and_every_stage_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps, sizes = [], []

    def look(self: EPIC, model: PrototypeModel, out: Any, labels: Tensor, steps: int) -> None:
        matrix = model.neck.matrix()  # type: ignore[operator]
        gaps.append(float((matrix.T @ matrix - torch.eye(8)).abs().max()))
        sizes.append(len(out.chosen))

    monkeypatch.setattr(EPIC, "after_step", look)
    done = run(EPIC(**SHORT), planted(), batch_size=40)
    assert max(gaps) < 1e-5
    counts = EPIC(**SHORT).counts()
    assert counts == (12, 8, 5)
    wanted = [
        size for count in counts for _ in range(2) for size in [40] * (8 * count // 40) + [8 * count % 40] if size
    ]
    assert sizes == wanted, "each pair once an epoch"
    assert [row["phase"] for row in done.history] == ["purity"] * 6
    assert [row["epoch"] for row in done.history] == [1, 2, 3, 4, 5, 6], "one run: the optimiser goes on"
    assert all(row["loss"] == -row["purity"] for row in done.history)
    assert all("accuracy" not in row for row in done.history), "cases come as often as they are chosen"


def test_contributions_of_all_channels_and_the_bias_are_the_logit() -> None:
    cases = planted()
    model = run(EPIC(**SHORT), cases).model
    for why in explain(model, cases, range(6), target="runner_up"):
        assert why.total == pytest.approx(why.logit, abs=1e-4)
        assert len(why.rows) == 8
        assert any(row.contribution != 0 for row in why.rows)


@pytest.mark.parametrize("ranking", ["sum", "peak"])
def test_prototypes_do_not_depend_on_batches_or_order(ranking: Any) -> None:
    cases = planted()
    model = run(EPIC(ranking=ranking, **SHORT), cases).model
    first = channel_gallery(model, cases, 7)
    assert first.by == ranking
    for size in (1, 6, 80):
        shuffled = cases.subset(np.random.default_rng(size).permutation(len(cases)))
        assert channel_gallery(model, shuffled, 7, batch_size=size).cases == first.cases
    assert [source.case for source in model.bank.sources if source] == [chosen[0] for chosen in first.cases]
    for source, at, value in zip(model.bank.sources, first.positions[:, 0], first.values[:, 0], strict=True):
        assert source is not None
        assert not source.moved
        assert source.position == int(at)
        assert source.distance == pytest.approx(float(value), rel=1e-6)


def test_permuting_the_channels_permutes_the_result() -> None:
    """All pairs in one step, since batches are drawn by the number of a pair."""
    order = torch.randperm(8, generator=torch.Generator().manual_seed(4))
    plain, mixed = planted(), planted(order=order)
    method = EPIC(**SHORT)
    one = run(method, plain, batch_size=1000).model
    other = run(method, mixed, Classified(8, 3, order=order), batch_size=1000).model
    before, permuted = (purity_before_after(m, c).before for m, c in ((one, plain), (other, mixed)))
    assert permuted.mean_purity == pytest.approx(before.mean_purity, abs=1e-7)
    assert [permuted.cases[i] for i in range(8)] == [before.cases[i] for i in order.tolist()]
    turn = one.neck.matrix().detach()[order][:, order]  # type: ignore[operator]
    torch.testing.assert_close(other.neck.matrix().detach(), turn, rtol=0, atol=1e-3)  # type: ignore[operator]
    x = inputs(plain, one.encoder)
    torch.testing.assert_close(logits(other, x[..., order]), logits(one, x), rtol=1e-4, atol=1e-4)


def test_labels_are_not_read() -> None:
    cases = planted()
    bare = features(inputs(cases, FeatureEncoder(8)).numpy(), np.full(80, -1), classes=cases.classes, ids=cases.ids)
    one, other = (run(EPIC(**SHORT), some).model.state_dict() for some in (cases, bare))
    same = [name for name in one if name == "bank._extra_state" or torch.equal(one[name], other[name])]
    assert same == list(one)


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_cases_than_prototypes_asked_for(count: int) -> None:
    model = run(EPIC(**SHORT), planted().subset(range(count))).model
    gallery = channel_gallery(model, planted().subset(range(count)))
    assert all(len(chosen) == count for chosen in gallery.cases)
    assert gallery.purity.isfinite().sum() == 8 * count
    assert bool(torch.isfinite(model.neck.raw).all())  # type: ignore[arg-type]


def test_cases_that_are_all_the_same() -> None:
    values = np.repeat(planted().subset([0])[0].inputs.numpy()[None], 9, axis=0)
    model = run(EPIC(**SHORT), features(values, np.arange(9) % 3, ids=[f"{i}" for i in range(9)])).model
    assert {source.case for source in model.bank.sources if source} == {"0"}, "of equal cases the first"


def test_what_cannot_be_explained_is_refused(tmp_path: Path) -> None:
    cases = planted()
    with pytest.raises(UsageError, match="this encoder has none"):
        run(EPIC(**SHORT), cases, FeatureEncoder(8))
    with pytest.raises(UsageError, match="tells 5 classes apart"):
        run(EPIC(**SHORT), cases, Classified(8, 5))
    with pytest.raises(UsageError, match="classifier_epochs must be 0"):
        run(EPIC(classifier_epochs=3, **SHORT), cases)
    for wrong in ({"first": 4}, {"last": 0}, {"rate": 0.0}, {"rotation": "skew"}, {"ranking": "mean"}, {"epochs": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            EPIC(**wrong)  # type: ignore[arg-type]


class Killed(BaseException):
    """What a test stops a training with."""


def test_a_training_killed_after_any_epoch_goes_on_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a stage too: the pairs were chosen with the U of its beginning, and are kept."""
    straight = run(EPIC(**SHORT), planted(), batch_size=40).model.state_dict()
    monkeypatch.setattr(record, "CHECKPOINT_SECONDS", 0.0)
    written, pending = record.save_checkpoint, [True]

    def once(*args: Any) -> None:
        written(*args)
        if pending[0]:
            pending[0] = False
            raise Killed

    monkeypatch.setattr(record, "save_checkpoint", once)
    kills = 0
    while True:
        pending[0] = True
        try:
            done = run(EPIC(**SHORT), planted(), batch_size=40, directory=tmp_path)
            break
        except Killed:
            kills += 1
    assert kills == 3 + 6 + 3 + 1, "after choosing, after each epoch, after each stage, after the sources"
    resumed = done.model.state_dict()
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []
    assert len(done.history) == 6


def test_schedule_and_settings_are_the_paper_s() -> None:
    phases = EPIC().phases()
    assert [phase.count for phase in phases if isinstance(phase, Choose)] == list(EPIC().counts())
    assert len(EPIC().counts()) == 10
    assert (EPIC().counts()[0], EPIC().counts()[-1]) == (100, 5)
    train = [phase for phase in phases if isinstance(phase, Train)]
    assert all(p.epochs == 2 and p.rates == {"neck": 1e-3} and p.decay == {"neck": 1e-5} for p in train)
    assert all(phase.optimizer == "adam" and phase.chosen for phase in train)
    assert EPIC(stages=1).counts() == (100,)
    assert EPIC(first=5).counts() == (5,) * 10
    assert "encoder" not in {group for phase in train for group in phase.rates}


def test_a_ban_can_be_made_up_for_by_the_classifier() -> None:
    """Then, and only then, the logits are no longer the network's."""
    cases = planted()
    model = run(EPIC(**SHORT), cases).model
    turn = model.neck.matrix().detach().clone()  # type: ignore[operator]
    model.bank.ban([0, 1])
    history = refit_head(model, cases, epochs=20, rate=0.1, quiet=True, device="cpu")
    assert history[-1]["loss"] < history[0]["loss"]
    assert torch.equal(model.neck.matrix().detach(), turn)  # type: ignore[operator]
    for why in explain(model, cases, range(3)):
        assert why.total == pytest.approx(why.logit, abs=1e-4)


def test_a_named_network_is_saved_and_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = timm.create_model("test_resnet", num_classes=10).eval()
    cases = digits("train").subset(range(40))
    encoder = NamedNetwork("test_resnet", weights=network, size=64)
    before = copy.deepcopy(network.state_dict())
    model = run(EPIC(first=4, last=2, stages=2, rate=1e-2), cases, encoder).model
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)
    x = inputs(cases, encoder)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, x), network(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model, x).argmax(1), network(x).argmax(1))
    save(model, tmp_path / "model", cases)
    again = load(tmp_path / "model")
    assert torch.equal(logits(again, x), logits(model, x))
    assert channel_gallery(again, cases).cases == channel_gallery(model, cases).cases


def test_a_network_that_nothing_can_build_again_is_not_saved(tmp_path: Path) -> None:
    body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)]
    cases = digits("train").subset(range(20))
    encoder = TrainedNetwork(nn.Sequential(*body), Preprocess(size=(8, 8)))
    model = run(EPIC(first=4, last=2, stages=2), cases, encoder).model
    with pytest.raises(UsageError, match="NamedNetwork"):
        save(model, tmp_path / "model", cases)
    assert not (tmp_path / "model").exists()


class Block(nn.Module):
    """Of a residual network for CIFAR, with shortcuts that have no weights."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.more = stride, (width - width_in) // 2
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        made = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        short = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return (made + short).relu()


class SmallResNet(nn.Module):
    """ResNet-20 for CIFAR."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for i in (1, 2, 3):
            first = Block(widths[i - 1], widths[i], 1 if i == 1 else 2)
            rest = [Block(widths[i], widths[i], 1) for _ in range(2)]
            setattr(self, f"layer{i}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        made = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        return self.linear(made.mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "gain"), [("orthogonal", 0.008), ("invertible", 0.1)])
def test_purity_rises_on_photographs(shared_data: Path, kind: RotationKind, gain: float) -> None:
    """Ten times the paper's rate, as 64 channels make few steps; the bounds are half of what was measured."""
    network = SmallResNet().eval()
    network.load_state_dict(load_file(shared_data / "backbones" / "resnet20_cifar10.safetensors"))
    with np.load(shared_data / "cifar10" / "cifar10.npz") as z:
        cases = arrays(z["x_train"][:1000], z["y_train"][:1000], classes=[str(name) for name in z["classes"]])
    encoder = TrainedNetwork(network, Preprocess(size=(32, 32)))
    done = run(EPIC(rotation=kind, rate=1e-2), cases, encoder, batch_size=512)
    change = purity_before_after(done.model, cases)
    assert change.gain > gain
    x = inputs(cases.subset(range(200)), encoder)
    with torch.no_grad():
        wanted = network(x)
    torch.testing.assert_close(logits(done.model, x), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(done.model, x).argmax(1), wanted.argmax(1))
    assert float((wanted.argmax(1) == torch.from_numpy(cases.labels[:200].copy())).float().mean()) > 0.8


@pytest.mark.slow
def test_purity_rises_on_birds(shared_data: Path) -> None:
    """1280 channels, and a few large steps, since each takes seconds; labels of other classes are dropped."""
    weights = shared_data / "backbones" / "mobilenetv2_100_inat_birds.safetensors"
    names = (shared_data / "backbones" / "inat_bird_names.txt").read_text(encoding="utf-8").splitlines()
    birds = archive(shared_data / "cub_birds6" / "cub_birds6.zip", "train")
    cases = birds.subset(range(0, len(birds), 4)).with_classes(names, strict=False)
    network = timm.create_model("mobilenetv2_100", pad_type="same", num_classes=965).eval()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()}, strict=False)
    args = {"pad_type": "same"}
    encoder = NamedNetwork("mobilenetv2_100", weights=weights, model_args=args, mean=0.5, std=0.5)
    done = run(EPIC(first=5, stages=1, epochs=2, rate=3e-3), cases, encoder, batch_size=10_000)
    change = purity_before_after(done.model, cases)
    assert change.after.mean_purity > change.before.mean_purity + 0.02
    x = inputs(cases.subset(range(20)), encoder)
    with torch.no_grad():
        wanted = network(x)
    torch.testing.assert_close(logits(done.model, x), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(done.model, x).argmax(1), wanted.argmax(1))
