"""The commands that use and judge bundles: upscale, verify, bench, check."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mipkd.core import codec
from mipkd.core.errors import MissingError, StageError
from mipkd.core.evidence import Outcome
from mipkd.core.texts import write_text
from pipeline.cli.terminal import (
    EXIT,
    PlainConsole,
    Verbose,
    print_wide,
    say,
    say_lines,
    set_logging,
)

if TYPE_CHECKING:
    from pipeline.bundle.timing import Timings

Bundle = Annotated[Path, typer.Argument(help="Folder bundle/ of a finished run.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (upscale, verify, bench, check):
        app.command()(command)


def upscale(
    bundle: Bundle,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder of the results; FILE.png, .webp or .jpg for one picture."
        ),
    ],
    target: Annotated[str | None, typer.Option(help="Default: what the run recommends.")] = None,
    precision: Annotated[str | None, typer.Option(help="Default: what the run recommends.")] = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="png, webp (no pixel is lost) or jpeg (quality 95); default: of --out."
        ),
    ] = None,
    bits: Annotated[
        int, typer.Option(help="Bits a channel, 8 or 16 (PNG alone: before 8 bits are left).")
    ] = 8,
    memory: Annotated[float, typer.Option(help="GiB that the program may hold.", min=0.5)] = 2.0,
    tile: Annotated[
        int | None, typer.Option(help="LR pixels a side of a tile; default: what fits.", min=1)
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Settings of [limits]: limits.seconds=60."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that upscale did not make, too.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Upscale pictures of any size with a bundle's model."""
    set_logging(verbose)
    from rich.progress import Progress

    from pipeline.bundle.trial import limits_with, try_models
    from pipeline.upscale import upscale as work
    from pipeline.upscale.output import choose_output

    output = choose_output(out, file_format, bits, overwrite=overwrite)
    pictures = work.list_pictures(images, output)
    model = work.choose_model(bundle, target, precision)
    try_models(bundle, [model], limits_with(sets or ()))
    say(f"{model.target} {model.precision}, x{model.scale}")
    failed, levels = 0, list[int | None]()
    with Progress(console=PlainConsole(stderr=True), transient=True) as bar:
        task = bar.add_task("rows")
        made = work.upscale_all(
            bundle,
            model,
            pictures,
            output,
            memory_bytes=int(memory * 2**30),
            side=tile,
            notify=lambda done, whole: bar.update(task, completed=done, total=whole),
        )
        for one in made:
            if one.file is None:
                failed += 1
                say(f"FAILED  {one.why}", err=True)
            else:
                rate = one.seconds / one.megapixels
                say(f"{one.file}  {one.seconds:.1f} s, {rate:.2f} s a megapixel")
                levels.append(one.levels)
    if levels:
        seen = [n for n in levels if n is not None]
        say(work.describe_tiles(model, max(seen, default=None)))
    if failed:
        raise StageError(f"upscale: {failed} of {len(pictures)} images failed")


def verify(
    bundle: Bundle,
    sha256: Annotated[
        str | None, typer.Option(help="The seal that it must have, from whoever made it.")
    ] = None,
    signer: Annotated[
        str | None, typer.Option(help="Fail unless this one signed it, such as ann@example.org.")
    ] = None,
    allowed_signers: Annotated[
        Path | None,
        typer.Option(help="Whose keys are whose; default ~/.ssh/allowed_signers, as of OpenSSH."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Settings of [limits]: limits.seconds=60."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Check a bundle's files, then replay its golden images here."""
    set_logging(verbose)
    from pipeline.bundle import manifest
    from pipeline.bundle.trial import limits_with
    from pipeline.cli.sign import tell_signature
    from pipeline.judge.check import check_records, verify_models

    limits = limits_with(sets or ())
    wanted = manifest.read_seal(sha256) if sha256 is not None else ""
    signed = tell_signature(bundle, signer, allowed_signers)  # before all is read
    stated = manifest.read(bundle)
    manifest.check_models(stated)
    wrong = manifest.problems(bundle, stated)
    check_records(bundle, wrong)
    seal = manifest.seal_of(bundle)
    typer.echo(f"seal: {seal}\ncontent: {stated.content or 'not stated by its version'}")
    if wanted not in ("", seal):
        typer.echo(f"SEAL  another bundle: wanted {wanted}\nverify: FAIL")
        raise typer.Exit(EXIT[Outcome.FAIL])
    for problem in wrong:
        why = f": {problem.hint}" if problem.hint else ""
        say(f"{problem.what.upper()}  {problem.file}{why}")
    good = len(stated.files) - sum(problem.file in stated.files for problem in wrong)
    say(f"files: {good} of {len(stated.files)} are as they were written")
    say(signed)
    well, ran = True, 0
    for one, gates in verify_models(bundle, stated, wrong, limits):
        name = f"{one.model.target} {one.model.precision}"
        if one.why_not:
            say(f"not replayed  {name}: {one.why_not}")
            continue
        ran += not one.failed
        faults = [gate for gate in gates if gate.outcome is Outcome.FAIL]
        unsure = [gate for gate in gates if gate.outcome is Outcome.INVALID]
        well = well and not faults
        for gate in (*(faults or gates[:1]), *unsure):
            verb = "FAILED" if one.failed else "DIFFERS" if faults else "same"
            verb = "not known" if gate in unsure else verb
            what = "" if gate.name == "replay" else f"{gate.name}: "
            say(f"{verb}  {name}: {what}{gate.reason}")
    say(f"replayed: {ran} of {len(stated.models)} models on this machine")
    if wrong or not well:
        say("verify: FAIL")
        raise typer.Exit(EXIT[Outcome.FAIL])
    say("verify: PASS")


def bench(
    bundle: Bundle,
    target: Annotated[
        str | None, typer.Option(help="Targets, separated by commas; default all in the bundle.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Measure on ssh://[user@]host or adb:// (a phone), not here.")
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Write all samples into this file.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with a [device].")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Settings of [bench], [device], [limits]: bench.min_time_s=5."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Measure a bundle's models on this machine or on a device."""
    set_logging(verbose)
    from pipeline.bundle import manifest
    from pipeline.bundle.kit import settings_of
    from pipeline.bundle.timing import time_bundle
    from pipeline.bundle.trial import try_asked
    from pipeline.config import load
    from pipeline.machine.base import connect

    stated = manifest.read(bundle)
    wanted = [name.strip() for name in (target or "").split(",") if name.strip()]
    flags = {"bench": codec.encode(settings_of(bundle)), "device": {"address": device}}
    settings = load(flags, file=config, sets=sets or ())
    with connect(settings.device) as machine:
        if not machine.address:
            try_asked(bundle, stated, wanted, settings.limits)
        found = time_bundle(bundle, stated, wanted, settings.bench, machine)
    table = Table("target", "precision", "size MB", "LR", "p50 ms", "p90 ms", "samples")
    for m in found.measurements:
        head = (m.target, m.precision, f"{m.size_bytes / 1e6:.2f}")
        for one in m.latencies:
            doubt = m.invalid_because or one.invalid_because
            table.add_row(*head, f"{one.size[1]}x{one.size[0]}", *_figures(one.samples_s, doubt))
    for failure in found.failures:
        table.add_row(failure.target, failure.precision, "", "", "not measured", "", "")
    print_wide(table)
    say(f"on {found.host.cpu}, {found.host.cores} cores")
    for line in dict.fromkeys(_remarks(found)):
        say(line)
    if as_json:
        write_text(as_json, json.dumps({"schema": 2, **codec.encode(found)}, indent=1))
    if not found.measurements:
        raise MissingError(f"bench: nothing could be measured on {device or 'this machine'}")
    if any(m.doubt for m in found.measurements):
        raise typer.Exit(EXIT[Outcome.INVALID])


def check(
    bundle: Bundle,
    baseline: Annotated[
        Path | None,
        typer.Option(help="An earlier bundle, timed beside this one, or a file of figures."),
    ] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Write the file --baseline anew.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why the baseline changes.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Append a Markdown table.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the gates as test cases.")] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Print annotations for GitHub Actions.")
    ] = False,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Settings of [baseline], [bench], [limits]: baseline.max_loss_db=0.1."
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Judge a bundle by its own gates, and hold it against a baseline."""
    set_logging(verbose)
    from pipeline.cli.summary import gate_line
    from pipeline.judge.check import check as checked
    from pipeline.judge.check import set_baseline
    from pipeline.report import junit as xml
    from pipeline.report import markdown

    if update_baseline:
        say_lines(set_baseline(bundle, baseline, reason))
        return
    found = checked(bundle, sets or (), baseline)
    for problem in found.problems:
        say(f"{problem.what.upper()}  {problem.file}")
    for gate in () if found.problems else found.gates:
        say(f"{gate.outcome.value:<8}{gate_line(gate)}")
    say(f"check: {found.outcome.value}")
    if github:
        typer.echo("\n".join(markdown.github_lines(found.gates)))  # escaped as GitHub reads them
    name = found.manifest.name
    if summary:
        with summary.open("a") as file:
            file.write(markdown.table(name, found.outcome, found.gates))
    if junit:
        write_text(junit, xml.junit(name, found.manifest.created, found.gates))
    raise typer.Exit(EXIT[found.outcome])


def _remarks(found: Timings) -> Iterator[str]:
    """What concerns a target once, what concerns a model by its name."""
    for m in found.measurements:
        if m.doubt:
            yield f"{m.target} {m.precision}: INVALID: {m.doubt}"
        yield from (f"{m.target}: {note}" for note in m.notes)
    yield from (f"{failure.target}: {failure.what}" for failure in found.failures)


def _figures(samples_s: tuple[float, ...], doubt: str) -> tuple[str, str, str]:
    if doubt or not samples_s:
        return "INVALID", "", str(len(samples_s))
    tenths = statistics.quantiles(samples_s, n=10)
    return (
        f"{statistics.median(samples_s) * 1e3:.3f}",
        f"{tenths[-1] * 1e3:.3f}",
        str(len(samples_s)),
    )
