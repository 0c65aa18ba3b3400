"""Trained classifiers cut before their last linear layer: the same logits, or a refusal that says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from protolearn.data.transforms import Preprocess
from protolearn.encoders import NamedNetwork, TrainedNetwork, make_encoder
from protolearn.encoders.cut import Cut, find_cut, gap, normed_by_mean
from protolearn.errors import ModelFileError, UsageError

EXACT = [
    ("timm", "test_resnet", "mean"),
    ("timm", "mobilenetv2_035", "mean"),
    ("timm", "convnext_atto", "norm"),
    ("timm", "efficientnet_lite0", "mean"),
    ("torchvision", "resnet18", "mean"),
    ("torchvision", "densenet121", "relu"),
    ("torchvision", "mobilenet_v2", "mean"),
    ("torchvision", "convnext_tiny", "norm"),
    ("torchvision", "swin_t", "mean"),
    ("torchvision", "shufflenet_v2_x0_5", "mean"),
]


def trained(library: str, name: str) -> nn.Module:
    """Return a network in eval mode none of whose numbers are those of a fresh one: norms shift and scale."""
    torch.manual_seed(3)
    made: nn.Module = (
        timm.create_model(name, num_classes=11)
        if library == "timm"
        else torchvision.models.get_model(name, weights=None, num_classes=11)
    )
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return made.eval()


@pytest.mark.parametrize(("library", "name", "tail"), EXACT)
def test_logits_are_the_network_s_own(library: str, name: str, tail: str) -> None:
    network = trained(library, name)
    encoder = NamedNetwork(name, library=library, weights=network, size=96)  # type: ignore[arg-type]
    pictures = torch.randn(3, 3, 96, 96)
    with torch.no_grad():
        tokens, wanted = encoder(pictures), network(pictures)
    assert encoder.classifier is not None
    weight, bias = encoder.classifier
    found = tokens.values.mean(1) @ weight.T + bias
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.argmax(1), wanted.argmax(1))
    assert encoder.cut.tail == tail
    assert tokens.grid is not None
    assert tokens.grid[0] * tokens.grid[1] == tokens.values.shape[1] > 1
    assert tokens.values.shape[2] == encoder.dim == weight.shape[1]
    again = make_encoder(encoder.spec())
    assert again.classifier is None, "random weights are no trained classifier"
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.eval()(pictures).values, tokens.values)
    assert again.fingerprint() == encoder.fingerprint()


@pytest.mark.parametrize(
    ("library", "name", "size", "why"),
    [
        ("timm", "mobilenetv3_small_050", 96, "not the mean of a map"),  # a convolution behind the pooling
        ("timm", "test_vit", 160, "not the mean of a map"),  # a class token
        ("torchvision", "squeezenet1_1", 96, "not what a linear layer puts out"),
        ("torchvision", "resnet18", 32, "larger size"),  # one place
    ],
)
def test_other_networks_are_refused_with_the_reason(library: str, name: str, size: int, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        NamedNetwork(name, library=library, weights=trained(library, name), size=size)  # type: ignore[arg-type]


def test_a_transformer_that_averages_its_patches_is_exact() -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=4, global_pool="avg").eval()
    encoder = TrainedNetwork(network, Preprocess(size=(160, 160)))
    assert encoder.cut.layout == "NLC"
    assert encoder.cut.skip == 1
    tokens = encoder(torch.randn(2, 3, 160, 160))
    assert tokens.grid == (10, 10)
    assert encoder.gap < 1e-5


def test_the_right_layer_norm_is_found_among_many() -> None:
    """Fresh norms are all alike; the one whose output the classifier reads is the one behind the pooling."""
    network = timm.create_model("convnext_atto").eval()
    assert find_cut(network, torch.randn(2, 3, 64, 64)).norm == "head.norm"


def test_moments_of_the_mean_leave_the_mean_a_layer_norm() -> None:
    layer = nn.LayerNorm(16)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    values = 5 * torch.randn(4, 9, 16) + 3
    torch.testing.assert_close(normed_by_mean(values, layer).mean(1), layer(values.mean(1)), rtol=1e-4, atol=1e-4)
    bare = nn.LayerNorm(16, elementwise_affine=False)
    torch.testing.assert_close(normed_by_mean(values, bare).mean(1), bare(values.mean(1)), rtol=1e-4, atol=1e-4)


class Residual(nn.Module):
    """A network as people write them: functional, shared modules, a ReLU that nothing can hook."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.linear = nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.first(x).relu()).relu() + 0.0
        return self.linear(nn.functional.adaptive_avg_pool2d(self.again(x).relu_(), 1).flatten(1))


def test_a_network_of_ones_own() -> None:
    torch.manual_seed(1)
    network = Residual().train()
    encoder = TrainedNetwork(network, Preprocess(size=(12, 10), mean=(0.5,) * 3, std=(0.5,) * 3))
    assert network.training, "what was handed over stays as it was"
    assert isinstance(network.linear, nn.Linear)
    assert encoder.cut == Cut("again", "linear", "NCHW", "relu")
    pictures = torch.randn(2, 3, 12, 10)
    assert encoder.classifier is not None
    found = encoder(pictures).values.mean(1) @ encoder.classifier[0].T
    torch.testing.assert_close(found, network.eval()(pictures), rtol=1e-5, atol=1e-6)
    encoder.train()
    assert not any(module.training for module in encoder.net.modules())
    assert encoder.tunable() == []
    with pytest.raises(UsageError, match=r"\(B, 3, H, W\)"):
        encoder(torch.zeros(3, 12, 10))


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)), "not what a linear layer"),
        (lambda: nn.Sequential(nn.Tanh(), nn.Linear(4, 4)), "not the mean of a map"),
        (lambda: nn.Identity(), "not what a linear layer"),
    ],
)
def test_what_is_not_linear_behind_the_map_is_refused(last: Callable[[], nn.Module], why: str) -> None:
    body = [nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    with pytest.raises(UsageError, match=why):
        TrainedNetwork(nn.Sequential(*body, last()), Preprocess(size=(8, 8)))


def test_a_cut_that_is_wrong_is_noticed() -> None:
    body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)]
    with pytest.raises(UsageError, match="other logits"):
        TrainedNetwork(nn.Sequential(*body), Preprocess(size=(8, 8)), cut=Cut("0", "4", "NCHW"))


def test_no_logits_no_classifier() -> None:
    with pytest.raises(UsageError, match="logits"):
        TrainedNetwork(nn.Conv2d(3, 4, 3), Preprocess(size=(8, 8)))


def test_arguments_that_leave_no_trace_in_the_weights_are_noticed() -> None:
    """Padding has no weights: only the logits tell."""
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv2_035", pad_type="same", num_classes=7).eval()
    with pytest.raises(UsageError, match="model_args"):
        NamedNetwork("mobilenetv2_035", weights=network, size=96)
    right = NamedNetwork("mobilenetv2_035", weights=network, size=96, model_args={"pad_type": "same"})
    assert right.classes == 7


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_weights_of_a_file_say_how_many_classes(library: str, tmp_path: Path) -> None:
    name = {"timm": "test_resnet", "torchvision": "resnet18"}[library]
    network = trained(library, name)
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, tmp_path / "w.safetensors")
    encoder = NamedNetwork(name, library=library, weights=tmp_path / "w.safetensors", size=64)  # type: ignore[arg-type]
    assert encoder.classifier is not None
    assert encoder.classifier[0].shape == (11, encoder.dim)
    with pytest.raises(ModelFileError, match="does not fit"):
        NamedNetwork(name, library=library, weights=tmp_path / "w.safetensors", size=64, classes=3)  # type: ignore[arg-type]


def test_wrong_names_and_pickles_are_refused() -> None:
    with pytest.raises(UsageError, match="resnet18"):
        NamedNetwork("resnet_18", library="torchvision")
    with pytest.raises(UsageError, match="timm has no network"):
        NamedNetwork("resnet_18")
    with pytest.raises(UsageError, match="library"):
        NamedNetwork("resnet18", library="keras")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="pickles"):
        NamedNetwork("resnet18", library="torchvision", weights="hub")


def test_gap_is_relative_to_large_numbers_only() -> None:
    assert gap(torch.tensor([0.5]), torch.tensor([0.0])) == 0.5
    assert gap(torch.tensor([150.0]), torch.tensor([100.0])) == 0.5
