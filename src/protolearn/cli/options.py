"""What the commands are called and take: standard library only, so that help is quick."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from protolearn import __version__
from protolearn.errors import UsageError, nearest_names

DATA = "a folder of class folders or of CUB-200-2011, a .csv or .zip, 'digits', 'torchvision:NAME', 'medmnist:NAME'"


@dataclass(frozen=True)
class Command:
    """One subcommand: a line of help, examples, where it is defined, and what it takes."""

    help: str
    examples: str
    module: str
    add: Callable[[Any], None]
    more: str = ""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line with the nearest names."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage and leaving."""
        known = [text for action in self._actions for text in action.option_strings]
        raise UsageError(f"{explained(message, known)} (see {self.prog} --help)")


def explained(message: str, known: list[str]) -> str:
    """Return a complaint of argparse with the nearest option named.

    Examples
    --------
    >>> explained("unrecognized arguments: --sed 3", ["--seed", "--out"])
    "unknown option --sed: did you mean '--seed'?"
    """
    found = re.search(r"unrecognized arguments: (.*)", message, re.IGNORECASE)
    if found is None:
        return message
    first = found[1].split()[0].split("=")[0]
    if first.startswith("-"):
        return f"unknown option {first}: {nearest_names(first, known)}"
    return f"one argument too many: {first}"


def top_parser() -> argparse.ArgumentParser:
    """Return the parser of ``protolearn`` itself."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    parser = Parser(
        prog="protolearn",
        usage="protolearn COMMAND [...]\n       protolearn COMMAND --help",
        description="Models that reason by cases: prototypes that predict, explain themselves and say where they came "
        "from.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands:\n{listed}\n\nexamples:\n{_indented(_TOP_EXAMPLES)}",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"protolearn {__version__}")
    return parser


def command_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of one command."""
    command = COMMANDS[name]
    parser = Parser(
        prog=f"protolearn {name}",
        description=textwrap.fill(f"{command.help[0].upper()}{command.help[1:]}. {command.more}".strip(), 100),
        formatter_class=_Help,
        epilog=f"examples:\n{_indented(command.examples)}",
        allow_abbrev=False,
    )
    command.add(parser)
    add_common(parser)
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def add_common(parser: Any) -> None:
    """Add what every command takes."""
    parser.add_argument("--json", action="store_true", help="print one JSON document for machines")
    parser.add_argument("--quiet", action="store_true", help="no progress, no remarks; results and errors only")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _running(parser: Any) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures at a time (default: 64)")


def add_train(parser: Any, config: dict[str, Any] | None = None, *, data_option: bool = False) -> None:
    """Add the options of ``train``, to a light parser for help or to the real one."""
    if data_option:
        parser.add_argument("--data", type=str, default=None, help=DATA)
    else:
        parser.add_argument("data", nargs="?", default=None, type=str, help=DATA)
    parser.add_argument("--config", **(config or {"metavar": "FILE"}), help="YAML with any of these settings")
    parser.add_argument("--method", type=str, default="protopnet", help="see protolearn methods (default: protopnet)")
    parser.add_argument("--recipe", type=str, default=None, help="settings that go together, e.g. frozen (see methods)")
    parser.add_argument(
        "--encoder",
        type=str,
        default=None,
        help="any network of timm; or, from scratch, 'small' (tiny), 'autoencoder' (grey pictures, can be decoded) or "
        "'autoencoder-rgb'",
    )
    parser.add_argument(
        "--weights", type=str, default=None, help="a .safetensors file, or 'hub' for timm's own (default: random)"
    )
    parser.add_argument(
        "--layer", type=str, default="last", help="where tokens are taken: index, name, last, final; a,b"
    )
    parser.add_argument("--smooth", type=int, default=1, help="average tokens over windows of so many cells (odd)")
    parser.add_argument("--size", type=int, default=None, help="side of the encoder's input in pixels")
    parser.add_argument("--mean", type=float, default=None, help="of pixels, 0 to 1 (default: the network's own)")
    parser.add_argument("--std", type=float, default=None, help="of pixels (default: the network's own)")
    parser.add_argument("--model-args", type=str, default=None, help='JSON for timm, e.g. \'{"pad_type": "same"}\'')
    parser.add_argument(
        "--train-from", type=str, default="all", help="all, nothing, embeddings, or the first block that is trained"
    )
    parser.add_argument("--out", type=str, default=None, help="folder of the model (required)")
    parser.add_argument("--overwrite", action="store_true", help="replace the model that is in that folder")
    parser.add_argument("--fresh", action="store_true", help="start again instead of going on from a checkpoint")
    parser.add_argument("--test", type=str, default=None, help="other data to judge by, instead of a part of DATA")
    parser.add_argument(
        "--test-share", type=float, default=0.2, help="part of DATA held out when it has no parts of its own; 0 = none"
    )
    parser.add_argument(
        "--concepts", type=str, default=None, help="a table of named concepts (columns id or class, then one a concept)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order, split and augmentation (default: 0)")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument(
        "--processes", type=int, default=1, help="train on so many devices of this machine (default: 1)"
    )
    parser.add_argument("--batch-size", type=int, default=80, help="pictures at a time, of all processes (default: 80)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures (default: 0)")
    parser.add_argument("--precision", type=str, default="32-true", help="Lightning's names, e.g. 16-mixed, bf16-mixed")
    parser.add_argument("--clip", type=float, default=None, help="largest gradient norm")
    parser.add_argument("--patience", type=int, default=None, help="epochs without improvement before a phase ends")
    parser.add_argument("--augment", action="store_true", help="rotate, skew, shear and mirror training pictures")
    # --augmentation.NAME changes how; these settings come with the real parser
    parser.add_argument("--views", type=int, default=1, help="augmented views cached where the encoder is frozen")
    parser.add_argument("--cache", type=str, default=None, help="folder that keeps frozen tokens between trainings")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard logs")


def _demo(parser: Any) -> None:
    parser.add_argument("--out", default="demo", help="folder for model, explanations and report (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")


def _predict(parser: Any) -> None:
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("pictures", nargs="+", help="pictures, folders, .csv or .zip")
    parser.add_argument("--out", help="file for the table (default: print it)")
    parser.add_argument("--all", action="store_true", help="probabilities of all classes")
    _running(parser)


def _explain(parser: Any) -> None:
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("pictures", nargs="+", help="pictures, folders, .csv or .zip")
    parser.add_argument("--out", default="explained", help="folder (default: explained)")
    parser.add_argument("--formats", default="png,json,html", help="which of png, json, html (default: all three)")
    parser.add_argument("--data", help="training data, for prototypes whose picture is not in the model's folder")
    parser.add_argument("--most", type=int, default=5, help="prototypes shown (default: 5)")
    parser.add_argument(
        "--region", default="cell", choices=["cell", "percentile"], help="what is outlined (default: cell)"
    )


def _report(parser: Any) -> None:
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("data", help=f"the training data: {DATA}")
    parser.add_argument("--test", help="other data to judge by, instead of the held-out part of DATA")
    parser.add_argument("--out", default="report.html", help="the file (default: report.html)")
    parser.add_argument("--most", type=int, default=120, help="prototypes shown with pictures (default: 120)")
    parser.add_argument("--examples", type=int, default=3, help="best and worst predictions explained (default: 3)")
    parser.add_argument("--audit", metavar="METRICS", help="audit the explanations too: quick, all or names: a,b,c")
    parser.add_argument("--characteristics", action="store_true", help="say what prototypes are matched for (slow)")
    _running(parser)


def _verify(parser: Any) -> None:
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("data", help=f"the training data: {DATA}")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest difference, relative to the prototype (default: 0.001)"
    )
    parser.add_argument("--all", action="store_true", help="list the prototypes that match too")
    _running(parser)


def _audit(parser: Any) -> None:
    parser.add_argument("model", nargs="?", help="folder of a model")
    parser.add_argument("data", nargs="?", help=f"the training data: {DATA}")
    parser.add_argument("--test", help="other data to judge by, instead of the held-out part of DATA")
    parser.add_argument(
        "--metrics", default="all", help="all, quick (without those that run many altered pictures), or names: a,b,c"
    )
    parser.add_argument("--list", action="store_true", help="say what every metric measures and needs, and stop")
    parser.add_argument(
        "--marks", nargs="+", metavar="FILE", help="tables of key points or boxes, or one folder of masks"
    )
    parser.add_argument("--outside", metavar="DATA", help="data of none of the model's classes, for its refusals")
    parser.add_argument("--shifted", metavar="DATA", help="the judged cases under a shift, by the same ids")
    parser.add_argument("--twin", metavar="MODEL", help="the same model trained with another seed")
    parser.add_argument("--draws", type=int, default=1, help="of noise for each case (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of noise, baselines and resampling (default: 0)")
    parser.add_argument("--out", help="folder for page, JSON and tables (default: print a table)")
    _running(parser)


def _ood(parser: Any) -> None:
    parser.add_argument("model", nargs="?", help="folder of a model")
    parser.add_argument("data", nargs="?", help=f"the training data: {DATA}")
    parser.add_argument("--test", help="other known cases to judge by, instead of the held-out part of DATA")
    parser.add_argument("--held", metavar="DATA", help="known cases to set the threshold by (default: a part of DATA)")
    foreign = {"nargs": "+", "action": "extend", "metavar": "NAME=DATA"}
    parser.add_argument("--near", **foreign, help="foreign cases that are like the known ones")
    parser.add_argument("--far", **foreign, help="foreign cases that are unlike them")
    parser.add_argument("--outside", **foreign, help="foreign cases of which neither is said")
    parser.add_argument("--score", default="mahalanobis", help="names: a,b,c (default: mahalanobis)")
    parser.add_argument(
        "--set", nargs="+", action="extend", metavar="SCORE.SETTING=VALUE", help="of a score, e.g. knn.k=10"
    )
    parser.add_argument("--list", action="store_true", help="say what scores there are and what they take, and stop")
    parser.add_argument("--rate", type=float, default=0.95, help="share of known cases to accept (default: 0.95)")
    parser.add_argument("--share", type=float, default=0.2, help="of DATA that sets the threshold (default: 0.2)")
    parser.add_argument(
        "--positive",
        default="known",
        choices=["known", "foreign"],
        help="whose rate is fixed in FPR95 (default: known)",
    )
    parser.add_argument("--save", action="store_true", help="keep the first score, with its threshold, in the model")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of resampling (default: 0)")
    parser.add_argument("--out", help="folder for page, JSON and tables (default: print a table)")
    _running(parser)


def _discover(parser: Any) -> None:
    parser.add_argument("model", help="folder of a model, which gives the features")
    parser.add_argument("data", help=f"the training data, for the known classes: {DATA}")
    parser.add_argument("unlabelled", help="cases of known classes or others; labels they have are not looked at")
    parser.add_argument("--method", default="ssk_means", help="ssk_means, or a method of the area discovery")
    parser.add_argument("--classes", type=int, help="known and new classes together (default: estimated)")
    parser.add_argument(
        "--criterion", default="accuracy", choices=["accuracy", "hidden_classes", "silhouette", "consensus"],
        help="how the number of classes is estimated (default: accuracy)",
    )  # fmt: skip
    parser.add_argument(
        "--most-classes", type=int, help="up to which number (default: four times the known, 30 or more)"
    )
    parser.add_argument("--apart", action="store_true", help="the unlabelled cases are of new classes only")
    parser.add_argument(
        "--features",
        default="auto",
        choices=["auto", "encoded", "embedded", "evidence"],
        help="of the model: tokens before its neck, after it, or how much of each prototype is found (default: auto)",
    )
    parser.add_argument(
        "--draws", type=int, default=10, help="that say how stable a cluster is; 0 = none (default: 10)"
    )
    parser.add_argument(
        "--name", nargs="+", action="extend", metavar="CLUSTER=NAME", help="make a cluster a class, e.g. 'new 1=wolf'"
    )
    parser.add_argument(
        "--harm", type=float, default=0.01, help="share of known cases that may be lost (default: 0.01)"
    )
    parser.add_argument("--test", help="known cases to count harm on, instead of the held-out part of DATA")
    parser.add_argument("--save", metavar="FOLDER", help="folder of the model with the named classes")
    parser.add_argument("--overwrite", action="store_true", help="replace the model that is in that folder")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: 0)")
    parser.add_argument("--out", help="folder for page, JSON and tables (default: print a table)")
    _running(parser)


def _repair(parser: Any) -> None:
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("data", help=f"the training data: {DATA}")
    parser.add_argument("--out", help="folder of the repaired model (required, unless --dry-run)")
    parser.add_argument("--overwrite", action="store_true", help="replace the model that is in that folder")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done; nothing is fitted or written")
    parser.add_argument("--test", help="other data to judge by, instead of the held-out part of DATA")
    parser.add_argument("--ban", default="", metavar="IDS", help="prototypes that must not speak: 3,7")
    parser.add_argument(
        "--background", type=float, metavar="SHARE",
        help="ban prototypes with more than this share of their heat outside the marked object, 0 to 1",
    )  # fmt: skip
    parser.add_argument("--marks", nargs="+", metavar="FILE", help="tables of boxes, or one folder of masks")
    parser.add_argument("--no-merge", action="store_true", help="keep prototypes that say the same")
    parser.add_argument(
        "--near", type=float, default=0.02, help="how near is the same, as a share of a usual distance (default: 0.02)"
    )
    parser.add_argument("--keep-dead", action="store_true", help="keep prototypes that bring nothing")
    parser.add_argument(
        "--keep-impure", action="store_true", help="keep those whose nearest cases are of other classes"
    )
    parser.add_argument("--no-refit", action="store_true", help="do not fit the last layer again")
    parser.add_argument("--epochs", type=int, default=50, help="of fitting the last layer (default: 50)")
    parser.add_argument("--rate", type=float, default=1e-2, help="learning rate of it (default: 0.01)")
    parser.add_argument(
        "--metrics", default="quick", help="of the audit before and after: none, quick, all or names (default: quick)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of fitting and auditing (default: 0)")
    _running(parser)


def _associate(parser: Any) -> None:
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("data", help=f"cases, the model's classes need not be known: {DATA}")
    parser.add_argument("--labels", required=True, metavar="TABLE", help="a table: id, then columns of 0, 1 or nothing")
    parser.add_argument("--part", help="one part of DATA, such as test (default: all of it)")
    parser.add_argument("--covariates", default="", metavar="COLUMNS", help="columns to correct for: age,sex")
    parser.add_argument(
        "--categorical", default="", metavar="COLUMNS", help="covariates that are names, though written as numbers"
    )
    parser.add_argument("--group", metavar="COLUMN", help="the patient of each case (default: the groups of DATA)")
    parser.add_argument("--only", default="", metavar="COLUMNS", help="columns that are labels (default: all the rest)")
    parser.add_argument(
        "--families", default="prototypes,predictions",
        help="what is tested: prototypes, predictions, classes (default: prototypes,predictions)",
    )  # fmt: skip
    parser.add_argument(
        "--correction", default="bonferroni", help="bonferroni or benjamini-hochberg (default: bonferroni)"
    )
    parser.add_argument("--alpha", type=float, default=0.05, help="level of corrected p-values (default: 0.05)")
    parser.add_argument("--least", type=int, default=20, help="cases a label needs on either side (default: 20)")
    parser.add_argument(
        "--test-share", type=float, default=0.3, help="held out to foretell the labels; 0 = do not (default: 0.3)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of that split and its intervals (default: 0)")
    parser.add_argument("--most", type=int, default=20, help="tests that are printed (default: 20)")
    parser.add_argument("--out", help="file for the table of all tests (CSV)")
    _running(parser)


def _similar(parser: Any) -> None:
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("pictures", nargs="*", help="pictures, folders, .csv or .zip")
    parser.add_argument("--data", required=True, help=f"the training data: {DATA}")
    parser.add_argument("--k", type=int, default=5, help="training cases found for each (default: 5)")
    parser.add_argument(
        "--by", default="evidence", choices=["evidence", "embedding", "prototype"],
        help="what makes cases alike: evidence of all prototypes, the embedding, or the one prototype that added most "
        "(default: evidence)",
    )  # fmt: skip
    parser.add_argument("--prototypes", nargs="+", type=int, metavar="ID", help="ask about prototypes instead")
    parser.add_argument(
        "--search", default="auto", choices=["auto", "exact", "faiss"], help="auto: faiss when large and installed"
    )
    parser.add_argument("--out", help="file for the table (default: print it)")
    _running(parser)


def _whatif(parser: Any) -> None:
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("data", help=f"cases to ask about: {DATA}; their held-out part where there is one")
    parser.add_argument("--ban", nargs="+", default=[], metavar="WHO", help="prototypes by id, groups by name")
    parser.add_argument("--remove", nargs="+", default=[], metavar="WHO", help="the same, cut out of the model")
    parser.add_argument(
        "--reweight", nargs="+", default=[], metavar="WHO=FACTOR", help="multiply what they add to every class"
    )
    parser.add_argument("--everything", action="store_true", help="ask about all cases, training cases too")
    parser.add_argument("--out", help="file for the table of answers that change (default: print up to 20)")
    _running(parser)


def _characteristics(parser: Any) -> None:
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("data", help=f"the training data: {DATA}")
    parser.add_argument("--test", help="other data for the check, instead of the held-out part of DATA")
    parser.add_argument(
        "--pictures", nargs="+", default=[], metavar="PICTURE", help="put their matches into words, not the prototypes"
    )
    parser.add_argument("--only", default="", metavar="NAMES", help="some characteristics: hue,texture (default: all)")
    parser.add_argument("--strength", type=float, default=1.0, help="of the alterations (default: 1, the published)")
    parser.add_argument(
        "--cases", type=int, default=100, help="pictures altered of either part, drawn; 0 = all (default: 100)"
    )
    parser.add_argument("--matches", type=int, default=3, help="matches told of each picture (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of that draw (default: 0)")
    parser.add_argument("--out", help="a .html page, a .json or a .csv table (default: print words)")
    _running(parser)


def _correct(parser: Any) -> None:
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("picture", help="one picture")
    parser.add_argument("--edits", required=True, metavar="FILE", help="JSON: rejected concepts or prototypes, boxes")
    parser.add_argument("--out", default="corrected", help="folder (default: corrected)")
    parser.add_argument("--formats", default="png,html,json", help="which of png, html, json (default: all three)")
    parser.add_argument("--data", help="training data, for pictures of prototypes and for absent=mean")
    parser.add_argument("--target", default="predicted", metavar="CLASS", help="explain this (default: each answer)")
    parser.add_argument("--most", type=int, default=4, help="prototypes shown (default: 4)")


def _methods(parser: Any) -> None:
    parser.add_argument("name", nargs="?", help="one method: its paper and all its settings")


def _doctor(parser: Any) -> None:
    parser.add_argument("model", nargs="?", help="folder of a model")
    parser.add_argument("data", nargs="?", help=f"the training data: {DATA}")
    parser.add_argument("--test", help="test data, compared with the training data")
    _running(parser)


_TOP_EXAMPLES = """
protolearn demo
protolearn train photos/ --encoder resnet18 --weights hub --out model
protolearn explain model new.jpg --out explained
protolearn verify model photos/
"""

COMMANDS: dict[str, Command] = {
    "demo": Command(
        "train on real handwritten digits, verify, explain and write a report (two minutes, no network)",
        """
        protolearn demo
        protolearn demo --out somewhere --seed 1
        """,
        "demo",
        _demo,
    ),
    "train": Command(
        "train a model and save it as a folder",
        """
        protolearn train photos/ --encoder resnet18 --weights hub --out model
        protolearn train photos/ --encoder mobilenetv2_100 --weights mobilenet.safetensors --recipe frozen --out model
        protolearn train photos/ --encoder resnet18 --weights hub --out model --protopnet.prototypes_per_class 5 \\
            --protopnet.project_at '[5, 10]' --augment --augmentation.rotation 30
        protolearn train --config model/settings.yaml --out again
        """,
        "train",
        add_train,
        more="Settings of a method are given as --METHOD.SETTING VALUE (protolearn methods METHOD lists them, and its "
        "recipes), those of --augment as --augmentation.SETTING VALUE, or all in a YAML file; flags win over the file, "
        "the file over a recipe. What was used is written to settings.yaml in the model's folder. An "
        "interrupted training goes on when the same command is run again.",
    ),
    "predict": Command(
        "name the class of pictures, as a CSV table or JSON",
        """
        protolearn predict model new.jpg
        protolearn predict model photos/ --all --out predictions.csv
        protolearn predict model a.png b.png --json
        """,
        "use",
        _predict,
    ),
    "explain": Command(
        "show why pictures get their class: which part looks like which training case, and what it adds",
        """
        protolearn explain model new.jpg
        protolearn explain model a.png b.png --out explained --formats html
        """,
        "use",
        _explain,
    ),
    "report": Command(
        "write one HTML file about a model: data, training, scores, every prototype, predictions explained",
        """
        protolearn report model photos/
        protolearn report model photos/train --test photos/test --out birds.html
        """,
        "use",
        _report,
    ),
    "verify": Command(
        "recompute every prototype from the training case it names; exit code 1 names those that don't match",
        """
        protolearn verify model photos/
        protolearn verify model photos/ --json
        """,
        "use",
        _verify,
    ),
    "audit": Command(
        "measure what a model's explanations are worth: faithful, stable, on the object, small, honest about doubt",
        """
        protolearn audit model photos/
        protolearn audit model photos/ --marks parts.csv --out audit
        protolearn audit model photos/ --metrics consistency,stability --draws 5 --json
        protolearn audit --list
        """,
        "audit",
        _audit,
        more="Metrics that the data do not allow are listed with what they need and what can stand in for them. The "
        "model is not changed.",
    ),
    "ood": Command(
        "let a model say what it has not seen before: fit a novelty score, and measure it on foreign cases",
        """
        protolearn ood model photos/ --save
        protolearn ood model photos/ --near others=other_birds/ --far textures=dtd/ --score mahalanobis,energy,knn
        protolearn ood model photos/ --outside odd=odd/ --score knn --set knn.k=10 --out novelty --save
        protolearn ood --list
        """,
        "ood",
        _ood,
        more='The first score is the one that --save keeps: predict and explain then answer "does not know" below its '
        "threshold. Foreign cases are only judged, never fitted to.",
    ),
    "discover": Command(
        "find new classes among unlabelled cases, and make those that a person names classes of the model",
        """
        protolearn discover model photos/ new_photos/ --out clusters
        protolearn discover model photos/ new_photos/ --classes 24 --name "new 1=wolf" "new 3=lynx" --save model2
        protolearn discover model photos/ new_photos/ --method protogcd --criterion silhouette --json
        """,
        "discover",
        _discover,
        more="Look at the clusters before you name one. The model that is given is not changed. The same seed and "
        "settings find the same clusters again.",
    ),
    "repair": Command(
        "merge, drop and ban prototypes, fit the last layer again, and compare before with after",
        """
        protolearn repair model photos/ --dry-run
        protolearn repair model photos/ --out repaired --ban 3,7
        protolearn repair model photos/ --out repaired --background 0.8 --marks boxes.csv --metrics all
        """,
        "repair",
        _repair,
        more="The model that is given is not changed. A ban that would leave a class without a prototype is refused; "
        "the last one of a class is spared from everything else.",
    ),
    "associate": Command(
        "test which prototypes go with labels the model never saw, with covariates and corrected p-values",
        """
        protolearn associate model ecgs.csv --labels diagnoses.csv --covariates age,sex --group patient --out assoc.csv
        protolearn associate model photos/ --labels table.csv --correction benjamini-hochberg --json
        """,
        "associate",
        _associate,
        more="Needs statsmodels: pip install 'protolearn[association]'. The model is not changed.",
    ),
    "similar": Command(
        "find the training cases most like pictures, or like prototypes, in the model's eyes",
        """
        protolearn similar model new.jpg --data photos/ --k 5
        protolearn similar model new.jpg --data photos/ --by prototype --json
        protolearn similar model --data photos/ --prototypes 3 7 --k 10
        """,
        "ask",
        _similar,
        more="A table with the similar cases of each picture, their classes, and the share of them that carry the "
        "predicted class. A picture that is a training case itself is not found for itself.",
    ),
    "whatif": Command(
        "show what would change if prototypes were banned, removed or given another weight",
        """
        protolearn whatif model photos/ --ban 3 7 --reweight 5=0.5
        protolearn whatif model photos/ --ban background --everything --out flips.csv
        """,
        "ask",
        _whatif,
        more="The model is not changed and nothing is trained again: a copy is asked about the same cases.",
    ),
    "characteristics": Command(
        "say in words what prototypes are matched for: hue, saturation, contrast, brightness, texture, outline",
        """
        protolearn characteristics model photos/
        protolearn characteristics model photos/ --out why.html
        protolearn characteristics model photos/ --pictures new.jpg --only hue,texture,shape --json
        """,
        "why",
        _characteristics,
        more="Pictures are altered in one characteristic at a time, and the fall of each similarity is compared with "
        "that of a usual prototype. Held-out pictures are altered too, to check that the description holds for them.",
    ),
    "correct": Command(
        "show a prediction before and after a person rejects prototypes or draws boxes",
        """
        protolearn correct model new.jpg --edits edits.json
        protolearn correct model new.jpg --edits edits.json --data photos/ --out corrected --formats html
        """,
        "why",
        _correct,
        more="The file is what explain.Interaction saves: {'format': 1, 'case': null, 'outside': 0, 'absent': 'zero', "
        "'edits': [{'action': 'negative', 'who': null, 'box': [0, 0, 40, 40]}, ...]}, in double quotes. Actions are "
        "reject and accept (who: a concept's name or a prototype's id), negative and positive (a box in pixels of the "
        "picture). The model is not changed.",
    ),
    "methods": Command(
        "list the methods: paper, area, whether verified and against what",
        """
        protolearn methods
        protolearn methods protopnet
        protolearn methods --json
        """,
        "tell",
        _methods,
    ),
    "doctor": Command(
        "tell versions, devices and extras; given a model and data, everything suspicious about them",
        """
        protolearn doctor
        protolearn doctor model photos/train --test photos/test
        """,
        "tell",
        _doctor,
    ),
}


def _indented(examples: str) -> str:
    return textwrap.indent(textwrap.dedent(examples).strip("\n"), "  ")
