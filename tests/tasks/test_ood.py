"""A model learns to say what it has not seen: fitted, calibrated, judged, and refused where it cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import protolearn
from protolearn.audit.ood import Convention, detect
from protolearn.audit.ood_result import FIGURES, KNOWN, OODResult, over_runs
from protolearn.core.model import PrototypeModel
from protolearn.core.scorer import SCORERS, make_scorer
from protolearn.core.views import NetworkViews
from protolearn.data import FeatureCases, digits, features
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.explain.explain import explain
from protolearn.methods import get_method
from protolearn.tasks.ood import evaluate_ood, fit_novelty

make_scorer("msp")
EVERY = sorted(set(SCORERS) - {"remembering"})
WIDTH = 8


def known_cases(count: int = 120, seed: int = 0, classes: int = 3) -> FeatureCases:
    """Classes around their own axes."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    values = 6 * np.eye(classes, WIDTH)[labels] + 0.4 * draw.normal(size=(count, WIDTH))
    return features(values, [f"kind {c}" for c in labels], classes=[f"kind {c}" for c in range(3)], name="known")


def foreign_cases(count: int = 60, axis: int = 7, seed: int = 1) -> FeatureCases:
    """Cases around another axis, of classes of their own."""
    draw = np.random.default_rng(seed)
    values = 6 * np.eye(WIDTH)[axis] + 0.4 * draw.normal(size=(count, WIDTH))
    return features(values, [f"other {k % 2}" for k in range(count)], name=f"foreign {axis}")


def build(seed: int = 0) -> PrototypeModel:
    """A model whose prototypes are the class centres."""
    method = get_method("nearest-class-mean")()
    model = method.build(FeatureEncoder(WIDTH), 3, seed)
    model.method = method
    with torch.no_grad():
        model.bank.vectors.copy_(6 * torch.eye(3, WIDTH))
    model.classes = tuple(f"kind {c}" for c in range(3))
    return model.eval()


@pytest.fixture
def model() -> PrototypeModel:
    return build()


def everything(model: PrototypeModel, **more: Any) -> OODResult:
    given: dict[str, Any] = {
        "near": {"seven": foreign_cases()}, "far": {"six": foreign_cases(40, 6), "five": foreign_cases(30, 5)},
        "scores": ["energy", "mahalanobis", {"name": "knn", "k": 5}], "train": known_cases(), "draws": 50,
    }  # fmt: skip
    return evaluate_ood(model, known_cases(90, 5), **{**given, **more})


@pytest.mark.parametrize("name", ["mahalanobis", "knn", "ssd", "nearest_prototype", "max_logit"])
def test_a_model_learns_to_say_unknown(model: PrototypeModel, name: str) -> None:
    spec = {"name": "knn", "k": 5} if name == "knn" else name
    scorer = fit_novelty(model, known_cases(), spec, held=known_cases(100, 7), rate=0.9)
    assert model.scorer is scorer and float(scorer.rate) == 0.9
    inside = model.novelty(torch.stack([known_cases(300, 8)[i].inputs for i in range(300)]))
    outside = model.novelty(torch.stack([foreign_cases()[i].inputs for i in range(60)]))
    assert inside.known is not None and outside.known is not None
    assert inside.known.double().mean() == pytest.approx(0.9, abs=0.07)
    assert float(outside.known.double().mean()) < 0.05
    assert model.metadata["novelty"]["calibrated"] == 100 and model.metadata["novelty"]["fitted"] == 120


def test_without_held_out_cases_a_part_is_kept_out_of_the_fit(model: PrototypeModel) -> None:
    cases = known_cases()
    scorer = fit_novelty(model, cases, {"name": "knn", "k": 1}, share=0.25, seed=3)
    facts = model.metadata["novelty"]
    assert (facts["fitted"], facts["calibrated"], facts["share"], facts["seed"]) == (90, 30, 0.25, 3)
    assert len(scorer.bank) == 90  # the nearest neighbour of a calibration case is not itself
    assert float(scorer.threshold) < -1e-6
    once = float(scorer.threshold)
    assert float(fit_novelty(build(), cases, {"name": "knn", "k": 1}, share=0.25, seed=3).threshold) == once
    assert float(fit_novelty(build(), cases, {"name": "knn", "k": 1}, share=0.25, seed=4).threshold) != once


def test_whole_groups_are_kept_out() -> None:
    cases = known_cases()
    patients = [f"patient {i // 6}" for i in range(len(cases))]
    grouped = features(cases._values, cases.labels.tolist(), classes=cases.classes, groups=patients, name="grouped")
    scorer = fit_novelty(build(), grouped, {"name": "knn", "k": 1})
    kept = {patients[i] for i in range(120) if bool((scorer.bank == unit(cases, i)).all(1).any())}
    assert len(kept) * 6 == len(scorer.bank)


def unit(cases: FeatureCases, i: int) -> Tensor:
    return nn.functional.normalize(cases[i].inputs, dim=0)


def test_nothing_else_of_the_model_changes(model: PrototypeModel) -> None:
    model.train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    everything(model, scores=["mahalanobis", "nac"])
    assert model.scorer is None and all(module.training for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(after[name], values) for name, values in before.items())
    fit_novelty(model, known_cases(), "nac")
    assert all(torch.equal(model.state_dict()[name], values) for name, values in before.items())


def test_every_score_through_a_whole_model(tmp_path: Path) -> None:
    model = get_method("protopnet")(prototypes_per_class=2, dim=16).build(SmallEncoder(dim=16, size=16), 10).eval()
    model.method = get_method("protopnet")(prototypes_per_class=2, dim=16)
    cases, other = digits("train").subset(range(150)), digits("test").subset(range(50, 80))
    model.classes = cases.classes
    scores = [{"name": name, "k": 5} if name == "knn" else name for name in EVERY]
    found = evaluate_ood(model, digits("test").subset(range(50)), outside={"more": other}, scores=scores, train=cases,
                         draws=0, batch_size=32)  # fmt: skip
    assert found.scores == tuple(EVERY)
    for name in EVERY:
        assert len(found.confidences[name][KNOWN]) == 50 and np.isfinite(found.confidences[name][KNOWN]).all()
        model.scorer = found.fitted[name]
        again = protolearn.load(protolearn.save(model, tmp_path / name))
        seen = torch.stack([model.encoder.preprocess(other.picture(i)) for i in range(30)])
        said = again.novelty(seen).confidence.double().numpy()
        assert np.allclose(said, found.confidences[name]["more"], rtol=1e-3, atol=1e-3), name


class Counting(FeatureCases):
    """Counts how often a case is read."""

    reads = 0

    def __getitem__(self, i: int) -> Any:
        Counting.reads += 1
        return super().__getitem__(i)


def test_each_set_is_read_once_whatever_the_number_of_scores(model: PrototypeModel) -> None:
    plain = foreign_cases(25)
    cases = Counting(plain._values, name="counting", ids=plain.ids, labels=plain.labels, classes=plain.classes)
    Counting.reads = 0
    everything(model, near={"counting": cases}, far=None, scores=["energy", "msp", "mahalanobis", "react", "ssd"],
               examples=0)  # fmt: skip
    assert Counting.reads == 25


def test_figures_are_those_of_the_confidences(model: PrototypeModel) -> None:
    found = everything(model)
    for score in found.scores:
        for name in found.kinds:
            again = detect(found.confidences[score][KNOWN], found.confidences[score][name])
            assert all(getattr(found[score, name], what) == getattr(again, what) for what in FIGURES)
    both = [found["knn", name].auroc for name in ("six", "five")]
    assert found.mean("knn", "far") == pytest.approx(np.mean(both))
    assert found.mean("knn", "outside") is None
    threshold = float(found.fitted["knn"].threshold)
    assert found.accepted("knn") == pytest.approx((found.confidences["knn"][KNOWN] >= threshold).mean())
    assert found.classified.accuracy == 1.0
    assert set(found.by_class["knn", "six"]) == {"kind 0", "kind 1", "kind 2"}
    assert set(found.by_foreign_class["knn", "six"]) == {"other 0", "other 1"}
    assert found["mahalanobis", "six"].auroc > 0.99
    low, high = found["energy", "six"].intervals["auroc"]
    assert low <= found["energy", "six"].auroc <= high


def test_batches_and_seeds(model: PrototypeModel) -> None:
    one, other = everything(model, batch_size=7), everything(model, batch_size=64)
    for score in one.scores:
        assert one[score, "six"].auroc == pytest.approx(other[score, "six"].auroc)
        assert one[score, "six"].intervals["auroc"] == pytest.approx(other[score, "six"].intervals["auroc"])
    near = {"near": {"close": known_cases(40, 2)}}
    one, other = everything(model, seed=1, **near), everything(model, seed=2, **near)
    assert everything(model, seed=1, **near)["energy", "close"] == one["energy", "close"]
    assert one["energy", "close"].intervals != other["energy", "close"].intervals


def test_tables_and_files_say_what_was_found(model: PrototypeModel) -> None:
    found = everything(model, convention=Convention("foreign"))
    plain = json.loads(found.to_json())
    assert plain["convention"] == Convention("foreign").words and "foreign positive" in found.table()
    assert plain["scores"]["knn"]["sets"]["six"]["auroc"] == found["knn", "six"].auroc
    assert plain["scores"]["knn"]["mean"]["far"]["fpr"] == found.mean("knn", "far", "fpr")
    assert plain["facts"]["fitted"]["calibrated"] == 24
    rows = found.rows()
    assert [row["set"] for row in rows[:5]] == ["seven", "near (mean)", "six", "five", "far (mean)"]
    assert len(rows) == 15 and all(row["accuracy"] == 1.0 for row in rows)
    assert len(found.class_rows()) == 3 * 3 * (3 + 2)
    cases = found.case_rows()
    assert len(cases) == 90 + 60 + 40 + 30
    assert cases[0]["knn: known"] == (cases[0]["knn"] >= float(found.fitted["knn"].threshold))
    assert "thresholds were set on 24 of the cases given to fit on" in found.table()
    assert "thresholds were set" not in everything(model, held=known_cases(50, 9)).table()


def test_runs_are_averaged(model: PrototypeModel) -> None:
    runs = [everything(model, train=known_cases(seed=seed)) for seed in (0, 1, 2)]
    rows = {(row["score"], row["kind"]): row for row in over_runs(runs)}
    values = [run.mean("energy", "far", "fpr") for run in runs]
    assert rows["energy", "far"]["fpr"] == pytest.approx(np.mean(values))  # type: ignore[arg-type]
    values = [run.mean("knn", "near") for run in runs]
    assert rows["knn", "near"]["auroc_std"] == pytest.approx(np.std(values, ddof=1))  # type: ignore[arg-type]
    assert over_runs(runs[:1])[0]["auroc_std"] is None
    with pytest.raises(UsageError, match="same scores"):
        over_runs([runs[0], everything(model, scores=["msp"])])
    with pytest.raises(UsageError, match="no result"):
        over_runs([])


def test_examples_are_the_extremes_with_what_they_are_closest_to(model: PrototypeModel) -> None:
    found = everything(model, scores=["mahalanobis"], examples=2)
    values = np.concatenate([found.confidences["mahalanobis"][name] for name in found.kinds])
    told = [e.confidence for e in found.examples]
    assert told[:2] == sorted(values)[:2] and told[2:] == sorted(values)[::-1][:2]
    first = found.examples[0]
    assert first.known is False and first.explanation is not None
    cases = {"seven": foreign_cases(), "six": foreign_cases(40, 6), "five": foreign_cases(30, 5)}[first.part]
    assert first.explanation.rows == explain(model, cases, [cases.index(first.case)])[0].rows
    assert everything(model, examples=0).examples == ()


def test_the_models_own_score_is_asked_by_default(model: PrototypeModel) -> None:
    with pytest.raises(UsageError, match="no novelty score yet"):
        everything(model, scores=None, train=None)
    scorer = fit_novelty(model, known_cases(), "ssd")
    found = everything(model, scores=None, train=None)
    assert found.scores == ("ssd",) and found.thresholds["ssd"] == (float(scorer.threshold), 0.95)
    unset = everything(model, scores=["energy"], train=None)
    assert unset.thresholds["energy"] is None and unset.accepted("energy") is None
    assert "energy: known" not in unset.case_rows()[0]


def test_two_settings_of_one_score_have_two_names(model: PrototypeModel) -> None:
    found = everything(model, scores=[{"name": "knn", "k": 3}, "energy", {"name": "knn", "k": 9}])
    assert found.scores == ("knn (k 3)", "energy", "knn (k 9)")
    with pytest.raises(UsageError, match="asked for twice"):
        everything(model, scores=["energy", "energy"])


def test_a_stream_of_foreign_cases_alone(model: PrototypeModel) -> None:
    fit_novelty(model, known_cases(), "mahalanobis")
    stream = model.novelty(torch.stack([foreign_cases()[i].inputs for i in range(60)])).known
    assert stream is not None and not bool(stream.any())


def test_one_known_class(model: PrototypeModel) -> None:
    alone = known_cases(40, classes=1)
    for name in ("mahalanobis", "knn", "ssd", "energy", "vim"):
        fit_novelty(model, alone, name)
    with pytest.raises(UsageError, match="several classes"):
        fit_novelty(model, alone, "relative_mahalanobis")
    single = get_method("nearest-class-mean")().build(FeatureEncoder(WIDTH), 1)
    single.classes = ("kind 0",)
    only = features(alone._values, ["kind 0"] * 40, name="only")
    fit_novelty(single, only, "mahalanobis")
    with pytest.raises(UsageError, match="needs several classes"):
        fit_novelty(single, only, "msp")
    with pytest.raises(UsageError, match="do not depend on 'encoder'"):
        fit_novelty(single, only, "nac")


def test_unlabelled_known_cases(model: PrototypeModel) -> None:
    plain = features(known_cases()._values, name="plain")
    fit_novelty(model, plain, "knn")
    with pytest.raises(UsageError, match="need labelled cases"):
        fit_novelty(model, plain, "mahalanobis")
    assert evaluate_ood(model, plain, far={"six": foreign_cases(axis=6)}).classified.accuracy is None


def test_a_confidence_that_is_no_number_is_unknown(model: PrototypeModel) -> None:
    fit_novelty(model, known_cases(), "mahalanobis")

    class Damaged(FeatureCases):
        def __getitem__(self, i: int) -> Any:
            batch = super().__getitem__(i)
            return batch if i else batch._replace(inputs=batch.inputs * math.nan)

    some = foreign_cases(10)
    damaged = Damaged(some._values, name="damaged", ids=some.ids, labels=some.labels, classes=some.classes)
    found = evaluate_ood(model, known_cases(30, 4), outside={"damaged": damaged})
    assert found.confidences["mahalanobis"]["damaged"][0] == -math.inf
    assert any("not a number" in note for note in found.notes)
    assert found.case_rows()[30]["mahalanobis"] is None and found.case_rows()[30]["mahalanobis: known"] is False
    json.loads(found.to_json())
    with pytest.raises(DataError, match="damaged"):
        fit_novelty(model, Damaged(some._values, name="d", ids=some.ids, labels=[0] * 10, classes=model.classes), "knn")


def test_what_cannot_be_fitted(model: PrototypeModel) -> None:
    none = known_cases().subset([])
    with pytest.raises(UsageError, match="no known cases to fit"):
        fit_novelty(model, none)
    with pytest.raises(UsageError, match="no held-out known cases"):
        fit_novelty(model, known_cases(), held=none)
    with pytest.raises(UsageError, match="leave none to set a threshold by"):
        fit_novelty(model, known_cases(3))
    with pytest.raises(DataError, match="all 96 known cases are the same"):
        fit_novelty(model, features(np.ones((120, WIDTH)), known_cases().labels.tolist(), classes=model.classes))
    with pytest.raises(DataError, match="not trained on"):
        fit_novelty(model, foreign_cases())
    with pytest.raises(UsageError, match="did you mean 'mahalanobis'"):
        fit_novelty(model, known_cases(), "mahalanobs")
    with pytest.raises(UsageError, match="rate is the share"):
        fit_novelty(model, known_cases(), rate=0.0)
    assert model.scorer is None and "novelty" not in model.metadata
    with pytest.raises(UsageError, match="NetworkViews"):
        fit_novelty(nn.Linear(2, 2), known_cases())


def test_what_cannot_be_judged(model: PrototypeModel) -> None:
    some, none = {"six": foreign_cases()}, known_cases().subset([])
    with pytest.raises(UsageError, match="no known cases to compare"):
        evaluate_ood(model, none, near=some, scores=["energy"])
    with pytest.raises(UsageError, match="'empty' holds no cases"):
        evaluate_ood(model, known_cases(), near={"empty": none}, scores=["energy"])
    with pytest.raises(UsageError, match="no foreign cases"):
        evaluate_ood(model, known_cases(), scores=["energy"])
    with pytest.raises(UsageError, match="two parts of the data are called 'six'"):
        evaluate_ood(model, known_cases(), near=some, far=some, scores=["energy"])
    with pytest.raises(UsageError, match="two parts of the data are called 'known'"):
        evaluate_ood(model, known_cases(), near={"known": foreign_cases()}, scores=["energy"])
    with pytest.raises(UsageError, match="mahalanobis learns from known cases"):
        evaluate_ood(model, known_cases(), near=some, scores=["energy", "mahalanobis"])
    with pytest.raises(UsageError, match="at least one score"):
        evaluate_ood(model, known_cases(), near=some, scores=[])
    with pytest.raises(DataError, match="not trained on"):
        evaluate_ood(model, foreign_cases(), near=some, scores=["energy"])
    found = everything(model)
    for wrong in (("knn", "sx"), ("kn", "six")):
        with pytest.raises(UsageError, match="did you mean"):
            found[wrong]
    with pytest.raises(UsageError, match="ask for a score and a set"):
        found["knn"]  # type: ignore[index]


def test_known_classes_among_the_foreign_are_said(model: PrototypeModel) -> None:
    found = evaluate_ood(model, known_cases(), outside={"odd": known_cases(30, 3)}, scores=["energy"], draws=0)
    assert any("30 cases of 'odd' carry the name of a class the model knows (kind 0)" in note for note in found.notes)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_any_network_behind_an_adapter() -> None:
    torch.manual_seed(0)
    net = Net().train()
    views = NetworkViews(net, "body", "head", classes=[f"kind {c}" for c in range(3)], name="mine")
    scores = [{"name": "knn", "k": 5}, *(n for n in EVERY if n not in ("nac", "knn", "nearest_prototype")),
              {"name": "nac", "layers": ["body"], "bins": 10}]  # fmt: skip
    given: dict[str, Any] = {
        "far": {"six": foreign_cases()}, "scores": scores, "train": known_cases(), "draws": 0,
    }  # fmt: skip
    found = evaluate_ood(views, known_cases(60, 5), **given)
    assert found.facts["model"] == "mine" and len(found.scores) == len(EVERY) - 1
    assert all(e.explanation is None for e in found.examples)
    assert net.training and views.scorer is None
    again = evaluate_ood(views, known_cases(60, 5), **given)  # dropout is off while it is asked
    assert all(np.array_equal(found.confidences[s][KNOWN], again.confidences[s][KNOWN]) for s in found.scores)
    fit_novelty(views, known_cases(), "knn")
    net.eval()
    said = views.novelty(torch.stack([foreign_cases()[i].inputs for i in range(60)]))
    own = evaluate_ood(views, known_cases(60, 5), far={"six": foreign_cases()}, draws=0)
    assert np.allclose(said.confidence.numpy(), own.confidences["knn"]["six"], atol=1e-5)
    assert said.known is not None and float(said.known.double().mean()) == own.accepted("knn", "six")
    with pytest.raises(UsageError, match="nearest_prototype needs a model with prototypes"):
        fit_novelty(views, known_cases(), "nearest_prototype")


def test_a_released_network_on_real_pictures(shared_data: Path) -> None:
    """Known CIFAR-10 classes, textures as far and Tiny-ImageNet as near cases: directions, not the papers' figures."""
    from tests.tasks.cifar import cifar, cifar_views, textures, tiny

    for needed in ("cifar10/cifar10.npz", "backbones/resnet20_cifar10.safetensors", "textures6/textures6.npz",
                   "tinyimagenet100/index.csv"):  # fmt: skip
        if not (shared_data / needed).exists():
            pytest.skip(f"no {needed} among the shared data")
    views = cifar_views(shared_data)
    found = evaluate_ood(
        views, cifar(shared_data, "test", 30), near={"tiny": tiny(shared_data, 300)},
        far={"textures": textures(shared_data, 120)}, train=cifar(shared_data, "train", 60), draws=200,
        scores=["msp", "energy", "mahalanobis", "knn", "ssd", {"name": "nac", "layers": ["layer3"]}], batch_size=100,
    )  # fmt: skip
    assert found.classified.accuracy is not None and 0.75 < found.classified.accuracy < 0.9
    for score in ("msp", "energy", "mahalanobis", "knn", "ssd"):
        for name in ("tiny", "textures"):
            assert found[score, name].intervals["auroc"][0] > 0.5, (score, name)
    assert found["mahalanobis", "textures"].auroc > found["msp", "textures"].auroc  # textures are far in the features
    assert found["nac", "textures"].auroc > 0.5
    assert found.mean("knn", "far") > found.mean("knn", "near")  # type: ignore[operator]
    for score in found.scores:
        accepted = found.accepted(score)
        assert accepted is not None and 0.8 < accepted <= 1.0
