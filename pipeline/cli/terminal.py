"""What every command shares on a terminal: exit codes of verdicts, `--verbose`, logging."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.logging import RichHandler

from mipkd.core.evidence import Outcome

_WIDTH = 130  # of tables where the terminal is narrower or none
ROOMS = ("pipeline", "mipkd", "targets", "calibration")
EXIT = {Outcome.PASS: 0, Outcome.FAIL: 6, Outcome.INVALID: 7}
COLOURS = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.INVALID: "yellow"}

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell more, tracebacks included.")]


def set_logging(verbose: bool) -> None:
    """Our messages on stderr; those of libraries only when they matter."""
    handler = RichHandler(
        console=Console(stderr=True), show_path=verbose, log_time_format="%H:%M:%S", markup=False
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    for room in ROOMS:
        logging.getLogger(room).setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        warnings.simplefilter("ignore")  # of libraries; ours are logged


def print_any_name() -> None:
    """Let names of files be printed that are no text in the terminal's encoding: as \\udce9."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_wide(what: RenderableType) -> None:
    """A table, as wide as it should be also where the terminal is narrow or none."""
    console = Console()
    Console(width=max(console.width, _WIDTH)).print(what)
