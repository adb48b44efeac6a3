"""The command that looks: doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mipkd.core.errors import UsageError
from pipeline.cli import options as o
from pipeline.cli.terminal import Verbose, set_logging


def doctor(
    file: Annotated[Path | None, typer.Argument(help="A checkpoint to identify.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="HR photos or a test set to measure PSNR and SSIM on.")
    ] = None,
    device: o.DeviceAddress = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    sets: o.Sets = None,
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
    render = printed if file else machine_printed
    typer.echo(json.dumps(found, indent=2) if as_json else render(found))
