"""The commands that read finished runs: report, history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.cli.terminal import Verbose, print_wide, say, set_logging


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (report, history):
        app.command()(command)


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Of several runs: the page that compares them.")
    ] = Path("comparison.html"),
    verbose: Verbose = False,
) -> None:
    """Write the report of a finished run anew; of several, one page that compares them."""
    set_logging(verbose)
    if len(folders) == 1:
        from pipeline.publish import report_again

        say(f"report: {report_again(folders[0])}")
        return
    from pipeline.report import comparison

    seen = comparison.read(folders)
    found = comparison.table(seen)
    shown = Table(*found.head)
    for row in found.rows:
        shown.add_row(*row.cells)
    print_wide(shown)
    say(f"comparison: {comparison.write_page(seen, out)}")


def history(
    folder: Annotated[Path, typer.Argument(help="The folder that holds runs' folders.")] = Path(
        "runs"
    ),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: a page there.")] = None,
    verbose: Verbose = False,
) -> None:
    """Latency and quality of this machine's runs over time, and where they changed."""
    set_logging(verbose)
    from pipeline.report import history as work

    found = work.read(folder / work.FILE)
    shown = Table("run", "target", "precision", "LR", "runs", "p50 ms", "PSNR-Y dB", "verdict")
    for key, series in work.group_by_series(found).items():
        run, target, precision, size, _, _ = key
        last = series[-1]
        figures = [f"{v:.3f}" if v is not None else "" for v in (last.p50_ms, last.psnr_y_db)]
        shown.add_row(run, target, precision, size, str(len(series)), *figures, last.verdict)
    print_wide(shown)
    for name, line in work.describe_changes(found):
        say(f"changed  {name}: {line}")
    say(f"history: {work.write_page(found, out or folder / 'history.html')}")
