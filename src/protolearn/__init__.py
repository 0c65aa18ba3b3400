"""Models that reason by cases: an input is compared with prototypes, and the comparison is the explanation.

Public names are listed by hand in ``_PUBLIC`` and imported when first used, so ``import protolearn`` is cheap and the
command line can print its help without loading PyTorch.

Examples
--------
>>> import protolearn
>>> "fit" in dir(protolearn)
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it. To publish a name, add it here, in the block below and in __all__;
# tests/test_package.py holds the three equal.
_PUBLIC: dict[str, str] = {
    "AuditResult": "protolearn.audit.result",
    "Explanation": "protolearn.structures",
    "ImageEncoder": "protolearn.encoders",
    "Output": "protolearn.structures",
    "ProtoPNet": "protolearn.methods.parts.protopnet",
    "PrototypeBank": "protolearn.core.bank",
    "PrototypeClassifier": "protolearn.interop.estimator",
    "SmallEncoder": "protolearn.encoders",
    "Tokens": "protolearn.structures",
    "digits": "protolearn.data",
    "fit": "protolearn.training.fit",
    "get_method": "protolearn.methods",
    "list_methods": "protolearn.methods",
    "load": "protolearn.training.folder",
    "load_cases": "protolearn.data",
    "report": "protolearn.explain.report",
    "save": "protolearn.training.folder",
    "verify": "protolearn.tasks.verify",
}

if TYPE_CHECKING:
    from protolearn.audit.result import AuditResult
    from protolearn.core.bank import PrototypeBank
    from protolearn.data import digits, load_cases
    from protolearn.encoders import ImageEncoder, SmallEncoder
    from protolearn.explain.report import report
    from protolearn.interop.estimator import PrototypeClassifier
    from protolearn.methods import get_method, list_methods
    from protolearn.methods.parts.protopnet import ProtoPNet
    from protolearn.structures import Explanation, Output, Tokens
    from protolearn.tasks.verify import verify
    from protolearn.training.fit import fit
    from protolearn.training.folder import load, save

__all__ = [
    "AuditResult",
    "Explanation",
    "ImageEncoder",
    "Output",
    "ProtoPNet",
    "PrototypeBank",
    "PrototypeClassifier",
    "SmallEncoder",
    "Tokens",
    "__version__",
    "digits",
    "fit",
    "get_method",
    "list_methods",
    "load",
    "load_cases",
    "report",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    module = _PUBLIC.get(name)
    if module is None:
        from protolearn.errors import nearest_names

        raise AttributeError(f"protolearn has no attribute {name!r}: {nearest_names(name, _PUBLIC)}", name=name)
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return every public name, imported or not."""
    return sorted({*globals(), *_PUBLIC})
