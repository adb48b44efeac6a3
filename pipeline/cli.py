"""The command line: options in, one clear line on trouble, exit codes out.

0 pass; 2 usage or config; 3 unsupported model; 4 this machine lacks something;
5 a stage failed; 6 a gate failed; 7 invalid or inconclusive; 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from mipkd.core.errors import MipkdError, UsageError
from pipeline import cli_bundle, cli_runs
from pipeline.terminal import EXIT, ROOMS, Verbose, print_wide, set_logging

log = logging.getLogger(__name__)


class _Guarded(TyperGroup):
    """Turns expected errors into one line, a hint and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        result = None
        with _told() as code:
            result = super().invoke(ctx)
        if code[0]:
            raise typer.Exit(code[0])
        return result


@contextmanager
def _told() -> Iterator[list[int]]:
    """Say what an expected error is; its exit code is in the list afterwards."""
    code = [0]
    try:
        yield code
    except MipkdError as error:
        _say(error.what, error.hint)
        code[0] = error.exit_code
    except KeyboardInterrupt:
        _say("interrupted", "the same command goes on where it was")
        code[0] = 130
    except OSError as error:
        _say(f"{error.filename or 'system'}: {error.strerror or error}", "")
        log.debug("traceback", exc_info=True)
        code[0] = 5


app = typer.Typer(
    cls=_Guarded,
    help="Distil a super-resolution teacher into a student for an edge device, "
    "and prove that speed and quality survived.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Teacher = Annotated[
    Path | None, typer.Option(help="Checkpoint of the teacher: .pth, .pt or .safetensors.")
]
ModelFile = Annotated[
    Path | None,
    typer.Option("--model", help="A finished student (checkpoint or ONNX): nothing is trained."),
]
TargetNames = Annotated[
    str | None, typer.Option("--target", help="Targets, separated by commas: cpu,openvino.")
]
StudentSpec = Annotated[
    str | None, typer.Option("--student", help="Family and size, such as edsr:c32b8.")
]
Data = Annotated[Path | None, typer.Option(help="Folder of HR photos to train on.")]
Val = Annotated[
    Path | None, typer.Option(help="Folder of HR photos, or a set with HR/ and LR_bicubic/X4/.")
]
Precisions = Annotated[
    str | None, typer.Option("--precision", help="Precisions: fp32,bf16,fp16,w8,int8.")
]
Steps = Annotated[int | None, typer.Option(help="Training steps.", min=1)]
LatencyBudget = Annotated[
    float | None, typer.Option(help="Milliseconds, for --student auto: the largest that fits.")
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
    str | None, typer.Option("--device", help="Measure on ssh://[user@]host[:port], not here.")
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file; default ./mipkd.toml when there.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting: distill.lr=2e-4. Repeatable.")
]


@app.command()
def run(
    teacher: Teacher = None,
    model: ModelFile = None,
    target: TargetNames = None,
    student: StudentSpec = None,
    latency_budget: LatencyBudget = None,
    data: Data = None,
    val: Val = None,
    precision: Precisions = None,
    steps: Steps = None,
    scale: Scale = None,
    qat: Qat = None,
    compare: Compare = None,
    device: DeviceAddress = None,
    out: Out = None,
    config: ConfigFile = None,
    sets: Sets = None,
    verbose: Verbose = False,
) -> None:
    """Distil, export, quantise, measure, judge and report. Finished steps are remembered."""
    set_logging(verbose)
    from pipeline.conclude import bundle_folder, conclude, unseen
    from pipeline.config import load
    from pipeline.flow import flow
    from pipeline.report.write import report_folder
    from pipeline.summary import summary

    settings = load(
        _flags(teacher, model, target, student, data, val, precision, steps, scale, out)
        | {
            "fit": {"latency_budget_ms": latency_budget},
            "qat": {"run": qat},
            "compare": _listed(compare),
            "device": {"address": device},
        },
        file=config,
        sets=sets or (),
    )
    here = _run_of(settings)
    if settings.smoke:
        log.warning(
            "smoke run: sample photos stand in for %s; it shows that all works, it is no result",
            "training photos and test images" if not settings.data else "test images",
        )
    with here.locked():
        evidence = conclude(settings, here, flow(settings, here), command=_command())
    print_wide(summary(evidence))
    typer.echo(f"report: {report_folder(here.root) / 'index.html'}")
    typer.echo(f"bundle: {bundle_folder(here.root)}")
    cli_bundle.tell_kits(here.root, unseen(evidence))
    raise typer.Exit(EXIT[evidence.verdict.outcome])


@app.command()
def train(
    arch: Annotated[str, typer.Option(help="Family and size, such as rcan:g10b20.")],
    data: Data = None,
    val: Val = None,
    steps: Steps = None,
    scale: Annotated[int, typer.Option(help="Upscaling factor.", min=2, max=4)] = 4,
    out: Out = None,
    config: ConfigFile = None,
    sets: Sets = None,
    verbose: Verbose = False,
) -> None:
    """Train a net from photos alone: a checkpoint that `run --teacher` takes."""
    set_logging(verbose)
    from pipeline.config import load
    from pipeline.flow import train_flow

    flags = _flags(None, None, None, None, data, val, None, steps, scale, out)
    settings = load(flags, file=config, sets=sets or (), alone=True)
    name = arch.replace(":", "-")
    here = _run_of(settings.model_copy(update={"out": out or Path("runs") / f"{name}-x{scale}"}))
    with here.locked():
        found = train_flow(settings, here, arch)
    made = found.distilled
    typer.echo(f"{made.psnr_y_db:.3f} dB PSNR-Y after {made.steps} steps, {made.seconds:.0f} s")
    typer.echo(f"checkpoint: {found.checkpoint}")


@app.command()
def study(
    teacher: Teacher = None,
    student: StudentSpec = None,
    data: Data = None,
    val: Annotated[
        str | None, typer.Option(help="Test sets, separated by commas; the first validates.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Such as scratch,logits,fakd,mipkd,mipkd+dukd.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each method.", min=1)] = None,
    steps: Steps = None,
    seconds: Annotated[
        float | None, typer.Option(help="Train each arm for so long too, beside equal steps.")
    ] = None,
    scale: Scale = None,
    out: Out = None,
    config: ConfigFile = None,
    sets: Sets = None,
    verbose: Verbose = False,
) -> None:
    """Teach one student in several ways, and say with intervals what each brought."""
    set_logging(verbose)
    from pipeline.config import load
    from pipeline.flow import subject_of
    from pipeline.report.study import table_of
    from pipeline.study import conduct

    flags = _flags(teacher, None, None, student, data, None, None, steps, scale, out)
    flags["study"] = {"methods": _listed(methods), "seeds": seeds, "seconds": seconds}
    tests = [Path(name) for name in _listed(val) or ()]
    if tests:
        flags["val"] = tests[0]
    settings = load(flags, file=config, sets=sets or ())
    here = _run_of(settings.model_copy(update={"out": settings.out or Path("runs/study")}))
    with here.locked():
        found = conduct(
            settings.study,
            settings.distill,
            subject_of(settings, tests or [settings.val]),
            here,
            command=_command(),
        )
    head, rows = table_of(found)
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    print_wide(table)
    typer.echo(f"report: {here.root / 'report' / 'latest' / 'index.html'}")
    raise typer.Exit(7 if found.missing else 0)


@app.command()
def plan(
    teacher: Teacher = None,
    model: ModelFile = None,
    target: TargetNames = None,
    student: StudentSpec = None,
    latency_budget: LatencyBudget = None,
    data: Data = None,
    val: Val = None,
    precision: Precisions = None,
    steps: Steps = None,
    scale: Scale = None,
    qat: Qat = None,
    compare: Compare = None,
    device: DeviceAddress = None,
    out: Out = None,
    config: ConfigFile = None,
    sets: Sets = None,
    verbose: Verbose = False,
) -> None:
    """Say what `run` with the same options would do, what it remembers, and why."""
    set_logging(verbose)
    from pipeline.config import load
    from pipeline.flow import flow

    settings = load(
        _flags(teacher, model, target, student, data, val, precision, steps, scale, out)
        | {
            "fit": {"latency_budget_ms": latency_budget},
            "qat": {"run": qat},
            "compare": _listed(compare),
            "device": {"address": device},
        },
        file=config,
        sets=sets or (),
    )
    here = _run_of(settings, dry=True)
    flow(settings, here)
    for event in here.events:
        verb = "skip" if event.remembered else "run "
        why = ", ".join(filter(None, (event.why, event.note)))
        typer.echo(f"{verb}  {event.stage + ' ' + event.label:<32} {why}")
    todo = sum(not e.remembered for e in here.events)
    typer.echo(f"{todo} of {len(here.events)} steps would run, in {here.root}")


@app.command()
def doctor(
    file: Annotated[Path | None, typer.Argument(help="A checkpoint to identify.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="HR photos or a test set to measure PSNR and SSIM on.")
    ] = None,
    device: DeviceAddress = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    sets: Sets = None,
    verbose: Verbose = False,
) -> None:
    """Without FILE: what this machine can target, or a device. With FILE: what a checkpoint is."""
    set_logging(verbose)
    from pipeline.doctor import examine_checkpoint, examine_machine, machine_printed, printed

    found: dict[str, Any]
    if file and device:
        raise UsageError("doctor: FILE and --device", hint="a checkpoint is looked at here")
    if file:
        found = examine_checkpoint(file, images, sets or ())
    else:
        found = examine_machine(device, sets or ())
    told = printed if file else machine_printed
    typer.echo(json.dumps(found, indent=2) if as_json else told(found))


cli_runs.register(app)
cli_bundle.register(app)


def main() -> None:
    """The console script; under torchrun, every process of it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        app()
        return
    from mipkd.distill import ranks

    with ranks.join_ranks() as mine:
        if mine.rank == 0:
            app()
        set_logging(verbose=False)
        for room in ROOMS:  # the first process tells what all of them do
            logging.getLogger(room).setLevel(logging.ERROR)
        with _told() as code, _said_by_the_first():
            ranks.serve()
        sys.exit(code[0])


@contextmanager
def _said_by_the_first() -> Iterator[None]:
    """Leave quietly where every process meets the same trouble."""
    try:
        yield
    except UsageError as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _say(what: str, hint: str) -> None:
    typer.echo(f"error: {what}", err=True)
    if hint:
        typer.echo(f"hint: {hint}", err=True)


def _flags(
    teacher: Path | None,
    model: Path | None,
    target: str | None,
    student: str | None,
    data: Path | None,
    val: Path | None,
    precision: str | None,
    steps: int | None,
    scale: int | None,
    out: Path | None,
) -> dict[str, Any]:
    return {
        "teacher": teacher,
        "model": model,
        "target": _listed(target),
        "student": student,
        "data": data,
        "val": val,
        "precision": _listed(precision),
        "distill": {"steps": steps},
        "scale": scale,
        "out": out,
    }


def _listed(text: str | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else None


def _run_of(settings: Any, *, dry: bool = False) -> Any:
    from pipeline.run import Run

    given = settings.model or settings.teacher
    return Run((settings.out or Path("runs") / given.stem).resolve(), dry=dry)


def _command() -> str:
    return shlex.join(["mipkd-pipeline", *sys.argv[1:]])
