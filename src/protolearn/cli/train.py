"""``train``: settings from flags and YAML to a saved model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from protolearn.cli.options import add_common, add_train, explained
from protolearn.cli.shared import say, say_json
from protolearn.errors import UsageError, nearest_names

if TYPE_CHECKING:
    from protolearn.core.encoder import Encoder
    from protolearn.core.method import Method
    from protolearn.core.model import PrototypeModel
    from protolearn.data import Cases, Concepts

SETTINGS = "settings.yaml"
_OWN = ("small", "autoencoder", "autoencoder-rgb")  # networks that are ours and start from scratch
_SWITCHES = {"--overwrite", "--fresh", "--augment", "--tensorboard", "--json", "--quiet", "--debug"}
_OPTIONS = ("seed", "device", "batch_size", "workers", "precision", "clip", "patience", "views", "tensorboard")
_NOT_KEPT = ("config", "json", "quiet", "debug", "overwrite", "fresh", "out")


def run_train(argv: list[str]) -> int:
    """Train and save."""
    settings, method = read_settings(argv)
    for name, what in (("data", "DATA, what to learn from"), ("out", "--out, the folder of the model")):
        if settings[name] is None:
            raise UsageError(f"train needs {what} (see protolearn train --help)")
    if settings["encoder"] is None:
        raise UsageError("train needs --encoder: 'small' (tiny, from scratch), or a network of timm such as resnet18")
    if settings["processes"] < 1:
        raise UsageError(f"--processes must be at least 1, got {settings['processes']}")
    if settings["processes"] > 1 and "WORLD_SIZE" not in os.environ:
        return _in_processes(settings["processes"], argv)
    summary = train(settings, method)
    if summary is None:
        return 0  # the first process speaks for all
    if settings["json"]:
        say_json(summary)
        return 0
    for name, value in summary["scores"].items():
        say(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}", settings["quiet"])
    say(
        f"{summary['model']}: {summary['prototypes']} prototypes, {summary['sourced']} of them real cases",
        settings["quiet"],
    )
    say(f"next: protolearn report {settings['out']} {settings['data']}", settings["quiet"])
    return 0


def _in_processes(count: int, argv: list[str]) -> int:
    """Run the same command in several processes that know of each other, and return the worst exit code."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, *torchrun, "-m", "protolearn", "train", *argv]
    quieter = {"TORCH_CPP_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}  # unless the environment says otherwise
    done = subprocess.run(command, check=False, env={**quieter, **os.environ})
    return min(done.returncode, 1) if done.returncode >= 0 else 130


def read_settings(argv: list[str]) -> tuple[dict[str, Any], Method]:
    """Return the settings of a training and the method, from flags, a YAML file and defaults, in this order.

    Raises
    ------
    UsageError
        If a name or value is wrong; the nearest names are suggested.
    """
    from jsonargparse import ArgumentParser

    from protolearn.data import Augment
    from protolearn.methods import get_method

    flags = _with_data_as_option(argv)
    slug = _named("method", flags) or "protopnet"
    parser = ArgumentParser(prog="protolearn train", exit_on_error=False, allow_abbrev=False)
    add_train(parser, {"action": "config"}, data_option=True)
    add_common(parser)
    parser.add_class_arguments(get_method(slug), slug)
    parser.add_class_arguments(Augment, "augmentation")
    _apply_recipe(parser, slug, _named("recipe", flags))
    known = [text for action in parser._actions for text in action.option_strings]
    try:
        found = parser.parse_args(flags)
    except argparse.ArgumentError as error:
        raise UsageError(_in_words(str(error), known)) from error
    settings: dict[str, Any] = found.as_dict()
    method = get_method(slug)(**_tupled(settings[_group(slug)]))
    return settings, method


def _with_data_as_option(argv: list[str]) -> list[str]:
    """Return the arguments with DATA, wherever it stands, as ``--data``: an absent one then leaves the file's alone."""
    flags: list[str] = []
    data: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith("--"):
            data.append(word)
            continue
        flags.append(word)
        if "=" not in word and word not in _SWITCHES:
            value = next(words, None)
            if value is None:
                raise UsageError(f"{word} needs a value")
            flags.append(value)
    if len(data) > 1:
        raise UsageError(f"one argument too many: {data[1]} (train takes one DATA)")
    return flags + [f"--data={word}" for word in data]


def _named(setting: str, flags: list[str]) -> str | None:
    """Return method or recipe, by flag or file: they decide what the other settings are."""
    for place, word in enumerate(flags):
        if word == f"--{setting}":
            return flags[place + 1]
        if word.startswith(f"--{setting}="):
            return word.partition("=")[2]
    for place, word in enumerate(flags):
        if word == "--config" or word.startswith("--config="):
            found = _read_file(Path(word.partition("=")[2] or flags[place + 1])).get(setting)
            if found is not None:
                return str(found)
    return None


def _apply_recipe(parser: Any, slug: str, name: str | None) -> None:
    """Make the settings of a recipe the defaults; flags and files still win."""
    from protolearn.methods import get_method

    if name is None:
        return
    recipes = get_method(slug).recipes
    if name not in recipes:
        hint = nearest_names(name, recipes) if recipes else "it has none"
        raise UsageError(f"{slug} has no recipe {name!r}: {hint}")
    recipe = recipes[name]
    defaults = {f"{_group(slug)}.{key}": value for key, value in recipe.method.items()}
    defaults |= {**recipe.encoder, **recipe.options}
    if recipe.augment is not None:
        defaults |= {"augment": True} | {f"augmentation.{key}": value for key, value in recipe.augment.items()}
    parser.set_defaults(defaults)


def _group(slug: str) -> str:
    """Return the name under which the parser keeps the settings of a method."""
    return slug.replace("-", "_")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"--config {path}: there is no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(plain, dict):
        raise UsageError(f"--config {path}: expected settings as NAME: VALUE")
    return plain


def _in_words(message: str, known: list[str]) -> str:
    """Return a complaint of jsonargparse as one of ours."""
    names = [text.removeprefix("--").replace("-", "_") for text in known if text.startswith("--")]
    if found := re.search(r"Group '([^']+)' does not accept option '([^']+)'", message):
        inner = [name.split(".", 1)[1] for name in names if name.startswith(f"{found[1]}.")]
        return f"{found[1]} has no setting {found[2]!r}: {nearest_names(found[2], inner)}"
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        return f"there is no setting {found[1]!r}: {nearest_names(found[1], names)}"
    if found := re.search(r'key "([^"]+)":\s*(.*)', message, re.DOTALL):
        if wrong := re.search(r"Expected (?:an?|one of) (.+?)\. Got value: (.*)", found[2], re.DOTALL):
            kind = re.sub(r"<class '(\w+)'>", r"\1", wrong[1])
            kind = re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", kind)
            return f"{found[1]} must be {kind}, got {wrong[2].strip()}"
        return f"{found[1]}: {' '.join(found[2].split())}"
    return explained(message, known)


def train(settings: dict[str, Any], method: Method) -> dict[str, Any] | None:
    """Train, score, save; return what to tell, or None in a process that only helps."""
    from protolearn.data import Augment, read_concepts
    from protolearn.training.checkpoint import clear_checkpoint
    from protolearn.training.fit import fit
    from protolearn.training.folder import check_target, save

    out = Path(settings["out"])
    check_target(out, settings["overwrite"])
    concepts = None if settings["concepts"] is None else read_concepts(settings["concepts"])
    method = method if concepts is None else with_concept_names(method, concepts.names)
    cases, validation, test, split = split_data(settings, concepts)
    encoder = make(settings)
    augment = Augment(**_tupled(settings["augmentation"])) if settings["augment"] else None
    quiet = settings["quiet"] or settings["json"]
    options = {name: settings[name] for name in _OPTIONS}
    result = fit(
        method, cases, encoder=encoder, validation=validation, directory=out / "training", augment=augment,
        resume=not settings["fresh"], cache=settings["cache"], quiet=quiet, **options,
    )  # fmt: skip
    if int(os.environ.get("RANK", "0")) > 0:
        return None
    model = result.model
    model.metadata.setdefault("data", {})["split"] = split
    scores = score(model, test if test is not None else cases, "test" if test is not None else "training")
    save(model, out, cases, metrics=scores, overwrite=True)
    kept = {name: value for name, value in settings.items() if name not in _NOT_KEPT}
    (out / SETTINGS).write_text(yaml.safe_dump(_listed(kept), sort_keys=False, allow_unicode=True), encoding="utf-8")
    clear_checkpoint(out / "training")
    return {
        "model": str(out),
        "scores": scores,
        "prototypes": len(model.bank),
        "sourced": sum(source is not None for source in model.bank.sources),
        "warnings": result.warnings,
    }


def with_concept_names(method: Method, names: tuple[str, ...]) -> Method:
    """Return a method with the names of the concepts that its cases carry."""
    known = {field.name for field in dataclasses.fields(method)}
    if "concepts" not in known:
        raise UsageError(f"{method.slug} learns no named concepts: leave --concepts out")
    more = {"concepts_from": "labels"} if "concepts_from" in known else {}
    changes: dict[str, Any] = {"concepts": names, **more}
    return dataclasses.replace(method, **changes)


def split_data(
    settings: dict[str, Any], concepts: Concepts | None = None
) -> tuple[Cases, Cases | None, Cases | None, dict[str, Any] | None]:
    """Return training, validation and test cases, and how the data were divided if we did it."""
    from protolearn.data import load_cases, train_test, with_concepts

    cases = load_cases(settings["data"])
    if concepts is not None:
        cases = with_concepts(cases, concepts)
    share = settings["test_share"]
    if not 0 <= share < 1:
        raise UsageError(f"--test-share must lie between 0 and 1, got {share}")
    other = None if settings["test"] is None else load_cases(settings["test"], classes=cases.classes)
    if "train" in cases.split_names:
        held = {name: cases.split(name) for name in ("val", "test") if name in cases.split_names}
        return cases.split("train"), held.get("val"), other if other is not None else held.get("test"), None
    if other is not None or share == 0:
        return cases, None, other, None
    first, second = train_test(cases, share, settings["seed"])
    return first, None, second, {"test_share": share, "seed": settings["seed"]}


def make(settings: dict[str, Any]) -> Encoder:
    """Return the encoder that settings name."""
    from protolearn.encoders import ConvAutoencoder, ImageEncoder, SmallEncoder

    name, weights = settings["encoder"], settings["weights"]
    if name in _OWN:
        if weights is not None:
            raise UsageError(f"the encoder {name!r} has no pretrained weights: leave --weights out, or name a network")
        side = settings["size"]
        sized = {} if side is None else {"size": side}
        if name == "small":
            return SmallEncoder(seed=settings["seed"], **sized)
        return ConvAutoencoder(channels=3 if name == "autoencoder-rgb" else 1, seed=settings["seed"], **sized)
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"no encoder is called {name!r}: {nearest_names(name, [*_OWN, *timm.list_models()])}")
    layer = settings["layer"]
    return ImageEncoder(
        name, weights=weights, layer=[part.strip() for part in layer.split(",")] if "," in layer else layer,
        size=settings["size"], smooth=settings["smooth"], train_from=settings["train_from"], seed=settings["seed"],
        mean=settings["mean"], std=settings["std"], model_args=_json(settings["model_args"]),
    )  # fmt: skip


def _json(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--model-args must be a JSON object, got {text!r} ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"--model-args must be a JSON object, got {text!r}")
    return found


def score(model: PrototypeModel, cases: Cases, where: str) -> dict[str, Any]:
    """Return the scores to keep with the model."""
    from protolearn.encoders.search import retrieval_for
    from protolearn.tasks.classify import evaluate, kept_scores

    return kept_scores(evaluate(model, cases, run=retrieval_for(model)), where, cases.name)


def _tupled(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(entry) for key, entry in value.items()}
    return [_listed(entry) for entry in value] if isinstance(value, tuple | list) else value
