from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind
from tests.explain.sighted import sighted, state_of, unchanged
from torch import Tensor, nn

from protolearn.core.bank import PrototypeBank
from protolearn.core.heads import LinearEvidence
from protolearn.core.measures import squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.similarities import LogRatio
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.explain.cav import Layer, activations, gradients, separate
from protolearn.explain.tcav import different, tcav
from protolearn.explain.tcav_result import Tcav
from protolearn.methods import get_method

WIDTH = 16


def planted(neck: nn.Module | None = None) -> PrototypeModel:
    """Return a model of two prototypes: likeness to the first, and its class, grow with feature 0; none uses others.

    Near the inputs (normal about 0) its gradient is mostly along feature 0, and along another one only as that feature
    departs from 0, to either side alike.
    """
    vectors = torch.zeros(2, WIDTH)
    vectors[0, 0] = vectors[1, 1] = 3.0
    bank = PrototypeBank(vectors, torch.eye(2))
    head = LinearEvidence.from_ownership(bank.ownership)
    neck = nn.Identity() if neck is None else neck
    return PrototypeModel(FeatureEncoder(WIDTH), neck, bank, squared_l2, head, similarity=LogRatio())


def drawn(count: int, feature: int | None, seed: int) -> Tensor:
    """Return normal features, one of them shifted: that is the concept."""
    values = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    if feature is not None:
        values[:, feature] += 3.0
    return values


def outcome(seed: int = 0, model: PrototypeModel | None = None, **how: Any) -> Tcav:
    concepts = {"used": drawn(50, 0, seed), "unused": drawn(50, 5, 100 + seed), "nothing": drawn(50, None, 200 + seed)}
    how = {"prototype": 0, "seed": seed, **how}
    pool, inputs = drawn(300, None, 300 + seed), drawn(60, None, 400 + seed)
    return tcav(planted() if model is None else model, how.pop("concepts", concepts), pool, inputs, **how)


def test_a_planted_concept_scores_one_and_holds_and_others_do_not() -> None:
    for asked in ({"prototype": 0}, {"prototype": None, "target": 0}):
        found = outcome(**asked)
        used, unused, nothing = found.concepts
        assert used.score > 0.95 and used.p_corrected < 0.05 and used.holds
        assert float(used.derivative.mean()) > 0
        assert abs(unused.score - 0.5) < 0.2 and not unused.holds
        assert float(unused.accuracy.mean()) > 0.8  # it is separable: the model just does not use it
        assert not nothing.holds and "separator near chance" in nothing.doubts
        assert found.holding() == (used,)


def test_random_against_random_centres_on_a_half() -> None:
    scores = np.concatenate([outcome(seed, repeats=30, placebos=0).random_scores for seed in range(4)])
    assert abs(scores.mean() - 0.5) < 3 * scores.std() / np.sqrt(len(scores)) + 0.02


def test_the_t_test_alone_cries_wolf_and_placebos_do_not() -> None:
    """A fixed set of examples leans to one side by chance; every run inherits that, and the t-test counts runs."""
    alarms = held = 0
    for seed in range(8):
        concepts = {"unused": drawn(50, 5, 100 + seed), "nothing": drawn(50, None, 200 + seed)}
        found = outcome(seed, concepts=concepts, placebos=19).concepts
        alarms += sum(concept.p_corrected < 0.05 for concept in found)
        held += sum(concept.holds for concept in found)
    assert alarms >= 3  # 16 tests at a level of 0.05 for each pair: one would be many
    assert held == 0


def test_negating_the_label_turns_the_score_round() -> None:
    values = np.concatenate([drawn(40, 0, 1).numpy(), drawn(40, None, 2).numpy()])
    labels = np.arange(80) < 40
    rows = torch.zeros(30, dtype=torch.long)
    slope = torch.cat(list(gradients(planted(), drawn(30, None, 3), "similarity", rows, Layer()))).double().numpy()
    for separator in ("sgd", "logistic"):
        there, back = (separate(values, sides, separator=separator) for sides in (labels, ~labels))
        assert there.accuracy == back.accuracy
        share, other = ((slope @ cav.vector > 0).mean() for cav in (there, back))
        assert share + other == pytest.approx(1.0)
        assert np.allclose(there.vector, -back.vector, atol=1e-6)


def test_the_scale_of_a_layer_changes_no_score() -> None:
    plain = outcome(placebos=0)
    model = planted(neck=Scaled(1 / 64))
    shown = {name: 64 * x for name, x in {"used": drawn(50, 0, 0), "unused": drawn(50, 5, 100)}.items()}
    shown["nothing"] = 64 * drawn(50, None, 200)
    scaled = tcav(model, shown, 64 * drawn(300, None, 300), 64 * drawn(60, None, 400), prototype=0, placebos=0)
    for one, other in zip(plain.concepts, scaled.concepts, strict=True):
        assert np.array_equal(one.scores, other.scores)
        assert np.array_equal(one.accuracy, other.accuracy)
        assert np.allclose(one.derivative, 64 * other.derivative, rtol=1e-4)  # per unit of that layer


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        return values * self.factor


def test_relative_concepts_are_told_from_each_other() -> None:
    concepts = {"used": drawn(50, 0, 0), "other": drawn(50, 5, 1)}
    found = outcome(relative=True, concepts=concepts)
    assert [c.against for c in found.concepts] == ["the other concepts"] * 2
    first, second = found.concepts
    assert first.score > 0.95 and second.score < 0.05 and first.holds and second.holds
    assert float(second.derivative.mean()) < 0
    with pytest.raises(UsageError, match="two concepts"):
        outcome(relative=True, concepts={"used": concepts["used"]})


def test_p_is_that_of_scipy_where_it_is_defined() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.random(20), draw.random(15) + 0.1
    assert different(one, other) == pytest.approx(float(ttest_ind(one, other, equal_var=False).pvalue), rel=1e-9)
    with pytest.warns(RuntimeWarning, match="nearly identical"):  # of the constant side, which is meant
        constant = float(ttest_ind(np.ones(5), other, equal_var=False).pvalue)
    assert different(np.ones(5), other) == pytest.approx(constant, rel=1e-9)


def test_derivatives_are_those_of_differences() -> None:
    """A step along the direction at the layer moves the similarity as the derivative says, summed over places."""
    draw = torch.Generator().manual_seed(0)
    model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(16, size=16), 2).eval()
    inputs = torch.rand(3, 3, 16, 16, generator=draw)
    for pool, width in (("flatten", 16 * 16), ("mean", 16)):
        step = torch.randn(width, generator=draw)
        step /= step.norm()
        slope = torch.cat(list(gradients(model, inputs, "logit", torch.tensor([0, 1, 1]), Layer(pool=pool))))
        tokens = model.encode(inputs)
        move = step.view(16, 16) if pool == "flatten" else step.expand(16, 16)
        with torch.no_grad():
            ends = [model.run(tokens.replace(values=tokens.values + s * 1e-2 * move)).logits for s in (1, -1)]
        wanted = ((ends[0] - ends[1]) / 2e-2).gather(1, torch.tensor([[0], [1], [1]])).squeeze(1)
        assert torch.allclose(slope @ step, wanted, atol=2e-3)


@pytest.mark.parametrize("at", ["encoder", "encoder.net.0", "encoder.net.5", "neck"])
@pytest.mark.parametrize("pool", ["flatten", "mean"])
def test_any_layer_by_name_and_the_model_stays(at: str, pool: str) -> None:
    model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(SmallEncoder(16, size=16), 2)
    model.train()
    model.encoder.net[0].weight.requires_grad_(False)
    before, state = state_of(model), torch.get_rng_state()
    draw = torch.Generator().manual_seed(0)
    pool_of = torch.rand(40, 3, 16, 16, generator=draw)
    found = tcav(
        model,
        {"bright": pool_of[:12] + 0.5},
        pool_of,
        pool_of[:4],
        target=1,
        layer=Layer(at, pool),
        repeats=3,
        placebos=0,
    )
    assert unchanged(before, state_of(model))
    assert torch.equal(state, torch.get_rng_state())
    assert float(found.concepts[0].accuracy.mean()) > 0.9
    whole = activations(model, pool_of[:2], Layer(at, "flatten"))
    mean = activations(model, pool_of[:2], Layer(at, "mean"))
    assert mean.shape[1] < whole.shape[1]


def test_means_over_real_positions_only() -> None:
    """What lies in padding, NaN too, is in no activation and has no gradient."""
    layer = Layer(pool="mean")
    values, mask = torch.tensor([[[2.0], [4.0], [float("nan")]]]), torch.tensor([[True, True, False]])
    assert layer.pooled(values, mask).tolist() == [[3.0]]
    assert layer.pooled(values, mask, total=True).tolist() == [[6.0]]
    assert Layer().pooled(values, mask).tolist() == [[2.0, 4.0, 0.0]]


def test_the_same_seed_gives_the_same() -> None:
    one, other, third = outcome(seed=1), outcome(seed=1), outcome(seed=2)
    assert one.to_dict() == other.to_dict()
    assert one.to_dict() != third.to_dict()


def test_table_and_plain_types() -> None:
    found = outcome()
    lines = found.table().splitlines()
    assert lines[0] == "similarity to prototype 0, 60 inputs, at encoder (flatten)"
    assert "holds" in lines[2] and "no: " in lines[3] and lines[5].startswith("random")
    assert any("overlap" in note for note in found.notes)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["concepts"][0]["holds"] is True and len(plain["random"]["scores"]) == 20
    assert any("No placebos" in note for note in outcome(placebos=0).notes)


def test_inputs_without_a_gradient_are_counted() -> None:
    """At an exact match the similarity has no slope: such an input rises along nothing."""
    model, exact = planted(), torch.zeros(2, WIDTH)
    exact[:, 0] = 3.0
    inputs = torch.cat([drawn(8, None, 0), exact])
    found = tcav(model, {"used": drawn(50, 0, 0)}, drawn(200, None, 1), inputs, prototype=0, repeats=4, placebos=0)
    assert found.notes[0].startswith("2 of 10 inputs have no gradient")
    assert found.concepts[0].score == pytest.approx(0.8, abs=0.11)


def test_more_examples_than_needed_are_drawn_anew_in_every_run() -> None:
    found = outcome(size=20, placebos=0)
    assert found.size == 20
    assert float(found.concepts[1].accuracy.std()) > 0


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"target": 0}, UsageError, "not both"),
        ({"prototype": None}, UsageError, "name a target class or a prototype"),
        ({"prototype": 7}, UsageError, "no prototype has the id 7"),
        ({"prototype": None, "target": "third"}, UsageError, "no class is called"),
        ({"concepts": {}}, UsageError, "give examples"),
        ({"concepts": {"random": drawn(50, 0, 0)}}, UsageError, "cannot be called 'random'"),
        ({"concepts": {"few": drawn(5, 0, 0)}}, DataError, "concept 'few' has 5 examples"),
        ({"concepts": {"bad": torch.full((50, WIDTH), float("nan"))}}, DataError, "input 0 of the batch holds NaN"),
        ({"repeats": 1}, UsageError, "repeats must be at least 2"),
        ({"placebos": 10}, UsageError, "take 19, or 0"),
        ({"level": 0.0}, UsageError, "between 0 and 1"),
        ({"size": 51}, UsageError, "size must lie between 6 and 50"),
        ({"separator": "svm"}, UsageError, "a separator is one of"),
        ({"layer": Layer("encodr")}, UsageError, "did you mean 'encoder'"),
    ],
)
def test_wrong_questions(how: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        outcome(**how)


def test_layers_that_cannot_be_asked() -> None:
    model = sighted()
    pictures = torch.rand(40, 3, 16, 16)
    with pytest.raises(UsageError, match="not one tensor"):
        tcav(model, {"c": pictures[:10]}, pictures, pictures[:2], prototype=0, layer=Layer(""))
    with pytest.raises(UsageError, match="does not depend on 'head'"):
        tcav(model, {"c": pictures[:10]}, pictures, pictures[:2], prototype=0, layer=Layer("head"))
    model.aside, model.idle = nn.Identity(), nn.Identity()
    model.encoder.register_forward_pre_hook(lambda _, inputs: (model.idle(inputs[0]), None)[1])
    with pytest.raises(UsageError, match="runs 0 times"):
        tcav(model, {"c": pictures[:10]}, pictures, pictures[:2], prototype=0, layer=Layer("aside"))
    with pytest.raises(UsageError, match="does not depend on 'idle'"):
        tcav(model, {"c": pictures[:10]}, pictures, pictures[:2], prototype=0, layer=Layer("idle"))
    with pytest.raises(UsageError, match="'flatten' or 'mean'"):
        Layer(pool="max")
    same = torch.ones(40, 3, 16, 16)
    with pytest.raises(DataError, match="are the same"):
        tcav(model, {"c": same[:10]}, same, pictures[:2], prototype=0)
    with pytest.raises(DataError, match="random pool has 11"):
        tcav(model, {"c": pictures[:10]}, pictures[:11], pictures[:2], prototype=0)
    with pytest.raises(DataError, match="no input"):
        tcav(model, {"c": pictures[:10]}, pictures, pictures[:0], prototype=0)
