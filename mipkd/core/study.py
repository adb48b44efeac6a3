"""What a study has trained and scored."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mipkd.core.measurement import Host, ImageScore
from mipkd.core.records import Model, Photos


@dataclass(frozen=True)
class SetScores:
    """Every image of one test set."""

    source: str
    images: tuple[ImageScore, ...]


@dataclass(frozen=True)
class Pace:
    """What a training takes on one machine, validation and checkpoints apart."""

    start_s: float  # once: the first weights, and what the first step adds
    step_s: float  # mean over the whole schedule
    compiled: bool = False  # whether the steps were
    why_not: str = ""  # why it could not be timed


@dataclass(frozen=True)
class Trained:
    """One arm from one seed."""

    arm: str
    seed: int
    steps: int
    seconds: float
    peak_rss_bytes: int | None
    curves: Path
    scores: tuple[SetScores, ...]
    budget_s: float | None = None  # of training; None: the steps are given, not the seconds

    @property
    def name(self) -> str:
        """Of its row in tables."""
        return arm_name(self.arm, self.budget_s)


def arm_name(arm: str, budget_s: float | None) -> str:
    """An arm, and its seconds where it has a budget: "mipkd, 60 s"."""
    return arm if budget_s is None else f"{arm}, {budget_s:g} s"


@dataclass(frozen=True)
class Study:
    """All that a study has found so far."""

    name: str
    command: str
    created: str
    commit: str
    host: Host
    teacher: Model
    student: Model
    photos: Photos
    config: dict[str, Any]
    teacher_scores: tuple[SetScores, ...]
    bicubic_scores: tuple[SetScores, ...]
    trained: tuple[Trained, ...]
    against: tuple[str, ...]
    missing: tuple[str, ...]  # trainings that failed, and why
    paces: dict[str, Pace] = field(default_factory=dict)  # by arm, where they got equal time
