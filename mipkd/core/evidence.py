"""A run's verdict, and all that its report is made from."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from mipkd.core.measurement import Host, Measurement
from mipkd.core.records import (
    Built,
    Distilled,
    Graph,
    Model,
    PatchSet,
    Photos,
    QuantPlan,
    Rival,
    StudentSearch,
    TestSet,
)


@dataclass(frozen=True)
class Failure:
    """A row of the report for what did not run."""

    target: str  # where it was to run
    precision: str  # the precision, or "all"
    stage: str  # where it failed
    what: str  # what happened
    hint: str = ""  # the next step, if there is one
    role: str = "student"  # whose model failed: student, teacher or a rival's name


class Outcome(str, Enum):
    """What a gate, or all of them, came to."""

    PASS = "PASS"
    FAIL = "FAIL"
    INVALID = "INVALID"


@dataclass(frozen=True)
class Gate:
    """One line of the verdict: a figure, its bound and the reason."""

    name: str  # what was judged, such as "mean drop"
    subject: str  # whom it concerns: target and precision, or "student"
    outcome: Outcome  # what it came to
    figure: float | None  # that was judged; null when there is none
    bound: float  # that it must keep; of no meaning without a unit
    unit: str  # of figure and bound
    reason: str  # where the figure comes from, or why there is none


@dataclass(frozen=True)
class Recommendation:
    """What to ship for a target; no precision when nothing passes there."""

    target: str  # to ship for
    precision: str  # to ship; empty when nothing may be shipped
    reason: str  # why this one, or why none
    simulated: bool = False  # nothing ran on the device, so nothing can be recommended


@dataclass(frozen=True)
class Verdict:
    """All gates and what they come to."""

    outcome: Outcome  # FAIL if a gate failed, else INVALID if one could not be judged
    gates: tuple[Gate, ...]  # every one
    remarks: tuple[str, ...] = ()  # what no gate forbids and a reader should know
    recommended: tuple[Recommendation, ...] = ()  # one a target


@dataclass(frozen=True)
class Evidence:
    """All that a report is made from."""

    name: str  # of the run
    command: str  # that reproduces it
    created: str  # ISO 8601, UTC
    commit: str  # of this program's checkout, "" when installed from a wheel
    smoke: bool  # trained or judged on sample photos: not a result
    teacher: Model | None  # null when a finished student was judged
    student: Model  # that was judged
    distilled: Distilled | None  # its training; null when it was finished before
    graph: Graph  # the student's FP32 graph
    tests: TestSet  # images that quality is measured on
    photos: Photos | None  # that it was trained on
    calibration: PatchSet | None  # patches that the quantisers saw
    host: Host  # that ran the pipeline, and measured what no other did
    # Every role with target "reference" (FP32 on ONNX Runtime, no latency) gives quality; those
    # with a real target give latency, and of students, ours and rivals, quality.
    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...]  # what did not run
    verdict: Verdict  # may it be shipped?
    config: dict[str, Any]  # the configuration, whole
    seconds: dict[str, float]  # stage -> wall time
    not_measured: tuple[str, ...]  # what a reader might look for and will not find, with why
    warnings: tuple[str, ...] = ()  # what the steps warned of
    plans: tuple[QuantPlan, ...] = ()  # how the student's INT8 was made, where it was searched
    builts: tuple[Built, ...] = ()  # every model that was built, measured or not
    rivals: tuple[Rival, ...] = ()  # whom the student was compared with, in that order
    search: StudentSearch | None = None  # how the student was chosen, if by `--student auto`
