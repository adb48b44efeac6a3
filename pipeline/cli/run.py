"""The commands that train and measure: run, plan."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import typer

from mipkd.core.texts import say_duration
from pipeline.cli import options as o
from pipeline.cli.effect import check_effect
from pipeline.cli.kits import explain_kits
from pipeline.cli.terminal import EXIT, Verbose, print_wide, say, set_logging

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.plan.estimates import Estimate
    from pipeline.plan.timings import Timing
    from pipeline.run import Event

log = logging.getLogger(__name__)


def _with_run_options(work: Callable[[Config, bool], None]) -> Callable[..., None]:
    """A command with the options of a run, under the name and with the help of `work`."""

    def command(
        context: typer.Context,
        teacher: o.Teacher = None,
        model: o.ModelFile = None,
        target: o.TargetNames = None,
        student: o.StudentSpec = None,
        latency_budget: o.LatencyBudget = None,
        size: o.SizeText = None,
        data: o.Data = None,
        demo_data: o.DemoData = None,
        val: o.Val = None,
        lr_only: o.LrOnly = None,
        precision: o.Precisions = None,
        steps: o.Steps = None,
        scale: o.Scale = None,
        qat: o.Qat = None,
        compare: o.Compare = None,
        device: o.DeviceAddress = None,
        out: o.Out = None,
        force: o.Force = False,
        config: o.ConfigFile = None,
        sets: o.Sets = None,
        verbose: Verbose = False,
    ) -> None:
        set_logging(verbose)
        settings = o.load_settings(context.params)
        check_effect(o.settings_of(context.params), settings)
        if settings.smoke:
            log.warning(
                "smoke run: samples of the package stand in for %s; it shows that all works, it "
                "is no result",
                settings.stand_ins,
            )
        work(settings, force)

    command.__name__, command.__doc__ = work.__name__, work.__doc__
    return command


@_with_run_options
def run(settings: Config, force: bool) -> None:
    """Distil, export, quantise, measure, judge and report. Finished steps are remembered."""
    from pipeline.cli.summary import summarize
    from pipeline.flow import run_pipeline
    from pipeline.plan.estimates import note_timings
    from pipeline.plan.timings import open_timings
    from pipeline.publish import bundle_folder, kit_targets
    from pipeline.report.results_file import report_folder
    from pipeline.run_lock import lock_folder

    here = o.open_run(settings, force=force)
    with lock_folder(here.root):
        try:
            evidence = run_pipeline(settings, here, command=o.command_line())
        finally:  # what was done counts, however it ended
            note_timings(settings, here.events, here.receipts(), open_timings())
    print_wide(summarize(evidence))
    say(f"report: {report_folder(here.root) / 'index.html'}")
    say(f"bundle: {bundle_folder(here.root)}")
    explain_kits(here.root, kit_targets(evidence))
    raise typer.Exit(EXIT[evidence.verdict.outcome])


@_with_run_options
def plan(settings: Config, force: bool) -> None:
    """Say what `run` with the same options would do and how long it takes, and why."""
    from pipeline.flow import measure_all
    from pipeline.plan.estimates import estimate
    from pipeline.plan.timings import open_timings

    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        here = o.open_run(settings, force=force, dry=True, scratch=scratch)
        found = measure_all(settings, here)
        sizes = found.images.sizes
        would = estimate(settings, here.events, sizes, open_timings(), scratch)
    say(_say_total(would))
    for number, event in enumerate(here.events):
        took = would.steps.get(number)
        verb, takes = ("run ", _say_step(took)) if took else ("skip", "")
        say(f"{verb}  {event.stage + ' ' + event.label:<32} {takes:>16}  {_say_why(event)}")
    say(f"{len(would.steps)} of {len(here.events)} steps would run, in {here.root}")


def _say_total(would: Estimate) -> str:
    if not would.steps:
        return "nothing to make: all steps are remembered"
    said = f"about {say_duration(would.total_s)}"
    if would.training_s:
        said += f", {say_duration(would.training_s)} of them training"
    if would.peak_bytes:
        said += f"; memory up to {would.peak_bytes / 2**30:.1f} GiB"
    return f"{said}; on this machine, as busy as it is now"


def _say_step(took: Timing) -> str:
    memory = f" {took.peak_bytes / 2**30:.1f} GiB" if took.peak_bytes else ""
    return say_duration(took.seconds) + memory


def _say_why(event: Event) -> str:
    """The files and settings that changed, where that is why."""
    changed = ", ".join(dict.fromkeys(map(str, event.causes))) or event.why
    return ", ".join(filter(None, (changed, event.note)))
