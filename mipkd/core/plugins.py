"""A folder is a registry: every public module of a package offers one attribute."""

import importlib
import pkgutil
from typing import Any

from mipkd.core.errors import UsageError, nearest


def names(package: str) -> tuple[str, ...]:
    """The plug-ins of `package`: its modules except `base` and the private ones, sorted."""
    path = importlib.import_module(package).__path__
    found = {module.name for module in pkgutil.iter_modules(path)}
    return tuple(sorted(n for n in found if n != "base" and not n.startswith("_")))


def load(package: str, name: str, attribute: str) -> Any:
    """The `attribute` of plug-in `name`, for example `load("targets", "openvino", "TARGET")`.

    Raises:
        UsageError: no such plug-in, with the nearest name.
    """
    if name not in names(package):
        kind = package.rpartition(".")[2].rstrip("s")
        raise UsageError(f"{kind}: unknown name {name!r}", hint=nearest(name, names(package)))
    return getattr(importlib.import_module(f"{package}.{name}"), attribute)
