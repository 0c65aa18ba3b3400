"""Papers, one file each. Importing this package imports every page below it, so that the registry is full."""

from __future__ import annotations

import importlib
import pkgutil

from protolearn.core.method import Method, make_method, registered
from protolearn.errors import look_up

__all__ = ["get_method", "list_methods", "make_method"]

for _page in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_page.name)


def list_methods() -> dict[str, type[Method]]:
    """Return every method by name.

    Examples
    --------
    >>> "protopnet" in list_methods()
    True
    """
    return registered()


def get_method(slug: str) -> type[Method]:
    """Return a method's class by name.

    Raises
    ------
    UsageError
        If there is none; the nearest names are suggested.
    """
    return look_up("method", slug, registered())
