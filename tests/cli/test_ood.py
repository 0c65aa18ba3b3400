"""``ood`` on the command line, and what predict and explain say afterwards."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protolearn.cli import main
from protolearn.data import digits
from protolearn.encoders import SmallEncoder
from protolearn.methods.parts.protopnet import ProtoPNet
from protolearn.training.folder import load, save
from protolearn.training.project import project


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the digits 0 to 7, pictures of these, and pictures of 8 and 9."""
    place = tmp_path_factory.mktemp("ood")
    for part in ("train", "test"):
        cases = digits(part)
        for i in range(400 if part == "train" else 150):
            label = int(cases.labels[i])
            folder = place / "known" / part / str(label) if label < 8 else place / "odd" / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            cases.picture(i).save(folder / f"{part}-{i:04d}.png")
    from protolearn.data import load_cases

    known = load_cases(str(place / "known"), "train")
    method = ProtoPNet(prototypes_per_class=1, dim=8)
    model = method.build(SmallEncoder(dim=8), 8, 0).eval()
    model.method, model.classes = method, known.classes
    project(model, known.with_transform(model.encoder.preprocess))
    save(model, place / "model", known)
    return place


@pytest.fixture
def place(source: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(source, tmp_path / "copy"))


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = main([*map(str, words), *([] if words[1:2] == ("--list",) else ["--device", "cpu"])])
    return (code, *capsys.readouterr())


def test_judged_saved_and_then_said(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    odd = next((place / "odd" / "8").iterdir())
    before = csv.DictReader(io.StringIO(run(capsys, "predict", place / "model", odd)[1]))
    assert "known" not in (before.fieldnames or ())
    scores = "mahalanobis,knn"
    code, out, err = run(capsys, "ood", place / "model", place / "known", "--far", f"odd={place / 'odd'}", "--score",
                         scores, "--set", "knn.k=3", "--rate", "0.9", "--out", place / "novelty", "--save")  # fmt: skip
    assert code == 0, err
    assert "known positive" in out and "odd" in out and "kept out of the fit" in out and 'says "does not know"' in out
    assert sorted(p.name for p in (place / "novelty").iterdir()) == [
        "cases.csv", "classes.csv", "novelty.html", "novelty.json", "sets.csv",
    ]  # fmt: skip
    model = load(place / "model")
    assert model.scorer is not None and model.scorer.name == "mahalanobis" and float(model.scorer.rate) == 0.9
    assert model.metadata["novelty"]["score"]["name"] == "mahalanobis"
    told = {row["case"]: row for row in csv.DictReader((place / "novelty" / "cases.csv").open())}
    _, out, _ = run(capsys, "predict", place / "model", place / "odd")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [*rows[0]][-2:] == ["confidence", "known"]
    for row in rows:
        assert (row["predicted"] == "does not know") == (row["known"] == "False")
        same = next(each for name, each in told.items() if name.endswith(row["case"]))
        assert float(row["confidence"]) == pytest.approx(float(same["mahalanobis"]), rel=1e-3)
    refused = np.mean([row["known"] == "False" for row in rows])
    assert 0 < refused < 1
    found = json.loads(run(capsys, "predict", place / "model", place / "odd", "--json")[1])
    assert [str(p["known"]) for p in found["predictions"]] == [row["known"] for row in rows]
    assert found["predictions"][0]["predicted"] in model.classes


def test_explain_names_the_closest(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert run(capsys, "ood", place / "model", place / "known", "--save", "--rate", "0.05")[0] == 0
    odd = next((place / "odd" / "8").iterdir())
    assert main(["explain", str(place / "model"), str(odd), "--out", str(place / "x"), "--formats", "html,json"]) == 0
    out = capsys.readouterr().out
    assert "does not know (confidence" in out and "closest: prototype" in out
    page = next((place / "x").glob("*.html")).read_text()
    assert "Does not know" in page and "nothing the model knows is like it" in page
    plain = json.loads(next((place / "x").glob("*.json")).read_text())
    assert plain["known"] is False


def test_nothing_is_kept_unless_asked(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    before = {p: p.read_bytes() for p in (place / "model").rglob("*") if p.is_file()}
    code, out, _ = run(capsys, "ood", place / "model", place / "known", "--outside", place / "odd", "--json")
    plain = json.loads(out)
    assert (
        code == 0 and plain["saved"] is False and plain["result"]["scores"]["mahalanobis"]["sets"]["odd"]["auroc"] > 0
    )
    assert plain["result"]["facts"]["sets"]["odd"]["cases"] == len(list((place / "odd").rglob("*.png")))
    assert {p: p.read_bytes() for p in (place / "model").rglob("*") if p.is_file()} == before


def test_held_out_cases_and_another_convention(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    _, out, _ = run(capsys, "ood", place / "model", place / "known" / "train", "--held", place / "known" / "test",
                    "--near", f"odd={place / 'odd'}", "--positive", "foreign", "--score", "energy")  # fmt: skip
    assert "foreign positive" in out and "held-out cases" in out and "kept out" not in out
    assert "the training cases, which the model has seen" in out  # nothing else was given to judge by


def test_pictures_without_classes_are_foreign_too(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    loose = place / "loose"
    loose.mkdir()
    for picture in (place / "odd" / "9").iterdir():
        picture.rename(loose / picture.name)
    code, out, err = run(capsys, "ood", place / "model", place / "known", "--outside", loose)
    assert code == 0 and "loose" in out, err


def test_scores_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ood", "--list")
    assert code == 0 and "mahalanobis: Minus the squared" in out and "nac: " in out and "k=50" in out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "takes the folder of a model"),
        (["MODEL", "KNOWN"], 2, "nothing to do"),
        (["MODEL", "KNOWN", "--far", "odd=ODD", "--score", "mahalanobs"], 2, "did you mean 'mahalanobis'"),
        (["MODEL", "KNOWN", "--far", "odd=ODD", "--score", ","], 2, "names at least one score"),
        (["MODEL", "KNOWN", "--far", "odd=ODD", "--set", "knn.k=3"], 2, "which --score does not name"),
        (["MODEL", "KNOWN", "--far", "odd=ODD", "--score", "knn", "--set", "k=3"], 2, "SCORE.SETTING=VALUE"),
        (["MODEL", "KNOWN", "--far", "odd=ODD", "--score", "knn", "--set", "knn.kk=3"], 2, "did you mean 'k'"),
        (["MODEL", "KNOWN", "--far", "odd=ODD", "odd=ODD"], 2, "two sets are called 'odd'"),
        (["MODEL", "KNOWN", "--far", "odd=ODD", "--near", "odd=ODD"], 2, "two parts of the data are called 'odd'"),
        (["MODEL", "KNOWN", "--far", "odd=ODD", "--rate", "2"], 2, "rate is the share"),
        (["MODEL", "KNOWN", "--far", "odd=nowhere"], 1, "there is no data 'nowhere'"),
        (["MODEL", "ODD", "--save"], 1, "unseen"),
        (["MODEL", "KNOWN", "--save", "--batch-size", "0"], 2, "batch-size must be at least 1"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], source: Path, words: list[str], code: int, told: str
) -> None:
    named = {"MODEL": "model", "KNOWN": "known", "ODD": "odd"}
    for name, folder in named.items():
        words = [word.replace(name, str(source / folder)) for word in words]
    found, _, err = run(capsys, "ood", *words)
    assert found == code and told in err and err.count("\n") == 1, err
