"""What every command shares on a terminal: exit codes of verdicts, `--verbose`, logging.

All that is printed goes through `say`, `print_wide` or the log: they escape what comes from
outside, so that a name or a licence neither steers the terminal nor passes for a line of ours.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.segment import Segment
from rich.text import Text

from mipkd.core.evidence import Outcome
from mipkd.core.names import printable

_WIDTH = 130  # of tables where the terminal is narrower or none
ROOMS = ("pipeline", "mipkd", "targets", "calibration")
EXIT = {Outcome.PASS: 0, Outcome.FAIL: 6, Outcome.INVALID: 7}
COLOURS = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.INVALID: "yellow"}

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell more, tracebacks included.")]


class PlainConsole(Console):
    """A console that takes no text for markup and escapes what would steer the terminal."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """A cell of a table or its title, before its width is measured."""
        return super().render_str(printable(text), **settings)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for one in super().render(renderable, options):
            yield one if one.control else Segment(printable(one.text, keep="\n"), one.style)


class _OneLine(logging.Formatter):
    """A message as one line; the traceback of `--verbose` keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(record.message)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return printable(super().formatException(ei), keep="\n")


def set_logging(verbose: bool) -> None:
    """Our messages on stderr; those of libraries only when they matter."""
    handler = RichHandler(
        console=PlainConsole(stderr=True),
        show_path=verbose,
        log_time_format="%H:%M:%S",
        markup=False,
    )
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for room in ROOMS:
        logging.getLogger(room).setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        warnings.simplefilter("ignore")  # of libraries; ours are logged


def print_any_name() -> None:
    """Let names of files be printed that are no text in the terminal's encoding: as \\udce9."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str, *, err: bool = False) -> None:
    """Print one line, whatever is in it.

    One that begins as GitHub's workflow commands do would be taken for one.
    """
    shown = printable(line)
    if shown.lstrip().startswith(("::", "##[")):
        shown = "\\" + shown
    typer.echo(shown, err=err)


def say_lines(text: str) -> None:
    """Print lines of ours; what is from outside in them has no line ends of its own."""
    for line in text.split("\n"):
        say(line)


def print_wide(what: RenderableType) -> None:
    """A table, as wide as it should be also where the terminal is narrow or none."""
    console = PlainConsole()
    PlainConsole(width=max(console.width, _WIDTH)).print(what)
