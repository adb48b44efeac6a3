"""The commands that train and measure: run, plan."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from pipeline.cli import options as o
from pipeline.cli.kits import explain_kits
from pipeline.cli.terminal import EXIT, Verbose, print_wide, say, set_logging

if TYPE_CHECKING:
    from pipeline.config import Config

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
        val: o.Val = None,
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
    from pipeline.publish import bundle_folder, kit_targets
    from pipeline.report.results_file import report_folder

    here = o.open_run(settings, force=force)
    with here.lock():
        evidence = run_pipeline(settings, here, command=o.command_line())
    print_wide(summarize(evidence))
    say(f"report: {report_folder(here.root) / 'index.html'}")
    say(f"bundle: {bundle_folder(here.root)}")
    explain_kits(here.root, kit_targets(evidence))
    raise typer.Exit(EXIT[evidence.verdict.outcome])


@_with_run_options
def plan(settings: Config, force: bool) -> None:
    """Say what `run` with the same options would do, what it remembers, and why."""
    from pipeline.flow import measure_all

    here = o.open_run(settings, force=force, dry=True)
    measure_all(settings, here)
    for event in here.events:
        verb = "skip" if event.remembered else "run "
        why = ", ".join(filter(None, (event.why, event.note)))
        say(f"{verb}  {event.stage + ' ' + event.label:<32} {why}")
    todo = sum(not e.remembered for e in here.events)
    say(f"{todo} of {len(here.events)} steps would run, in {here.root}")
