"""Outside labels beside a model: the table is read strictly, the model stays as it is, what was planted is found."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protolearn.audit.look import Look
from protolearn.audit.subject import AdaptedSubject, ModelSubject
from protolearn.core.model import PrototypeModel
from protolearn.data import digits
from protolearn.data.features import FeatureCases, features
from protolearn.encoders import FeatureEncoder, SmallEncoder
from protolearn.errors import DataError, ModelFileError, UsageError
from protolearn.methods import get_method
from protolearn.tasks.associate import activations, associate, rarest
from protolearn.tasks.outside_labels import read_outside_labels
from protolearn.training.fit import fit
from protolearn.training.project import project

CASES = digits("train").subset(range(400))


@pytest.fixture(scope="module")
def model() -> PrototypeModel:
    method = get_method("protopnet")(prototypes_per_class=2, dim=8)
    made = method.build(SmallEncoder(dim=8), 10, 0).eval()
    made.method, made.classes = method, CASES.classes
    project(made, CASES.with_transform(made.encoder.preprocess))
    return made


@pytest.fixture(scope="module")
def seen(model: PrototypeModel) -> np.ndarray:
    return activations(ModelSubject(model), CASES)[0].numpy()


@pytest.fixture(scope="module")
def lone(seen: np.ndarray) -> int:
    """The prototype whose activation is least like any other's."""
    alike = np.abs(np.corrcoef(seen.T)) - np.eye(seen.shape[1])
    return int(alike.max(0).argmin())


def planted(seen: np.ndarray, prototype: int) -> dict[str, list[Any]]:
    """A table in which one label is drawn from one activation, one from nothing; some cells are empty."""
    draw = np.random.default_rng(0)
    a = (seen[:, prototype] - seen[:, prototype].mean()) / seen[:, prototype].std()
    sick = (draw.random(len(a)) < 1 / (1 + np.exp(0.5 - 1.4 * a))).astype(int).tolist()
    return {
        "id": list(CASES.ids),
        "planted": [None, *sick[1:]],
        "noise": (draw.random(len(a)) < 0.4).astype(int).tolist(),
        "rare": (np.arange(len(a)) < 3).astype(int).tolist(),
        "age": draw.normal(60, 10, len(a)).round(1).tolist(),
        "sex": draw.choice(["f", "m"], len(a)).tolist(),
        "site": draw.integers(1, 4, len(a)).tolist(),
        "patient": [f"p{k // 4}" for k in range(len(a))],
    }


HOW: Any = {"covariates": ["age", "sex"], "categorical": ["site"], "group": "patient", "least": 15}


def test_a_planted_label_is_found_and_the_model_stays(model: PrototypeModel, seen: np.ndarray, lone: int) -> None:
    before = ModelSubject(model).digest()
    found = associate(model, CASES, planted(seen, lone), **HOW)
    assert ModelSubject(model).digest() == before
    first = found.table.rows[0]
    assert (first.regressor, first.label, first.significant) == (str(int(model.bank.ids[lone])), "planted", True)
    source = model.bank.sources[lone]
    assert source is not None and first.source == source.case
    assert first.owner == model.classes[int(model.bank.owner()[lone])]
    assert "rare" in found.table.dropped
    assert found.table.missing == {"planted": 1}
    assert first.n == 399
    assert found.facts["covariates"] == ["age", "sex = m", "site = 2", "site = 3"]
    assert found.facts["groups"] == 100
    assert found.table.by_family()["class prediction"]["tests"] == 20
    assert found.table.tests == 2 * (20 + 10)
    assert not [row for row in found.table.significant() if row.label == "noise"]


def test_a_label_is_foretold_in_other_patients_only(model: PrototypeModel, seen: np.ndarray, lone: int) -> None:
    table = planted(seen, lone)
    told = {(each.family, each.label): each for each in associate(model, CASES, table, **HOW).foretold}
    one, noise, age = (told[k] for k in [("prototype", "planted"), ("prototype", "noise"), ("covariates", "planted")])
    assert one.interval is not None and one.interval[0] > 0.6
    assert noise.interval is not None and noise.interval[0] < 0.5 < noise.interval[1]
    assert age.auroc is not None and one.auroc is not None and age.auroc < one.auroc
    assert one.test % 4 in (0, 3)  # whole patients, but for the case whose label is not known
    assert one.train + one.test == 399
    again = associate(model, CASES, table, **HOW)
    assert [each.to_dict() for each in again.foretold] == [each.to_dict() for each in told.values()]
    assert associate(model, CASES, table, **HOW, test_share=None).foretold == ()


def test_permuted_labels_find_nothing(model: PrototypeModel, seen: np.ndarray, lone: int) -> None:
    table = planted(seen, lone)
    draw = np.random.default_rng(1)
    share = []
    for _ in range(3):
        order = draw.permutation(len(CASES))
        mixed = {**table, "planted": [table["planted"][k] for k in order]}
        rows = associate(model, CASES, mixed, least=15, only=["planted", "noise"], test_share=None).table.rows
        share += [row.significant for row in rows]
    assert np.mean(share) <= 0.05


def test_the_groups_of_the_cases_serve_where_none_are_named(model: PrototypeModel, seen: np.ndarray, lone: int) -> None:
    table = planted(seen, lone)
    grouped = features(np.zeros((400, 3)), [0] * 400, ids=list(CASES.ids), groups=[f"g{k // 8}" for k in range(400)])
    subject = _over_features(3)
    found = associate(subject, grouped, table, only=["noise"], families=["prototypes"], test_share=None)
    assert found.facts["groups"] == 50
    assert {row.status for row in found.table.rows} == {"not estimable: the same in every record"}
    other = associate(
        subject, grouped, table, only=["noise"], families=["prototypes"], test_share=None, group="patient"
    )
    assert other.facts["groups"] == 100


def _over_features(width: int) -> AdaptedSubject:
    """Any other model: features themselves as activations."""

    def look(inputs: torch.Tensor) -> Look:
        logits = inputs @ torch.eye(width)
        return Look(logits, logits.softmax(1), inputs, None, lambda part: inputs[part].unsqueeze(1) * torch.eye(width))

    names = list(map(str, range(width)))
    return AdaptedSubject(torch.nn.Identity(), look, classes=names, ownership=torch.eye(width))


def test_classes_may_be_tested_and_prototypes_out_of_use_are_not(
    model: PrototypeModel, seen: np.ndarray, lone: int
) -> None:
    banned = copy.deepcopy(model)
    banned.bank.ban([0, 1])
    how: Any = {"least": 15, "only": ["planted"], "families": ["prototypes", "classes"], "test_share": None}
    found = associate(banned, CASES, planted(seen, lone), **how)
    tried = {(row.family, row.regressor) for row in found.table.rows}
    assert len(tried) == 18 + 9
    assert ("prototype", "0") not in tried and ("prototypes of a class", "0") not in tried
    assert found.facts["prototypes_out_of_use"] == 2
    banned.bank.ban(banned.bank.ids)
    with pytest.raises(DataError, match="in use"):
        associate(banned, CASES, planted(seen, lone), **HOW)


def test_the_file_is_whole_and_says_what_the_table_says(
    model: PrototypeModel, seen: np.ndarray, lone: int, tmp_path: Path
) -> None:
    found = associate(model, CASES, planted(seen, lone), **HOW)
    path = found.save(tmp_path / "new" / "assoc.csv")
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert len(rows) == found.table.tests
    assert float(rows[0]["p"]) == pytest.approx(found.table.rows[0].p, rel=1e-6)
    assert [entry.name for entry in path.parent.iterdir()] == ["assoc.csv"]
    text = found.text()
    for word in ("planted", "corrected", "not causes", "AUROC", "bonferroni"):
        assert word in text
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ModelFileError, match="associations"):
        found.save(tmp_path / "file" / "a.csv")


def test_one_case_and_none(model: PrototypeModel, seen: np.ndarray, lone: int) -> None:
    table = planted(seen, lone)
    how: Any = {"only": ["planted", "noise"]}
    found = associate(model, CASES.subset([1]), table, **how)
    assert (found.table.rows, found.foretold, found.facts["cases"]) == ((), (), 1)
    assert set(found.table.dropped) == {"planted", "noise"}
    assert "Labels not tested" in found.text()
    with pytest.raises(DataError, match="no row is of a case"):
        associate(model, CASES.subset([]), table, **how)
    with pytest.raises(DataError, match="two groups"):
        associate(model, CASES.subset([1]), table, **how, group="patient")


def test_wrong_names_are_suggested(model: PrototypeModel, seen: np.ndarray, lone: int) -> None:
    table = planted(seen, lone)
    with pytest.raises(UsageError, match="prototypes"):
        associate(model, CASES, table, **HOW, families=["prototype"])
    with pytest.raises(UsageError, match="tested"):
        associate(model, CASES, table, **HOW, families=[])
    with pytest.raises(UsageError, match="test_share"):
        associate(model, CASES, table, **HOW, test_share=1.0)
    with pytest.raises(DataError, match="no column ages"):
        associate(model, CASES, table, covariates=["ages"])


# -- the table ------------------------------------------------------------------------------------------------------


def test_a_file_is_read_like_columns(tmp_path: Path) -> None:
    text = "Path;AF;HF;age;sex\na.png;1;;50;f\nb.png;0.0;true;NA;m\nc.png;NaN;0;70;m\nother.png;0;0;1;f\n"
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    found = read_outside_labels(tmp_path / "t.csv", ["c.png", "b.png", "a.png", "d.png"], covariates=["AGE", "sex"])
    assert found.names == ("AF", "HF")
    assert found.index.tolist() == [0, 2]
    assert np.array_equal(found.labels, [[np.nan, 0.0], [1.0, np.nan]], equal_nan=True)
    assert found.covariates is not None and found.covariates.tolist() == [[70.0, 1.0], [50.0, 0.0]]
    assert found.covariate_names == ("AGE", "sex = m")
    assert dict(found.counts) == {"cases without a row": 1, "rows of no case": 1, "cases without AGE": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"AF": [1, 2]}, "row 2: the label 'AF' must be 0, 1 or empty, got '2'"),
        ({"id": ["a", "a"]}, "rows 1 and 2 are both of case 'a'"),
        ({"id": ["x", "y"]}, "no row is of a case"),
        ({"AF": [1]}, "differ in length"),
        ({"age": ["", None]}, "every case lacks"),
        ({"age": [1, "inf"]}, "infinity"),
    ],
)
def test_what_a_table_must_not_hold(change: dict[str, Any], message: str) -> None:
    table = {"id": ["a", "b"], "AF": [1, 0], "age": [50, 60], **change}
    with pytest.raises(DataError, match=message):
        read_outside_labels(table, ["a", "b"], covariates=["age"])


def test_what_a_table_must_hold() -> None:
    with pytest.raises(DataError, match="no column id"):
        read_outside_labels({"AF": [1]}, ["a"])
    with pytest.raises(DataError, match="no column of labels"):
        read_outside_labels({"id": ["a"], "age": [3]}, ["a"], covariates=["age"])
    with pytest.raises(DataError, match="asked for twice"):
        read_outside_labels({"id": ["a"], "age": [3], "AF": [1]}, ["a"], covariates=["age"], group="age")
    many = {"id": list(range(60)), "name": [f"n{k}" for k in range(60)], "AF": [0, 1] * 30}
    with pytest.raises(DataError, match="60 values"):
        read_outside_labels(many, [str(k) for k in range(60)], covariates=["name"])


def test_each_record_counts_for_the_rarest_label_it_has() -> None:
    assert rarest(np.array([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [np.nan, np.nan, 0.0]])).tolist() == [2, 0, 3]


# -- a real question ------------------------------------------------------------------------------------------------


def _tumours(folder: Path) -> tuple[FeatureCases, dict[str, list[Any]]]:
    parts = {name: np.load(folder / "tcga_expression" / f"{name}_expression.npz") for name in ("blca", "stad")}
    values = np.concatenate([part["x"] for part in parts.values()])
    values = ((values - values.mean(0)) / (values.std(0) + 1e-6)).astype(np.float32)
    ids = [case for part in parts.values() for case in part["case_id"].tolist()]
    names = [name for name, part in parts.items() for _ in part["case_id"]]
    rows = list(csv.DictReader((folder / "tcga_expression" / "stad_clinical.csv").open(encoding="utf-8")))
    table: dict[str, list[Any]] = {
        "id": [row["case_id"] for row in rows],
        "diffuse": [int(row["oncotree_code"] in ("DSTAD", "SSRCC")) for row in rows],
        "age": [row["age"] for row in rows],
        "female": [row["is_female"] for row in rows],
        "hospital": [row["site"] for row in rows],
    }
    return features(values, names, ids=ids, name="tumours"), table


@pytest.mark.slow
def test_a_prototype_of_stomach_cancer_goes_with_the_diffuse_type(shared_data: Path) -> None:
    """A model that was told bladder from stomach has found a subtype; its class predictions do not show it."""
    cases, table = _tumours(shared_data)
    method = get_method("glvq")(prototypes_per_class=4)
    model = fit(method, cases, encoder=FeatureEncoder(1577), quiet=True, device="cpu", seed=0).model
    how: Any = {"only": ["diffuse"], "covariates": ["age", "female"], "test_share": None}
    found = associate(model, cases, table, **how)
    first = found.table.rows[0]
    assert (first.family, first.owner) == ("prototype", "stad")
    assert first.odds_ratio is not None and first.odds_ratio > 1.3
    assert found.table.significant("prototype") and not found.table.significant("class prediction")
    assert found.facts["left_out"]["cases without age"] == 3
    # whole hospitals as groups: 21 of them are a thinner ground, and the same odds ratio has a larger p-value
    careful = associate(model, cases, table, **how, group="hospital").table.rows
    (same,) = [row for row in careful if row.regressor == first.regressor and row.family == "prototype"]
    assert same.odds_ratio == pytest.approx(first.odds_ratio)
    assert same.p is not None and first.p is not None and same.p > 10 * first.p
