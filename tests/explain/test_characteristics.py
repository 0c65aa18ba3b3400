"""What a prototype looks at: planted prototypes of colour and of shape, laws, and a direction on real pictures."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.encoder import Encoder
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import cosine, squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import LogRatio, Negative
from protolearn.data import digits, features
from protolearn.data.transforms import Preprocess
from protolearn.encoders import SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.explain.characteristics import global_characteristics, local_characteristics
from protolearn.explain.passes import PictureList
from protolearn.explain.perturb import CHARACTERISTICS
from protolearn.methods import get_method
from protolearn.structures import Tokens

SIDE = 32


class Seen(Encoder):
    """Per cell of 8 x 8 pixels: the direction of colour and that of edges, however strong they are."""

    dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = Preprocess(size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)

    def forward(self, inputs: Tensor) -> Tokens:
        grey = inputs.mean(1, keepdim=True)
        down = nn.functional.pad((grey[:, :, :, 1:] - grey[:, :, :, :-1]).abs(), (0, 1))
        across = nn.functional.pad((grey[:, :, 1:] - grey[:, :, :-1]).abs(), (0, 0, 0, 1))
        colour = inputs - grey
        colour = colour / colour.norm(dim=1, keepdim=True).clamp_min(0.05)
        edges = nn.functional.avg_pool2d(torch.cat([down, across], 1), 8)
        edges = edges / edges.sum(1, keepdim=True).clamp_min(0.01)
        cells = torch.cat([nn.functional.avg_pool2d(colour, 8), edges], 1)
        return Tokens(cells.flatten(2).transpose(1, 2), grid=(4, 4), input_size=(SIDE, SIDE))

    def spec(self) -> dict[str, object]:
        return {}


def pictures(count: int = 6) -> PictureList:
    """Red pictures, none red alike, with a band of upright grey bars."""
    found = []
    for k in range(count):
        values = np.full((SIDE, SIDE, 3), (220 + 5 * k, 60 + k, 60 + k), np.uint8)
        values[8:24, :] = np.where(np.arange(SIDE) % 4 < 2, 60, 200)[None, :, None]
        found.append(Image.fromarray(values))
    return PictureList(found, [f"p{k}" for k in range(count)])


def planted(measure: object = squared_l2, similarity: object | None = None) -> PrototypeModel:
    """Prototype 0 is the red patch, prototype 1 the upright bars."""
    encoder = Seen()
    shown = encoder(encoder.preprocess(pictures().picture(0))[None]).values[0]
    vectors = torch.stack([shown[0], shown[9]])
    bank = PrototypeBank(vectors, torch.eye(2))
    head = LinearEvidence.from_ownership(bank.ownership)
    if similarity is None and measure is squared_l2:
        similarity = LogRatio()
    return PrototypeModel(encoder, nn.Identity(), bank, measure, head, similarity=similarity).eval()


def test_a_prototype_of_colour_hears_of_hue_first_and_one_of_bars_of_shape() -> None:
    found = global_characteristics(planted(), pictures())
    table = dict(zip(found.names, found.importance.T.tolist(), strict=True))
    assert found.first(0) == "hue"
    assert table["hue"][0] > 1
    assert found.first(1) == "shape"
    assert table["shape"][1] > 1
    assert abs(table["hue"][1]) < 0.1, "grey bars have no hue"
    assert abs(table["saturation"][1]) < 0.1
    assert found.words(0).startswith("prototype 0: hue +")
    assert found.to_dict()["prototypes"]["1"]["shape"] == pytest.approx(table["shape"][1])
    assert found.first(1, relative=True) != "hue"
    told = np.abs(found.importance).sum(0) > 0
    assert np.abs(found.relative).mean(0)[told] == pytest.approx(np.ones(told.sum()), abs=1e-6)


@pytest.mark.parametrize(("measure", "similarity"), [(squared_l2, None), (cosine, None), (squared_l2, Negative())])
def test_strength_0_gives_0_and_everything_is_finite(measure: object, similarity: object | None) -> None:
    model = planted(measure, similarity)
    nothing = global_characteristics(model, pictures(), strength=0.0)
    assert np.array_equal(nothing.importance, np.zeros((2, 6)))
    local = local_characteristics(model, pictures(), strength=0.0)
    assert not local.phi.any()
    assert not local.free.any()
    assert np.isfinite(global_characteristics(model, pictures()).importance).all()


def test_grey_pictures_have_no_colour() -> None:
    cases = digits("test").subset([0, 1, 2])
    model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(), 10, seed=0).eval()
    found = local_characteristics(model, cases, names=("hue", "saturation", "contrast"))
    assert not found.phi[..., :2].any()
    assert found.phi[..., 2].any()
    assert found.words(0, 3).startswith("prototype 3: ")


@lru_cache
def on_digits() -> PrototypeModel:
    return get_method("protopnet")(prototypes_per_class=2, dim=8).build(SmallEncoder(), 10, seed=0).eval()


def test_the_fixed_place_never_hides_a_fall() -> None:
    found = local_characteristics(on_digits(), digits("test").subset(range(6)), names=("contrast", "shape"))
    assert found.phi.shape == (6, 20, 2)
    assert bool((found.phi >= found.free - 1e-6).all())
    assert bool((found.phi > found.free + 1e-3).any()), "somewhere a moved match would have hidden it"


def test_global_is_the_weighted_mean_of_local_ones_in_any_order_and_twice() -> None:
    cases = digits("test").subset(range(7))
    names = ("contrast", "brightness", "shape")
    local = local_characteristics(on_digits(), cases, names=names)
    weights = local.similarity[..., None]
    wanted = (local.phi * weights).sum(0) / weights.sum(0)
    for batch, order in ((64, range(7)), (2, range(7)), (3, [6, 2, 0, 1, 5, 4, 3])):
        found = global_characteristics(on_digits(), cases, list(order), names=names, batch_size=batch)
        assert np.allclose(found.importance, wanted, atol=1e-5)
        assert found.cases == 7
        assert found.size is not None and np.allclose(found.size, np.abs(local.phi).mean(0), atol=1e-5)
    twice = PictureList([cases.picture(i % 7) for i in range(14)], [str(i) for i in range(14)])
    assert np.allclose(global_characteristics(on_digits(), twice, names=names).importance, wanted, atol=1e-5)


def test_weights_of_similarities_below_zero_are_counted_from_the_lowest() -> None:
    model = planted(cosine)
    cases = pictures()
    cases = PictureList([*cases.pictures, Image.new("RGB", (SIDE, SIDE), (60, 230, 60))], [*cases.ids, "green"])
    local = local_characteristics(model, cases, names=("hue", "shape"))
    assert local.similarity.min() < 0
    weights = local.similarity - np.minimum(local.similarity.min(0), 0)
    wanted = (local.phi * weights[..., None]).sum(0) / weights.sum(0)[:, None]
    assert np.allclose(global_characteristics(model, cases, names=("hue", "shape")).importance, wanted, atol=1e-6)
    one = global_characteristics(planted(squared_l2, Negative()), cases, [0], names=("hue",))
    assert np.isfinite(one.importance).all(), "one case has the lowest similarity: its weight would be 0"


def test_banned_prototypes_are_left_out() -> None:
    model = planted()
    model.bank.ban([0])
    found = global_characteristics(model, pictures(2), names=("hue",))
    assert found.prototypes == (1,)
    with pytest.raises(UsageError, match="no usable prototype 0"):
        found.words(0)


def test_wrong_questions_are_refused_in_words() -> None:
    with pytest.raises(UsageError, match="holds features"):
        local_characteristics(on_digits(), features(np.zeros((2, 3)), ["a", "b"]))
    with pytest.raises(UsageError, match="at least one characteristic"):
        local_characteristics(on_digits(), digits("test").subset([0]), names=())
    with pytest.raises(UsageError, match="no alteration"):
        local_characteristics(on_digits(), digits("test").subset([0]), names=("colour",))
    with pytest.raises(DataError, match="no picture"):
        global_characteristics(on_digits(), digits("test").subset([]))


@pytest.mark.slow
def test_training_and_test_pictures_tell_the_same(shared_data: Path) -> None:
    """Over prototypes, importances measured on the two parts of real pictures go together."""
    with np.load(shared_data / "cifar10" / "cifar10.npz") as z:
        train, test, others = z["x_train"][::25], z["x_test"][::5], z["x_train"][7::170]
    first, second, third = (
        PictureList([Image.fromarray(x) for x in part], [f"{name}{i}" for i in range(len(part))])
        for name, part in (("a", train), ("b", test), ("c", others))
    )
    model = get_method("protopnet")(prototypes_per_class=3, dim=16).build(SmallEncoder(dim=32), 10, seed=0).eval()
    with torch.no_grad():  # prototypes that are tokens of other pictures; those of its own would match it exactly
        model.neck = nn.Identity()
        inputs = torch.stack([model.encoder.preprocess(third.picture(i)) for i in range(30)])
        model.bank.vectors = nn.Parameter(model.encode(inputs).values[range(30), 20])
    names = tuple(name for name in CHARACTERISTICS if name != "texture")
    both = [global_characteristics(model, part, names=names).importance for part in (first, second)]
    for m, name in enumerate(names):
        assert np.corrcoef(both[0][:, m], both[1][:, m])[0, 1] > 0.8, name
