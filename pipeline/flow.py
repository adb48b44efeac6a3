"""From a teacher's checkpoint to a verdict, a report and a bundle: the file to read first.

teacher -> identify -> distill -> export -> calibrate
    -> for each target: search what INT8 leaves float -> build each precision
        -> measure them interleaved, on whichever machine
    -> judge -> report -> bundle
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mipkd.core.evidence import Evidence
from mipkd.distill import student as students
from pipeline import preflight, publish
from pipeline.bench.distillation_gain import is_rival
from pipeline.bench.host import describe_host
from pipeline.config import Config
from pipeline.contenders import (
    Baseline,
    Contender,
    identify_baselines,
    parse_baselines,
    train_and_export,
)
from pipeline.context import RunContext, choose_targets
from pipeline.inputs import Images, choose_patches, identify_nets, prepare_images
from pipeline.lr_only import check_without_teacher, find_lr_only
from pipeline.machine.base import connect
from pipeline.on_target import Measured, OnTarget
from pipeline.receipts import hash_file
from pipeline.reference_net import FP32_ON
from pipeline.run import Run
from pipeline.stage import Ref, Source
from pipeline.stages.perceive import Perceived, PerceiveInputs, perceive
from pipeline.stages.reference import ReferenceInputs, reference
from pipeline.stages.train import Trained, TrainInputs, train
from targets.base import find


def run_pipeline(config: Config, run: Run, *, command: str) -> Evidence:
    """Make, measure, judge and publish a student; what was made before is remembered.

    Raises:
        MipkdError: of any step before the targets; a target's own, and what is a baseline's alone,
            becomes a `Failure`.
    """
    return publish.judge_and_publish(config, run, measure_all(config, run), command=command)


def measure_all(config: Config, run: Run) -> publish.Found:
    """Every step up to the measurements, remembered or made; in a dry run, only planned."""
    baselines = parse_baselines(config)
    if config.student not in (None, "auto"):
        students.check_family(str(config.student), "--student")
    with connect(config.device) as machine:
        targets = choose_targets(config, machine)
        on = RunContext(config, run, machine, describe_host(), targets, find_lr_only(config))
        preflight.check_targets(on)
        return _measure_all(on, baselines)


def _measure_all(on: RunContext, asked: Sequence[Baseline]) -> publish.Found:
    nets = identify_nets(on)
    baselines = list(identify_baselines(on, asked, nets))
    preflight.check_trainings(on, nets, asked)
    images = prepare_images(on.config, on.run, nets, on.lr_only, on.config.distill.patch)
    patches = choose_patches(on, images)
    contenders = train_and_export(on, nets, images, patches, baselines)

    graphs = ReferenceInputs(tuple(one.graph for one in contenders if one.graph), images.tests)
    references = on.run.step(reference, graphs, depends_on=find(FP32_ON).versions())
    targets = []
    for info in on.targets:
        here = OnTarget(on, info, images, patches, nets.teacher)
        here.build(contenders)
        here.measure()
        targets.append(here)
    measured = (references, *(one for here in targets for one in here.measured))
    student, *others = (_with_plans(one, targets) for one in contenders)
    return publish.Found(
        teacher=nets.teacher,
        student=student,
        baselines=tuple(one for one in others if is_rival(one.name)),
        images=images,
        patches=patches,
        builts=tuple(built for here in targets for _, built in here.builts),
        measured=measured,
        perceived=tuple(_perceive(on, measured, images)),
        failures=tuple(on.failures),
        host=on.host,
    )


def _perceive(
    on: RunContext, measured: tuple[Measured, ...], images: Images
) -> Iterator[Ref[tuple[Perceived, ...]]]:
    """Metrics by a net's features, of the outputs that were kept, where weights were given."""
    for name, file in on.config.metrics.weights.items():
        inputs = PerceiveInputs(name, Source(file, hash_file(file)), measured, images.tests)
        yield on.run.step(perceive, inputs, label=name)


def _with_plans(one: Contender, targets: Sequence[OnTarget]) -> Contender:
    plans = (here.plans.get(one.name) for here in targets)
    return replace(one, plans=tuple(plan for plan in plans if plan))


def train_from_photos(config: Config, run: Run, spec: str) -> Trained:
    """Train the net that `spec` names from random weights, on photos alone."""
    students.check_family(spec, "--arch")
    preflight.require_photos(config, "a net is trained on photos like those it will see")
    scale = config.scale or 4
    settings = config.distill.model_copy(update={"method": "scratch", "losses": ()})
    if settings.init in ("project", "inherit"):
        settings = settings.model_copy(update={"init": "random"})
    lr_only = find_lr_only(config)
    check_without_teacher(config, lr_only)
    images = prepare_images(config, run, scale, lr_only, settings.patch)
    inputs = TrainInputs(settings, spec, scale, images.photos, images.tests)
    return run.step(train, inputs).value
