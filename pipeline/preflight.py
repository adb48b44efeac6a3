"""What a run would refuse later, refused before it starts; `plan` refuses the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mipkd.archs.base import SRNet
from mipkd.core.errors import MissingError, UnsupportedError, UsageError
from mipkd.core.precision import PRECISIONS
from mipkd.distill import ranks
from mipkd.distill import student as students
from mipkd.distill import teacher as teachers
from mipkd.distill.compatibility import check_batch, check_nets, resolve_positions
from mipkd.distill.hardware import find_device
from mipkd.distill.settings import DistillConfig
from mipkd.distill.start import WAYS, check_start
from mipkd.distill.supported_losses import build_supported_losses
from pipeline.config import Config
from pipeline.contenders import Baseline
from pipeline.context import RunContext
from pipeline.inputs import Nets, is_graph
from pipeline.lr_only import check_lr_only
from pipeline.stages.perceive import check_metric
from pipeline.student_grid import an_example
from targets.base import Feature, find


def check_targets(on: RunContext) -> None:
    """Refuse what the targets cannot do with what was given.

    Raises:
        UsageError: photos are missing, or an option has no effect on any of them.
        UnsupportedError: one of them cannot build from what was given, or as it was asked.
        MissingError: a metric's weights are not here.
    """
    config = on.config
    _check_metrics(config)
    _check_photos(on)
    check_lr_only(config, on.lr_only)
    for info in on.targets:
        target = find(info.target)
        if is_graph(config.model) and Feature.FROM_NET in target.features:
            raise UnsupportedError(
                f"target {info.target}: --model {config.model} is an ONNX graph, and models are "
                "built from the torch net there",
                hint="give the checkpoint that the graph was exported from",
            )
        target.check_pixels(config.build.pixels)
    if config.qat.run:
        _check_qat(on)
    if config.student == "auto" and not config.model:
        _check_auto(on)


def _check_auto(on: RunContext) -> None:
    if on.config.gates.max_latency_ms == "off":
        raise UsageError(
            "--student auto: no latency budget", hint="give --latency-budget in milliseconds"
        )
    if unseen := [info.target for info in on.targets if info.simulated]:
        raise MissingError(
            f"--student auto: {unseen[0]} cannot be timed here, so no student can be chosen for it",
            hint="name a student, or a --device that has it",
        )
    if on.config.distill.init not in WAYS:
        raise UsageError(
            f"distill.init: {on.config.distill.init} is a checkpoint of one size, and --student "
            "auto tries many",
            hint=f"known with it: {', '.join(WAYS)}",
        )


def _check_metrics(config: Config) -> None:
    """Refuse metrics that are asked for, or that a gate asks for, without what they need."""
    weights = config.metrics.weights
    for name, file in weights.items():
        check_metric(name, file, f"metrics.weights.{name}")
    for name in config.gates.metrics.keys() - weights.keys():
        check_metric(name, None, f"gates.metrics.{name}")


def _check_photos(on: RunContext) -> None:
    """Nothing is trained or calibrated on sample photos unless that is said aloud.

    A finished student is calibrated for INT8 on photos: of the wrong kind, they cost as much
    quality as training on them does. In floats it needs none.
    """
    if not on.config.model:
        require_photos(on.config, "a student is trained on photos like those it will see")
    for info in on.targets:
        for precision in on.precisions(info):
            if PRECISIONS[precision].needs_patches:
                what = f"{precision} of {info.target}"
                require_photos(on.config, f"{what} is calibrated on photos like those it will see")


def require_photos(config: Config, why: str) -> None:
    """Refuse our sample photos where nobody asked for them.

    Raises:
        UsageError: neither photos were given nor the demo's asked for.
    """
    if config.data is None and not config.uses_demo_photos:
        raise UsageError(
            f"--data: no photos are given, and {why}",
            hint="--data DIR; or --demo-data, to see on sample photos that all works",
        )


def _check_qat(on: RunContext) -> None:
    config = on.config
    if config.qat.taught_by == "teacher" and not config.teacher:
        raise UsageError(
            "qat.taught_by: there is no teacher", hint="give --teacher, or let it teach itself"
        )
    if is_graph(config.model):
        raise UnsupportedError(
            f"--qat: --model {config.model} is an ONNX graph, which cannot be trained",
            hint="give its checkpoint, or leave out --qat",
        )
    if ranks.current().count > 1:
        raise UnsupportedError(
            "qat: runs in one process",
            hint="run it again without torchrun: finished steps are remembered",
        )
    if not any("int8" in on.precisions(info) and on.plans_int8(info) for info in on.targets):
        names = ", ".join(info.target for info in on.targets)
        raise UsageError(
            f"--qat: no effect on {names}: no INT8 there that a student could be trained for",
            hint="known: INT8 of cpu, litert, openvino, jetson, tensorrt and tensorrt_rtx, without "
            "quantize.search=false; or leave out --qat",
        )


def check_trainings(on: RunContext, nets: Nets, baselines: Sequence[Baseline]) -> None:
    """Refuse settings that the trainings of a run would refuse; what is only planned is not known.

    Raises:
        UsageError: an unknown size, or settings that do not fit the nets or each other.
        MissingError: a device to train on that is not here.
    """
    config, teacher = on.config, nets.teacher.record if nets.teacher else None
    if not teacher or config.model:
        return
    spec = config.student
    if spec == "auto":
        for candidate in config.fit.candidates:
            students.find_sizes(teacher, candidate)
        spec = an_example(teacher, config.fit.candidates)
    arch, hyper = students.choose(teacher, spec)
    with torch.device("meta"):
        student = arch.make(hyper)
    structure = teachers.load_structure(teacher)
    for one in baselines:
        if one.taught:
            _check_training(on, one.taught, student, structure, f"--compare: {one.name}: ")
    _check_training(on, config.distill, student, structure)


def _check_training(
    on: RunContext, config: DistillConfig, student: SRNet, teacher: SRNet, of: str = ""
) -> None:
    try:
        losses = build_supported_losses(config, teacher, truth=not on.lr_only.data)
        check_nets(config, student, teacher)
        check_batch(config, ranks.current().count)
        resolve_positions(config, losses.values(), student, teacher)
        check_start(config.init, student)
    except UsageError as error:
        raise UsageError(of + error.what, hint=error.hint) from error
    find_device(config.device)
