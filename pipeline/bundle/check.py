"""Judge a bundle from its files alone: no network is loaded, nothing runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mipkd.core.errors import UsageError
from mipkd.core.records import Gate, Outcome, Recommendation, Verdict
from pipeline.bundle.figures import read_figures
from pipeline.bundle.manifest import Manifest, Problem, problems, read
from pipeline.bundle.provenance import PROVENANCE, failures, plans
from pipeline.stages.judge import NOT_MEASURED, GateConfig, judge


@dataclass(frozen=True)
class Checked:
    """What a bundle is worth by its own figures and bounds."""

    manifest: Manifest
    problems: list[Problem]
    gates: tuple[Gate, ...]
    outcome: Outcome
    recommended: tuple[Recommendation, ...] = ()


def check(bundle: Path) -> Checked:
    """The hashes, then each gate of the run on the figures that were recorded.

    A target that was only simulated is a gate that nobody could judge. Figures of a bundle with
    wrong hashes are not judged.

    Raises:
        UsageError: no bundle, or one that cannot be read.
    """
    manifest = read(bundle)
    wrong = problems(bundle, manifest)
    if wrong:
        return Checked(manifest, wrong, (), Outcome.FAIL)
    verdict = _judged(bundle)
    simulated = dict.fromkeys(m.target for m in manifest.models if m.kind == "simulated")
    unseen = tuple(
        Gate("measured", target, Outcome.INVALID, None, 0.0, "", NOT_MEASURED)
        for target in simulated
    )
    outcome = verdict.outcome
    if unseen and outcome is Outcome.PASS:
        outcome = Outcome.INVALID
    return Checked(manifest, wrong, (*verdict.gates, *unseen), outcome, verdict.recommended)


def _judged(bundle: Path) -> Verdict:
    file = bundle / PROVENANCE
    try:
        stated = json.loads(file.read_text())
        config = GateConfig.model_validate(stated["gates"])
        lost, searched = failures(stated), plans(stated)
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file}: its gates cannot be read: {error}") from error
    return judge(config, read_figures(bundle), lost, searched)
