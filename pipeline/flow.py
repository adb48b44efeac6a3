"""From a teacher's checkpoint to measurements on every target: the file to read first.

teacher -> identify -> distill -> export -> calibrate
    -> for each target: search what INT8 leaves float -> build each precision
        -> measure them interleaved, here or on a device
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mipkd.core.errors import MipkdError, MissingError, UnsupportedError, UsageError, nearest
from mipkd.core.images import hash_folder
from mipkd.core.records import (
    Built,
    Distilled,
    Failure,
    Graph,
    Host,
    Measurement,
    Model,
    PatchSet,
    Photos,
    QuantPlan,
    TestSet,
    Told,
)
from pipeline.bench.agent import tell
from pipeline.bench.host import describe_host
from pipeline.config import Config
from pipeline.device.device import Device, reached
from pipeline.run import Means, Ref, Run, Source, hash_file
from pipeline.stages.build import build
from pipeline.stages.calibrate import calibrate
from pipeline.stages.distill import distill
from pipeline.stages.export import adopt, export
from pipeline.stages.fit import fit, largest_within
from pipeline.stages.identify import identify
from pipeline.stages.measure import measure, measure_there
from pipeline.stages.prepare import photos, tests
from pipeline.stages.qat import qat
from pipeline.stages.reference import FP32_ON, reference
from pipeline.stages.search import check_floats, hold_out, search
from pipeline.stages.train import Trained, train
from pipeline.study import Subject
from targets.base import PRECISIONS, QUANTIZED, find, is_tunable

log = logging.getLogger(__name__)

_PROBED = ("fp16", "int8")  # precisions whose ranges are read from the calibration patches


@dataclass(frozen=True)
class Flow:
    """Every step's reference, for the judge and the report."""

    teacher: Ref[Model] | None
    model: Ref[Model] | None  # a finished student that was given
    distilled: Ref[Distilled] | None
    graph: Ref[Graph]
    photos: Ref[Photos]
    tests: Ref[TestSet]
    patches: Ref[PatchSet]
    plans: tuple[Ref[QuantPlan], ...]
    builts: tuple[Ref[Built], ...]
    measured: tuple[Ref[tuple[Measurement, ...]], ...]
    failures: tuple[Failure, ...]
    host: Host


def flow(config: Config, run: Run) -> Flow:
    """Every step of a run, remembered or made; in a dry run, only planned.

    Raises:
        MipkdError: of any step before the targets; a target's own becomes a `Failure`.
    """
    with reached(config.device) as device:
        return _flow(config, run, device)


def _flow(config: Config, run: Run, device: Device | None) -> Flow:
    chosen = _targets(config, device)
    host = describe_host()
    val, data = _folder(config.val), _folder(config.data)

    teacher = _checkpoint(config, run, "teacher", config.teacher, val)
    foreign = config.model is not None and config.model.suffix == ".onnx"
    model = None if foreign else _checkpoint(config, run, "student", config.model, val)
    adopted = run.step(adopt, config.adopt, _file(config.model), val) if foreign else None
    like = teacher or model or adopted
    assert like is not None, "a configuration has a teacher or a model"
    _same_scale(teacher, model or adopted)

    test_set = run.step(tests, None, like, val)
    pixels = run.step(photos, config.distill.patch, like, data)
    patches = run.step(calibrate, config.calibrate, pixels, test_set)
    distilled = None
    if teacher and not config.model:
        student = _student(config, run, teacher, chosen, patches, device)
        distilled = run.step(distill, config.distill, teacher, student, pixels, test_set)
    graph = adopted or run.step(
        export, config.export, distilled or model, teacher, test_set, label="student"
    )
    if graph.record:
        check_floats(config.quantize, graph.record)
    graphs, failures = [graph], list[Failure]()
    if teacher:
        with _row(failures, "onnx", "fp32", "export", "teacher"):
            exported = run.step(export, config.export, teacher, teacher, test_set, label="teacher")
            graphs.append(exported)

    plans = list[Ref[QuantPlan]]()
    fp32_on = find(FP32_ON)
    measured = [run.step(reference, None, graphs, test_set, fp32_on.versions())]
    made = list[Ref[Built]]()
    for told in chosen:
        name, builts = told.target, []
        for label, of, precision in _wanted(config, told, graphs):
            with _row(failures, name, precision, "build", label):
                calibration = patches if precision in _PROBED else None
                plan = None
                if precision == "int8" and _searches(config, told, device):
                    plan = _plan(config, run, told, distilled or model, of, pixels, patches, host)
                    plans.append(plan)
                elif precision == "int8":
                    _tell_left_out(config, name)
                builts.append(
                    run.step(
                        build,
                        precision,
                        name,
                        of,
                        calibration,
                        find(name).versions(),
                        plan,
                        *([told] if device else []),
                        label=f"{name} {label} {precision}",
                    )
                )
        made += builts
        with _row(failures, name, "all", "measure", "student"):
            if device:
                inputs: tuple[Any, ...] = (told, builts, test_set, Means(device))
            else:
                inputs = (name, builts, test_set, told.versions, host)
            stage = measure_there if device else measure
            measured.append(run.step(stage, config.bench, *inputs, label=name))
    return Flow(
        teacher=teacher,
        model=model,
        distilled=distilled,
        graph=graph,
        photos=pixels,
        tests=test_set,
        patches=patches,
        plans=tuple(plans),
        builts=tuple(made),
        measured=tuple(measured),
        failures=tuple(failures),
        host=host,
    )


def train_flow(config: Config, run: Run, spec: str) -> Trained:
    """Train the net that `spec` names from random weights, on photos alone."""
    scale = config.scale or 4
    settings = config.distill.model_copy(update={"method": "scratch", "losses": ()})
    if settings.init == "teacher":
        settings = settings.model_copy(update={"init": "random"})
    test_set = run.step(tests, None, scale, _folder(config.val))
    pixels = run.step(photos, settings.patch, scale, _folder(config.data))
    return run.step(train, settings, spec, scale, pixels, test_set).value


def subject_of(config: Config, tests: Sequence[Path | None]) -> Subject:
    """What a study trains, from the configuration of a run."""
    options = config.identify.model_copy(update={"scale": config.scale or config.identify.scale})
    sets = tuple(_folder(test) for test in tests)
    return Subject(_file(config.teacher), options, config.student, _folder(config.data), sets)


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


def _searches(config: Config, told: Told, device: Device | None) -> bool:
    """What a layer costs on another machine is not known here: there INT8 has a fixed recipe."""
    return config.quantize.search and is_tunable(find(told.target)) and not device


def _plan(
    config: Config,
    run: Run,
    told: Told,
    source: Ref[Distilled] | Ref[Model] | None,
    graph: Ref[Graph],
    pixels: Ref[Photos],
    patches: Ref[PatchSet],
    host: Host,
) -> Ref[QuantPlan]:
    """Which layers stay float on a target, once the student has been made to bear its INT8."""
    held = run.step(hold_out, config.quantize, pixels, config.calibrate.seed)
    name, versions = told.target, told.versions
    tuned = []
    if config.qat.run:
        if source is None:
            raise UnsupportedError(
                f"qat: {config.model} is a graph, which cannot be trained",
                hint="give a checkpoint, or leave out --qat",
            )
        seed = config.calibrate.seed
        trained_on = (name, source, graph, patches, pixels, held, seed, versions)
        tuned.append(run.step(qat, config.qat, *trained_on, label=name))
    searched = (name, graph, patches, held, versions, host, *tuned)
    return run.step(search, config.quantize, *searched, label=name)


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


def _wanted(
    config: Config, told: Told, graphs: Sequence[Ref[Graph]]
) -> Iterator[tuple[str, Ref[Graph], str]]:
    """What to build: the student at every precision asked for, the teacher in the float ones."""
    for precision in config.precision or ():
        if precision not in told.precisions:
            log.warning("%s offers no %s there: left out", told.target, precision)
    asked = _asked(config, told)
    for label, graph in zip(("student", "teacher"), graphs, strict=False):
        for precision in asked:
            if label == "student" or precision not in QUANTIZED:
                yield label, graph, precision


def _asked(config: Config, told: Told) -> tuple[str, ...]:
    return tuple(p for p in config.precision or told.precisions if p in told.precisions)


@contextmanager
def _row(
    failures: list[Failure], target: str, precision: str, stage: str, role: str
) -> Iterator[None]:
    """Turn one target's failure into a row of the report; the others go on."""
    try:
        yield
    except Exception as error:
        what = error.what if isinstance(error, MipkdError) else f"{type(error).__name__}: {error}"
        hint = error.hint if isinstance(error, MipkdError) else ""
        log.error("%s %s: %s failed: %s", target, precision, stage, what)
        log.debug("traceback", exc_info=True)
        failures.append(Failure(target, precision, stage, what, hint, role))


def _checkpoint(
    config: Config, run: Run, role: str, file: Path | None, images: Source | None
) -> Ref[Model] | None:
    if file is None:
        return None
    options = config.identify.model_copy(update={"scale": config.scale}) if config.scale else None
    return run.step(identify, options or config.identify, _file(file), role, images, label=role)


def _same_scale(teacher: Ref[Model] | None, model: Ref[Model] | Ref[Graph] | None) -> None:
    if not (teacher and model and teacher.record and model.record):
        return
    if teacher.record.scale != model.record.scale:
        raise UsageError(
            f"--model: its scale is x{model.record.scale}, the teacher's x{teacher.record.scale}",
            hint="give a teacher and a model of the same scale",
        )


def _file(path: Path | None) -> Source:
    assert path is not None
    if not path.is_file():
        raise UsageError(f"{path}: no such file", hint="check the path of --teacher or --model")
    return Source(path, hash_file(path))


def _folder(path: Path | None) -> Source | None:
    return Source(path, hash_folder(path)) if path else None
