"""What a stage is: a function of one frozen inputs record, and the key of what it makes.

The record's fields are settings, files from outside and references to other steps. The key of a
step is a hash of the stage's name and version and of these fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, get_type_hints

from pydantic_core import to_jsonable_python

from mipkd.core.apart import Limits

I = TypeVar("I")  # noqa: E741 - of a stage `I -> R`
I_contra = TypeVar("I_contra", contravariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_HASH = "#"  # before what stands for content in a fingerprint


@dataclass(frozen=True)
class Source:
    """A file or folder from outside that enters by its content, wherever it lies."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class NotInKey(Generic[R_co]):
    """An input that a step works with and that changes nothing in what it makes."""

    value: R_co


@dataclass(frozen=True)
class Ref(Generic[R_co]):
    """A step's place in the run and, unless only planned, its record."""

    key: str
    record: R_co | None
    contents: str = ""  # a hash over what the step made; "" while it is only planned

    @property
    def value(self) -> R_co:
        """The record; asking a plan for it is a bug."""
        assert self.record is not None, f"step {self.key} has not run"
        return self.record


@dataclass(frozen=True)
class Foreseen:
    """How much of a stage's work a plan foresees without knowing which steps that will be."""

    amount: float  # of steps of the run; of trainings, their own
    like: Any = None  # inputs of one that is known


def ready(record: R) -> Ref[R]:
    """A reference to a record that no step of a run made."""
    return Ref("", record)


class StageFunction(Protocol[I_contra, R_co]):
    """The work of a stage, in the folder `out`."""

    __name__: str

    def __call__(self, inputs: I_contra, *, out: Path) -> R_co: ...


@dataclass(frozen=True)
class Stage(Generic[I_contra, R_co]):
    """A plain function of one inputs record, with a hand-bumped version."""

    name: str
    version: int
    function: StageFunction[I_contra, R_co]
    resumes: bool  # finds its own way in a `.partial` folder that an earlier start left
    retry_if: Callable[[Any], bool] | None = None  # whether a record is made anew next time
    apart: bool = False  # native code may crash: it works in a process of its own
    limits: Callable[[Any], Limits] | None = None  # of that process, by the inputs
    looks: bool = False  # in seconds, at what a user gave: a plan looks too, in a folder of its own

    @property
    def returns(self) -> Any:
        return get_type_hints(self.function)["return"]


def stage(
    version: int,
    *,
    resumes: bool = False,
    retry_if: Callable[[Any], bool] | None = None,
    apart: bool = False,
    limits: Callable[[Any], Limits] | None = None,
    looks: bool = False,
) -> Callable[[StageFunction[I, R]], Stage[I, R]]:
    """Make a stage of a function; its name is the function's.

    A record of which `retry_if` is true is used, but made anew the next time. What works `apart` is
    found by its name in its module, and its inputs can be pickled; so does what has `limits`.
    """
    apart = apart or limits is not None
    return lambda function: Stage(
        function.__name__, version, function, resumes, retry_if, apart, limits, looks
    )


def call_by_name(module: str, name: str, inputs: Any, out: Path) -> Any:
    """The record of the stage called `name`, for another process: a decorated function cannot be
    pickled."""
    return getattr(import_module(module), name).function(inputs, out=out)


def fingerprint_step(stage: Stage[I, R], inputs: I, depends_on: object) -> dict[str, Any]:
    """All that a step's key is a hash of, as JSON."""
    return {
        "stage": stage.name,
        "version": stage.version,
        **_fingerprint_fields(inputs),
        "depends_on": to_jsonable_python(depends_on),
    }


def _fingerprint_fields(inputs: object) -> dict[str, Any]:
    assert is_dataclass(inputs), "a stage's inputs are one frozen record"
    found = {one.name: getattr(inputs, one.name) for one in fields(inputs)}
    return {
        name: _fingerprint(value)
        for name, value in found.items()
        if not isinstance(value, NotInKey)
    }


def _fingerprint(value: Any) -> Any:
    if isinstance(value, Ref):
        return _HASH + value.key
    if isinstance(value, Source):
        return _HASH + value.sha256
    if isinstance(value, (list, tuple)):
        return [_fingerprint(v) for v in value]
    if isinstance(value, Mapping):
        return {name: _fingerprint(v) for name, v in value.items()}
    return to_jsonable_python(value)


def refs_of(value: Any) -> Iterator[Ref[Any]]:
    """The steps that inputs enter the key with."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (list, tuple)):
        yield from (ref for one in value for ref in refs_of(one))
    elif isinstance(value, Mapping):
        yield from (ref for one in value.values() for ref in refs_of(one))
    elif is_dataclass(value) and not isinstance(value, (NotInKey, type)):
        yield from (ref for one in fields(value) for ref in refs_of(getattr(value, one.name)))


def sources_of(value: Any) -> Iterator[Source]:
    """The files and folders from outside in a field of inputs."""
    if isinstance(value, Source):
        yield value
    elif isinstance(value, (list, tuple)):
        yield from (source for one in value for source in sources_of(one))


def digest(asked: dict[str, Any]) -> str:
    text = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(dict.fromkeys([*old, *new]))
        return [
            line
            for name in names
            for line in differences(old.get(name), new.get(name), f"{at}.{name}".lstrip("."))
        ]
    if old == new:
        return []
    hashed = any(_HASH in json.dumps(side) for side in (old, new))
    return [at if hashed else f"{at} {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
