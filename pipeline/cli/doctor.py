"""The commands that look: doctor at machine and checkpoint, schema at the settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mipkd.core.errors import UsageError
from pipeline.cli import options as o
from pipeline.cli.terminal import Verbose, say_lines, set_logging

if TYPE_CHECKING:
    from pipeline.machine.base import DeviceConfig


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
    from pipeline import doctor

    if file and device:
        raise UsageError("doctor: FILE and --device", hint="a checkpoint is looked at here")
    if file:
        found = doctor.examine_checkpoint(file, images, sets or ())
    else:
        found = doctor.examine_machine(_load_device(device, sets or ()))
    render = doctor.describe if file else doctor.describe_machine
    say_lines(json.dumps(found, indent=2) if as_json else render(found))
    if file:
        doctor.check_quality(found, sets or ())


def schema() -> None:
    """Print the JSON schema of mipkd.toml: every setting, its default and its range.

    Editors that know TOML complete and check by it: `#:schema mipkd.schema.json` in the first line.
    """
    from pipeline.config_schema import config_schema

    typer.echo(config_schema(), nl=False)


def _load_device(address: str | None, sets: Sequence[str]) -> DeviceConfig | None:
    """None without an address: this machine, whatever a `mipkd.toml` here names."""
    if address is None:
        return None
    from pipeline.config import load

    return load({"device": {"address": address}}, sets=sets).device
