from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from protolearn.encoders import FeatureEncoder, SmallEncoder, make_encoder
from protolearn.errors import UsageError


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (28, 40), (1, 1)])
def test_small_takes_any_size(size: tuple[int, int]) -> None:
    tokens = SmallEncoder(dim=16)(torch.zeros(2, 3, *size))
    assert tokens.grid == tuple(-(-side // 4) for side in size)
    assert tokens.values.shape[-1] == 16


def test_small_prepares_pictures_and_comes_back_from_its_spec() -> None:
    encoder = SmallEncoder(dim=16, strides=(1, 2, 1), size=12, seed=4).eval()
    picture = encoder.preprocess(Image.new("L", (8, 8), 255).convert("RGB"))
    assert picture.shape == (3, 12, 12)
    assert picture.max() == 1
    rebuilt = make_encoder(json.loads(json.dumps(encoder.spec()))).eval()
    rebuilt.load_state_dict(encoder.state_dict())
    assert rebuilt.fingerprint() == encoder.fingerprint() != SmallEncoder(dim=16, size=12).fingerprint()
    assert torch.equal(rebuilt(picture[None]).values, encoder(picture[None]).values)
    assert len(encoder.tunable()) == len(list(encoder.parameters()))


@pytest.mark.parametrize(("shallow", "shape"), [(0, (2, 8, 8, 8)), (1, (2, 8, 4, 4))])
def test_small_gives_an_early_map_beside_the_same_tokens(shallow: int, shape: tuple[int, ...]) -> None:
    encoder, plain = SmallEncoder(dim=16, shallow=shallow).eval(), SmallEncoder(dim=16).eval()
    pictures = torch.randn(2, 3, 16, 16)
    tokens = encoder(pictures)
    assert torch.equal(tokens.values, plain(pictures).values)
    assert tokens.extras["shallow"].shape == shape
    assert torch.equal(tokens.extras["shallow"], plain.net[: 3 * (shallow + 1)](pictures))
    assert encoder.fingerprint() == plain.fingerprint(), "a cache of tokens serves both"
    assert make_encoder(json.loads(json.dumps(encoder.spec()))).shallow == shallow
    assert not plain(pictures).extras


def test_small_learns() -> None:
    encoder = SmallEncoder(dim=8)
    encoder(torch.randn(2, 3, 16, 16)).values.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_features_pass_through() -> None:
    encoder = FeatureEncoder(5)
    vectors, sets = torch.randn(3, 5), torch.randn(3, 4, 5)
    assert torch.equal(encoder(vectors).values, vectors.unsqueeze(1))
    assert torch.equal(encoder(sets).values, sets)
    assert encoder(sets).grid is None
    assert encoder.preprocess is None
    assert make_encoder(encoder.spec()).dim == 5
    assert encoder.fingerprint() != FeatureEncoder(6).fingerprint()
    with pytest.raises(UsageError, match=r"\(B, 5\) or \(B, S, 5\), got \(3, 6\)"):
        encoder(torch.zeros(3, 6))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"encoder": "imag"}, "did you mean 'image'"),
        ({"encoder": "resnet18"}, "encoder: image with name"),
        ({}, "no encoder is called None"),
        ({"encoder": "small", "dims": 3}, "did you mean 'dim'"),
        ({"encoder": "features"}, "needs the setting 'dim'"),
        ({"encoder": "features", "dim": 0}, "at least 1"),
        ({"encoder": "small", "dim": 1}, "at least 2"),
        ({"encoder": "small", "strides": [2, 2]}, "three whole numbers"),
        ({"encoder": "small", "size": -1}, "above 0"),
        ({"encoder": "small", "shallow": 2}, "layer 0 or 1"),
    ],
)
def test_wrong_specs(spec: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_encoder(spec)
    assert words in str(caught.value)


def test_importing_the_room_leaves_timm_alone() -> None:
    code = "import sys, protolearn.encoders; print([m for m in ('timm', 'torchvision', 'PIL') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("kernels", "strides", "window"), [((3, 3, 3), (2, 2, 1), 3), ((3, 3, 1), (2, 1, 1), 3), ((1, 3, 1), (2, 2, 1), 1)]
)
def test_the_place_of_a_token_holds_what_it_sees(
    kernels: tuple[int, ...], strides: tuple[int, ...], window: int
) -> None:
    encoder = SmallEncoder(dim=4, kernels=kernels, strides=strides, size=16).eval()
    picture = torch.randn(1, 3, 16, 16, requires_grad=True)
    tokens = encoder(picture)
    assert tokens.window == window
    middle = tokens.values.shape[1] // 2 + tokens.grid[1] // 2
    tokens.values[0, middle].sum().backward()
    seen = picture.grad[0].abs().sum(0).nonzero()
    box = tokens.region(middle)
    cell = 16 / tokens.grid[0]
    assert seen.numel()
    assert float((seen[:, 1] - box.x0).min()) >= -cell
    assert float((seen[:, 1] + 1 - box.x1).max()) <= cell, "the field ends less than a cell beyond the outline"
