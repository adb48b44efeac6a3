"""End a run: judge what was measured, gather the evidence, write the report."""

from __future__ import annotations

import json
from pathlib import Path

import tomli_w

from mipkd.core.errors import UsageError
from mipkd.core.records import Evidence, Measurement, Model
from pipeline.bench.against import simulated
from pipeline.config import Config
from pipeline.flow import Flow
from pipeline.report.write import write
from pipeline.run import Run, commit, now
from pipeline.stages.judge import NOT_MEASURED, judge

_EVIDENCE = "evidence.json"


def conclude(config: Config, run: Run, found: Flow, *, command: str) -> Evidence:
    """Judge, keep the evidence in the run's folder and write `report/latest/` from it."""
    measurements = tuple(m for ref in found.measured for m in ref.value)
    plans = tuple(ref.value for ref in found.plans if not ref.value.fixed)
    receipts = run.receipts()
    evidence = Evidence(
        name=run.root.name,
        command=command,
        created=now(),
        commit=commit(),
        smoke=config.smoke,
        teacher=found.teacher.value if found.teacher else None,
        student=_student(found),
        distilled=found.distilled.value if found.distilled else None,
        graph=found.graph.value,
        tests=found.tests.value,
        photos=found.photos.value,
        calibration=found.patches.value,
        host=found.host,
        measurements=measurements,
        failures=found.failures,
        verdict=judge(config.gates, measurements, found.failures, plans),
        config=_plain(config),
        seconds={name: receipt["seconds"] for name, receipt in receipts.items()},
        not_measured=_not_measured(measurements),
        plans=plans,
        warnings=tuple(dict.fromkeys(w for r in receipts.values() for w in r["warnings"])),
    )
    (run.root / "config.toml").write_text(tomli_w.dumps(_plain(config)))
    run.keep(_EVIDENCE, evidence)
    write(evidence, report_folder(run.root))
    return evidence


def report_folder(root: Path) -> Path:
    """Where a run's newest report lies."""
    return root / "report" / "latest"


def report_again(root: Path) -> Path:
    """Write the report of a finished run anew.

    Raises:
        UsageError: the folder holds no finished run.
    """
    run = Run(root.resolve())
    try:
        evidence = run.kept(_EVIDENCE, Evidence)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"report: no finished run in {root}", hint="run it first: mipkd-pipeline run --out ..."
        ) from error
    return write(evidence, report_folder(run.root))


def _student(found: Flow) -> Model:
    if found.distilled:
        return found.distilled.value.model
    if found.model:
        return found.model.value
    graph = found.graph.value
    return Model(
        role="student",
        file=graph.file,
        sha256=graph.sha256,
        arch=graph.family,
        hyper={},
        scale=graph.scale,
        layout="onnx",
        settled={},
        params=0,
        gmacs=0.0,
        licence=graph.licence,
    )


def _not_measured(measurements: tuple[Measurement, ...]) -> tuple[str, ...]:
    """What a reader of the report might look for and will not find."""
    on = {m.target for m in measurements}
    energy = any(one.power_from for m in measurements for one in m.latencies)
    absent = [
        f"{target}: not part of this run" for target in ("cpu", "openvino") if target not in on
    ]
    return (
        *absent,
        *(f"{target}: {NOT_MEASURED}" for target in simulated(measurements)),
        *([] if energy else ["energy: not measured, no power meter that can be read"]),
        "peak memory on the device: not measured",
    )


def _plain(config: Config) -> dict[str, object]:
    """The configuration as TOML can hold it: without what is not set."""
    return json.loads(config.model_dump_json(exclude_none=True))  # type: ignore[no-any-return]
