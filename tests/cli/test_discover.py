"""``discover`` on the command line: clusters, galleries, and a model with a named class."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from protolearn.cli import main
from protolearn.data import digits, load_cases
from protolearn.encoders import SmallEncoder
from protolearn.methods.parts.protopnet import ProtoPNet
from protolearn.training.folder import load, save
from protolearn.training.project import project


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the digits 0 to 5, pictures of these, and pictures of all without a class."""
    place = tmp_path_factory.mktemp("discover")
    cases = digits("train")
    for i in range(420):
        label = int(cases.labels[i])
        part = "test" if i % 5 == 0 else "train"
        folder = place / "known" / part / str(label) if label < 6 and i < 300 else place / "new"
        folder.mkdir(parents=True, exist_ok=True)
        cases.picture(i).save(folder / f"{i:04d}.png")
    known = load_cases(str(place / "known"), "train")
    method = ProtoPNet(prototypes_per_class=2, dim=8)
    model = method.build(SmallEncoder(dim=8), 6, 0).eval()
    model.method, model.classes = method, known.classes
    project(model, known.with_transform(model.encoder.preprocess))
    save(model, place / "model", known)
    return place


def run(capsys: pytest.CaptureFixture[str], place: Path, *words: Any) -> tuple[int, str, str]:
    given = ["discover", place / "model", place / "known", place / "new", "--device", "cpu", *words]
    code = main([str(word) for word in given])
    return (code, *capsys.readouterr())


def test_clusters_with_galleries(capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path) -> None:
    code, out, err = run(capsys, place, "--classes", 10, "--draws", 3, "--out", tmp_path / "found")
    assert code == 0, err
    assert "new 1" in out and "known classes" in out
    page = (tmp_path / "found" / "clusters.html").read_text(encoding="utf-8")
    assert page.count('<article class="proto">') == 4 and page.count("<img") > 40
    assert "Closest I know" in page and "<script" not in page and 'src="http' not in page
    with (tmp_path / "found" / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(1 for _ in (place / "new").iterdir())
    plain = json.loads((tmp_path / "found" / "clusters.json").read_text())
    assert plain["number"] is None and len(plain["clusters"]) == 10


def test_the_number_is_estimated_and_told_as_json(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    code, out, err = run(capsys, place, "--criterion", "silhouette", "--most-classes", 14, "--draws", 0, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert 6 <= told["number"]["count"] <= 14 and told["promoted"] == [] and told["saved"] is None


def test_a_named_cluster_becomes_a_class(capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path) -> None:
    before = load(place / "model")
    words = ["--classes", 10, "--draws", 0, "--name", "new 1=odd one", "--save", tmp_path / "model", "--harm", 0.2]
    code, out, err = run(capsys, place, *words)
    assert code == 0, err
    assert "odd one: prototypes" in out and "known cases right" in out and "with 1 new classes" in out
    model = load(tmp_path / "model")
    assert model.classes == (*before.classes, "odd one") and len(model.bank) == len(before.bank) + 2
    assert all((place / "new" / source.case.split("/")[-1]).exists() for source in model.bank.sources[-2:] if source)
    assert model.metadata["promoted"][0]["name"] == "odd one"
    assert load(place / "model").classes == before.classes, "the given model is not changed"
    code, _, err = run(capsys, place, *words)
    assert code == 2 and "already holds a model" in err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--name", "new 1=wolf"], "say where the new one goes"),
        (["--save", "somewhere"], "name some"),
        (["--name", "wolf", "--save", "somewhere"], "takes CLUSTER=NAME"),
        (["--name", "new 1=a", "new 1=b", "--save", "somewhere"], "twice"),
        (["--classes", "3"], "as many at least"),
        (["--method", "protopnet", "--classes", "9"], "does not look for new classes"),
        (["--batch-size", "0"], "at least 1"),
    ],
)
def test_wrong_use_is_one_line(
    capsys: pytest.CaptureFixture[str], place: Path, words: list[str], complaint: str
) -> None:
    code, _, err = run(capsys, place, *words)
    assert code == 2 and complaint in err and err.count("\n") == 1


def test_missing_data_is_named(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    given = ["discover", str(place / "model"), str(place / "known"), str(place / "nowhere"), "--device", "cpu"]
    assert main(given) == 1 and "nowhere" in capsys.readouterr().err
