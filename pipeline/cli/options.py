"""The options of the commands that train and measure, and the settings that they stand for."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mipkd.core.errors import UsageError
from mipkd.core.names import printable

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.run import Run

Teacher = Annotated[
    Path | None, typer.Option(help="Checkpoint of the teacher: .pth, .pt or .safetensors.")
]
ModelFile = Annotated[
    Path | None,
    typer.Option("--model", help="A finished student (checkpoint or ONNX): nothing is trained."),
]
TargetNames = Annotated[
    str | None, typer.Option("--target", help="Targets, separated by commas; default: of this CPU.")
]
StudentSpec = Annotated[
    str | None,
    typer.Option(
        "--student", help="Family and size, such as edsr:c32b8, or auto; default: half the teacher."
    ),
]
Data = Annotated[
    Path | None, typer.Option(help="Folder to train on: HR photos, HR/ and LR/, or LR frames.")
]
LrOnly = Annotated[
    bool | None,
    typer.Option(
        "--lr-only/--no-lr-only",
        help="--data and --val are LR frames without truth; default: where they lie in LR/ alone.",
    ),
]
DemoData = Annotated[
    bool | None,
    typer.Option("--demo-data", help="Sample photos of the package instead of --data: a trial."),
]
Val = Annotated[
    Path | None, typer.Option(help="Folder of HR photos, or a set with HR/ and LR_bicubic/X4/.")
]
Precisions = Annotated[
    str | None,
    typer.Option("--precision", help="Precisions, separated by commas; default: all of a target."),
]
Steps = Annotated[int | None, typer.Option(help="Training steps; default 10000.", min=1)]
LatencyBudget = Annotated[
    float | None,
    typer.Option(
        help="Milliseconds that an image may take (p90); --student auto is the best within it."
    ),
]
SizeText = Annotated[
    str | None,
    typer.Option(
        "--size",
        help="LR size that limits are judged at, WIDTHxHEIGHT: 320x180; default the largest.",
    ),
]
Qat = Annotated[
    bool | None,
    typer.Option("--qat", help="Train on with INT8's rounding before it is built."),
]
Compare = Annotated[
    str | None,
    typer.Option(
        "--compare",
        help="Does the gain survive INT8? Over scratch,logits or files of finished students.",
    ),
]
Scale = Annotated[int | None, typer.Option(help="Scale that the checkpoint must have.", min=1)]
DeviceAddress = Annotated[
    str | None,
    typer.Option("--device", help="Measure on ssh://[user@]host or adb:// (a phone), not here."),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Use a folder that is not a run's; what is in it stays."),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file; default ./mipkd.toml when there.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting: distill.lr=2e-4. Repeatable.")
]

# Where the value of an option goes in the configuration, by the option's name.
_SETTINGS = {
    **{name: name for name in ("teacher", "model", "student", "data", "val", "scale", "out")},
    **{name: name for name in ("target", "precision", "compare", "demo_data", "lr_only")},
    "steps": "distill.steps",
    "latency_budget": "gates.max_latency_ms",
    "size": "gates.size",
    "qat": "qat.run",
    "device": "device.address",
    "methods": "study.methods",
    "seeds": "study.seeds",
    "seconds": "study.seconds",
}


def load_settings(options: Mapping[str, Any], *, alone: bool = False) -> Config:
    """The configuration that a command's options ask for; `alone` trains without a teacher.

    Raises:
        UsageError: a file that is not TOML, an unknown setting, a value of the wrong kind.
    """
    from pipeline.config import load

    file = Path(options["config"]) if options["config"] else None  # a text in older typers
    return load(_flags(options), file=file, sets=options["sets"] or (), alone=alone)


def _flags(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the options of a command stand for."""
    flags: dict[str, Any] = {}
    for name in options.keys() & _SETTINGS.keys():
        value = _READ.get(name, _as_is)(options[name], f"--{name}")
        section, _, setting = _SETTINGS[name].rpartition(".")
        (flags.setdefault(section, {}) if section else flags)[setting] = value
    return flags


def settings_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """What options and `--set` of a command state, section by section."""
    from pipeline.config_values import assignments, merge_settings

    return merge_settings(_flags(options), assignments(options["sets"] or ()))


def split_list(text: str | None, option: str) -> tuple[str, ...] | None:
    """The parts between commas; None for no text.

    Raises:
        UsageError: there are only commas.
    """
    found = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    if text is not None and not found:
        raise UsageError(f"{option}: {text!r} names nothing", hint="names, separated by commas")
    return found or None


def parse_size(text: str | None, option: str = "--size") -> tuple[int, int] | None:
    """LR height and width of `WIDTHxHEIGHT`.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"{option}: {text!r} is not WIDTHxHEIGHT", hint="--size 320x180")
    return int(height), int(width)


def _check_budget(budget_ms: float | None, _option: str) -> float | None:
    """The milliseconds of --latency-budget.

    Raises:
        UsageError: they are none that an image could take.
    """
    if budget_ms is not None and not 0 < budget_ms < math.inf:
        raise UsageError(
            f"--latency-budget: {budget_ms:g} is no number of milliseconds above 0",
            hint="such as --latency-budget 30",
        )
    return budget_ms


def _as_is(value: object, _option: str) -> object:
    return value


# How options are read that are not taken as they are.
_READ: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("target", "precision", "compare", "methods"), split_list),
    "size": parse_size,
    "latency_budget": _check_budget,
}


def open_run(
    settings: Config, *, force: bool, dry: bool = False, scratch: Path | None = None
) -> Run:
    """The run's folder, named after what was given where no other name was.

    A dry one looks at a user's files in the folder `scratch`.

    Raises:
        UsageError: it holds what a run did not make, and `force` was not given.
    """
    from pipeline.ownership import claim
    from pipeline.run import Run

    given = settings.model or settings.teacher
    assert settings.out or given, "a configuration without a folder has a teacher or a model"
    root = (settings.out or Path("runs") / Path(given or "").stem).resolve()
    claim(root, force=force, dry=dry)
    return Run(root, dry=dry, scratch=scratch)


def command_line() -> str:
    """The command that was given, to be repeated."""
    return printable(shlex.join(["mipkd-pipeline", *sys.argv[1:]]))
