"""The commands that measure on a device out of reach: kit, collect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.bundle import Bundle
from pipeline.cli.terminal import EXIT, Verbose, print_wide, say, say_lines, set_logging


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (kit, collect):
        app.command()(command)


def kit(
    bundle: Bundle,
    target: Annotated[str, typer.Option(help="The target whose models go along.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default kit-TARGET.pyz here.")
    ] = None,
    swift: Annotated[
        bool, typer.Option("--swift", help="A Swift package for a Mac or iPhone, in a folder.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Make one file that measures on a device out of reach."""
    set_logging(verbose)
    from pipeline.bundle.kit import kit_name, make_kit

    if swift:
        _make_swift_kit(bundle, target, out)
        return
    made = make_kit(bundle, target, out or Path(kit_name(target)))
    say(f"kit: {made.file} ({made.file.stat().st_size / 1e6:.1f} MB)")
    say(f"models: {', '.join(made.models)}; {made.images} images")
    if not made.whole:
        say("the run is not beside the bundle: golden images only, and no teacher")
    say_lines(three_steps(made.file, bundle.resolve().parent if made.whole else None))


def _make_swift_kit(bundle: Path, target: str, out: Path | None) -> None:
    from pipeline.bundle.kit import kit_name
    from pipeline.bundle.swift_kit import make_swift_kit

    made = make_swift_kit(bundle, target, out or Path(kit_name(target)).with_suffix(""))
    say(f"kit: {made.file}")
    say(f"models: {', '.join(made.models)}; {made.images} images")
    if not made.whole:
        say("the run is not beside the bundle: golden images only, and no teacher")
    say(f"on a Mac: cd {made.file.name}; swift run -c release measure")
    say("on an iPhone: README.md in it")
    back = _short(bundle.resolve().parent) if made.whole else "RUN"
    say(f"here again: mipkd-pipeline collect results.zip {back}")


def collect(
    results: Annotated[Path, typer.Argument(help="results.zip that a kit wrote.")],
    run: Annotated[Path, typer.Argument(help="Folder of the run that the kit is of.")],
    verbose: Verbose = False,
) -> None:
    """Take a kit's results into its run; judge and report anew."""
    set_logging(verbose)
    from pipeline.cli.summary import summarize
    from pipeline.publish import bundle_folder
    from pipeline.publish import collect as collected
    from pipeline.report.results_file import report_folder

    brought, evidence = collected(results, run)
    host = next(m.host for m in brought.measurements if m.host)
    print_wide(summarize(evidence))
    how = "ran emulated on" if host.emulated else "measured on"
    say(f"{brought.target}: {how} {host.cpu}, {host.cores} cores ({host.system})")
    say(f"report: {report_folder(run) / 'index.html'}")
    say(f"bundle: {bundle_folder(run)}")
    raise typer.Exit(EXIT[evidence.verdict.outcome])


def explain_kits(run: Path, targets: list[str]) -> None:
    """Which targets of a run were not measured, and how their devices can do it."""
    from pipeline.bundle.kit import kit_name

    for target in targets:
        say(f"{target} was not measured on the device. To measure it there:")
        say_lines(three_steps(run / kit_name(target), run))
        if target.partition(":")[0] == "coreml":
            asked = f"{_short(run / 'bundle')} --target {target} --swift"
            say(f"  or without Python there: mipkd-pipeline kit {asked}")


def three_steps(kit: Path, run: Path | None) -> str:
    """How a kit's figures come back, as commands."""
    copy, there = f"scp {_short(kit)} USER@DEVICE:", f"python3 {kit.name}"
    back = f"mipkd-pipeline collect results.zip {_short(run) if run else 'RUN'}"
    width = max(map(len, (copy, there, back)))
    return (
        f"  {copy:<{width}}  # or by any other way\n"
        f"  {there:<{width}}  # there; writes results.zip\n"
        f"  {back:<{width}}  # here again, with that file"
    )


def _short(path: Path) -> str:
    """From the working folder where it lies below it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
