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
    TestSet,
)


@dataclass(frozen=True)
class Failure:
    """A row of the report for what did not run."""

    target: str
    precision: str
    stage: str
    what: str
    hint: str = ""
    role: str = "student"


class Outcome(str, Enum):
    """What a gate, or all of them, came to."""

    PASS = "PASS"
    FAIL = "FAIL"
    INVALID = "INVALID"


@dataclass(frozen=True)
class Gate:
    """One line of the verdict: a figure, its bound and the reason."""

    name: str
    subject: str  # "openvino int8"
    outcome: Outcome
    figure: float | None
    bound: float
    unit: str
    reason: str


@dataclass(frozen=True)
class Recommendation:
    """What to ship for a target; no precision when nothing passes there."""

    target: str
    precision: str
    reason: str
    simulated: bool = False  # nothing ran on the device, so nothing can be recommended


@dataclass(frozen=True)
class Verdict:
    """All gates and what they come to."""

    outcome: Outcome
    gates: tuple[Gate, ...]
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
    teacher: Model | None
    student: Model
    distilled: Distilled | None
    graph: Graph  # the student's FP32 graph
    tests: TestSet
    photos: Photos | None
    calibration: PatchSet | None
    host: Host
    # Every role with target "reference" (FP32 on ONNX Runtime, no latency) gives quality; those
    # with a real target give latency, and of students, ours and rivals, quality.
    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...]
    verdict: Verdict
    config: dict[str, Any]
    seconds: dict[str, float]  # stage -> wall time
    not_measured: tuple[str, ...]  # what a reader might look for and will not find, with why
    warnings: tuple[str, ...] = ()  # what the steps warned of
    plans: tuple[QuantPlan, ...] = ()  # how the student's INT8 was made, where it was searched
    builts: tuple[Built, ...] = ()  # every model that was built, measured or not
    rivals: tuple[Rival, ...] = ()  # whom the student was compared with, in that order
