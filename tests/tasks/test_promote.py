"""A named cluster becomes a class: prototypes with sources, old scores kept, harm counted and bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protolearn.audit.discovered import Discovery
from protolearn.core.bank import PrototypeBank, unit_norm
from protolearn.core.heads import ClassSoftmaxEvidence, FixedEvidence, Head, LinearEvidence, NearestOfClass
from protolearn.core.measures import cosine, squared_l2
from protolearn.core.model import PrototypeModel
from protolearn.core.scores import MaxLogit
from protolearn.core.similarities import Exponential, LogRatio, Negative
from protolearn.data import Cases, digits, features
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.explain import explain
from protolearn.methods import get_method
from protolearn.tasks.discover import discover
from protolearn.tasks.promote import promote
from protolearn.tasks.verify import verify
from protolearn.training.fit import fit
from protolearn.training.folder import load, save

CLASSES = tuple("abcd")


def blobs(spread: float = 1.0) -> tuple[Cases, Cases, Cases]:
    """Return labelled cases of four classes, held-out ones, and unlabelled cases of these and two more."""
    draw = np.random.default_rng(0)
    centres = 4 * draw.normal(size=(6, 8))
    truth = np.repeat(np.arange(6), 60)
    values = (centres[truth] + spread * draw.normal(size=(360, 8))).astype(np.float32)
    old, kind = truth < 4, np.arange(360) % 3
    labels = [CLASSES[k] if k < 4 else "" for k in truth]

    def part(chosen: np.ndarray, name: str, known: bool) -> Cases:
        given = [labels[i] for i in np.flatnonzero(chosen)] if known else None
        return features(values[chosen], given, classes=CLASSES if known else None, name=name)

    return part(old & (kind == 0), "train", True), part(old & (kind == 1), "held", True), part(kind == 2, "free", False)


def stack(cases: Cases) -> Tensor:
    return torch.stack([cases[i].inputs for i in range(len(cases))])


def nearest_means(train: Cases, kind: str) -> PrototypeModel:
    """Return a model whose prototypes are class means, twice each, with some head."""
    values, labels = stack(train), torch.from_numpy(train.labels.copy())
    means = torch.stack([values[labels == k].mean(0) for k in range(4)]).repeat_interleave(2, 0)
    ownership = torch.eye(4).repeat_interleave(2, 0)
    heads: dict[str, Head] = {
        "linear": LinearEvidence.from_ownership(ownership),
        "linear with bias": LinearEvidence(ownership.T.clone(), torch.zeros(4)),
        "centred": LinearEvidence(ownership.T.clone(), centred=True),
        "fixed": FixedEvidence(10 * ownership.T),
        "softmax": ClassSoftmaxEvidence(ownership),
        "nearest": NearestOfClass(torch.arange(4).repeat_interleave(2), 4),
        "distance": FixedEvidence(ownership.T / 2),
    }
    encoder = FeatureEncoder(8)
    if kind == "fixed":
        bank = PrototypeBank(means, ownership, constraint=unit_norm)
        model = PrototypeModel(encoder, nn.Identity(), bank, cosine, heads[kind])
    else:
        similarity = Negative() if kind == "distance" else Exponential(20.0) if kind == "nearest" else LogRatio()
        bank = PrototypeBank(means, ownership)
        model = PrototypeModel(encoder, nn.Identity(), bank, squared_l2, heads[kind], similarity=similarity)
    model.classes = CLASSES
    return model.eval()


HEADS = ["linear", "linear with bias", "centred", "fixed", "softmax", "nearest", "distance"]


def found_in(free: Cases, train: Cases) -> Discovery:
    return discover(FeatureEncoder(8), train, free, classes=6, unit=False, draws=0)


@pytest.mark.parametrize("kind", HEADS)
def test_the_new_class_is_recognised_and_the_old_scores_stay(kind: str) -> None:
    train, held, free = blobs()
    model = nearest_means(train, kind)
    before = model(stack(held)).logits.detach()
    done = promote(model, found_in(free, train), "new 1", "wolf", free, held)
    out = model(stack(held))
    torch.testing.assert_close(out.logits[:, :4], before, rtol=1e-5, atol=1e-5)
    assert done.shift < 1e-5 and done.before == pytest.approx(1.0) and done.after == done.before and done.lost == ()
    assert model.classes == (*CLASSES, "wolf") and done.index == 4
    assert done.taken is not None and done.taken > 0.9
    assert done.taken_others is not None and done.taken_others > 0.9 and done.spilled == 0.0
    torch.testing.assert_close(model.head.ledger(out).sum(-1) + model.head.offset(), out.logits, rtol=1e-4, atol=1e-4)
    for why in explain(model, free.subset(range(3))):
        assert why.total == pytest.approx(why.logit, rel=1e-4, abs=1e-4)
    assert len(done.prototypes) == 2 and len(set(done.sources)) == 2
    assert model.bank.owner().tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert done.table() and done.to_dict()["name"] == "wolf"


@pytest.mark.parametrize("kind", HEADS)
def test_several_clusters_one_after_the_other(kind: str) -> None:
    train, held, free = blobs()
    model, found = nearest_means(train, kind), found_in(free, train)
    for cluster, name in (("new 1", "wolf"), ("new 2", "lynx")):
        promote(model, found, cluster, name, free, held, prototypes=1)
    assert model.classes[4:] == ("wolf", "lynx")
    rows = model(stack(free)).logits.argmax(1)
    assert float((rows == found.rows).float().mean()) > 0.95
    assert [entry["name"] for entry in model.metadata["promoted"]] == ["wolf", "lynx"]


def test_sources_are_real_cases() -> None:
    train, held, free = blobs()
    model = nearest_means(train, "linear")
    done = promote(model, found_in(free, train), "new 2", "lynx", free, held, prototypes=3)
    checks = {check.prototype: check for check in verify(model, free).checks}
    assert [checks[key].status for key in done.prototypes] == ["ok"] * 3
    for key in done.prototypes:
        source = model.bank.sources[int(model.bank.rows([key])[0])]
        assert source is not None and source.moved and source.label == 4 and source.case in done.sources


def mistaken(kind: str) -> tuple[PrototypeModel, Discovery, str, Cases, Cases]:
    """Return a model, and a search that was not told of one of its classes: what it calls new is that class."""
    train, held, free = blobs(spread=2.0)
    three = train.subset(np.flatnonzero(train.labels != 2)).with_classes([c for c in CLASSES if c != "c"])
    found = found_in(free, three)
    first = held.subset(np.flatnonzero(held.labels == 2))
    centre = stack(first).mean(0)
    gaps = {each.name: float((found.centres[each.index] - centre).square().sum()) for each in found.new}
    return nearest_means(train, kind), found, min(gaps, key=lambda name: gaps[name]), free, held


def test_the_weight_is_chosen_so_that_harm_is_bounded() -> None:
    lost = {}
    for harm in (0.5, 0.02, 0.0):
        model, found, cluster, free, held = mistaken("linear")
        done = promote(model, found, cluster, "wolf", free, held, harm=harm)
        right = round(done.before * done.known)
        assert len(done.lost) <= harm * right
        assert done.strength is not None and done.usual is not None
        lost[harm] = len(done.lost), done.strength
        assert float(model.head.weight[-1, -1].detach()) == pytest.approx(done.strength)  # type: ignore[union-attr, index]
    assert lost[0.5][0] > lost[0.0][0] == 0 and lost[0.5][1] > lost[0.0][1]


def test_a_promotion_that_harms_is_refused_and_leaves_the_model_as_it_was() -> None:
    model, found, cluster, free, held = mistaken("nearest")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match="it may not be a class of its own"):
        promote(model, found, cluster, "wolf", free, held, harm=0.0)
    assert model.classes == CLASSES and len(model.bank.sources) == 8
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    allowed = promote(model, found, cluster, "wolf", free, held, harm=0.9)
    assert len(allowed.lost) > 0 and allowed.strength is None


def test_a_person_may_leave_cases_out() -> None:
    train, held, free = blobs()
    model, found = nearest_means(train, "linear"), found_in(free, train)
    first = promote(nearest_means(train, "linear"), found, "new 1", "wolf", free, held).sources
    done = promote(model, found, "new 1", "wolf", free, held, without=first)
    assert not set(done.sources) & set(first)
    with pytest.raises(UsageError, match="is not in the cluster"):
        promote(model, found, "new 2", "lynx", free, held, without=first)
    with pytest.raises(UsageError, match="no case left"):
        promote(model, found, "new 2", "lynx", free, held, without=found.members("new 2"))


def test_wrong_input_is_named() -> None:
    train, held, free = blobs()
    model, found = nearest_means(train, "linear"), found_in(free, train)
    for name, match in (("a", "already"), (" ", "needs a name")):
        with pytest.raises(UsageError, match=match):
            promote(model, found, "new 1", name, free, held)
    with pytest.raises(UsageError, match="did you mean 'new"):
        promote(model, found, "new 9", "wolf", free, held)
    with pytest.raises(UsageError, match="stands for a known class"):
        promote(model, found, "b", "wolf", free, held)
    with pytest.raises(DataError, match="has no case"):
        promote(model, found, "new 1", "wolf", free.subset(range(3)), held)
    with pytest.raises(DataError, match="no case has a label"):
        promote(model, found, "new 1", "wolf", free, free)
    with pytest.raises(UsageError, match="harm must lie"):
        promote(model, found, "new 1", "wolf", free, held, harm=1.0)
    assert model.classes == CLASSES


def test_models_that_cannot_take_a_class_up_exactly_say_so() -> None:
    train, held, free = blobs()
    found = found_in(free, train)
    model = nearest_means(train, "linear")
    model.across = lambda table, usable: table.softmax(2)
    with pytest.raises(UsageError, match="compete at each place"):
        promote(model, found, "new 1", "wolf", free, held)
    tree = get_method("prototree")(depth=2, dim=8).build(FeatureEncoder(8), 4)
    tree.classes = CLASSES
    with pytest.raises(UsageError, match="cannot take up a class"):
        promote(tree.eval(), found, "new 1", "wolf", free, held, prototypes=1)
    assert tree.classes == CLASSES


def test_a_novelty_score_is_dropped_and_said_so() -> None:
    train, held, free = blobs()
    model = nearest_means(train, "linear")
    model.scorer = MaxLogit()
    done = promote(model, found_in(free, train), "new 1", "wolf", free, held)
    assert done.scorer_dropped and model.scorer is None and "fit it again" in done.table()


def test_a_class_the_model_learned_under_a_number_only_gets_a_name(tmp_path: Path) -> None:
    train, held, free = blobs()
    found = discover(
        FeatureEncoder(8), train, free, method="protogcd", classes=6, unit=False, device="cpu",
        settings={"epochs": 10, "hard_epochs": 5, "hidden": 16, "projection": 8},
    )  # fmt: skip
    model = found.model
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = promote(model, found, "new 2", "lynx", free, held)
    assert done.renamed and model.classes == (*CLASSES, "new 1", "lynx")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert done.taken == 1.0 and done.after == done.before
    assert load(save(model, tmp_path / "model")).classes == model.classes


@pytest.mark.slow
def test_on_digits_a_part_model_learns_a_digit_it_has_never_seen(tmp_path: Path) -> None:
    """ProtoPNet, trained on eight digits; the cluster of a ninth becomes a class of it, on pictures."""
    pictures = digits("train").subset(range(900))
    train = pictures.subset(np.flatnonzero(pictures.labels < 8)[:400]).with_classes([str(k) for k in range(8)])
    encoder = SmallEncoder(size=16, strides=(2, 1, 1))
    method = get_method("protopnet")(
        dim=32, prototypes_per_class=4, warm_epochs=0, step=20, project_at=(12,), encoder_rate=3e-3, last_layer_epochs=5
    )
    model = fit(method, train, encoder=encoder, seed=0, quiet=True, device="cpu").model
    test = digits("test")
    known = test.subset(np.flatnonzero(test.labels < 8)[:200]).with_classes(train.classes)
    rest = pictures.subset(np.setdiff1d(np.flatnonzero(pictures.labels < 9), [pictures.index(c) for c in train.ids]))
    found = discover(model, train, rest, classes=9, draws=0)
    cluster = found.new[0]
    truth = np.array([rest.labels[rest.index(case)] for case in found.members(cluster.name)])
    assert (truth == 8).mean() > 0.6, "the cluster is mostly of the digit that was not shown"
    done = promote(model, found, cluster.name, "eight", rest, known, harm=0.02)
    assert done.before - done.after <= 0.02 and done.shift < 1e-4
    assert done.taken is not None and done.taken > 0.5
    eights = test.subset(np.flatnonzero(test.labels == 8))
    shown = eights.with_transform(encoder.preprocess)
    with torch.no_grad():
        rows = model(torch.stack([shown[i].inputs for i in range(len(shown))])).logits.argmax(1)
    assert float((rows == 8).float().mean()) > 0.25, "a ninth is chance; no part of it was ever trained on an eight"
    assert all(check.status == "ok" for check in verify(model, rest).checks if check.prototype in done.prototypes)
    save(model, tmp_path / "model", rest)
    again = load(tmp_path / "model")
    assert again.classes[-1] == "eight"
    with torch.no_grad():
        torch.testing.assert_close(
            again(torch.stack([shown[i].inputs for i in range(5)])).logits,
            model(torch.stack([shown[i].inputs for i in range(5)])).logits, rtol=0, atol=0,
        )  # fmt: skip
