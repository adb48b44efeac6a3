"""How long a step takes that this machine has not done yet, from its settings and a few speeds.

The constants are of two idle cores of an AMD Zen 5, times how much slower this machine works now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from mipkd.core.measurement import Against
from mipkd.core.precision import PRECISIONS
from mipkd.distill.start import count_start_pixels
from pipeline.bench.latency import BenchSettings
from pipeline.bench.stream_models import streams
from pipeline.plan.outline import Outline
from pipeline.plan.timings import Timing
from pipeline.quantize.hold_out import HoldOutInputs
from pipeline.quantize.qat import QatInputs
from pipeline.quantize.search import SearchInputs
from pipeline.run import Event
from pipeline.stage import Foreseen
from pipeline.stages.build import BuildInputs
from pipeline.stages.distill import DistillInputs
from pipeline.stages.fit import FitInputs
from pipeline.stages.measure import MeasureInputs
from pipeline.stages.reference import ReferenceInputs
from pipeline.stages.rung import RungInputs
from targets.base import find

PUBLISH_S = 4.0  # report and bundle
_PIXEL_S = 1.5e-6  # of a student that is no net of ours, for an LR pixel
_EXPORT_S = 3.0
_START_S = 1.5  # of a process for the steps that work apart, with a runtime in it
# A build, by target: in floats and in INT8.
_BUILD_S = {"cpu": (0.3, 0.6), "null": (0.1, 0.1), "openvino": (0.5, 2.0), "jetson": (1.0, 3.0)}
_BUILD_S |= {"coreml": (6.0, 10.0), "tensorrt": (60.0, 90.0), "tensorrt_rtx": (40.0, 60.0)}
_BUILD_S |= {"ncnn": (1.0, 1.0)}
_OTHER_S = (5.0, 10.0)
_TIMED_S = 1.7  # a precision of a net of `--student auto`, with its warm-up
_CANDIDATE_S = {"cpu": 0.06, "openvino": 0.3}  # to make one of a search
_PHOTO_PIXEL_S = 2e-7  # to decode and store it, for an LR pixel; to compare it with the tests
_PROJECTED = 4.0  # passes of the teacher over the patches that a start is fitted to
_BACKWARD = 3.0  # a training step's passes of the student
_ROUNDED = 3.0  # times as long with INT8's rounding in it
_FEW, _RANGES, _CONFIRMED, _FRONT = 16, 2, 3, 5  # of a search: pipeline/quantize/search.py
_SHARED = 0.85  # of the cores' sum that threads bring together
_RUNTIME = 0.7  # of torch's time that a runtime for inference takes
_BUSY = (1.5, 4.0)  # times slower than idle, from where what is measured drifts once more


@dataclass(frozen=True)
class Speeds:
    """What was timed on this machine; None where it could not be."""

    student_pixel_s: float | None  # of a forward pass on one core, for an LR pixel
    teacher_pixel_s: float | None
    export_s: float | None  # of the student
    slowness: float  # 1: as the idle machine of the constants
    cores: int
    steps: Mapping[str, Timing] = field(default_factory=dict)  # of the trainings, by their keys


class Formulas:
    """The time of each step of a plan, by its stage."""

    def __init__(self, known: Outline, events: Sequence[Event], speeds: Speeds) -> None:
        self._known, self._speeds = known, speeds
        self._slow = speeds.slowness
        self._by_key = {event.key: event for event in events}
        alone_s = speeds.student_pixel_s or _PIXEL_S * self._slow
        together = max(1.0, _SHARED * speeds.cores / self._slow)  # cores that others leave
        self._student_s = alone_s / together  # of torch, for an LR pixel
        self._teacher_s = (speeds.teacher_pixel_s or alone_s) / together
        photos_s = _PHOTO_PIXEL_S * known.photo_pixels * self._slow
        self._plain = {
            "photos": 0.1 * self._slow + photos_s,
            "keep_apart": 0.1 * self._slow + 2 * photos_s,
            "calibrate": 0.2 * self._slow,
            "teacher_cache": self._teacher_s * known.photo_pixels,
            "directions": 0.5 * self._slow + self._teacher_s * 32 * 48**2,
        }
        self._of: dict[str, Callable[[Event], float]] = {
            "tests": self._tests,
            "hold_out": self._hold_out,
            "distill": self._distill,
            "export": self._export,
            "reference": self._reference,
            "build": self._build,
            "search": self._search,
            "qat": self._qat,
            "measure": self._measure,
            "fit": self._fit,
            "rung": self._rung,
        }

    def time(self, event: Event) -> Timing:
        """A step's seconds, and its memory where a training was timed."""
        formula = self._of.get(event.stage)
        seconds = formula(event) if formula else self._plain.get(event.stage, self._slow)
        step = self._speeds.steps.get(event.key)
        return Timing(seconds, 1.0, step.peak_bytes if step else None)

    def _tests(self, event: Event) -> float:
        pixels = self._known.test_pixels
        seen_s = self._reference_s(event.inputs.against) * pixels
        return 0.1 * self._slow + 4 * _PHOTO_PIXEL_S * pixels + seen_s

    def _hold_out(self, event: Event) -> float:
        inputs: HoldOutInputs = event.inputs
        crops = 2 * (inputs.config.photos + inputs.config.pages)
        seen_s = self._reference_s(inputs.against) * crops * inputs.config.crop**2
        return 0.2 * self._slow + seen_s

    def _reference_s(self, against: Against) -> float:
        """Of the net whose image stands for a truth, for an LR pixel."""
        nets = {"truth": 0.0, "teacher": self._teacher_s, "student": self._student_s}
        return nets[against]

    def _distill(self, event: Event) -> float:
        inputs: DistillInputs = event.inputs
        config, known = inputs.config, self._known
        side2, start_s = config.patch**2, 0.0
        step_s = config.batch * side2 * _BACKWARD * self._student_s
        if known.teacher and config.init == "project":
            pixels = count_start_pixels(known.teacher.gmacs)
            start_s = _PROJECTED * pixels * self._teacher_s
        validated = 1 + ceil(config.steps / config.validation_period)
        seen_s = self._student_s * (validated + 1) + self._teacher_s
        if timed := self._speeds.steps.get(event.key):
            step_s = timed.each_s
        return start_s + config.steps * step_s + known.test_pixels * seen_s

    def _export(self, event: Event) -> float:
        student_s = self._speeds.export_s or _EXPORT_S * self._slow
        return student_s + 4 * self._mean_test_px * self._pixel_s(event.label)

    @property
    def _mean_test_px(self) -> float:
        return self._known.test_pixels / max(1, self._known.tests)

    def _pixel_s(self, role: str) -> float:
        """Of a runtime, for an LR pixel."""
        return _RUNTIME * (self._teacher_s if role == "teacher" else self._student_s)

    def _reference(self, event: Event) -> float:
        inputs: ReferenceInputs = event.inputs
        taught = bool(self._known.teacher)
        others_s = max(0, len(inputs.graphs) - taught) * self._pixel_s("student")
        pixel_s = others_s + taught * self._pixel_s("teacher")
        return 0.5 * self._slow + self._known.test_pixels * pixel_s

    def _build(self, event: Event) -> float:
        inputs: BuildInputs = event.inputs
        info, precision = inputs.info, inputs.precision
        floats_s, int8_s = _BUILD_S.get(info.target.partition(":")[0], _OTHER_S)
        is_float = PRECISIONS[precision].is_float
        calibrate = self._known.config.calibrate
        pixels = 0 if is_float else calibrate.count * calibrate.size**2
        start_s = _START_S if self._is_first(event) else 0.0
        return (
            start_s + (floats_s if is_float else int8_s)
        ) * self._slow + pixels * self._student_s

    def _is_first(self, event: Event) -> bool:
        """Whether a process is started for it: a target's builds share one."""
        of = [e for e in self._by_key.values() if e.stage == "build" and not e.remembered]
        return next((e for e in of if e.inputs.info == event.inputs.info), event) is event

    def _search(self, event: Event) -> float:
        inputs: SearchInputs = event.inputs
        config, name = inputs.config, inputs.target.partition(":")[0]
        make_s = _CANDIDATE_S.get(name, _CANDIDATE_S["openvino"]) * self._slow
        crops, crop_s = config.photos + config.pages, config.crop**2 * self._pixel_s("student")
        few = min(crops, _FEW) * crop_s + make_s
        whole = crops * crop_s + make_s
        tried = self._known.operations * few + (_RANGES + config.tries + _CONFIRMED) * whole
        return tried + 2 * whole + _FRONT * (0.6 + make_s)

    def _qat(self, event: Event) -> float:
        inputs: QatInputs = event.inputs
        config = inputs.config
        step_s = config.batch * config.patch**2 * _BACKWARD * self._student_s * _ROUNDED
        return config.steps * step_s + self._known.operations * _FEW * 80**2 * self._student_s

    def _measure(self, event: Event) -> float:
        """Latencies in turns at each size, then the students' pixels."""
        inputs: MeasureInputs = event.inputs
        info, config = inputs.info, inputs.config
        roles = [self._role(ref.key) for ref in inputs.builts]
        students = sum(role != "teacher" for role in roles)
        pixels_s = students * self._known.test_pixels * self._pixel_s("student")
        if info.simulated:
            return self._slow + 2 * pixels_s
        timed = sum(self._latency(config, size, role) for size in config.sizes for role in roles)
        if streams(find(info.target), config):
            timed += config.stream.seconds * roles.count("student")
        return self._slow * len(roles) * 0.2 + pixels_s + timed

    def _latency(self, config: BenchSettings, size: tuple[int, int], role: str) -> float:
        """Of one model: warm-up, the samples, once as a caller sees it; joules apart."""
        frame_s = size[0] * size[1] * self._pixel_s(role)
        warm_s = max(config.warmup_s, (config.min_warmups + 1) * frame_s)
        least_s = max(config.min_time_s, config.min_samples * frame_s)
        attempts: int = min(config.attempts, 1 + sum(self._slow > busy for busy in _BUSY))
        samples_s = sum(min(config.max_time_s, least_s * (1 << n)) for n in range(attempts))
        alone = frame_s >= config.turn_s  # else the first call of a turn is not counted
        turns = 1.0 if alone else 1 + frame_s / config.turn_s
        return warm_s + samples_s * turns + max(0.2, 5 * frame_s)

    def _role(self, key: str) -> str:
        event = self._by_key.get(key)
        return event.label.split()[1] if event else "student"

    def _fit(self, event: Event) -> float:
        """A net on one target, or so many like it."""
        count, inputs = 1.0, event.inputs
        if isinstance(inputs, Foreseen):
            count, inputs = inputs.amount, inputs.like
        if not isinstance(inputs, FitInputs):
            return 0.0
        build_s = sum(_BUILD_S.get(inputs.info.target.partition(":")[0], _OTHER_S)) / 2
        each = len(inputs.precisions)
        return count * ((_EXPORT_S + each * build_s) * self._slow + each * _TIMED_S)

    def _rung(self, event: Event) -> float:
        """The steps of a rung, each as one of the training that follows."""
        steps = 0.0
        if isinstance(event.inputs, Foreseen):
            steps = event.inputs.amount
        elif isinstance(event.inputs, RungInputs):
            before = event.inputs.before and self._by_key.get(event.inputs.before.key)
            steps = event.inputs.until - (before.inputs.until if before else 0)
        config = self._known.config.distill
        step_s = config.batch * config.patch**2 * _BACKWARD * self._student_s
        if timed := next(iter(self._speeds.steps.values()), None):
            step_s = timed.each_s
        return steps * step_s
