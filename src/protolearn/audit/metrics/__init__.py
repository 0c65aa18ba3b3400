"""Every metric an audit can run, one family a file; importing this package registers them all."""

from importlib import import_module
from pkgutil import iter_modules

for _found in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_found}")
