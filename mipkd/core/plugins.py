"""Plug-ins: every public module of a folder offers one attribute, and packages add to the folder.

A plug-in of `targets` is a file of ours, a file of a folder `targets/` on the Python path, or an
object that an installed package names in its entry points `mipkd.targets`; likewise `mipkd.archs`,
`mipkd.losses`, `mipkd.metrics` and `mipkd.machine`.
"""

from __future__ import annotations

import functools
import importlib
import logging
import pkgutil
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mipkd.core.errors import UsageError, nearest

log = logging.getLogger(__name__)


def names(package: str) -> tuple[str, ...]:
    """The plug-ins of `package`: its modules except `base` and the private ones, sorted."""
    return tuple(sorted({*_modules(package), *_installed(package)}))


def load(package: str, name: str, attribute: str, kind: type = object) -> Any:
    """The `attribute` of plug-in `name`, for example `load("targets", "openvino", "TARGET")`.

    Raises:
        UsageError: no such plug-in, with the nearest name; or it does not load or offer it.
    """
    room = package.rpartition(".")[2]
    group = {"losses": "loss"}.get(room, room.removesuffix("s"))
    entry = None if name in _modules(package) else _installed(package).get(name)
    if entry is None and name not in _modules(package):
        raise UsageError(f"{group}: unknown name {name!r}", hint=nearest(name, names(package)))
    where = entry.value if entry else f"{package}.{name}"
    try:
        module = None if entry else importlib.import_module(where)
        found = entry.load() if entry else getattr(module, attribute, None)
    except Exception as error:  # what another's file raises can be anything
        why = f"{type(error).__name__}: {error}"
        hint = f"mend or remove {where}"
        raise UsageError(f"{group} {name} does not load: {why}", hint=hint) from error
    if found is None or not isinstance(found, kind):
        wanted = attribute if kind is object else f"{attribute}, a {kind.__name__}"
        hint = "see docs/extending.md, or remove it"
        raise UsageError(f"{group} {name}: {where} offers no {wanted}", hint=hint)
    return found


@functools.cache  # so that each is warned of once
def load_all(package: str, attribute: str, kind: type = object) -> Mapping[str, Any]:
    """All plug-ins by name; one that does not load is left out, with a warning and its reason."""
    found = {}
    for name in names(package):
        try:
            found[name] = load(package, name, attribute, kind)
        except UsageError as error:
            log.warning("%s: left out; %s", error.what, error.hint)
    return found


def _modules(package: str) -> set[str]:
    """Files of the package's folders."""
    path = importlib.import_module(package).__path__
    found = {module.name for module in pkgutil.iter_modules(path) if not module.ispkg}
    return {name for name in found if name != "base" and not name.startswith("_")}


@functools.cache
def _installed(package: str) -> dict[str, EntryPoint]:
    """Entry points of installed packages."""
    return {one.name: one for one in entry_points(group=f"mipkd.{package.rpartition('.')[2]}")}
