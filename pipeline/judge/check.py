"""Judge a bundle: its files, its figures, what its models do here, and how it compares with a
baseline. No torch, no training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mipkd.core.errors import UsageError
from mipkd.core.evidence import Gate, Outcome, Recommendation, Verdict
from mipkd.core.measurement import Measurement
from pipeline.bench.comparisons import NOT_MEASURED, RAN_EMULATED, students
from pipeline.bench.latency import FEWEST, BenchSettings
from pipeline.bundle.kit import settings_of
from pipeline.bundle.manifest import Manifest, Model, Problem, problems, read
from pipeline.bundle.measurements import read_measurements
from pipeline.bundle.provenance import PROVENANCE, read_provenance
from pipeline.bundle.replay import Replayed, replay
from pipeline.config_values import as_usage_error, assignments, merge_settings
from pipeline.judge.baseline import check_comparable, load, of_bundle, save
from pipeline.judge.bounds import read_gates
from pipeline.judge.gates import judge, overall
from pipeline.judge.golden_beside import judge_beside
from pipeline.judge.regression import BaselineConfig, Beside, regress, time_in_turns
from pipeline.judge.replayed import judge_figures, judge_replayed
from pipeline.limits import LimitsConfig

_NOT_JUDGED = "the figures of a bundle with such files are not judged"


@dataclass(frozen=True)
class Checked:
    """What a bundle is worth by its own figures and bounds."""

    manifest: Manifest
    problems: list[Problem]
    gates: tuple[Gate, ...]
    outcome: Outcome
    recommended: tuple[Recommendation, ...] = ()


def check(bundle: Path, sets: Sequence[str] = (), baseline: Path | None = None) -> Checked:
    """What `check_recorded` finds, what each model that runs here makes of the golden images, and
    how all of it compares with a baseline: a bundle, run beside this one, or a file of figures.

    A baseline that it cannot be compared with is refused before anything runs.

    Raises:
        UsageError: no bundle, or one that cannot be read; an unknown setting in `sets`; no such
            baseline.
    """
    found = check_recorded(bundle)
    if found.problems:
        return found
    settings, recorded = settings_with(bundle, sets), read_measurements(bundle)
    if baseline:
        check_comparable(of_bundle(bundle), load(baseline), name=str(baseline))
    tests = read_provenance(bundle).tests.images
    gates = [*found.gates, *judge_figures(bundle, recorded, tests, found.manifest.scale)]
    gates += _judge_records(found.manifest, recorded)
    pairs = list(verify_models(bundle, found.manifest, [], settings.limits))
    gates += [gate for _, of_model in pairs for gate in of_model]
    if pairs and not any(one.outputs for one, _ in pairs):
        why = "; ".join(f"{m.model.target} {m.model.precision}: {m.why_not}" for m, _ in pairs)
        gates.append(Gate("replay", "student", Outcome.INVALID, None, 0.0, "", why))
    if baseline:
        gates += _judge_beside(bundle, baseline, settings)
    return replace(found, gates=tuple(gates), outcome=overall(gates))


def verify_models(
    bundle: Path, manifest: Manifest, wrong: Sequence[Problem], limits: LimitsConfig | None = None
) -> Iterator[tuple[Replayed, list[Gate]]]:
    """Each model, replayed here, and its gates; one whose files are damaged is not opened."""
    recorded = () if wrong else read_measurements(bundle)
    settings = None if wrong else _shortly(settings_of(bundle))
    with TemporaryDirectory() as made:
        for one in replay(bundle, manifest, wrong, Path(made), settings=settings, limits=limits):
            try:
                yield one, list(judge_replayed(bundle, one, find_recorded(one.model, recorded)))
            except UsageError as error:  # a golden image that cannot be read
                name = f"{one.model.target} {one.model.precision}"
                yield one, [Gate("replay", name, Outcome.FAIL, None, 0.0, "", error.what)]


def check_recorded(bundle: Path) -> Checked:
    """The hashes, then each gate of the run on the figures that were recorded; nothing runs.

    A target that was only simulated is a gate that nobody could judge. Figures of a bundle with
    wrong hashes are not judged.

    Raises:
        UsageError: no bundle, or one that cannot be read.
    """
    manifest = read(bundle)
    wrong = problems(bundle, manifest)
    if wrong:
        gates = [Gate(p.what, p.file, Outcome.FAIL, None, 0.0, "", _NOT_JUDGED) for p in wrong]
        return Checked(manifest, wrong, tuple(gates), Outcome.FAIL)
    verdict = _judge_recorded(bundle)
    why = {"simulated": NOT_MEASURED, "emulated": RAN_EMULATED}
    unseen = tuple(
        Gate("measured", target, Outcome.INVALID, None, 0.0, "", why[kind])
        for target, kind in dict.fromkeys((m.target, m.kind) for m in manifest.models)
        if kind in why
    )
    outcome = verdict.outcome
    if unseen and outcome is Outcome.PASS:
        outcome = Outcome.INVALID
    return Checked(manifest, wrong, (*verdict.gates, *unseen), outcome, verdict.recommended)


class CheckConfig(BaseModel):
    """How `check` holds a bundle against a baseline: bounds, and how long it measures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    baseline: BaselineConfig = Field(default_factory=BaselineConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    bench: BenchSettings


def settings_with(bundle: Path, sets: Sequence[str]) -> CheckConfig:
    """The bundle's own pace and the usual bounds, but for what is set.

    Raises:
        UsageError: an unknown setting, a value of the wrong kind.
    """
    given = merge_settings({"bench": asdict(settings_of(bundle))}, assignments(sets))
    try:
        return CheckConfig.model_validate(given)
    except ValidationError as error:
        raise as_usage_error(error, CheckConfig) from error


def _judge_beside(bundle: Path, baseline: Path, settings: CheckConfig) -> Iterator[Gate]:
    new, old = of_bundle(bundle), load(baseline)
    beside = Beside({}, why_not="the baseline is a file")
    if baseline.is_dir():
        _check_whole(baseline)
        beside = time_in_turns(bundle, baseline, settings.bench)
    yield from regress(settings.baseline, new.measurements, old.measurements, beside)
    if baseline.is_dir():
        yield from judge_beside(settings.baseline, bundle, baseline, settings.limits)


def set_baseline(bundle: Path, file: Path | None, reason: str | None) -> str:
    """Write a bundle's figures into a file; a line that says what was done.

    Raises:
        UsageError: no file, no reason, or files of the bundle are not what they were.
    """
    if file is None or file.is_dir():
        raise UsageError("--update-baseline: no file", hint="give one: --baseline FILE.json")
    if not (reason or "").strip():
        raise UsageError(
            "--update-baseline: no reason", hint='say why it changes: --reason "new teacher"'
        )
    _check_whole(bundle)
    made = save(of_bundle(bundle), file, str(reason).strip())
    models = f"{len(students(made.measurements))} models of {made.run}"
    return f"{file}: {models}; reason {len(made.reasons)}: {reason}"


def _check_whole(bundle: Path) -> None:
    if wrong := problems(bundle, read(bundle)):
        raise UsageError(
            f"{bundle}: {wrong[0].file} is {wrong[0].what}",
            hint=f"see all: mipkd-pipeline verify {bundle}",
        )


def check_records(bundle: Path, wrong: Sequence[Problem]) -> None:
    """Read all that a bundle records, but for files that were changed.

    Raises:
        UsageError: a record is none, or a number in it is out of its range.
    """
    if not {p.file.partition("/")[0] for p in wrong} & {PROVENANCE, "quality", "bench"}:
        settings_of(bundle)
        _judge_recorded(bundle)


def find_recorded(model: Model, recorded: Sequence[Measurement]) -> Measurement | None:
    """What was recorded of a model."""
    by_model = {(m.target, m.precision): m for m in students(recorded)}
    return by_model.get((model.target, model.precision))


def _judge_records(manifest: Manifest, recorded: Sequence[Measurement]) -> Iterator[Gate]:
    """A model without figures was not judged by any."""
    for model in manifest.models:
        if model.kind != "not measured" and find_recorded(model, recorded) is None:
            name, why = f"{model.target} {model.precision}", f"{model.kind}, and no figures of it"
            yield Gate("figures", name, Outcome.FAIL, None, 0.0, "", why)


def _shortly(settings: BenchSettings) -> BenchSettings:
    """To see what is much slower than recorded; the smallest size is enough for that."""
    return replace(
        settings, warmup_s=0.1, min_time_s=0.3, max_time_s=5.0, attempts=1, min_samples=FEWEST
    )


def _judge_recorded(bundle: Path) -> Verdict:
    stated = read_provenance(bundle)
    config = read_gates(stated.gates, str(bundle / PROVENANCE))
    return judge(config, read_measurements(bundle), stated.failures, stated.plans)
