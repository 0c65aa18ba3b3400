"""Any timm network as an encoder: what comes out is what timm's own network computes there."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from protolearn.encoders import ImageEncoder, make_encoder
from protolearn.errors import UsageError

SMALL = "mobilenetv3_small_050"


def whole(name: str, size: int | None = None, seed: int = 0, **args: object) -> torch.nn.Module:
    """The uncut network with the same random weights, made by timm alone."""
    torch.manual_seed(seed)
    network = timm.create_model(name, **args).eval()
    if size is not None and hasattr(network, "set_input_size"):
        network.set_input_size(img_size=(size, size))
    return network


@pytest.mark.parametrize(
    ("name", "layer", "grid", "dim"),
    [
        (SMALL, "last", (2, 2), 288),
        (SMALL, 0, (32, 32), 16),
        (SMALL, "blocks.3", (4, 4), 24),
        ("test_resnet", -2, (4, 4), 192),
        ("convnext_atto", "last", (2, 2), 320),  # timm renames stages.3 to stages_3
        ("test_efficientnet", 2, (8, 8), 32),
        ("repvit_m1", 1, (8, 8), 96),
        ("xcit_nano_12_p8_224", "last", (8, 8), 128),
    ],
)
def test_maps_are_those_of_the_whole_network(name: str, layer: int | str, grid: tuple[int, int], dim: int) -> None:
    encoder = ImageEncoder(name, layer=layer, size=64, seed=3).eval()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = encoder(pictures)
        index = encoder._chosen[0]
        expected = whole(name, seed=3).forward_intermediates(pictures, indices=[index], intermediates_only=True)[0]
    assert (encoder.grid, encoder.dim) == (tokens.grid, tokens.values.shape[-1]) == (grid, dim)
    assert tokens.input_size == (64, 64)
    assert tokens.summary is None
    torch.testing.assert_close(tokens.values, expected.flatten(2).transpose(1, 2), rtol=0, atol=0)


def test_final_is_what_the_classifier_pools() -> None:
    encoder = ImageEncoder("test_efficientnet", layer="final", size=64).eval()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = whole("test_efficientnet").forward_features(pictures)
        torch.testing.assert_close(encoder(pictures).values, expected.flatten(2).transpose(1, 2), rtol=0, atol=0)
    assert encoder.dim == expected.shape[1] != ImageEncoder("test_efficientnet", size=64).dim


@pytest.mark.parametrize(
    ("name", "layer", "shallow", "grid", "early"),
    [
        (SMALL, "last", 0, (2, 2), (16, 32, 32)),
        (SMALL, 0, 0, (32, 32), (16, 32, 32)),
        ("test_resnet", ("last", -2), 1, (4, 4), (32, 16, 16)),
        ("test_efficientnet", "final", 1, (2, 2), (24, 16, 16)),
        ("test_vit", "last", 0, (4, 4), (64, 4, 4)),
    ],
)
def test_an_early_map_comes_beside_the_same_tokens(
    name: str, layer: int | str | tuple[int | str, ...], shallow: int, grid: tuple[int, int], early: tuple[int, ...]
) -> None:
    pictures = torch.randn(2, 3, 64, 64)
    encoder = ImageEncoder(name, layer=layer, shallow=shallow, size=64, seed=3).eval()
    plain, alone = (ImageEncoder(name, layer=one, size=64, seed=3).eval() for one in (layer, shallow))
    with torch.no_grad():
        tokens, same, map_ = encoder(pictures), plain(pictures), alone(pictures)
    torch.testing.assert_close(tokens.values, same.values, rtol=0, atol=0)
    assert (tokens.grid, tuple(tokens.extras["shallow"].shape[1:])) == (grid, early)
    torch.testing.assert_close(tokens.extras["shallow"].flatten(2).transpose(1, 2), map_.values, rtol=0, atol=0)
    assert encoder.fingerprint() == plain.fingerprint(), "a cache of tokens serves both"
    assert make_encoder(json.loads(json.dumps(encoder.spec()))).shallow == shallow


@pytest.mark.parametrize("size", [64, 96])
def test_patch_tokens_and_class_token_of_a_transformer(size: int) -> None:
    encoder = ImageEncoder("vit_tiny_patch16_224", size=size).eval()
    pictures = torch.randn(2, 3, size, size)
    with torch.no_grad():
        tokens = encoder(pictures)
        expected = whole("vit_tiny_patch16_224", size).forward_features(pictures)
    assert tokens.grid == (size // 16, size // 16) == encoder.grid
    torch.testing.assert_close(tokens.values, expected[:, 1:], rtol=0, atol=0)
    torch.testing.assert_close(tokens.summary, expected[:, 0], rtol=0, atol=0)


def test_registers_are_dropped_and_inner_blocks_are_normed() -> None:
    encoder = ImageEncoder("vit_small_patch14_reg4_dinov2", size=56, layer=2).eval()
    network = whole("vit_small_patch14_reg4_dinov2", 56)
    pictures = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        tokens = encoder(pictures)
        spatial, prefix = network.forward_intermediates(
            pictures, indices=[2], norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )[0]
    assert tokens.values.shape == (1, 16, 384)
    torch.testing.assert_close(tokens.values, spatial, rtol=0, atol=0)
    torch.testing.assert_close(tokens.summary, prefix[:, 0], rtol=0, atol=0)
    assert len(encoder.net.blocks) == 3, "blocks after the last chosen one are cut off"


def test_a_network_with_windows_keeps_its_weights_at_another_size() -> None:
    encoder = ImageEncoder("swin_tiny_patch4_window7_224", size=64, layer=1).eval()
    network = whole("swin_tiny_patch4_window7_224", 64)
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.forward_intermediates(pictures, indices=[1], intermediates_only=True)[0]
        torch.testing.assert_close(encoder(pictures).values, expected.flatten(2).transpose(1, 2), rtol=0, atol=0)


def test_several_layers_meet_on_the_finest_grid() -> None:
    encoder = ImageEncoder(SMALL, layer=[4, 2], size=64).eval()
    one, other = (ImageEncoder(SMALL, layer=i, size=64).eval() for i in (2, 4))
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        tokens, fine, coarse = encoder(pictures), one(pictures), other(pictures)
    assert tokens.grid == fine.grid
    assert encoder.dim == one.dim + other.dim
    torch.testing.assert_close(tokens.values[..., : one.dim], fine.values)
    folded = coarse.values.transpose(1, 2).unflatten(2, coarse.grid)
    wide = torch.nn.functional.interpolate(folded, size=fine.grid, mode="bilinear")
    torch.testing.assert_close(tokens.values[..., one.dim :], wide.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("size", [(64, 96), (80, 80)])
def test_any_size_of_a_convolutional_network(size: tuple[int, int]) -> None:
    encoder = ImageEncoder(SMALL, size=size)
    assert encoder.preprocess.size == size
    assert encoder.grid == (-(-size[0] // 32), -(-size[1] // 32))
    assert encoder(torch.zeros(2, 3, 320, 64)).grid == (10, 2), "a batch may have another size"


def test_preparation_is_the_networks_own_unless_said() -> None:
    own = ImageEncoder(SMALL).preprocess
    assert own.size == (224, 224)
    assert own.mean == pytest.approx((0.485, 0.456, 0.406))
    ours = ImageEncoder(SMALL, size=64, mean=0.5, std=0.5, interpolation="bilinear").preprocess
    assert (ours.size, ours.mean, ours.std, ours.interpolation) == ((64, 64), (0.5,) * 3, (0.5,) * 3, "bilinear")
    assert ImageEncoder(SMALL, size=64, resize="crop").preprocess.crop_fraction == pytest.approx(0.875)
    assert ImageEncoder("vit_tiny_patch16_224", model_args={"img_size": 64}).grid == (4, 4)


def test_random_weights_come_from_the_seed_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (ImageEncoder(SMALL, size=64, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


def test_spec_rebuilds_the_encoder_without_weights() -> None:
    encoder = ImageEncoder(
        SMALL,
        layer=[1, "last"],
        size=(64, 96),
        mean=0.5,
        train_from="blocks.2",
        model_args={"pad_type": "same"},
        seed=1,
    ).eval()
    rebuilt = make_encoder(json.loads(json.dumps(encoder.spec()))).eval()
    assert rebuilt.spec() == encoder.spec()
    rebuilt.load_state_dict(encoder.state_dict())
    assert isinstance(rebuilt, ImageEncoder)
    assert rebuilt.fingerprint() == encoder.fingerprint()
    pictures = torch.randn(1, 3, 64, 96)
    assert torch.equal(rebuilt(pictures).values, encoder(pictures).values)


def test_fingerprint_changes_with_any_weight_and_any_setting_of_tokens() -> None:
    encoder = ImageEncoder("test_resnet", size=64)
    first = encoder.fingerprint()
    encoder.freeze("layer3")
    encoder.train()
    encoder.net.layer4[0].bn1.num_batches_tracked += 1
    assert encoder.fingerprint() == first, "what is trained changes no token"
    for tensor in list(encoder.state_dict().values()):
        if not tensor.is_floating_point():
            continue
        kept = tensor.flatten()[-1].item()
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
            assert encoder.fingerprint() != first
            tensor.view(-1)[-1] = kept
    assert encoder.fingerprint() == first
    assert ImageEncoder("test_resnet", size=64, mean=0.4).fingerprint() != first
    assert ImageEncoder("test_resnet", size=32).fingerprint() != first


# partly frozen


def one_step(encoder: ImageEncoder, size: int = 64) -> tuple[set[str], set[str]]:
    """Names of parameters and of buffers that a training step changed."""
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder.train()
    optimiser = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=1.0, weight_decay=0.1)
    encoder(torch.randn(4, 3, size, size)).values.square().sum().backward()
    optimiser.step()
    changed = {name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    parameters = {name for name, _ in encoder.named_parameters()}
    return changed & parameters, changed - parameters


def test_frozen_blocks_keep_weights_and_batch_norm_statistics() -> None:
    encoder = ImageEncoder("test_resnet", size=64, train_from="layer3")
    assert encoder.training
    assert not any(module.training for module in encoder.net.layer2.modules())
    weights, buffers = one_step(encoder)
    assert weights, "something was trained"
    assert buffers, "and its statistics moved"
    assert {name.split(".")[1] for name in weights | buffers} == {"layer3", "layer4"}
    assert encoder.net.layer4[0].bn1.training
    assert not encoder.net.layer1.training
    assert not encoder.net.bn1.training


def test_frozen_blocks_stay_frozen_when_a_phase_switches_gradients_on() -> None:
    encoder = ImageEncoder(SMALL, size=64, train_from=-2)
    for parameter in encoder.parameters():
        parameter.requires_grad_(True)  # what a careless loop does
    weights, buffers = one_step(encoder)
    last = tuple(f"net.{name}." for name in encoder.block_names[-2:])
    assert weights
    assert all(name.startswith(last) for name in weights | buffers)


def test_tunable_parameters() -> None:
    encoder = ImageEncoder("vit_tiny_patch16_224", size=64)
    everything = len(encoder.tunable())
    assert everything == len(list(encoder.parameters()))
    encoder.freeze("blocks.10")
    assert encoder.train_from == "blocks.10"
    held = set(encoder.parameters()) - set(encoder.tunable())
    assert {encoder.net.pos_embed, encoder.net.cls_token} <= held, "parameters outside blocks come first"
    assert {p for p in encoder.parameters() if p.requires_grad} == set(encoder.tunable())
    encoder.freeze()
    assert encoder.tunable() == []
    assert not any(module.training for module in encoder.train().net.modules())
    encoder.freeze(0)
    assert len(encoder.tunable()) == everything
    assert all(p.requires_grad for p in encoder.parameters())
    assert all(module.training for module in encoder.train().modules())


# wrong settings: one line that names the remedy


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "resnet81"}, "did you mean 'resnet"),
        ({"name": "resnet18.a9_in1k"}, "'a1_in1k'"),
        ({"name": "hf-hub:someone/something"}, "no network called"),
        ({"layer": 7}, "0 bn1 (stride 2, width 16), 1 blocks.0 (stride 4, width 8)"),
        ({"layer": "layer4"}, '"last", "final" and: 0 bn1'),
        ({"layer": [1, "final"]}, "stands alone"),
        ({"layer": []}, "at least one layer"),
        ({"size": 0.5}, "two whole numbers"),
        ({"size": 0}, "two whole numbers"),
        ({"size": (64, 64, 64)}, "height and width"),
        ({"std": 0}, "std above 0"),
        ({"train_from": "layer9"}, "one of conv_stem, bn1, blocks.0"),
        ({"train_from": 99}, "an index from 0 to"),
        ({"model_args": {"padtype": "same"}}, "padtype"),
        ({"model_args": {"num_classes": 3}}, "sets it itself"),
        ({"name": "vit_tiny_patch16_224", "size": 8}, "cannot take pictures of 8 x 8"),
        ({"interpolation": "cubic"}, "bicubic"),
    ],
)
def test_wrong_settings(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        ImageEncoder(**{"name": SMALL, "size": 64, **settings})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_input() -> None:
    with pytest.raises(UsageError, match=r"\(B, 3, H, W\), got \(1, 1, 64, 64\)"):
        ImageEncoder(SMALL, size=64)(torch.zeros(1, 1, 64, 64))


# the shared network


@pytest.fixture(scope="module")
def pretrained(shared_data: Path) -> Path:
    path = shared_data / "backbones" / "mobilenetv2_100_in1k.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the shared data")
    return path


def test_the_shared_network_recognises_photos(shared_data: Path, pretrained: Path) -> None:
    encoder = ImageEncoder(
        "mobilenetv2_100",
        weights=pretrained,
        layer="final",
        mean=0.5,
        std=0.5,
        resize="crop",
        model_args={"pad_type": "same"},
    ).eval()
    assert encoder.origin == f"file {pretrained.name}"
    state = load_file(pretrained)
    folder = shared_data / "imagenet_photos"
    with (folder / "index.csv").open() as file, zipfile.ZipFile(folder / "imagenet_photos.zip") as photos:
        rows = list(csv.DictReader(file))
        pictures = [encoder.preprocess(Image.open(io.BytesIO(photos.read(row["file"]))).convert("RGB")) for row in rows]
    labels = torch.tensor([int(row["imagenet_index"]) for row in rows])
    with torch.inference_mode():
        pooled = torch.cat([encoder(torch.stack(pictures[i : i + 20])).values.mean(1) for i in range(0, 60, 20)])
    logits = pooled @ state["classifier.weight"].float().T + state["classifier.bias"].float()
    right = (logits.argmax(1) == labels).float().mean().item()
    assert right >= 0.85, f"top-1 {right:.2f}"


def test_the_shared_network_cut_at_a_layer_equals_the_whole_one(pretrained: Path) -> None:
    encoder = ImageEncoder(
        "mobilenetv2_100", weights=pretrained, layer=3, size=64, model_args={"pad_type": "same"}
    ).eval()
    network = timm.create_model("mobilenetv2_100", pad_type="same")
    network.load_state_dict(load_file(pretrained), strict=True)
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network.eval().forward_intermediates(pictures, indices=[3], intermediates_only=True)[0]
        torch.testing.assert_close(encoder(pictures).values, expected.flatten(2).transpose(1, 2), rtol=0, atol=0)


def test_other_numbers_of_classes_are_read_from_the_file(pretrained: Path) -> None:
    birds = pretrained.with_name("mobilenetv2_100_inat_birds.safetensors")
    if not birds.is_file():
        pytest.skip(f"no {birds.name} in the shared data")
    encoder = ImageEncoder("mobilenetv2_100", weights=str(birds), size=64, model_args={"pad_type": "same"})
    assert torch.equal(encoder.net.conv_stem.weight, load_file(birds)["conv_stem.weight"].float())


def test_weights_without_a_classifier_are_enough(tmp_path: Path) -> None:
    network = whole("test_resnet", seed=5)
    path = tmp_path / "headless.safetensors"
    save_file({name: t.clone() for name, t in network.state_dict().items() if not name.startswith("fc.")}, path)
    loaded = ImageEncoder("test_resnet", weights=path, size=64)
    assert loaded.fingerprint() == ImageEncoder("test_resnet", size=64, seed=5).fingerprint()


def test_batch_norm_statistics_stay_where_they_are_asked_to() -> None:
    def moved(**settings: object) -> bool:
        encoder = ImageEncoder("mobilenetv3_small_050", size=32, **settings)
        before = {name: value.clone() for name, value in encoder.state_dict().items() if "running" in name}
        encoder.train()
        encoder(torch.rand(4, 3, 32, 32))
        return any(not torch.equal(value, encoder.state_dict()[name]) for name, value in before.items())

    assert moved()
    assert not moved(freeze_norms=True)
    encoder = ImageEncoder("mobilenetv3_small_050", size=32, freeze_norms=True)
    assert make_encoder(encoder.spec()).freeze_norms
    assert encoder.fingerprint() == ImageEncoder("mobilenetv3_small_050", size=32).fingerprint()
