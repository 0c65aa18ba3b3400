"""The command line as a person meets it: results, help, and one line with the right exit code when it fails."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from protolearn.cli import main
from protolearn.cli.options import COMMANDS
from protolearn.cli.train import read_settings
from protolearn.cli.use import _file_name
from protolearn.core.uncertainty import Refusal
from protolearn.data import digits
from protolearn.encoders import SmallEncoder
from protolearn.errors import UsageError
from protolearn.methods import get_method
from protolearn.methods.parts.protopnet import ProtoPNet
from protolearn.training.folder import load, save
from protolearn.training.project import project

QUICK = [
    "--encoder", "small", "--size", "16", "--device", "cpu", "--protopnet.prototypes_per_class", "1",
    "--protopnet.dim=8", "--protopnet.encoder_rate", "null", "--protopnet.warm_epochs", "1",
    "--protopnet.project_at", "[1]", "--protopnet.last_layer_epochs", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Let an interrupt arrive, as in a terminal: what a shell starts in the background is told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A projected model of digits."""
    cases = digits("train")
    method = ProtoPNet(prototypes_per_class=1, dim=8)
    model = method.build(SmallEncoder(dim=8), 10, 0).eval()
    model.method, model.classes = method, cases.classes
    project(model, cases.with_transform(model.encoder.preprocess))
    return save(model, tmp_path_factory.mktemp("cli") / "model", cases)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "seven.png"
    digits("test").picture(7).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders of two digits."""
    cases = digits("train")
    for i in np.flatnonzero(cases.labels < 2)[:40].tolist():
        place = tmp_path / "photos" / f"digit {cases.labels[i]}"
        place.mkdir(parents=True, exist_ok=True)
        cases.picture(i).save(place / f"{i:04d}.png")
    return tmp_path / "photos"


class Told:
    """What one command printed and returned."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: Any) -> None:
        self.code = main([str(word) for word in arguments])
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def failed(self, code: int, *words: str) -> None:
        assert self.code == code, (self.out, self.err)
        errors = [line for line in self.err.splitlines() if line.startswith("protolearn: error: ")]
        assert len(errors) == 1, self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in errors[0]


# -- help -----------------------------------------------------------------------------------------------------------


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "--help")
    assert told.code == 0
    for name in ("demo", "train", "predict", "explain", "report", "verify", "methods", "doctor"):
        assert f"\n  {name} " in told.out
    assert "examples:" in told.out
    assert Told(capsys).code == 0


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_each_command_has_examples(capsys: pytest.CaptureFixture[str], name: str) -> None:
    told = Told(capsys, name, "--help")
    assert told.code == 0
    assert f"examples:\n  protolearn {name}" in told.out
    for option in ("--json", "--quiet", "--debug"):
        assert option in told.out


@pytest.mark.parametrize("arguments", [["--help"], ["methods", "--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys\nfrom protolearn.cli import main\nassert main({arguments!r}) == 0\n"
        "heavy = {'torch', 'lightning', 'jsonargparse', 'numpy', 'PIL', 'timm', 'sklearn', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_examples_in_help_parse(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example line is accepted by the parser it stands under."""
    import shlex

    from protolearn.cli.options import command_parser

    for name, command in COMMANDS.items():
        lines = command.examples.replace("\\\n", " ").strip().splitlines()
        for line in lines:
            words = shlex.split(line.strip())
            assert words[:2] == ["protolearn", name]
            if name != "train":
                command_parser(name).parse_args(words[2:])
            elif "--config" not in words:
                read_settings(words[2:])


# -- methods and doctor -----------------------------------------------------------------------------------------------


def test_methods_for_people_and_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert "protopnet" in Told(capsys, "methods").out
    (entry,) = [entry for entry in Told(capsys, "methods", "--json").json if entry["name"] == "protopnet"]
    assert entry["area"] == "parts"
    assert entry["paper"].startswith("Chen")
    assert entry["verified"]
    assert entry["settings"]["prototypes_per_class"]["default"] == 10
    one = Told(capsys, "methods", "protopnet")
    assert "--protopnet.prototypes_per_class" in one.out
    assert "--recipe frozen" in one.out
    assert Told(capsys, "methods", "protopnet", "--json").json["name"] == "protopnet"


def test_doctor_alone(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "doctor")
    assert told.code == 0
    assert "devices: cpu" in told.out
    assert "pip install 'protolearn[" in told.out
    assert Told(capsys, "doctor", "--json").json["findings"] is None


def test_doctor_of_a_model_and_data(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    told = Told(capsys, "doctor", folder, "digits", "--json", "--device", "cpu")
    assert told.code == 0
    assert isinstance(told.json["findings"], list)
    model = load(folder)
    model.bank.ban([0])
    sick = save(model, tmp_path / "sick")
    told = Told(capsys, "doctor", sick, "--quiet", "--device", "cpu")
    assert told.code == 1
    assert "error: class '0' has no usable prototype" in told.out


# -- predict, explain, report, verify ---------------------------------------------------------------------------------


def test_predict(capsys: pytest.CaptureFixture[str], folder: Path, picture: Path, photos: Path, tmp_path: Path) -> None:
    told = Told(capsys, "predict", folder, picture, photos)
    rows = list(csv.DictReader(io.StringIO(told.out)))
    assert rows[0]["case"] == "seven.png"
    assert len(rows) == 41
    assert 0 <= float(rows[0]["probability"]) <= 1
    found = Told(capsys, "predict", folder, picture, "--json", "--all").json
    assert found["predictions"][0]["predicted"] == rows[0]["predicted"]
    assert sum(found["predictions"][0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert Told(capsys, "predict", folder, picture, "--all", "--out", tmp_path / "p.csv", "--quiet").out == ""
    assert "p(9)" in (tmp_path / "p.csv").read_text()
    Told(capsys, "predict", folder, picture, "--out", tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["predictions"]


def test_predict_says_how_unsure_it_is(capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path) -> None:
    cases = digits("train").subset(range(40))
    method = get_method("prob-psenn")(dim=4, law="diagonal")
    model = method.build(SmallEncoder(dim=8), 10, 0).eval()
    model.method, model.classes = method, cases.classes
    (row,) = csv.DictReader(io.StringIO(Told(capsys, "predict", save(model, tmp_path / "one"), picture).out))
    assert row["averaged"] in cases.classes
    assert 0 <= float(row["epistemic_uncertainty"]) <= float(row["total_uncertainty"])
    assert "refused" not in row, "nothing was calibrated"
    model.metadata["refusal"] = Refusal(-1.0).to_dict()
    found = Told(capsys, "predict", save(model, tmp_path / "two"), picture, "--json").json["predictions"][0]
    assert found["refused"] is True


def test_explain_without_the_data(
    capsys: pytest.CaptureFixture[str], folder: Path, picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "explained"
    told = Told(capsys, "explain", folder, picture, picture, "--out", out, "--json")
    assert told.code == 0
    assert sorted(p.name for p in out.iterdir()) == [
        f"seven{number}.{kind}" for number in ("-2", "") for kind in ("html", "json", "png")
    ]
    entry = told.json["explanations"][0]
    assert entry["looks_like"].startswith("digits/")
    page = (out / "seven.html").read_text()
    assert "training case is not at hand" not in page  # the model's own folder holds the pictures of its prototypes
    with Image.open(out / "seven.png") as drawn:
        assert min(drawn.size) > 300
    plain = json.loads((out / "seven.json").read_text())
    assert plain["logit"] == pytest.approx(plain["bias"] + sum(row["contribution"] for row in plain["rows"]), rel=1e-5)


def test_explain_finds_pictures_in_the_data(
    capsys: pytest.CaptureFixture[str], folder: Path, picture: Path, tmp_path: Path
) -> None:
    bare = save(load(folder), tmp_path / "bare")
    Told(capsys, "explain", bare, picture, "--out", tmp_path / "a", "--formats", "html")
    Told(capsys, "explain", bare, picture, "--out", tmp_path / "b", "--formats", "html", "--data", "digits")
    assert "not at hand" in (tmp_path / "a" / "seven.html").read_text()
    assert "not at hand" not in (tmp_path / "b" / "seven.html").read_text()


def test_a_forged_picture_in_the_folder_is_not_shown(
    capsys: pytest.CaptureFixture[str], folder: Path, picture: Path, tmp_path: Path
) -> None:
    import shutil

    forged = shutil.copytree(folder, tmp_path / "forged")
    for kept in (forged / "cases").glob("picture_*.png"):
        Image.new("RGB", (8, 8), "red").save(kept)
    Told(capsys, "explain", forged, picture, "--out", tmp_path / "a", "--formats", "html")
    assert "not at hand" in (tmp_path / "a" / "seven.html").read_text()


def test_file_names_of_cases_stay_inside_the_folder() -> None:
    taken: set[str] = set()
    names = [_file_name(case, taken) for case in ("../../etc/passwd", "a/b.png", "a_b.jpg", "..", "", "x" * 500)]
    assert names == ["etc_passwd", "a_b", "a_b-2", "case", "case-2", "x" * 100]


def test_report(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    told = Told(
        capsys, "report", folder, "digits", "--out", tmp_path / "r.html", "--most", 5, "--json", "--device", "cpu"
    )
    assert told.code == 0
    assert told.json["report"].endswith("r.html")
    assert "<html" in (tmp_path / "r.html").read_text()


def test_verify(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    told = Told(capsys, "verify", folder, "digits", "--device", "cpu")
    assert told.code == 0
    assert "10 of 10 prototypes match" in told.out
    assert Told(capsys, "verify", folder, "digits", "--json", "--device", "cpu").json["ok"] is True
    model = load(folder)
    model.bank.vectors.data[4] += 0.1
    wrong = save(model, tmp_path / "wrong")
    told = Told(capsys, "verify", wrong, "digits", "--device", "cpu", "--quiet")
    assert told.code == 1
    assert "4" in told.out
    assert "token differs" in told.out
    told = Told(capsys, "verify", wrong, "digits", "--json", "--device", "cpu")
    assert told.code == 1
    assert told.json["failures"] == 1


# -- train ----------------------------------------------------------------------------------------------------------


def test_train_keeps_its_settings_and_repeats(capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    told = Told(capsys, "train", photos, "--out", out, *QUICK, "--seed", "3", "--json")
    assert told.code == 0, told.err
    summary = told.json
    assert (summary["prototypes"], summary["sourced"]) == (2, 2)
    assert summary["scores"]["cases"] == 8  # a fifth is held out
    model = load(out)
    assert model.metadata["metrics"]["accuracy"] == summary["scores"]["accuracy"]
    assert model.metadata["data"]["split"] == {"test_share": 0.2, "seed": 3}
    assert sorted(p.name for p in (out / "training").iterdir()) == ["history.csv"]
    settings = yaml.safe_load((out / "settings.yaml").read_text())
    assert settings["protopnet"]["prototypes_per_class"] == 1
    assert settings["seed"] == 3
    again = tmp_path / "again"
    assert Told(capsys, "train", "--config", out / "settings.yaml", "--out", again, "--quiet").code == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert Told(capsys, "verify", out, photos, "--device", "cpu").code == 0
    assert Told(capsys, "report", out, photos, "--out", tmp_path / "r.html", "--device", "cpu").code == 0
    Told(capsys, "train", photos, "--out", out, *QUICK).failed(2, "already holds a model", "--overwrite")
    assert Told(capsys, "train", photos, "--out", out, *QUICK, "--overwrite", "--quiet", "--test-share", "0").code == 0
    assert "training_accuracy" in load(out).metadata["metrics"]


def test_flags_win_over_the_file_and_the_file_over_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("data: photos\nseed: 4\nsize: 96\nprotopnet:\n  dim: 16\n  eps: 0.001\naugmentation:\n  shear: 3\n")
    settings, method = read_settings(
        ["--config", str(file), "--recipe", "frozen", "--encoder", "x", "--protopnet.dim", "32", "--seed=5"]
    )
    assert (settings["data"], settings["seed"], settings["size"], settings["encoder"]) == ("photos", 5, 96, "x")
    assert (method.dim, method.eps, method.prototypes_per_class) == (32, 0.001, 10)
    assert method.encoder_rate is None
    assert settings["views"] == ProtoPNet.recipes["frozen"].options["views"] > 1
    assert settings["augment"] is True
    assert settings["augmentation"]["shear"] == 3
    assert settings["augmentation"]["crop"] == (0.6, 1.0)
    settings, _ = read_settings(["other", "--config", str(file)])
    assert settings["data"] == "other"


def test_named_concepts_come_from_a_table(capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "concepts.csv"
    names = sorted(folder.name for folder in photos.iterdir())
    table.write_text(
        "class,round,straight\n" + "".join(f"{name},{i % 2},{1 - i % 2}\n" for i, name in enumerate(names))
    )
    small = ["--method", "csr", "--concepts", table, "--encoder", "small", "--size", "16", "--device", "cpu", "--quiet"]
    small += [f"--csr.{name}={value}" for name, value in (
        ("prototypes_per_concept", 1), ("dim", 4), ("encoder_rate", "null"), ("concept_epochs", 1),
        ("contrast_epochs", 1), ("task_epochs", 1),
    )]  # fmt: skip
    out = tmp_path / "named"
    assert Told(capsys, "train", photos, "--out", out, *small).code == 0
    model = load(out)
    assert model.method is not None
    assert model.method.group_names(model.classes) == ("round", "straight")
    again = tmp_path / "again"
    assert Told(capsys, "train", "--config", out / "settings.yaml", "--out", again, "--quiet").code == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    bare = [word for word in small if word not in ("--concepts", table)]
    Told(capsys, "train", photos, "--out", tmp_path / "x", *bare).failed(2, "at least one concept", "--concepts FILE")
    Told(capsys, "train", photos, "--out", tmp_path / "x", *QUICK, "--concepts", table).failed(
        2, "protopnet learns no named concepts"
    )


def test_a_recipe_may_name_the_encoder(photos: Path, tmp_path: Path) -> None:
    recipe = ["--method", "prototype-autoencoder", "--recipe", "paper", "--prototype-autoencoder.epochs", "1"]
    more = ["--size", "8", "--device", "cpu", "--quiet", "--prototype-autoencoder.prototypes", "3"]
    out = tmp_path / "model"
    assert main(["train", str(photos), "--out", str(out), *recipe, *more]) == 0
    model = load(out)
    assert model.encoder.spec()["encoder"] == "autoencoder"
    assert model.metadata["data"]["augment"]["elastic"] == 20
    assert model.metadata["options"]["batch_size"] == 250
    assert all(source is not None and not source.moved for source in model.bank.sources)


def test_other_data_to_judge_by(capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path) -> None:
    told = Told(capsys, "train", photos, "--test", photos, "--out", tmp_path / "m", *QUICK, "--json")
    assert told.json["scores"]["cases"] == 40
    told = Told(capsys, "report", tmp_path / "m", photos, "--test", photos, "--out", tmp_path / "r.html", "--quiet")
    assert told.code == 0


# -- wrong input ----------------------------------------------------------------------------------------------------


def make(path: Path, *names: str) -> Path:
    """Make class folders of the given pictures: name = class/file."""
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(noise).save(path / name)
    return path


USAGE = {
    "command": (["trian", "x"], "did you mean 'train'"),
    "option": (["verify", "m", "d", "--tolerence", "1"], "did you mean '--tolerance'"),
    "option before the command": (["--json", "methods"], "before the command"),
    "missing argument": (["predict", "m"], "required: pictures"),
    "one too many": (["train", "a", "b"], "one argument too many: b"),
    "no value": (["train", "a", "--seed"], "--seed needs a value"),
    "no data": (["train"], "train needs DATA"),
    "no out": (["train", "digits"], "--out"),
    "no encoder": (["train", "digits", "--out", "OUT"], "--encoder"),
    "method": (["train", "digits", "--out", "OUT", "--method", "protopet"], "did you mean 'protopnet'"),
    "method to list": (["methods", "protopet"], "did you mean 'protopnet'"),
    "encoder": (["train", "digits", "--out", "OUT", "--encoder", "restnet18"], "did you mean 'resnet18'"),
    "setting": (["train", "digits", "--protopnet.dims", "3"], "did you mean '--protopnet.dim'"),
    "value": (["train", "digits", "--protopnet.dim", "x"], "protopnet.dim must be int, got x"),
    "choice": (["train", "digits", "--protopnet.neck", "wide"], "protopnet.neck must be one of 'regular'"),
    "number": (["train", "digits", "--seed", "x"], "seed must be int, got x"),
    "impossible": (["train", "digits", "--out", "OUT", "--protopnet.dim", "0"], "dim must be at least 1"),
    "recipe": (["train", "digits", "--recipe", "frosen"], "did you mean 'frozen'"),
    "share": (["train", "digits", "--out", "OUT", "--encoder", "small", "--test-share", "2"], "--test-share"),
    "config": (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
    "device": (["predict", "MODEL", "PICTURE", "--device", "tpu"], "device must be"),
    "batch": (["predict", "MODEL", "PICTURE", "--batch-size", "0"], "--batch-size must be at least 1"),
    "format": (["explain", "MODEL", "PICTURE", "--formats", "pgn"], "did you mean 'png'"),
    "region": (["explain", "MODEL", "PICTURE", "--region", "circle"], "invalid choice"),
    "tolerance": (["verify", "MODEL", "digits", "--tolerance", "-1"], "tolerance must be above 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], folder: Path, picture: Path, tmp_path: Path, case: str
) -> None:
    arguments, message = USAGE[case]
    names = {"MODEL": folder, "PICTURE": picture, "OUT": tmp_path / "out"}
    Told(capsys, *(names.get(word, word) for word in arguments)).failed(2, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 4\n", "no setting 'sed': did you mean 'seed'"),
        ("protopnet:\n  dims: 4\n", "protopnet has no setting 'dims': did you mean 'dim'"),
        ("protopnet:\n  dim: a\n", "protopnet.dim must be int, got a"),
        ("data: [a\n", "cannot be read"),
        ("- a\n", "expected settings"),
        ("method: protopet\n", "did you mean 'protopnet'"),
        ("a: !!python/object/apply:os.system ['true']\n", "cannot be read"),
    ],
)
def test_a_wrong_file_of_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    Told(capsys, "train", "--config", tmp_path / "s.yaml").failed(2, message)


def test_wrong_data_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    one = make(tmp_path / "one", "cat/a.png", "cat/b.png")
    broken = make(tmp_path / "broken", *(f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(5)))
    (broken / "cat" / "0.png").write_bytes(b"")
    (broken / "cat" / "1.png").write_bytes(b"no picture at all")
    out = tmp_path / "out"
    Told(capsys, "train", tmp_path / "nowhere", "--out", out, *QUICK).failed(1, "nowhere")
    Told(capsys, "train", tmp_path / "empty", "--out", out, *QUICK).failed(1, "empty", "no pictures")
    Told(capsys, "train", one, "--out", out, *QUICK, "--test-share", "0").failed(1, "one class", "'cat'")
    Told(capsys, "train", broken, "--out", out, *QUICK).failed(1, "0.png")


def test_wrong_models_and_pictures(
    capsys: pytest.CaptureFixture[str], folder: Path, picture: Path, photos: Path, tmp_path: Path
) -> None:
    import shutil

    Told(capsys, "predict", tmp_path / "none", picture).failed(1, "is not a model folder")
    Told(capsys, "predict", folder, tmp_path / "none.png").failed(1, "none.png")
    (tmp_path / "bad.png").write_bytes(b"x" * 100)
    Told(capsys, "predict", folder, tmp_path / "bad.png").failed(1, "bad.png", "not a picture")
    Told(capsys, "report", folder, photos, "--out", tmp_path / "r.html").failed(1, "digit 0")
    newer = shutil.copytree(folder, tmp_path / "newer")
    text = (newer / "config.yaml").read_text()
    (newer / "config.yaml").write_text(text.replace("format_version: 1", "format_version: 7"))
    Told(capsys, "verify", newer, "digits").failed(1, "format version 7", "pip install --upgrade")
    (newer / "config.yaml").write_text(text[: len(text) // 2])
    Told(capsys, "verify", newer, "digits").failed(1, "config.yaml")


def test_a_class_with_one_picture_and_shared_pictures_are_warned_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = make(tmp_path / "d", *(f"train/cat/{i}.png" for i in range(6)), "train/dog/1.png", "train/eel/2.png")
    for name in ("val", "test"):
        (data / name / "cat").mkdir(parents=True)
        (data / name / "cat" / "copy.png").write_bytes((data / "train" / "cat" / "0.png").read_bytes())
    told = Told(capsys, "train", data, "--out", tmp_path / "m", *QUICK)
    assert told.code == 0, told.err
    warned = [line for line in told.err.splitlines() if line.startswith("protolearn: warning: ")]
    assert any("only one picture of 'dog', 'eel'" in line for line in warned)
    assert any("also in" in line and "copy.png" in line for line in warned)


def test_an_unseen_class_is_refused(capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", "walrus/a.png")
    Told(capsys, "train", photos, "--test", other, "--out", tmp_path / "m", *QUICK).failed(1, "walrus")


def test_debug_shows_the_traceback_where_interrupts_are_ignored(folder: Path) -> None:
    """As under nohup: the error comes through, and nothing is made of the signals."""
    from protolearn.errors import ModelFileError

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(ModelFileError):
        main(["verify", str(folder / "none"), "digits", "--debug"])
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_debug_shows_the_traceback(folder: Path) -> None:
    from protolearn.errors import ModelFileError

    with pytest.raises(ModelFileError):
        main(["predict", str(folder / "none"), "x.png", "--debug"])


def test_the_unexpected_is_one_line_too(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("protolearn.tasks.verify.verify", fail)
    Told(capsys, "verify", folder, "digits").failed(1, "RuntimeError: first second", "--debug")


def test_an_unwritable_place_is_said(capsys: pytest.CaptureFixture[str], folder: Path, picture: Path) -> None:
    Told(capsys, "explain", folder, picture, "--out", picture / "below").failed(1, "below")
    Told(capsys, "predict", folder, picture, "--out", picture / "below.csv").failed(1, "below.csv")


def test_a_full_disk_is_said(
    capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("protolearn.training.folder._write", full)
    Told(capsys, "train", photos, "--out", tmp_path / "m", *QUICK, "--quiet").failed(1, "the disk is full")


def test_an_interrupt_is_one_line_and_130(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("protolearn.tasks.verify.verify", interrupt)
    told = Told(capsys, "verify", folder, "digits")
    assert told.code == 130
    assert told.err == "protolearn: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_an_interrupted_training_goes_on(photos: Path, tmp_path: Path) -> None:
    """A person presses Control-C, then runs the same command again."""
    command = [
        sys.executable, "-m", "protolearn", "train", str(photos), "--out", str(tmp_path / "m"), "--quiet", *QUICK,
        "--protopnet.last_layer_epochs", "100000",
    ]  # fmt: skip
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "m" / "training" / "checkpoint.safetensors"
    end = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < end and running.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert err.strip() == "protolearn: interrupted; the same command goes on from the last checkpoint"
    assert checkpoint.exists()


def test_a_reader_that_stops_reading_is_no_error(folder: Path, photos: Path) -> None:
    command = f"{sys.executable} -m protolearn predict {folder} '{photos}' --device cpu --all | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("case,")
    assert "Error" not in done.stderr


def test_a_library_call_inside_a_thread_works(folder: Path) -> None:
    """No signal handler may be installed there."""
    import threading

    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["methods", "--quiet"])))
    thread.start()
    thread.join()
    assert codes == [0]


# -- demo -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's first command, in an empty folder, with every way out of the machine closed."""
    code = (
        "import socket, sys\n"
        "def closed(*_, **__): raise OSError('no network here')\n"
        "socket.socket.connect = closed\n"
        "from protolearn.cli import main\n"
        "sys.exit(main(['demo', '--json']))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PROTOLEARN_DATA"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["scores"]["accuracy"] > 0.9
    assert told["verified"] is True
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "demo" / "explained").glob("*.png"))) == 4
    assert len(load(tmp_path / "demo" / "model").bank) >= 10


def test_demo_does_not_replace_a_folder_of_something_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("mine")
    Told(capsys, "demo", "--out", tmp_path).failed(2, "README.md")


def test_settings_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one argument too many"):
        read_settings(["a", "--seed", "1", "b"])


@pytest.mark.slow
def test_two_processes_save_one_model(tmp_path: Path) -> None:
    out = tmp_path / "model"
    short = ["--protopnet.prototypes_per_class", "2", "--protopnet.project_at", "[2]", "--protopnet.warm_epochs", "1"]
    command = [sys.executable, "-m", "protolearn", "train", "digits", "--encoder", "small", "--size", "16", "--quiet"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--processes", "2", "--out", str(out), *short],
        capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert main(["verify", str(out), "digits", "--quiet"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing half-made beside it"


def test_arguments_for_the_network_are_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["train", "digits", "--encoder", "resnet18", "--out", str(tmp_path / "m"), "--model-args", "{pad"]
    assert main(wrong) == 2
    assert "--model-args must be a JSON object" in capsys.readouterr().err
    assert main([*wrong[:-2], "--processes", "0"]) == 2


def test_a_method_whose_name_has_a_hyphen(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("method: prompt-cam\nprompt-cam:\n  epochs: 7\n  warmup: 1\n")
    for words in (["--method", "prompt-cam", "--prompt-cam.epochs", "7", "--prompt-cam.warmup=1"], ["--config", file]):
        settings, method = read_settings(["digits", *map(str, words), "--out", "model"])
        assert (settings["method"], method.slug) == ("prompt-cam", "prompt-cam")
        assert method.settings()["epochs"] == 7
    with pytest.raises(UsageError, match="epochs"):
        read_settings(["digits", "--method", "prompt-cam", "--prompt-cam.epoch", "7", "--out", "model"])
    _, frozen = read_settings(["digits", "--method", "pdiscoformer", "--recipe", "frozen", "--out", "model"])
    assert frozen.settings()["encoder_rate"] is None


def test_a_model_that_does_not_know_says_so(capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path) -> None:
    """With forty prototypes and no training none is found above 0.1, so that no class scores anything."""
    cases = digits("train")
    method = get_method("pipnet")(prototypes=40)
    model = method.build(SmallEncoder(dim=8), 10, 0).eval()
    model.method, model.classes = method, cases.classes
    folder = save(model, tmp_path / "model", cases)
    rows = list(csv.DictReader(io.StringIO(Told(capsys, "predict", folder, picture).out)))
    assert rows[0]["predicted"] == "does not know"
    assert Told(capsys, "predict", folder, picture, "--json").json["predictions"][0]["abstains"] is True
    explained = Told(capsys, "explain", folder, picture, "--out", tmp_path / "why", "--formats", "json,html,png")
    assert "seven.png: does not know" in explained.out
    assert json.loads((tmp_path / "why" / "seven.json").read_text())["abstains"] is True
    page = (tmp_path / "why" / "seven.html").read_text()
    assert "Does not know" in page
    assert "Looks like" not in page.split("<main>")[1]
    told = Told(capsys, "explain", folder, picture, "--out", tmp_path / "why", "--formats", "json", "--json").json
    assert told["explanations"][0]["abstains"] is True
    report = tmp_path / "report.html"
    Told(capsys, "report", folder, "digits", "--out", report, "--quiet", "--device", "cpu")
    assert "<strong>does not know</strong>" in report.read_text()


def test_a_model_with_logits_never_abstains(capsys: pytest.CaptureFixture[str], folder: Path, picture: Path) -> None:
    assert Told(capsys, "predict", folder, picture, "--json").json["predictions"][0]["abstains"] is False


def test_audit(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    assert main(["audit", "--list"]) == 0
    assert "consistency: share of prototypes" in capsys.readouterr().out
    out = tmp_path / "audit"
    assert main(["audit", str(folder), "digits", "--metrics", "quick", "--out", str(out), "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "ProtoPNet on" in told and "not run:" in told and "consistency needs key points" in told
    assert sorted(f.name for f in out.iterdir()) == [
        "audit.html", "audit.json", "cases.csv", "metrics.csv", "prototypes.csv",
    ]  # fmt: skip
    marks = tmp_path / "parts.csv"
    rows = [f"{case},middle,3.5,3.5,1" for case in digits("test").ids]
    marks.write_text("\n".join(["id,part,x,y,visible", *rows]) + "\n")
    command = ["audit", str(folder), "digits", "--metrics", "consistency,stability", "--marks", str(marks), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["metrics"]) == {"consistency", "stability"}
    assert found["facts"]["key_points"] == ["middle"]
    command = ["audit", str(folder), "digits", "--metrics", "pac,shift_agreement", "--shifted", "digits", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    assert found["pac"]["value"] == pytest.approx(1.0, abs=1e-6)  # no shift at all
    others = tmp_path / "others"
    (others / "a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(others / "a" / "0.png")
    for wrong, code, words in (
        (["audit", str(folder), "digits", "--metrics", "pac", "--shifted", str(others)], 1, "judged cases, first"),
        (["audit", str(folder), "digits", "--metrics", "pac"], 2, "(shifted=, --shifted)"),
        (["audit"], 2, "takes the folder of a model"),
        (["audit", str(folder), "digits", "--metrics", "stabilty"], 2, "did you mean 'stability'"),
        (["audit", str(folder), "digits", "--metrics", "consistency"], 2, "without it, look at"),
        (["audit", str(folder), "digits", "--draws", "0"], 2, "draws must be at least 1"),
    ):
        assert main(wrong) == code
        assert words in capsys.readouterr().err


def test_repair(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    common = ["repair", folder, "digits", "--device", "cpu", "--metrics", "none", "--keep-impure", "--keep-dead"]
    dry = Told(capsys, *common, "--ban", "3", "--dry-run", "--quiet")
    dry.failed(2, "class '3'", "without a prototype")
    Told(capsys, *common).failed(2, "--out", "--dry-run")
    Told(capsys, *common, "--ban", "x", "--dry-run").failed(2, "3,7", "'x'")
    Told(capsys, *common, "--out", folder).failed(2, "already holds a model")
    Told(capsys, *common, "--background", "0.5", "--dry-run").failed(2, "content_heat_share")
    model = load(folder)
    model.bank.active[4] = False
    model.bank.grow(model.bank.vectors[[0]], model.bank.ownership[[0]], [model.bank.sources[0]])
    model.head.weight = torch.nn.Parameter(torch.cat([model.head.weight, model.head.weight[:, :1]], 1).detach())
    spoiled = save(model, tmp_path / "spoiled")
    words = ["repair", spoiled, "digits", "--device", "cpu", "--keep-impure", "--metrics", "global_size"]
    told = Told(capsys, *words, "--dry-run")
    assert told.code == 0
    assert "dropped 4 (4): dead: inactive" in told.out
    assert "merged 10 (0): stands on the same token as 0" in told.out
    assert "nothing was fitted or written" in told.out
    assert [entry.name for entry in tmp_path.iterdir()] == ["spoiled"]
    done = Told(capsys, *words, "--out", tmp_path / "new", "--epochs", "2", "--json")
    assert {change["prototype"] for change in done.json["changes"]} == {4, 10}
    assert done.json["prototypes"] == [10, 9]
    assert [row["figure"] for row in done.json["figures"]][-1] == "global_size"
    again = load(tmp_path / "new")
    assert again.bank.ids.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert again.metadata["repairs"][0]["accuracy"][1] == again.metadata["metrics"]["accuracy"]
    assert (tmp_path / "new" / "cases").is_dir()


def test_associate(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("statsmodels")
    cases = digits("test")
    draw = np.random.default_rng(0)
    rows = ["id,loop,age,patient"]
    for case, label in zip(cases.ids, cases.labels.tolist(), strict=True):
        rows.append(f"{case},{int(label in (0, 6, 8, 9))},{draw.integers(20, 80)},p{draw.integers(0, 90)}")
    (tmp_path / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    common = ["associate", folder, "digits", "--labels", tmp_path / "labels.csv", "--device", "cpu"]
    told = Told(capsys, *common, "--covariates", "age", "--group", "patient", "--out", tmp_path / "assoc.csv")
    assert told.code == 0, told.err
    assert "20 tests, level 0.05" in told.out
    assert "loop from prototype: AUROC" in told.out
    assert "Note: Associations, not causes" in told.out
    found = list(csv.DictReader((tmp_path / "assoc.csv").open(encoding="utf-8")))
    assert len(found) == 20 and {row["label"] for row in found} == {"loop"}
    plain = Told(capsys, *common, "--covariates", "age", "--group", "patient", "--part", "test", "--json").json
    assert [row["p"] for row in plain["rows"]][:3] == pytest.approx([float(row["p"]) for row in found][:3], rel=1e-6)
    assert plain["facts"]["cases"] == len(cases)
    Told(capsys, *common, "--covariates", "ages").failed(1, "no column ages", "'age'")
    Told(capsys, *common).failed(1, "the label 'age' must be 0, 1 or empty")
    Told(capsys, *common, "--only", "loop", "--correction", "bonferoni").failed(2, "bonferroni")
    Told(capsys, *common[:-4]).failed(2, "--labels")


def test_similar(capsys: pytest.CaptureFixture[str], folder: Path, picture: Path, tmp_path: Path) -> None:
    from protolearn.tasks.retrieve import similar_cases

    told = Told(capsys, "similar", folder, picture, "--data", "digits", "--k", 3, "--quiet", "--device", "cpu")
    assert told.code == 0, told.err
    rows = list(csv.DictReader(io.StringIO(told.out)))
    (query,) = similar_cases(load(folder), digits("test"), digits("train"), [7], k=3).queries
    assert [row["similar"] for row in rows] == [one.case for one in query.found]
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert {row["case"] for row in rows} == {"seven.png"}
    assert float(rows[0]["agreement"]) == pytest.approx(query.agreement)
    assert set(rows[0]) == {"case", "predicted", "probability", "agreement", "rank", "similar", "class", "value"}
    command = ["similar", folder, picture, picture, "--data", "digits", "--quiet", "--device", "cpu"]
    found = Told(capsys, *command, "--json", "--by", "prototype").json["found"]
    assert len(found) == 2 and found[0]["by"] == "prototype" and len(found[0]["queries"][0]["found"]) == 5
    assert found[0]["queries"][0]["found"][0]["region"] is not None
    out = Told(capsys, *command, "--by", "embedding", "--out", tmp_path / "similar.csv")
    assert out.code == 0 and out.out == ""
    assert len((tmp_path / "similar.csv").read_text().splitlines()) == 11


def test_similar_to_prototypes(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    command = ["similar", folder, "--data", "digits", "--prototypes", "3", "7", "--k", "2", "--device", "cpu"]
    rows = list(csv.DictReader(io.StringIO(Told(capsys, *command).out)))
    assert [row["prototype"] for row in rows] == ["3", "3", "7", "7"]
    source = load(folder).bank.sources[3]
    assert rows[0]["similar"] == source.case and float(rows[0]["value"]) == pytest.approx(0, abs=1e-5)
    assert [float(rows[0][side]) for side in ("x0", "y0", "x1", "y1")] == pytest.approx(list(source.region))
    told = Told(capsys, *command, "--out", tmp_path / "near.json")
    assert "4 similar cases" in told.out
    assert json.loads((tmp_path / "near.json").read_text())["found"][1]["owner"] == "7"


def test_similar_refuses(capsys: pytest.CaptureFixture[str], folder: Path, picture: Path) -> None:
    Told(capsys, "similar", folder, "--data", "digits").failed(2, "pictures, or about --prototypes")
    Told(capsys, "similar", folder, picture, "--data", "digits", "--prototypes", "3").failed(2, "one of the two")
    Told(capsys, "similar", folder, picture).failed(2, "--data")
    Told(capsys, "similar", folder, picture, "--data", "digits", "--k", "0").failed(2, "--k must be at least 1")
    Told(capsys, "similar", folder, "--data", "digits", "--prototypes", "99").failed(2, "no prototype 99")


def test_whatif(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    from protolearn.explain.alter import Alteration
    from protolearn.explain.what_if import what_if

    before = (folder / "model.safetensors").read_bytes()
    model = load(folder)
    wanted = what_if(model, digits("test"), Alteration(ban=(3, 7), reweight={5: 0.5}))
    command = ["whatif", folder, "digits", "--ban", "3", "7", "--reweight", "5=0.5", "--device", "cpu"]
    told = Told(capsys, *command)
    assert told.code == 0, told.err
    assert f"digits (test): {wanted.summary()}" in told.out
    assert f"and {len(wanted.flips) - 20} more" in told.out or len(wanted.flips) <= 20
    found = Told(capsys, *command, "--json").json
    assert found["cases"] == 359
    assert found["counts"] == wanted.counts
    assert found["alteration"] == {"ban": [3, 7], "remove": [], "reweight": {"5": 0.5}}
    assert [flip["case"] for flip in found["flips"]] == [flip.case for flip in wanted.flips]
    Told(capsys, *command, "--out", tmp_path / "flips.csv", "--quiet")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "flips.csv").read_text())))
    assert [row["case"] for row in rows] == [flip.case for flip in wanted.flips]
    assert Told(capsys, "whatif", folder, "digits", "--remove", "3", "--everything", "--json").json["cases"] == 1797
    assert (folder / "model.safetensors").read_bytes() == before


def test_whatif_refuses(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    Told(capsys, "whatif", folder, "digits").failed(2, "nothing to ask")
    Told(capsys, "whatif", folder, "digits", "--ban", "99").failed(2, "no prototype 99")
    Told(capsys, "whatif", folder, "digits", "--ban", "sky").failed(2, "have no groups")
    for wrong in ("5", "5=", "=0.5", "5=x"):
        Told(capsys, "whatif", folder, "digits", "--reweight", wrong).failed(2, "WHO=FACTOR")
    Told(capsys, "whatif", folder, "digits", "--reweight", "5=-1").failed(2, "at least 0")
    Told(capsys, "whatif", folder, "digits", "--reweight", "5=1", "5=2").failed(2, "names 5 twice")


def test_characteristics(capsys: pytest.CaptureFixture[str], folder: Path, picture: Path, tmp_path: Path) -> None:
    from protolearn.cli.shared import parts
    from protolearn.explain.described import characterise

    common = ["characteristics", folder, "digits", "--cases", 20, "--only", "contrast,shape", "--device", "cpu"]
    told = Told(capsys, *common)
    assert told.code == 0, told.err
    model = load(folder)
    found = characterise(model, *parts(model, "digits"), names=("contrast", "shape"), most=20)
    for key, owner in zip(found.train.prototypes, found.owners, strict=True):
        assert f"prototype {key} ({owner}): {found.words(key)}\n" in told.out
    assert "20 of 1438 training pictures altered" in told.out
    whole = Told(capsys, *common, "--json", "--pictures", picture).json
    assert whole["prototypes"] == json.loads(json.dumps(found.rows()))
    assert [match["case"] for match in whole["matches"]] == ["seven.png"] * 3
    asked = Told(capsys, *common, "--pictures", picture, "--matches", 1, "--out", tmp_path / "why.html", "--quiet")
    assert asked.out.startswith("seven.png: ") and len(asked.out.splitlines()) == 1
    assert "seven.png where prototype" in (tmp_path / "why.html").read_text()
    Told(capsys, *common, "--out", "why.txt").failed(2, ".html, .json, .csv")
    Told(capsys, *common[:3], "--only", "colour").failed(2, "no alteration")
    Told(capsys, *common[:3], "--cases", "-1").failed(2, "--cases")


def test_correct(capsys: pytest.CaptureFixture[str], folder: Path, picture: Path, tmp_path: Path) -> None:
    from protolearn.explain.edits import Interaction
    from protolearn.explain.interact import interact

    model, test = load(folder), digits("test")
    before = interact(model, test, Interaction(), [7])[0].before
    edits = Interaction().reject(before.predicted).negative((0, 0, 4, 8))
    path = edits.save(tmp_path / "edits.json")
    wanted = interact(model, test, edits, [7])[0]
    command = ["correct", folder, picture, "--edits", path, "--out", tmp_path / "out"]
    told = Told(capsys, *command)
    assert told.code == 0, told.err
    old, new = (model.classes[e.predicted] for e in (wanted.before, wanted.after))
    assert told.out.startswith(f"seven.png: {old} ({wanted.before.probability:.2f}) -> {new} (")
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [f"corrected.{x}" for x in ("html", "json", "png")]
    found = Told(capsys, *command, "--json", "--formats", "json", "--target", "3").json
    assert found["logits"][1] == pytest.approx(wanted.logits_after.tolist(), abs=1e-4)
    assert (found["before"]["target"], found["after"]["target"]) == (3, 3)
    Told(capsys, *command, "--formats", "pdf").failed(2, "no 'pdf'")
    mean = Interaction(absent="mean").reject(0).save(tmp_path / "mean.json")
    Told(capsys, "correct", folder, picture, "--edits", mean).failed(2, "--data")
    done = Told(capsys, "correct", folder, picture, "--edits", mean, "--data", "digits", "--out", tmp_path / "mean")
    assert done.code == 0, done.err
    (tmp_path / "bad.json").write_text("{}")
    Told(capsys, "correct", folder, picture, "--edits", tmp_path / "bad.json").failed(1, "no log of edits")
    Told(capsys, "correct", folder, "digits", "--edits", path).failed(2, "one picture")


def test_report_with_audit_and_characteristics(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    test = tmp_path / "digits"
    for label in range(2):
        place = test / str(label)
        place.mkdir(parents=True)
        for i in np.flatnonzero(digits("test").labels == label)[:4].tolist():
            digits("test").picture(i).save(place / f"{i}.png")
    out = tmp_path / "r.html"
    command = ["report", folder, test, "--out", out, "--audit", "completeness,global_size", "--characteristics"]
    told = Told(capsys, *command, "--device", "cpu", "--quiet")
    assert told.code == 0, told.err
    html = out.read_text(encoding="utf-8")
    assert 'id="audit"' in html and 'id="characteristics"' in html
    Told(capsys, *command[:-3], "--audit", "completness").failed(2, "did you mean 'completeness'")
