"""The configuration: each section's class sits in the file that reads it.

Layers, the later wins: built-in defaults, a preset, `mipkd.toml` or `--config`, flags, `--set`.
No environment variable changes a result.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

import tomllib
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mipkd.core.errors import UsageError
from mipkd.distill.teacher import TeacherOptions
from mipkd.distill.trainer import DistillConfig
from pipeline.bench.latency import BenchSettings
from pipeline.bundle.golden import BundleConfig
from pipeline.bundle.regress import BaselineConfig
from pipeline.device.device import DeviceConfig
from pipeline.stages.build import BuildConfig
from pipeline.stages.calibrate import CalibrateConfig
from pipeline.stages.export import AdoptConfig, ExportConfig
from pipeline.stages.fit import FitConfig
from pipeline.stages.judge import GateConfig
from pipeline.stages.qat import QatConfig
from pipeline.stages.search import QuantizeConfig
from pipeline.study import StudyConfig

_PATHS = ("teacher", "model", "data", "val", "out")


class Config(BaseModel):
    """One run, whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: Path | None = None  # checkpoint of the teacher
    model: Path | None = None  # a finished student: enters after distillation
    student: str | None = None  # such as "edsr:c32b8", or "auto"
    data: Path | None = None  # folder of HR photos to train and calibrate on
    val: Path | None = None  # folder of HR photos, or a set with HR/ and LR_bicubic/X4/
    scale: int | None = None
    target: tuple[str, ...] | None = None
    precision: tuple[str, ...] | None = None
    compare: tuple[str, ...] = ()  # rivals of the student: methods, or files of finished ones
    out: Path | None = None

    identify: TeacherOptions = Field(default_factory=TeacherOptions)
    adopt: AdoptConfig = Field(default_factory=AdoptConfig)
    fit: FitConfig = Field(default_factory=FitConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    calibrate: CalibrateConfig = Field(default_factory=CalibrateConfig)
    quantize: QuantizeConfig = Field(default_factory=QuantizeConfig)
    qat: QatConfig = Field(default_factory=QatConfig)
    build: BuildConfig = Field(default_factory=BuildConfig)
    bench: BenchSettings = Field(default_factory=BenchSettings)
    device: DeviceConfig = Field(default_factory=DeviceConfig)
    gates: GateConfig = Field(default_factory=GateConfig)
    baseline: BaselineConfig = Field(default_factory=BaselineConfig)
    bundle: BundleConfig = Field(default_factory=BundleConfig)
    study: StudyConfig = Field(default_factory=StudyConfig)

    @property
    def smoke(self) -> bool:
        """Whether sample photos stand in for the user's: a run that shows that all works."""
        return self.val is None or (self.data is None and self.model is None)


def load(
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    sets: Sequence[str] = (),
    folder: Path | None = None,
    alone: bool = False,
) -> Config:
    """The configuration of a command started in `folder`; `alone` trains without a teacher.

    Raises:
        UsageError: a file that is not TOML, an unknown setting, a value of the wrong kind.
    """
    folder = folder or Path.cwd()
    default = folder / "mipkd.toml"
    written = _read(file or default) if file or default.is_file() else {}
    given: dict[str, Any] = {}
    for layer in (written, flags, _assignments(sets)):
        given = _merged(given, layer)
    if not alone and not given.get("teacher") and not given.get("model"):
        given = _merged(_preset("demo"), given)
    elif not given.get("data") and not given.get("model"):
        given = _merged(_preset("smoke"), given)
    try:
        config = Config.model_validate(given)
    except ValidationError as error:
        raise _as_usage_error(error) from error
    config.distill.chosen()  # a misspelt loss is told before hours of work
    return config


def is_file(rival: str) -> bool:
    """Whether a rival is a file: those have an ending or a folder in their names, methods none."""
    return "/" in rival or bool(PurePath(rival).suffix)


def packaged(name: str) -> Path:
    """A file that comes with the program, in `pipeline/presets/`."""
    return Path(str(files("pipeline") / "presets" / name))


def _preset(name: str) -> dict[str, Any]:
    preset = tomllib.loads(packaged(f"{name}.toml").read_text())
    if "teacher" in preset:
        preset["teacher"] = str(packaged(preset["teacher"]))
    return preset


def _read(file: Path) -> dict[str, Any]:
    """A TOML file's settings; relative paths in it start at its own folder."""
    try:
        written = tomllib.loads(file.read_text())
    except OSError as error:
        raise UsageError(f"--config: cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--config: {file} is not TOML: {error}", hint="see the example in the README"
        ) from error
    for name in _PATHS:
        if isinstance(written.get(name), str):
            written[name] = str(file.parent / written[name])
    if isinstance(rivals := written.get("compare"), list):
        written["compare"] = [
            str(file.parent / rival) if is_file(str(rival)) else rival for rival in rivals
        ]
    return written


def _assignments(sets: Sequence[str]) -> dict[str, Any]:
    """`distill.lr=2e-4` as nested settings; a value that is not TOML is a string."""
    found: dict[str, Any] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set: {text!r} is not NAME=VALUE", hint="--set distill.lr=2e-4")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        nested: Any = parsed
        for part in reversed(name.strip().split(".")):
            nested = {part: nested}
        found = _merged(found, nested)
    return found


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            old = merged.get(name)
            value = _merged(old if isinstance(old, Mapping) else {}, value)
        merged[name] = value
    return merged


def _as_usage_error(error: ValidationError) -> UsageError:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    name = ".".join(place)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known(place[:-1])
        close = difflib.get_close_matches(place[-1], known, n=1)
        hint = (f"did you mean {close[0]}? " if close else "") + "known: " + ", ".join(known)
        return UsageError(f"config: {name}: unknown setting", hint=hint)
    return UsageError(f"config: {name}: {first['msg']}, got {first['input']!r}")


def _known(place: Sequence[str]) -> list[str]:
    at: Any = Config
    for part in place:
        fields = getattr(at, "model_fields", None)
        if not fields or part not in fields:
            return []
        at = fields[part].annotation
    fields = getattr(at, "model_fields", None) or getattr(at, "__dataclass_fields__", {})
    return sorted(fields)
