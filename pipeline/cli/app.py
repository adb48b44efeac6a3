"""The command line: options in, one clear line on trouble, exit codes out.

0 pass; 2 usage or config; 3 unsupported model; 4 this machine lacks something;
5 a stage failed; 6 a gate failed; 7 invalid or inconclusive; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mipkd.core.errors import MipkdError, StageError, UsageError
from pipeline.cli import bundle, doctor, kits, run, runs, sign, study, upscale
from pipeline.cli.examples import add_examples
from pipeline.cli.terminal import ROOMS, print_any_name, say, set_logging

log = logging.getLogger(__name__)


# Of click, which newer typers bring along under a name of their own.
_CommandLineError: Any = typer.BadParameter.__base__


class _Guarded(TyperGroup):
    """Turns expected errors into one line, a hint and an exit code."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        print_any_name()
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except _CommandLineError as error:
            code = _say_usage(error)
        except typer.Abort:
            _say("aborted", "")
            code = 1
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code

    def invoke(self, ctx: Any) -> Any:
        result = None
        with _say_errors() as code:
            result = super().invoke(ctx)
        if code[0]:
            raise typer.Exit(code[0])
        return result


@contextmanager
def _say_errors() -> Iterator[list[int]]:
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
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        from pipeline.origin import commit, program_version

        made = commit()
        typer.echo(f"mipkd-pipeline {program_version()}" + (f" ({made})" if made else ""))
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """What stands before any command."""


for command in (run.run, study.train, study.study, run.plan, doctor.doctor, doctor.schema):
    app.command()(command)
runs.register(app)
upscale.register(app)
bundle.register(app)
kits.register(app)
sign.register(app)
add_examples(app)


def main() -> None:
    """The console script; under torchrun, every process of it."""
    print_any_name()
    with _report_bugs():
        _start()


def _start() -> None:
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
        with _say_errors() as code, _silent_repeats():
            ranks.serve()
        sys.exit(code[0])


@contextmanager
def _report_bugs() -> Iterator[None]:
    """The last net: an error that is nobody's but ours, as one line; the details in a file."""
    try:
        yield
    except Exception as error:  # what was foreseen has been said
        first = next(iter(str(error).splitlines()), "")
        what = f"{type(error).__name__}: {first}".rstrip(": ")
        _say(f"a bug of mipkd-pipeline: {what}", f"please report it, with {_keep_details()}")
        sys.exit(StageError.exit_code)


def _keep_details() -> str:
    """The file that holds the traceback being handled; it is printed where none can be written."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="mipkd-bug-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as file:
            file.write(" ".join(sys.argv) + "\n\n" + traceback.format_exc())
    except OSError:
        traceback.print_exc()
        return "the lines above"
    return file.name


@contextmanager
def _silent_repeats() -> Iterator[None]:
    """Leave quietly where every process meets the same trouble."""
    try:
        yield
    except UsageError as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _say_usage(error: Any) -> int:
    """Say what the command line got wrong; a command without words shows its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        path = error.ctx.command_path if error.ctx else "mipkd-pipeline"
        _say(error.format_message(), f"see {path} --help")
    return int(error.exit_code)


def _say(what: str, hint: str) -> None:
    say(f"error: {what}", err=True)
    if hint:
        say(f"hint: {hint}", err=True)
