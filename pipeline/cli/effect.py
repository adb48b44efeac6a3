"""Options of a run that would change nothing are refused; a file may state what other runs use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mipkd.core.errors import UsageError

if TYPE_CHECKING:
    from pipeline.config import Config


@dataclass(frozen=True)
class _Idle:
    """A setting, or all those of a section ("qat."), that has no effect in some runs."""

    setting: str
    option: str  # as it is typed; "" for settings that have none
    has_no_effect: Callable[[Config], bool]
    why: str
    hint: str


_FINISHED = "--model is a finished student, and nothing is trained"
_IDLE = (
    _Idle("student", "--student", lambda c: bool(c.model), _FINISHED, "leave out one of the two"),
    _Idle(
        "distill.steps",
        "--steps",
        lambda c: bool(c.model),
        _FINISHED,
        "leave it out; the steps of --qat are --set qat.steps=N",
    ),
    _Idle(
        "demo_data",
        "--demo-data",
        lambda c: bool(c.data),
        "--data gives photos",
        "leave out one of the two",
    ),
    _Idle("qat.", "", lambda c: not c.qat.run, "nothing is trained for INT8", "add --qat"),
    _Idle(
        "device.",
        "",
        lambda c: not c.device.address,
        "all is measured on this machine",
        "add --device ssh://[user@]host, or adb://",
    ),
)


def check_effect(given: Mapping[str, Any], config: Config) -> None:
    """Refuse settings, of options and of `--set`, that change nothing in a run of `config`.

    Raises:
        UsageError: names the option, and why.
    """
    for name, value in _flatten(given):
        for one in _IDLE:
            named = (
                name.startswith(one.setting) if one.setting.endswith(".") else name == one.setting
            )
            if value and named and one.has_no_effect(config):
                option = one.option or f"--set {name}"
                raise UsageError(f"{option}: no effect: {one.why}", hint=one.hint)


def _flatten(given: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting by its whole name."""
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{at}{name}.")
        else:
            yield at + name, value
