"""The commands that only train: train, study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.cli import options as o
from pipeline.cli.terminal import Verbose, print_wide, say, set_logging


def train(
    context: typer.Context,
    arch: Annotated[str, typer.Option(help="Family and size, such as rcan:g10b20.")],
    data: o.Data = None,
    demo_data: o.DemoData = None,
    val: o.Val = None,
    steps: o.Steps = None,
    scale: Annotated[int, typer.Option(help="Upscaling factor.", min=2, max=4)] = 4,
    out: o.Out = None,
    force: o.Force = False,
    config: o.ConfigFile = None,
    sets: o.Sets = None,
    verbose: Verbose = False,
) -> None:
    """Train a net from photos alone: a checkpoint that `run --teacher` takes."""
    set_logging(verbose)
    from pipeline.flow import train_from_photos
    from pipeline.run_lock import lock_folder

    settings = o.load_settings(context.params, alone=True)
    default = Path("runs") / f"{arch.replace(':', '-')}-x{scale}"
    here = o.open_run(settings.model_copy(update={"out": out or default}), force=force)
    with lock_folder(here.root):
        found = train_from_photos(settings, here, arch)
    net = found.distilled
    say(f"{net.psnr_y_db:.3f} dB PSNR-Y after {net.steps} steps, {net.seconds:.0f} s")
    say(f"checkpoint: {found.checkpoint}")


def study(
    context: typer.Context,
    teacher: o.Teacher = None,
    student: o.StudentSpec = None,
    data: o.Data = None,
    demo_data: o.DemoData = None,
    val: Annotated[
        str | None, typer.Option(help="Test sets, separated by commas; the first validates.")
    ] = None,
    lr_only: o.LrOnly = None,
    methods: Annotated[
        str | None, typer.Option(help="Such as scratch,logits,fakd,mipkd,mipkd+dukd.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each method.", min=1)] = None,
    steps: o.Steps = None,
    seconds: Annotated[
        float | None, typer.Option(help="Train each arm for so long too, beside equal steps.")
    ] = None,
    scale: o.Scale = None,
    out: o.Out = None,
    force: o.Force = False,
    config: o.ConfigFile = None,
    sets: o.Sets = None,
    verbose: Verbose = False,
) -> None:
    """Teach one student in several ways, and say with intervals what each brought."""
    set_logging(verbose)
    from pipeline.inputs import study_subject
    from pipeline.preflight import require_photos
    from pipeline.report.study import table_of
    from pipeline.run_lock import lock_folder
    from pipeline.study import run_study

    tests = [Path(name) for name in o.split_list(val, "--val") or ()]
    settings = o.load_settings(context.params | {"val": tests[0] if tests else None})
    require_photos(settings, "students are trained on photos like those they will see")
    settings = settings.model_copy(update={"out": settings.out or Path("runs/study")})
    here = o.open_run(settings, force=force)
    with lock_folder(here.root):
        subject = study_subject(settings, tests or [settings.val])
        found = run_study(settings.study, settings.distill, subject, here, command=o.command_line())
    head, rows = table_of(found)
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    print_wide(table)
    say(f"report: {here.root / 'report' / 'latest' / 'index.html'}")
    raise typer.Exit(7 if found.missing else 0)
