"""Models of normality on pictures with planted defects, on vectors, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protolearn.audit.anomaly import score_detection, score_localisation
from protolearn.core.encoder import fingerprint
from protolearn.data import arrays
from protolearn.data.cases import Cases
from protolearn.data.features import features
from protolearn.encoders import FeatureEncoder, ImageEncoder, SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.tasks.anomaly import InpModel, MemoryModel, fit_anomaly
from protolearn.tasks.anomaly_inp import InpSettings

SIDE = 64


def textures(count: int, seed: int, defects: bool = False) -> tuple[Cases, np.ndarray]:
    """Return stripes with a random phase and noise; a defect is a square of stripes across them."""
    rng = np.random.default_rng(seed)
    line, masks = np.arange(SIDE), np.zeros((count, SIDE, SIDE), dtype=bool)
    pictures = np.zeros((count, SIDE, SIDE))
    for i in range(count):
        wave = 0.5 + 0.3 * np.sin(2 * np.pi * (line / 8 + rng.random()))
        pictures[i] = wave[None, :]
        if defects:
            y, x = rng.integers(4, SIDE - 24, 2)
            masks[i, y : y + 20, x : x + 20] = True
            pictures[i][masks[i]] = np.broadcast_to(wave[:, None], (SIDE, SIDE))[masks[i]]
        pictures[i] += rng.normal(0, 0.02, (SIDE, SIDE))
    made = (pictures.clip(0, 1) * 255).astype(np.uint8)
    return arrays(made, name="defect" if defects else f"normal{seed}"), masks


@pytest.fixture(scope="module")
def convolutional() -> ImageEncoder:
    return ImageEncoder("resnet10t", layer=[0, 1], size=SIDE, seed=0)


@pytest.fixture(scope="module")
def transformer() -> ImageEncoder:
    """Return a small transformer with random weights: no pretrained one is at hand."""
    return ImageEncoder(
        "vit_tiny_patch16_224", layer=range(1, 5), size=SIDE, seed=0,
        model_args={"embed_dim": 48, "depth": 6, "num_heads": 3, "patch_size": 8, "img_size": SIDE},
    )  # fmt: skip


@pytest.fixture(scope="module")
def memory(convolutional: ImageEncoder) -> MemoryModel:
    made = fit_anomaly(convolutional, textures(12, 0)[0], held_out=textures(12, 1)[0], rate=0.9, size=300)
    assert isinstance(made, MemoryModel)
    return made


@pytest.fixture(scope="module")
def inp(transformer: ImageEncoder) -> InpModel:
    settings = {"epochs": 70, "batch": 8, "warm_up": 10, "prototypes": 4, "map_size": SIDE}
    made = fit_anomaly(transformer, textures(16, 0)[0], "inp_former", **settings)  # type: ignore[arg-type]
    assert isinstance(made, InpModel)
    return made


def test_a_memory_finds_planted_defects_and_says_where(memory: MemoryModel) -> None:
    (bad, masks), (good, _) = textures(12, 2, defects=True), textures(12, 3)
    foreign, usual = memory.judge(bad), memory.judge(good)
    both = score_detection(np.append(usual.confidence, foreign.confidence), np.arange(24) >= 12)
    assert (both.auroc or 0) > 0.95
    assert foreign.maps is not None
    assert foreign.maps.shape == (12, SIDE, SIDE)
    places = score_localisation(foreign.maps, masks)
    assert (places.auroc or 0) > 0.9
    assert (places.aupro or 0) > 0.5
    assert foreign.normal is not None
    assert usual.normal is not None
    assert foreign.normal.sum() < usual.normal.sum()
    inside = 0
    for reason, mask in zip(foreign.reasons, masks, strict=True):
        assert reason.region is not None
        x0, y0, x1, y1 = (int(side) for side in reason.region)
        inside += bool(mask[y0:y1, x0:x1].any())
    assert inside >= 11


def test_the_nearest_normal_patch_is_the_one_it_names(memory: MemoryModel) -> None:
    bad = textures(2, 2, defects=True)[0]
    train = textures(12, 0)[0]
    found = memory.judge(bad)
    reason = found.reasons[0]
    assert reason.nearest_case in train.ids
    assert reason.nearest_region is not None
    own = train.subset([train.ids.index(reason.nearest_case)])
    preprocess = memory.encoder.preprocess
    with torch.no_grad():
        memory.eval()
        there = memory.patches(torch.stack([preprocess(own.picture(0))]))
        here = memory.patches(torch.stack([preprocess(bad.picture(0))]))
    cells = [memory.in_picture(there.region(s), (SIDE, SIDE)) for s in range(there.values.shape[1])]
    position = int(torch.cdist(here.values[0], memory.vectors).min(1).values.argmax())
    gap = (here.values[0, position] - there.values[0, cells.index(reason.nearest_region)]).norm()
    assert float(gap) == pytest.approx(reason.distance, rel=1e-4)


def test_a_remembered_case_is_as_normal_as_can_be_and_a_seed_repeats(convolutional: ImageEncoder) -> None:
    train = textures(3, 0)[0]
    whole = fit_anomaly(convolutional, train, size=1.0)
    assert whole.judge(train).confidence == pytest.approx(np.zeros(3), abs=1e-4)
    one, two, other = (fit_anomaly(convolutional, train, size=20, seed=seed) for seed in (0, 0, 1))
    assert isinstance(one, MemoryModel)
    assert isinstance(two, MemoryModel)
    assert isinstance(other, MemoryModel)
    assert torch.equal(one.vectors, two.vectors)
    assert not torch.equal(one.vectors, other.vectors)


def test_the_pool_bounds_what_is_held(convolutional: ImageEncoder) -> None:
    small = fit_anomaly(convolutional, textures(6, 0)[0], size=1.0, pool=60)
    assert isinstance(small, MemoryModel)
    assert torch.bincount(small.case, minlength=6).tolist() == [10] * 6


def test_no_threshold_no_verdict(convolutional: ImageEncoder) -> None:
    found = fit_anomaly(convolutional, textures(2, 0)[0], size=5).judge(textures(2, 1)[0], maps=False)
    assert (found.normal, found.threshold, found.maps) == (None, None, None)
    plain = found.to_dict()
    assert plain["cases"][0]["normal"] is None
    assert plain["cases"][0]["confidence"] < 0


def test_the_threshold_lets_its_share_through(memory: MemoryModel) -> None:
    normal = memory.judge(textures(12, 1)[0]).normal
    assert normal is not None
    assert normal.sum() == 11  # of 12, at least 0.9


def test_inp_former_finds_planted_defects(inp: InpModel) -> None:
    (bad, masks), (good, _) = textures(12, 2, defects=True), textures(12, 3)
    foreign, usual = inp.judge(bad), inp.judge(good)
    both = score_detection(np.append(usual.confidence, foreign.confidence), np.arange(24) >= 12)
    assert (both.auroc or 0) > 0.9
    assert foreign.maps is not None
    assert (score_localisation(foreign.maps, masks).auroc or 0) > 0.9
    assert inp.losses[-1] < 0.5 * inp.losses[0]
    reason = foreign.reasons[0]
    assert reason.nearest_case == foreign.ids[0]
    assert reason.nearest_region is not None
    assert reason.region is not None


def test_inp_former_leaves_the_encoder_alone_and_a_seed_repeats(transformer: ImageEncoder) -> None:
    train = textures(4, 0)[0]
    transformer.train()
    before, modes = fingerprint({}, (), transformer), [m.training for m in transformer.modules()]
    nets = [fit_anomaly(transformer, train, "inp_former", epochs=2, seed=seed) for seed in (0, 0, 1)]
    assert fingerprint({}, (), transformer) == before
    assert [m.training for m in transformer.modules()] == modes
    scores = [net.judge(train).confidence for net in nets]
    assert np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_layers_are_taken_without_the_final_norm(transformer: ImageEncoder) -> None:
    inputs = torch.rand(2, 3, SIDE, SIDE)
    transformer.eval()
    maps = transformer.layer_maps(inputs)
    assert [tuple(one.shape) for one in maps] == [(2, 48, 8, 8)] * 4
    x = transformer.net.norm_pre(transformer.net._pos_embed(transformer.net.patch_embed(inputs)))
    for k, block in enumerate(transformer.net.blocks[:5]):
        x = block(x)
        if k >= 1:
            torch.testing.assert_close(maps[k - 1].flatten(2).transpose(1, 2), x[:, 1:])
    with pytest.raises(UsageError, match="final"):
        ImageEncoder("mobilenetv3_small_050", layer="final", size=32).layer_maps(torch.zeros(1, 3, 32, 32))


def test_zero_shot_judges_by_the_prototypes_alone(transformer: ImageEncoder) -> None:
    found = fit_anomaly(transformer, textures(4, 0)[0], "inp_former", epochs=1, zero_shot=True, map_size=SIDE)
    assert isinstance(found, InpModel)
    bad = textures(3, 2, defects=True)[0]
    before = found.judge(bad).confidence
    with torch.no_grad():
        for parameter in found.net.decoder.parameters():
            parameter.zero_()
    assert np.array_equal(found.judge(bad).confidence, before)


def test_the_rate_rises_and_falls() -> None:
    plan = InpSettings(warm_up=10)
    rates = [plan.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-4, rel=0.02)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_vectors_need_no_places() -> None:
    rng = np.random.default_rng(0)
    normal = features(rng.normal(size=(60, 5)).astype(np.float32))
    model = fit_anomaly(FeatureEncoder(5), normal, size=1.0, neighbours=1)
    asked = np.vstack([rng.normal(size=(4, 5)), rng.normal(size=(4, 5)) + 6]).astype(np.float32)
    found = model.judge(features(asked))
    table = np.linalg.norm(asked[:, None] - np.stack([normal[i].inputs.numpy() for i in range(60)])[None], axis=2)
    assert found.confidence == pytest.approx(-table.min(1), rel=1e-4)
    assert [reason.nearest_case for reason in found.reasons] == [normal.ids[i] for i in table.argmin(1)]
    assert (found.maps, found.reasons[0].region) == (None, None)
    assert len(model.judge(normal, []).ids) == 0


def test_a_small_encoder_serves_too() -> None:
    model = fit_anomaly(SmallEncoder(size=16), textures(4, 0)[0], size=10)
    found = model.judge(textures(2, 1)[0])
    assert found.maps is not None
    assert found.maps.shape == (2, 16, 16)


def test_one_normal_case_is_enough() -> None:
    model = fit_anomaly(FeatureEncoder(2), features(np.array([[1.0, 0.0]])))
    assert model.judge(features(np.array([[1.0, 2.0]]))).confidence == pytest.approx([-2.0])


def test_wrong_inputs_are_named(convolutional: ImageEncoder, transformer: ImageEncoder) -> None:
    encoder, some = FeatureEncoder(2), features(np.eye(2), ids=["a", "b"])
    with pytest.raises(DataError, match="no normal case"):
        fit_anomaly(encoder, some.subset([]))
    with pytest.raises(DataError, match="no normal case"):
        fit_anomaly(transformer, textures(2, 0)[0].subset([]), "inp_former")
    with pytest.raises(DataError, match="same features"):
        fit_anomaly(encoder, features(np.ones((5, 2))))
    with pytest.raises(UsageError, match="memory of 3 patches cannot be chosen from the 2"):
        fit_anomaly(encoder, some, size=3)
    with pytest.raises(UsageError, match="memory"):
        fit_anomaly(encoder, some, "memori")
    with pytest.raises(UsageError, match="neighbours"):
        fit_anomaly(encoder, some, neighbour=3)
    with pytest.raises(UsageError, match="share"):
        fit_anomaly(encoder, some, size=1.5)
    with pytest.raises(UsageError, match="vision transformer"):
        fit_anomaly(convolutional, textures(2, 0)[0], "inp_former")
    with pytest.raises(UsageError, match="even number of layers"):
        fit_anomaly(ImageEncoder("vit_tiny_patch16_224", size=32), textures(2, 0)[0], "inp_former")
    with pytest.raises(UsageError, match="at least one known case"):
        fit_anomaly(encoder, some, size=1.0, held_out=some.subset([]))


class _Broken(FeatureEncoder):
    """Features that stop being numbers where the input is negative."""

    def forward(self, inputs: torch.Tensor):  # type: ignore[no-untyped-def]
        return super().forward(inputs.clamp_min(0).log().where(inputs >= 0, torch.nan))


def test_features_that_are_not_numbers_name_the_case() -> None:
    cases = features(np.array([[1.0, 2.0], [3.0, 1.0], [1.0, -1.0]]), ids=["a", "b", "c"])
    with pytest.raises(DataError, match="case 'c'"):
        fit_anomaly(_Broken(2), cases)
    model = fit_anomaly(_Broken(2), cases.subset([0, 1]), size=1.0)
    with pytest.raises(DataError, match="case 'c'"):
        model.judge(cases)
