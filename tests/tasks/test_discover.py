"""New classes among unlabelled cases: clusters, their number, their stability, odd data."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protolearn.audit.discovery import discovery_score
from protolearn.core.updates import k_means
from protolearn.data import Cases, digits, features
from protolearn.encoders import FeatureEncoder, ImageEncoder, SmallEncoder
from protolearn.errors import DataError, UsageError
from protolearn.methods import get_method
from protolearn.tasks.class_number import CRITERIA, Criterion, estimate_classes, search
from protolearn.tasks.discover import discover, new_names

NAMES = tuple("abcdefghij")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def blobs(spread: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    truth = np.repeat(np.arange(10), 40)
    centres = 4 * draw.normal(size=(10, 8))
    return (centres[truth] + spread * draw.normal(size=(400, 8))).astype(np.float32), truth


def parts(spread: float = 0.6, old: int = 5) -> tuple[Cases, Cases, np.ndarray]:
    """Return labelled cases of the first classes, unlabelled ones of all, and the truth of those."""
    values, truth = blobs(spread)
    known = (truth < old) & (np.arange(400) % 2 == 0)
    labelled = features(values[known], [NAMES[k] for k in truth[known]], name="known")
    return labelled, features(values[~known], name="free"), truth[~known]


def test_blobs_are_found_named_and_scored() -> None:
    labelled, free, truth = parts()
    found = discover(FeatureEncoder(8), labelled, free, classes=10)
    score = found.score(truth, NAMES)
    assert (score.all, score.old, score.new, score.ari) == (1.0, 1.0, 1.0, 1.0)
    assert [each.name for each in found.clusters] == [*NAMES[:5], *(f"new {k}" for k in range(1, 6))]
    assert len(found.new) == 5 and all(each.labelled == 0 and each.label is None for each in found.new)
    assert [each.labelled for each in found.clusters[:5]] == [20] * 5
    assert found.new[0].size >= found.new[-1].size
    for each in found.clusters:
        assert each.stability is not None and each.stability > 0.95
        assert set(each.typical) <= set(found.members(each.name)) and len(each.typical) == 12
        assert not set(each.typical) & set(each.doubtful)
    assert all(each.nearest in NAMES[:5] for each in found.new)
    members = [found.cases.index(case) for case in found.members("new 1")]
    assert bool((found.confidence[members].diff() <= 0).all()), "clearest first"


def test_the_unlabelled_cases_own_labels_are_never_looked_at() -> None:
    labelled, free, truth = parts(spread=2.0)
    values = np.stack([free[i].inputs.numpy() for i in range(len(free))])
    told = features(values, [NAMES[k] for k in truth], name="told", ids=free.ids)
    lied = features(values, [NAMES[k] for k in np.random.default_rng(0).permutation(truth)], name="lied", ids=free.ids)
    rows = [discover(FeatureEncoder(8), labelled, part, draws=2).rows for part in (free, told, lied)]
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])


def test_the_same_seed_finds_the_same_and_the_encoder_stays() -> None:
    cases = digits("train").subset(range(120))
    labelled = cases.subset(np.flatnonzero(cases.labels[:60] < 6)).with_classes([str(k) for k in range(6)])
    encoder = SmallEncoder(dim=8, size=16)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    found = [discover(encoder, labelled, cases.subset(range(60, 120)), classes=10, draws=2) for _ in range(2)]
    assert torch.equal(found[0].rows, found[1].rows) and found[0].to_json() == found[1].to_json()
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    model = get_method("protopnet")(prototypes_per_class=1, dim=8).build(encoder, 6)
    for kind, width in (("encoded", 8), ("embedded", 8), ("evidence", 6), ("auto", 6)):
        through = discover(model, labelled, cases.subset(range(60, 120)), classes=10, draws=0, features=kind)
        assert through.facts["features"] == (kind if kind != "auto" else "evidence")
        assert through.centres.shape == (10, width)
    whole = get_method("harmonic")(encoder_rate=None).build(encoder, 6)
    assert discover(whole, labelled, cases.subset(range(60, 120)), classes=10, draws=0).facts["features"] == "embedded"


def test_a_planted_cluster_is_more_stable_than_a_split_of_one() -> None:
    labelled, free, truth = parts()
    found = discover(FeatureEncoder(8), labelled, free, classes=12, draws=8)
    rows = found.rows.numpy()
    whole = [c for c in found.new if (truth == np.bincount(truth[rows == c.index]).argmax()).sum() == c.size]
    torn = [c for c in found.new if c not in whole]
    assert whole and torn
    assert min(c.stability or 0 for c in whole) > max(c.stability or 0 for c in torn)


def test_a_method_that_learns_is_used_by_its_name() -> None:
    labelled, free, truth = parts()
    found = discover(
        FeatureEncoder(8), labelled, free, method="protogcd", classes=10, device="cpu",
        settings={"epochs": 25, "hard_epochs": 10, "hidden": 32, "projection": 16, "init": "k_means"},
    )  # fmt: skip
    score = found.score(truth, NAMES)
    assert score.all is not None and score.all > 0.9
    assert found.model is not None and found.model.classes[5:] == tuple(f"new {k}" for k in range(1, 6))
    assert found.facts["method"] == "protogcd" and found.new[0].stability is None
    with pytest.raises(UsageError, match="does not look for new classes"):
        discover(FeatureEncoder(8), labelled, free, method="protopnet", classes=10)
    with pytest.raises(UsageError, match="did you mean"):
        discover(FeatureEncoder(8), labelled, free, method="protogdc", classes=10)


def test_results_as_table_and_json() -> None:
    labelled, free, _ = parts()
    found = discover(FeatureEncoder(8), labelled, free, criterion="silhouette", draws=2)
    plain = json.loads(found.to_json())
    assert plain["number"]["count"] == len(found.clusters) == 10
    assert len(plain["cases"]) == len(free) and {"case", "cluster", "new", "confidence"} == set(plain["cases"][0])
    assert "estimated" in found.table() and "new 1" in found.table()
    assert found["new 1"] is found[found["new 1"].index]
    with pytest.raises(UsageError, match="did you mean 'new"):
        found["new 99"]


def test_odd_data_is_named() -> None:
    labelled, free, _ = parts()
    encoder = FeatureEncoder(8)
    with pytest.raises(UsageError, match="there is no labelled case"):
        discover(encoder, free, labelled)
    with pytest.raises(UsageError, match="no unlabelled case"):
        discover(encoder, labelled, free.subset([]))
    with pytest.raises(DataError, match="keep it in one"):
        discover(encoder, labelled, labelled)
    with pytest.raises(UsageError, match="must be as many at least"):
        discover(encoder, labelled, free, classes=3)
    with pytest.raises(UsageError, match="ask for fewer"):
        discover(encoder, labelled, free.subset(range(3)), classes=20)
    with pytest.raises(UsageError, match="encoded, embedded, evidence"):
        discover(encoder, labelled, free, features="raw")

    class Broken(FeatureEncoder):
        def forward(self, inputs: Tensor) -> Any:
            return super().forward(inputs.log())

    with pytest.raises(DataError, match="are not finite"):
        discover(Broken(8), labelled, free)


def test_one_known_class_one_unlabelled_case_and_constant_features() -> None:
    labelled, free, _ = parts()
    one = labelled.subset(np.flatnonzero(labelled.labels == 0))
    found = discover(FeatureEncoder(8), one, free, classes=10, draws=2)
    assert found.classes == ("a",) and len(found.new) == 9
    single = discover(FeatureEncoder(8), labelled, free.subset([0]), classes=5, draws=2)
    assert single.rows.shape == (1,) and sum(each.size for each in single.clusters) == 1
    flat = features(np.ones((20, 3), np.float32), name="flat")
    known = features(np.ones((6, 3), np.float32), list("aabbcc"), name="flat known")
    same = discover(FeatureEncoder(3), known, flat, classes=5, draws=2)
    assert bool(same.confidence.isfinite().all()) and same.rows.max() < 5
    json.loads(same.to_json())


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_the_number_of_separate_blobs_is_found(criterion: Criterion) -> None:
    values, truth = (torch.from_numpy(a) for a in blobs())
    labels = torch.where((truth < 5) & (torch.arange(400) % 2 == 0), truth, -1)
    unit = torch.nn.functional.normalize(values, dim=1)
    found = estimate_classes(unit, labels, generator=generator(), criterion=criterion)
    assert abs(found.count - 10) <= 1, found
    assert found.curve[found.count] == max(found.curve.values())
    assert found.low == 5 and found.high == 30 and len(found.curve) < 26


def test_new_classes_alone_are_counted_beside_the_known_ones() -> None:
    values, truth = (torch.from_numpy(a) for a in blobs())
    labels = torch.where(truth < 6, truth, -1)
    found = estimate_classes(values, labels, generator=generator(), criterion="silhouette", apart=True)
    assert found.count == 10
    with pytest.raises(UsageError, match="use 'silhouette'"):
        estimate_classes(values, labels, generator=generator(), criterion="accuracy", apart=True)


def test_what_cannot_be_estimated_says_why() -> None:
    values, truth = (torch.from_numpy(a) for a in blobs())
    none = torch.full((400,), -1)
    assert estimate_classes(values, none, generator=generator(), criterion="silhouette").count == 10
    with pytest.raises(UsageError, match="needs labelled cases"):
        estimate_classes(values, none, generator=generator())
    labels = torch.where(truth == 0, 0, -1)
    with pytest.raises(UsageError, match="of 2 classes at least"):
        estimate_classes(values, labels, generator=generator(), criterion="hidden_classes")
    with pytest.raises(UsageError, match="no unlabelled case"):
        estimate_classes(values, truth, generator=generator())
    with pytest.raises(UsageError, match="must be searched between"):
        estimate_classes(values, none, generator=generator(), criterion="silhouette", high=1000)
    with pytest.raises(UsageError, match="criterion must be"):
        estimate_classes(values, none, generator=generator(), criterion="gap")  # type: ignore[arg-type]
    edge = estimate_classes(values, none, generator=generator(), criterion="silhouette", high=7)
    assert edge.count == 7 and "search farther" in edge.notes[0]
    few = values[truth < 4]
    known = torch.where(torch.arange(len(few)) % 2 == 0, truth[truth < 4], -1)
    settled = estimate_classes(few, known, generator=generator())
    assert settled.count == settled.low == 4 and not settled.notes  # no number below that of the known can be right


def test_no_number_is_tried_twice_and_ties_go_to_the_smaller() -> None:
    asked: list[int] = []

    def judge(k: int) -> float:
        asked.append(k)
        return -abs(k - 613.0)

    curve = search(judge, 5, 1000)
    assert len(asked) == len(set(asked)) == len(curve) < 60
    assert max(curve, key=lambda k: curve[k]) == 613
    flat = search(lambda k: 1.0, 2, 9)
    assert sorted(flat) == list(range(2, 10))


def test_names_of_new_classes_are_free_ones() -> None:
    assert new_names(("new 2", "a"), 3) == ("new 1", "new 3", "new 4")
    assert new_names((), 0) == ()


@pytest.fixture(scope="module")
def tiny_imagenet(shared_data: Path) -> Callable[[], tuple[Tensor, np.ndarray]]:
    """Return features of 20 classes of Tiny-ImageNet by a network that has learned birds, not these classes."""
    folder = shared_data / "tinyimagenet100"
    weights = shared_data / "backbones" / "mobilenetv2_100_inat_birds.safetensors"
    if not folder.is_dir() or not weights.exists():
        pytest.skip(f"no Tiny-ImageNet at {folder}, or no network at {weights}")

    def read() -> tuple[Tensor, np.ndarray]:
        import csv
        import io
        import zipfile

        from PIL import Image

        rows = [r for r in csv.DictReader((folder / "index.csv").open()) if int(r["label"]) % 5 == 0]
        rows = [r for r in rows if r["split"] == "train"][::2]
        encoder = ImageEncoder(
            "mobilenetv2_100", weights=weights, size=128, mean=0.5, std=0.5, model_args={"pad_type": "same"}
        ).eval()
        found = []
        with zipfile.ZipFile(next(folder.glob("*.zip"))) as archive, torch.no_grad():
            for start in range(0, len(rows), 50):
                files = [
                    Image.open(io.BytesIO(archive.read(r["file"]))).convert("RGB") for r in rows[start : start + 50]
                ]
                assert encoder.preprocess is not None
                found.append(encoder(torch.stack([encoder.preprocess(f) for f in files])).values.mean(1))
        return torch.cat(found), np.array([int(r["label"]) // 5 for r in rows])

    return read


@pytest.mark.slow
def test_on_tiny_imagenet_known_classes_help_to_find_new_ones(
    tiny_imagenet: Callable[[], tuple[Tensor, np.ndarray]],
) -> None:
    values, truth = tiny_imagenet()
    names = [f"c{k}" for k in range(20)]
    shown = (truth < 10) & (np.random.default_rng(0).random(len(truth)) < 0.5)
    labelled = features(values[shown], [names[k] for k in truth[shown]], name="known")
    free = features(values[~shown], name="free")
    found = discover(FeatureEncoder(values.shape[1]), labelled, free, classes=20, draws=0)
    ours = found.score(truth[~shown], names)
    unit = torch.nn.functional.normalize(values, dim=1)
    rows = k_means(unit, 20, generator=generator(), restarts=10, iterations=100).rows.numpy()
    plain = discovery_score(rows[~shown], truth[~shown], range(10))
    assert ours.all is not None and plain.all is not None and ours.old is not None and plain.old is not None
    print("tiny-imagenet ss-k-means", ours.all, ours.old, ours.new, "k-means", plain.all, plain.old, plain.new)
    assert ours.old > plain.old
    assert ours.all > 0.2, "four times chance"
