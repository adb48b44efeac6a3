"""A folder is a registry: every public module of a package offers one attribute.

A package of somebody else's joins by an entry point of the group that is named like the folder.
"""

import importlib
import logging
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mipkd.core.errors import UsageError, nearest

log = logging.getLogger(__name__)


def names(package: str) -> tuple[str, ...]:
    """The plug-ins of `package`: its modules except `base` and the private ones, and the entry
    points of its group, sorted."""
    path = importlib.import_module(package).__path__
    found = {module.name for module in pkgutil.iter_modules(path)}
    public = {n for n in found if n != "base" and not n.startswith("_")}
    return tuple(sorted(public | _elsewhere(package).keys()))


def load(package: str, name: str, attribute: str) -> Any:
    """The `attribute` of plug-in `name`, for example `load("targets", "openvino", "TARGET")`.

    Raises:
        UsageError: no such plug-in, with the nearest name.
    """
    if name not in names(package):
        kind = package.rpartition(".")[2].rstrip("s")
        raise UsageError(f"{kind}: unknown name {name!r}", hint=nearest(name, names(package)))
    if name in _elsewhere(package):
        return _elsewhere(package)[name].load()
    return getattr(importlib.import_module(f"{package}.{name}"), attribute)


def load_all(package: str, attribute: str) -> dict[str, Any]:
    """Every plug-in by name; one that cannot be loaded is left out, and a warning says why."""
    found = {}
    for name in names(package):
        try:
            found[name] = load(package, name, attribute)
        except Exception as error:  # it is somebody else's file
            why = f"{type(error).__name__}: {error}"
            log.warning("%s.%s cannot be loaded and is left out: %s", package, name, why)
    return found


@cache
def _elsewhere(package: str) -> dict[str, EntryPoint]:
    """Of other packages, by name: `NAME = "their.module:ATTRIBUTE"` in group `package`."""
    return {point.name: point for point in entry_points(group=package)}
