"""From a teacher's checkpoint to measurements on every target: the file to read first.

teacher -> identify -> distill -> export -> calibrate
    -> for each target: search what INT8 leaves float -> build each precision
        -> measure them interleaved, here or on a device
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mipkd.core.errors import MissingError, UnsupportedError, UsageError, nearest
from mipkd.core.evidence import Failure
from mipkd.core.measurement import Host, Measurement
from mipkd.core.records import (
    Built,
    Model,
    PatchSet,
    Photos,
    QuantPlan,
    TeacherCache,
    TestSet,
    Told,
)
from pipeline import caching
from pipeline.bench.agent import tell
from pipeline.bench.distillation_gain import is_rival
from pipeline.bench.host import describe_host
from pipeline.config import Config
from pipeline.device.device import Device, reached
from pipeline.entrants import Entrant, Named, entered, made, named, tell_of_budget
from pipeline.given import check_scale, checkpoint, file_of, folder_of, is_graph
from pipeline.given import graph as graph_of
from pipeline.rows import row
from pipeline.run import Means, Ref, Run
from pipeline.stages.build import build
from pipeline.stages.calibrate import calibrate
from pipeline.stages.distill import distill
from pipeline.stages.export import export
from pipeline.stages.fit import fit, largest_within
from pipeline.stages.hold_out import hold_out
from pipeline.stages.keep_apart import keep_apart
from pipeline.stages.measure import measure, measure_there
from pipeline.stages.prepare import photos, tests
from pipeline.stages.qat import qat
from pipeline.stages.reference import FP32_ON, reference
from pipeline.stages.search import check_floats, search
from pipeline.stages.train import Trained, train
from pipeline.study import Subject
from targets.base import PRECISIONS, QUANTIZED, find, is_teachable, is_tunable

log = logging.getLogger(__name__)

_PROBED = ("fp16", "int8")  # precisions whose ranges are read from the calibration patches


@dataclass(frozen=True)
class Flow:
    """Every step's reference, for the judge and the report."""

    teacher: Ref[Model] | None
    student: Entrant
    rivals: tuple[Entrant, ...]
    photos: Ref[Photos]
    tests: Ref[TestSet]
    patches: Ref[PatchSet]
    builts: tuple[Ref[Built], ...]
    measured: tuple[Ref[tuple[Measurement, ...]], ...]
    failures: tuple[Failure, ...]
    host: Host


def flow(config: Config, run: Run) -> Flow:
    """Every step of a run, remembered or made; in a dry run, only planned.

    Raises:
        MipkdError: of any step before the targets; a target's own, and what is a rival's alone,
            becomes a `Failure`.
    """
    rivals = named(config)
    with reached(config.device) as device:
        return _flow(config, run, rivals, device)


def _flow(config: Config, run: Run, rivals: Sequence[Named], device: Device | None) -> Flow:
    chosen = _targets(config, device)
    host = describe_host()
    val, data = folder_of(config.val), folder_of(config.data)

    teacher = checkpoint(config, run, "teacher", config.teacher, val, label="teacher")
    foreign = is_graph(config.model)
    file = None if foreign else config.model
    model = checkpoint(config, run, "student", file, val, label="student")
    adopted = graph_of(config, run, config.model if foreign else None, val)
    like = teacher or model or adopted
    assert like is not None, "a configuration has a teacher or a model"
    check_scale("--model", model or adopted, teacher)
    if config.qat.run and config.qat.taught_by == "teacher" and not teacher:
        raise UsageError(
            "qat.taught_by: there is no teacher", hint="give --teacher, or let it teach itself"
        )
    entries = list(entered(config, run, rivals, val, like))

    test_set = run.step(tests, None, like, val)
    pixels = run.step(photos, config.distill.patch, like, data)
    run.step(keep_apart, None, pixels, [test_set])
    patches = run.step(calibrate, config.calibrate, pixels)
    distilled, spec, caches = None, None, dict[str, Ref[TeacherCache] | None]()
    if teacher and not config.model:
        spec = _student(config, run, teacher, chosen, patches, device)
        taught = {one.name: one.taught for one in rivals if one.taught}
        subject = caching.Subject(run, teacher, spec, pixels, test_set)
        caches = caching.keep_teacher(subject, {"student": config.distill, **taught})
        trained_on = (teacher, spec, pixels, test_set, caches["student"])
        distilled = run.step(distill, config.distill, *trained_on)
    graph = adopted or run.step(
        export, config.export, distilled or model, teacher, test_set, label="student"
    )
    if graph.record:
        check_floats(config.quantize, graph.record)
    nets, failures = [Entrant("student", distilled, model, graph)], list[Failure]()
    for entry in entries:
        nets.append(made(config, run, entry, spec, teacher, pixels, test_set, caches, failures))
        tell_of_budget(nets[0], nets[-1])
    if teacher:
        with row(failures, "onnx", "fp32", "export", "teacher"):
            exported = run.step(export, config.export, teacher, teacher, test_set, label="teacher")
            nets.append(Entrant("teacher", model=teacher, graph=exported))

    plans: dict[str, list[Ref[QuantPlan]]] = {net.name: [] for net in nets}
    graphs = [net.graph for net in nets if net.graph]
    measured = [run.step(reference, None, graphs, test_set, find(FP32_ON).versions())]
    builts = list[Ref[Built]]()
    for told in chosen:
        name, here = told.target, list[tuple[str, Ref[Built]]]()
        for net, precision in _wanted(config, told, nets):
            with row(failures, name, precision, "build", net.name):
                plan = None
                if precision == "int8" and _plans(config, told, device):
                    plan = _plan(config, run, told, net, teacher, pixels, patches, host)
                    plans[net.name].append(plan)
                elif precision == "int8" and net.name == "student":
                    _tell_left_out(config, name)
                made_of = (net.graph, patches if precision in _PROBED else None)
                inputs = (*made_of, find(name).versions(), plan, *([told] if device else []))
                label = f"{name} {net.name} {precision}"
                here.append(
                    (net.name, run.step(build, config.build, precision, name, *inputs, label=label))
                )
        builts += [built for _, built in here]
        measured += _measured(config, run, told, here, test_set, host, device, failures)
    nets = [replace(net, plans=tuple(plans[net.name])) for net in nets]
    return Flow(
        teacher=teacher,
        student=nets[0],
        rivals=tuple(net for net in nets if is_rival(net.name)),
        photos=pixels,
        tests=test_set,
        patches=patches,
        builts=tuple(builts),
        measured=tuple(measured),
        failures=tuple(failures),
        host=host,
    )


def _measured(
    config: Config,
    run: Run,
    told: Told,
    builts: Sequence[tuple[str, Ref[Built]]],
    test_set: Ref[TestSet],
    host: Host,
    device: Device | None,
    failures: list[Failure],
) -> list[Ref[tuple[Measurement, ...]]]:
    """All of a target's models in one job; if that fails, once more without the rivals."""

    def measure_(some: Sequence[Ref[Built]]) -> Ref[tuple[Measurement, ...]]:
        if device:
            inputs: tuple[Any, ...] = (told, some, test_set, Means(device))
        else:
            inputs = (told.target, some, test_set, told.versions, host)
        stage = measure_there if device else measure
        return run.step(stage, config.bench, *inputs, label=told.target)

    rivals = list(dict.fromkeys(role for role, _ in builts if is_rival(role)))
    if rivals:
        trouble = list[Failure]()
        with row(trouble, told.target, "all", "measure", ", ".join(rivals)):
            return [measure_([built for _, built in builts])]
        failures += [replace(trouble[0], role=rival) for rival in rivals]
    with row(failures, told.target, "all", "measure", "student"):
        return [measure_([built for role, built in builts if not is_rival(role)])]
    return []


def train_flow(config: Config, run: Run, spec: str) -> Trained:
    """Train the net that `spec` names from random weights, on photos alone."""
    scale = config.scale or 4
    settings = config.distill.model_copy(update={"method": "scratch", "losses": ()})
    if settings.init in ("project", "inherit"):
        settings = settings.model_copy(update={"init": "random"})
    test_set = run.step(tests, None, scale, folder_of(config.val))
    pixels = run.step(photos, settings.patch, scale, folder_of(config.data))
    run.step(keep_apart, None, pixels, [test_set])
    return run.step(train, settings, spec, scale, pixels, test_set).value


def subject_of(config: Config, tests: Sequence[Path | None]) -> Subject:
    """What a study trains, from the configuration of a run."""
    options = config.identify.model_copy(update={"scale": config.scale or config.identify.scale})
    sets = tuple(folder_of(test) for test in tests)
    return Subject(file_of(config.teacher), options, config.student, folder_of(config.data), sets)


def _student(
    config: Config,
    run: Run,
    teacher: Ref[Model],
    on: Sequence[Told],
    patches: Ref[PatchSet],
    device: Device | None,
) -> str | None:
    """The student that was asked for; "auto" is the largest within the budget on all targets."""
    if config.student != "auto":
        return config.student
    if config.fit.latency_budget_ms is None:
        raise UsageError(
            "--student auto: no latency budget", hint="give --latency-budget in milliseconds"
        )
    host = describe_host()
    tried = [
        run.step(
            fit,
            config.fit,
            told.target,
            _asked(config, told),
            teacher,
            patches,
            find(told.target).versions(),
            host,
            *([told, Means(device)] if device else []),
            label=told.target,
        )
        for told in on
    ]
    if any(one.record is None for one in tried):
        return None  # only planned: which one it will be is not known
    spec = largest_within(config.fit, [one.value for one in tried])
    log.info("student: %s, the largest within %g ms", spec, config.fit.latency_budget_ms)
    return spec


def _tell_left_out(config: Config, target: str) -> None:
    """What was asked for and INT8 by a fixed recipe does not heed."""
    asked = {"--qat": config.qat.run, "quantize.float": bool(config.quantize.float)}
    if left := [name for name, wanted in asked.items() if wanted]:
        log.warning("%s: INT8 by its fixed recipe leaves out %s", target, " and ".join(left))


def _plans(config: Config, told: Told, device: Device | None) -> bool:
    """Whether floats are searched, or a student is trained for a fixed recipe.

    What a layer costs on another machine is not known here: there INT8 has a fixed recipe.
    """
    target = find(told.target)
    searched = config.quantize.search and is_tunable(target) and not device
    return searched or (config.qat.run and is_teachable(target))


def _plan(
    config: Config,
    run: Run,
    told: Told,
    net: Entrant,
    teacher: Ref[Model] | None,
    pixels: Ref[Photos],
    patches: Ref[PatchSet],
    host: Host,
) -> Ref[QuantPlan]:
    """Which layers stay float on a target, once the net has been made to bear its INT8."""
    assert net.graph is not None, "what is built has a graph"
    if net.graph.record:
        check_floats(config.quantize, net.graph.record)
    label = f"{told.target} {net.name}" if is_rival(net.name) else told.target
    held = run.step(hold_out, config.quantize.holdout, pixels, config.calibrate.seed)
    name, versions = told.target, told.versions
    tuned = []
    if config.qat.run:
        if net.source is None:
            raise UnsupportedError(
                f"qat: the {net.name} came as a graph, which cannot be trained",
                hint="give a checkpoint, or leave out --qat",
            )
        taught_by = teacher if config.qat.taught_by == "teacher" else None
        trained_on = (net.source, taught_by, net.graph, patches, pixels, held)
        settled = (config.quantize.size, config.calibrate.seed, versions)
        tuned.append(run.step(qat, config.qat, name, *trained_on, *settled, label=label))
    searched = (name, net.graph, patches, held, versions, host, *tuned)
    return run.step(search, config.quantize, *searched, label=label)


def _targets(config: Config, device: Device | None) -> list[Told]:
    """The targets asked for, or those of the machine's CPU when none is named.

    Raises:
        UsageError: an unknown target or precision.
        MissingError: a target that was asked for cannot run there, before any work is lost.
    """
    where = f" on {device.address}" if device else ""
    if config.target is None:
        usual = [told for told in _told(("cpu", "openvino"), device) if not told.why_not]
        if device and not usual:
            raise MissingError(
                f"neither cpu nor openvino can run{where}",
                hint=f"see what can: mipkd-pipeline doctor --device {device.address}",
            )
        return usual
    for precision in config.precision or ():
        if precision not in PRECISIONS:
            raise UsageError(
                f"--precision: unknown name {precision!r}", hint=nearest(precision, PRECISIONS)
            )
    chosen = _told(config.target, device)
    for told in chosen:
        if told.why_not:
            raise MissingError(f"target {told.target}{where}: {told.why_not}")
    return chosen


def _told(names: Sequence[str], device: Device | None) -> list[Told]:
    """What the machine that will measure tells of each target."""
    targets = [find(name) for name in names]
    if not device:
        return [tell(target) for target in targets]
    found = device.probe(names)
    return [found[name] for name in names]


def _wanted(config: Config, told: Told, nets: Sequence[Entrant]) -> Iterator[tuple[Entrant, str]]:
    """What to build: students at every precision asked for, the teacher in the float ones."""
    for precision in config.precision or ():
        if precision not in told.precisions:
            log.warning("%s offers no %s there: left out", told.target, precision)
    asked = _asked(config, told)
    for net in (net for net in nets if net.graph):
        for precision in asked:
            if net.name != "teacher" or precision not in QUANTIZED:
                yield net, precision


def _asked(config: Config, told: Told) -> tuple[str, ...]:
    return tuple(p for p in config.precision or told.precisions if p in told.precisions)
