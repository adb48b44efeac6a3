"""The configuration: each section's class sits in the file that reads it.

Layers, the later wins: built-in defaults, a preset, `mipkd.toml` or `--config`, flags, `--set`.
No environment variable changes a result. A `mipkd.toml` that only lies in the working folder may be
a stranger's: what can run a program or leave this machine is not taken from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any, Literal

import tomllib
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mipkd.core.errors import UsageError
from mipkd.distill.degradation import DegradationConfig
from mipkd.distill.settings import DistillConfig
from mipkd.distill.teacher import TeacherOptions
from pipeline.bench.latency import BenchSettings
from pipeline.bundle.golden import BundleConfig
from pipeline.config_values import as_usage_error, assignments, merge_settings
from pipeline.judge.bounds import GateConfig
from pipeline.judge.regression import BaselineConfig
from pipeline.limits import LimitsConfig
from pipeline.machine.base import DeviceConfig
from pipeline.quantize.qat import QatConfig
from pipeline.quantize.search import QuantizeConfig
from pipeline.stages.build import BuildConfig
from pipeline.stages.calibrate import CalibrateConfig
from pipeline.stages.export import AdoptConfig, ExportConfig
from pipeline.stages.fit import FitConfig
from pipeline.stages.perceive import MetricsConfig
from pipeline.study import StudyConfig

_TEACHER = "teacher_x2.safetensors"  # of the demo
_MOST_BYTES = 2**16  # of a configuration: reading deep names takes time by the square of it
_PATHS = ("teacher", "model", "data", "val", "out")
_ONLY_IF_NAMED = ("device",)  # sections that reach other machines, and run programs to do so


class Config(BaseModel):
    """One run, whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: Path | None = None  # checkpoint of the teacher
    model: Path | None = None  # a finished student: enters after distillation
    student: str | None = None  # such as "edsr:c32b8", or "auto"
    data: Path | None = None  # folder of photos to train and calibrate on: HR, pairs or LR frames
    demo_data: bool = False  # sample photos in the place of `data`
    val: Path | None = None  # folder of HR photos, a set with HR/ and LR_bicubic/X4/, or LR frames
    # Whether `data` and `val`, or one of them, are LR frames without truth; None: by their names.
    lr_only: bool | Literal["data", "val"] | None = None
    scale: int | None = None
    target: tuple[str, ...] | None = None
    precision: tuple[str, ...] | None = None
    compare: tuple[str, ...] = ()  # rivals of the student: methods, or files of finished ones
    out: Path | None = None

    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    identify: TeacherOptions = Field(default_factory=TeacherOptions)
    adopt: AdoptConfig = Field(default_factory=AdoptConfig)
    fit: FitConfig = Field(default_factory=FitConfig)
    degradation: DegradationConfig = Field(default_factory=DegradationConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    calibrate: CalibrateConfig = Field(default_factory=CalibrateConfig)
    quantize: QuantizeConfig = Field(default_factory=QuantizeConfig)
    qat: QatConfig = Field(default_factory=QatConfig)
    build: BuildConfig = Field(default_factory=BuildConfig)
    bench: BenchSettings = Field(default_factory=BenchSettings)
    device: DeviceConfig = Field(default_factory=DeviceConfig)
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    gates: GateConfig = Field(default_factory=GateConfig)
    baseline: BaselineConfig = Field(default_factory=BaselineConfig)
    bundle: BundleConfig = Field(default_factory=BundleConfig)
    study: StudyConfig = Field(default_factory=StudyConfig)

    @property
    def uses_demo_photos(self) -> bool:
        """Whether the sample photos were asked for: by name, or by the demo with its teacher."""
        return self.demo_data or (self.model is None and self.teacher == packaged(_TEACHER))

    @property
    def has_own_teacher(self) -> bool:
        """Whether the teacher is the user's."""
        return self.teacher is not None and self.teacher != packaged(_TEACHER)

    @property
    def smoke(self) -> bool:
        """Whether something of ours stands in for the user's: a run that shows that all works."""
        return bool(self.stand_ins)

    @property
    def stand_ins(self) -> str:
        """What the user has not given and the package has, in words."""
        ours = [
            ("the teacher", self.teacher == packaged(_TEACHER)),
            ("training photos", self.data is None and self.model is None),
            ("calibration photos", self.data is None and self.model is not None and self.demo_data),
            ("test images", self.val is None),
        ]
        names = [name for name, stands_in in ours if stands_in]
        return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


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
        UsageError: a file that is not TOML, an unknown setting, a value of the wrong kind, a
            section that no file sets unless it was named.
    """
    written = _read(file) if file else _read_unasked((folder or Path.cwd()) / "mipkd.toml")
    given: dict[str, Any] = {}
    try:
        for layer in (written, flags, assignments(sets)):
            given = merge_settings(given, layer)
    except RecursionError as error:
        raise UsageError("config: sections are nested too deep") from error
    if not alone and not given.get("teacher") and not given.get("model"):
        given = merge_settings(_preset("demo"), given)
    elif not given.get("data") and not given.get("model"):
        given = merge_settings(_preset("smoke"), given)
    try:
        config = Config.model_validate(given)
    except ValidationError as error:
        raise as_usage_error(error, Config) from error
    config.distill.build_losses()  # a misspelt loss is refused before hours of work
    return _with_size(config)


def _with_size(config: Config) -> Config:
    """The LR size that gates are judged at is among those that are measured, a stream's too."""
    size, bench = config.gates.size, config.bench
    if size is None:
        return config
    sizes = bench.sizes if size in bench.sizes else (*bench.sizes, size)
    stream = replace(bench.stream, size=bench.stream.size or size)
    return config.model_copy(update={"bench": replace(bench, sizes=sizes, stream=stream)})


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


def _read_unasked(file: Path) -> dict[str, Any]:
    """The settings of a file that nobody named; none where it is not there."""
    written = _read(file) if file.is_file() else {}
    for section in _ONLY_IF_NAMED:
        if section in written:
            raise UsageError(
                f"config: {file}: [{section}] is taken only from options or a file that is named: "
                "it can run programs and reach other machines",
                hint=f"if you trust it, name it: --config {file.name}; else take the section out, "
                "or give --device and --set device.NAME=VALUE",
            )
    return written


def _read(file: Path) -> dict[str, Any]:
    """A TOML file's settings; relative paths in it start at its own folder."""
    try:
        if (size := file.stat().st_size) > _MOST_BYTES:
            raise UsageError(f"--config: {file} has {size} bytes; known: up to {_MOST_BYTES}")
        written = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config: cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--config: {file} is not TOML: {error}", hint="see the example in docs/start.md"
        ) from error
    for name in _PATHS:
        if isinstance(written.get(name), str):
            written[name] = str(file.parent / written[name])
    if isinstance(rivals := written.get("compare"), list):
        written["compare"] = [
            str(file.parent / rival) if is_file(str(rival)) else rival for rival in rivals
        ]
    return written
