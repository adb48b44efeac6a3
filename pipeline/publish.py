"""End a run: judge what was measured, gather the evidence, write report, bundle and kits."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory

import tomli_w
from pydantic_core import to_jsonable_python

from mipkd.core.codec import parse_json
from mipkd.core.durable import put_aside
from mipkd.core.errors import UsageError
from mipkd.core.evidence import Evidence, Failure
from mipkd.core.measurement import Host, Measurement
from mipkd.core.names import BUNDLE, printable
from mipkd.core.records import Built, Model, PatchSet
from pipeline import kit_results
from pipeline.bench.comparisons import NOT_MEASURED, simulated_targets
from pipeline.bundle.golden import BundleConfig
from pipeline.bundle.kit import is_kit, kit_name, make_kit
from pipeline.bundle.licences import find_root, licence_warning
from pipeline.bundle.pack import pack, student_builds
from pipeline.config import Config
from pipeline.contenders import Contender
from pipeline.inputs import Images
from pipeline.judge.bounds import GateConfig
from pipeline.judge.gates import judge
from pipeline.origin import commit, now
from pipeline.ownership import CONFIG, claim, write_config
from pipeline.receipts import find_changed_file
from pipeline.report import history
from pipeline.report.results_file import report_folder
from pipeline.report.write import write
from pipeline.run import EVIDENCE, Run
from pipeline.run_lock import lock_folder
from pipeline.stage import Ref
from pipeline.stages.perceive import Perceived, add_scores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """Every step's reference up to the measurements."""

    teacher: Ref[Model] | None
    student: Contender
    baselines: tuple[Contender, ...]
    images: Images
    patches: Ref[PatchSet]
    builts: tuple[Ref[Built], ...]
    measured: tuple[Ref[tuple[Measurement, ...]], ...]
    perceived: tuple[Ref[tuple[Perceived, ...]], ...]
    failures: tuple[Failure, ...]
    host: Host


def judge_and_publish(config: Config, run: Run, found: Found, *, command: str) -> Evidence:
    """Judge, keep the evidence in the run's folder; write `report/latest/`, `bundle/` and kits."""
    student, plans = found.student, found.student.int8
    model, graph = student.described, student.graph
    assert model is not None, "a finished run has a student"
    assert graph is not None, "and its graph"
    builts = tuple(ref.value for ref in found.builts)
    measurements, failures = kit_results.lay_over(
        kit_results.list_kept(run),
        add_scores(
            [m for ref in found.measured for m in ref.value],
            [one for ref in found.perceived for one in ref.value],
        ),
        found.failures,
        builts,
        found.images.tests.value,
    )
    receipts = run.receipts()
    distilled = student.distilled.value if student.distilled else None
    evidence = Evidence(
        name=run.root.name,
        command=command,
        created=now(),
        commit=commit(),
        smoke=config.smoke,
        teacher=found.teacher.value if found.teacher else None,
        student=model,
        distilled=distilled,
        graph=graph.value,
        tests=found.images.tests.value,
        photos=found.images.photos.value,
        calibration=found.patches.value,
        host=found.host,
        measurements=measurements,
        failures=failures,
        verdict=judge(config.gates, measurements, failures, plans, distilled),
        config=_plain(config),
        seconds={name: receipt.seconds for name, receipt in receipts.items()},
        not_measured=_not_measured(measurements),
        plans=plans,
        warnings=tuple(
            dict.fromkeys(
                warning
                for name, receipt in receipts.items()
                if not name.startswith("rung ")  # most of its nets were dropped
                for warning in receipt.warnings
            )
        ),
        builts=builts,
        rivals=tuple(one.as_rival for one in found.baselines),
        search=found.student.search,
    )
    evidence = _with_licence(evidence)
    write_config(run.root / CONFIG, tomli_w.dumps(_plain(config)), _stated_before(run))
    _publish(run, evidence)
    try:
        history.append(evidence, run.root.parent / history.FILE)
    except OSError as error:  # the run is whole without it
        log.warning("history: %s cannot be written: %s", run.root.parent, error.strerror)
    return evidence


def collect(file: Path, root: Path) -> tuple[kit_results.Collected, Evidence]:
    """Lay a kit's results over a finished run's own, judge and report anew; results that cannot be
    used leave the run as it was.

    Raises:
        UsageError: no finished run, changed results, or those of another run's kit.
    """
    run = Run(root.resolve())
    before = _load_evidence(run, "collect")
    claim(run.root, where="collect")
    with lock_folder(run.root):
        kept = kit_results.list_kept(run)
        with kit_results.read_results(file, run, before) as read:
            _check_files(before)
            with TemporaryDirectory() as scratch:  # that all of it can be judged and told
                write(_judge_anew(before, kept, read), report_folder(Path(scratch)))
            brought = kit_results.keep(read, run)
        evidence = _judge_anew(before, kept, brought)
        _publish(run, evidence)
    return brought, evidence


def _judge_anew(
    before: Evidence, kept: Sequence[kit_results.Collected], brought: kit_results.Collected
) -> Evidence:
    others = (one for one in kept if one.target != brought.target)
    measurements, failures = kit_results.lay_over(
        [*others, brought], before.measurements, before.failures, before.builts, before.tests
    )
    gates = GateConfig.model_validate(before.config["gates"])
    judged = replace(
        before,
        created=now(),
        measurements=measurements,
        failures=failures,
        verdict=judge(gates, measurements, failures, before.plans, before.distilled),
        not_measured=_not_measured(measurements),
    )
    return _with_licence(judged)


def _with_licence(evidence: Evidence) -> Evidence:
    """The evidence with a remark on what the weights' licence forbids or leaves open."""
    warning = licence_warning(find_root(evidence))
    if not warning:
        return evidence
    remarks = (*evidence.verdict.remarks, warning)
    return replace(evidence, verdict=replace(evidence.verdict, remarks=remarks))


def _check_files(evidence: Evidence) -> None:
    """
    Raises:
        UsageError: a file that goes into the bundle was changed since it was made.
    """
    for made in (evidence.graph.file, *(built.file for built in evidence.builts)):
        if changed := find_changed_file(made):
            raise UsageError(
                f"{changed} was changed since it was made",
                hint="the same run command makes it anew: finished steps are remembered",
            )


def bundle_folder(root: Path) -> Path:
    """Where a run's bundle lies."""
    return root / BUNDLE


def report_again(root: Path) -> Path:
    """Write the report of a finished run anew.

    Raises:
        UsageError: the folder holds no finished run.
    """
    run = Run(root.resolve())
    evidence = _load_evidence(run, "report")
    claim(run.root, where="report")
    return write(evidence, report_folder(run.root))


def _publish(run: Run, evidence: Evidence) -> None:
    """All that others read; a target that was only simulated gets a kit to be measured with."""
    run.save_record(EVIDENCE, evidence)
    write(evidence, report_folder(run.root))
    config = BundleConfig.model_validate(evidence.config.get("bundle", {}))
    pack(evidence, config, bundle_folder(run.root))
    for target in kit_targets(evidence):
        kit = run.root / kit_name(target)
        if os.path.lexists(kit) and not is_kit(kit):
            log.warning("%s: kept as %s: it is no kit", kit, put_aside(kit).name)
        make_kit(bundle_folder(run.root), target, kit)


def kit_targets(evidence: Evidence) -> list[str]:
    """The targets that were only simulated and can be measured by a kit."""
    can = {built.target for built in student_builds(evidence)}
    return [target for target in simulated_targets(evidence.measurements) if target in can]


def _load_evidence(run: Run, command: str) -> Evidence:
    try:
        return run.load_record(EVIDENCE, Evidence)
    except OSError as error:
        raise UsageError(
            f"{command}: no finished run in {run.root}",
            hint="run it first: mipkd-pipeline run --out ...",
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{command}: {run.root / EVIDENCE}: damaged: {error}",
            hint="the same run command makes it anew: finished steps are remembered",
        ) from error


def _stated_before(run: Run) -> object:
    """The settings of the run that was finished here before."""
    try:
        stated = parse_json((run.root / EVIDENCE).read_bytes())
    except (OSError, ValueError):
        return None
    return stated.get("config") if isinstance(stated, dict) else None


def _not_measured(measurements: tuple[Measurement, ...]) -> tuple[str, ...]:
    """What a reader of the report might look for and will not find."""
    on = {m.target for m in measurements}
    energy = any(one.power_from for m in measurements for one in (*m.latencies, m.stream) if one)
    absent = [
        f"{target}: not part of this run" for target in ("cpu", "openvino") if target not in on
    ]
    return (
        *absent,
        *(f"{target}: {NOT_MEASURED}" for target in simulated_targets(measurements)),
        *([] if energy else ["energy: not measured, no power meter that can be read"]),
        "peak memory on the device: not measured",
    )


def _plain(config: Config) -> dict[str, object]:
    """The configuration as TOML can hold it: without what is not set, paths printable."""
    stated = json.dumps(config.model_dump(exclude_none=True), default=_as_text)
    return json.loads(stated)  # type: ignore[no-any-return]


def _as_text(value: object) -> object:
    """A path or set in a configuration as JSON can hold it; paths may be no UTF-8."""
    return printable(value) if isinstance(value, PurePath) else to_jsonable_python(value)
