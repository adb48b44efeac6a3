"""Choose which layers INT8 leaves float on a target, by what each loses there and its work."""

import difflib
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

from pydantic import Field, model_validator

from calibration import search as core
from calibration.search import Bounds, Candidate, Found, Harms, Operation
from mipkd.core.errors import UsageError
from mipkd.core.records import (
    FloatLayer,
    FrontPoint,
    Graph,
    Holdout,
    PatchSet,
    QatStudent,
    QuantPlan,
)
from pipeline.bench.latency import BenchSettings
from pipeline.quantize.evaluator import Evaluator
from pipeline.quantize.fixed_recipe import NO_HELP, measure_recipe
from pipeline.quantize.hold_out import HoldoutConfig
from pipeline.stage import Ref, stage
from targets.base import BuildRequest, Feature, find

log = logging.getLogger(__name__)

Decibels = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_PACE = BenchSettings(
    warmup_s=0.1, min_time_s=0.4, min_samples=8, max_time_s=10.0, attempts=1, max_drift=9.0
)
_POINTS = 5  # of the front: each has to be timed


class QuantizeConfig(HoldoutConfig):
    """What INT8 may lose on photos that nothing was calibrated on, and how far to search."""

    search: bool = True  # without it each target's fixed recipe
    max_drop_db: Decibels = 0.05  # PSNR-Y below the target's own FP32, mean over the holdout
    max_worst_drop_db: Decibels = 0.3  # the same, on the crop that loses most
    tries: int = Field(8, ge=1)  # choices of floats tried to find the one of least work
    size: tuple[int, int] = (128, 128)  # LR height and width at which times are measured
    float: tuple[str, ...] = ()  # operations of the ONNX graph that stay float in any case

    @model_validator(mode="before")
    @classmethod
    def _refuse_seconds(cls, stated: Any) -> Any:
        if isinstance(stated, Mapping) and "limit_s" in stated:
            raise ValueError(
                "limit_s is no more: a busy machine would end at other layers; "
                "--set quantize.tries=16"
            )
        return stated

    @property
    def bounds(self) -> Bounds:
        """What a candidate may lose."""
        return Bounds(self.max_drop_db, self.max_worst_drop_db)

    @property
    def holdout(self) -> HoldoutConfig:
        """What the crops depend on, and nothing else: other bounds need no other training."""
        return HoldoutConfig(**{name: getattr(self, name) for name in HoldoutConfig.model_fields})


@dataclass(frozen=True)
class SearchInputs:
    """A graph to quantise for a target, or what it was `tuned` to by QAT.

    Losses are counted from the FP32 of `graph` either way.
    """

    config: QuantizeConfig
    target: str
    graph: Ref[Graph]
    patches: Ref[PatchSet]
    holdout: Ref[Holdout]
    tuned: Ref[QatStudent] | None = None


@stage(version=18, resumes=True, apart=True)
def search(inputs: SearchInputs, *, out: Path) -> QuantPlan:
    """How to quantise the graph.

    Raises:
        UnsupportedError: the graph is quantised already.
    """
    started = monotonic()
    config, target, held = inputs.config, inputs.target, inputs.holdout.value
    tuned, bounds = inputs.tuned.value if inputs.tuned else None, config.bounds
    evaluator = make_evaluator(target, inputs.graph.value, None, inputs.patches.value, held, out)
    if evaluator is None:
        if config.float:
            family = inputs.graph.value.family
            log.warning("%s: its recipe for %s leaves out quantize.float", target, family)
        return _plan_recipe(inputs, out)
    forced = frozenset(op.name for op in evaluator.operations) & frozenset(config.float)
    if tuned:
        chosen, forced = _with_tuned(inputs, tuned, evaluator, forced, out)
        tuned, evaluator = (None, evaluator) if chosen is evaluator else (tuned, chosen)
    evaluator.settle_rest(config.size, _PACE)
    ranges = _best_ranges(evaluator, bounds)
    found, harms = _search(evaluator, ranges, config, forced, tuned)
    floats = found.best.floats
    if floats or tuned:
        evaluator.refine_rest(floats)
        losses = evaluator.loss(ranges, floats), evaluator.confirm(ranges, floats)
        found = core.remeasure(found, *losses, bounds)
    front = _measure_front(evaluator, ranges, found, config.size)
    _tell(target, config, found, monotonic() - started)
    confirmed = found.best.confirmed
    assert confirmed is not None
    return QuantPlan(
        target=target,
        ranges=ranges,
        rest=evaluator.rest,
        floats=_float_layers(evaluator.operations, floats, forced, harms, front),
        drop_db=confirmed.mean_db,
        worst_db=confirmed.worst_db,
        added_mse=confirmed.added_mse,
        met=found.bounds_met,
        out_of_tries=found.out_of_tries,
        max_drop_db=config.max_drop_db,
        max_worst_db=config.max_worst_drop_db,
        front=front,
        holdout=held,
        operations=len(evaluator.operations) + (len(tuned.rounding.floats) if tuned else 0),
        size=config.size,
        tuned=tuned,
    )


def _with_tuned(
    inputs: SearchInputs,
    tuned: QatStudent,
    evaluator: Evaluator,
    forced: frozenset[str],
    out: Path,
) -> tuple[Evaluator, frozenset[str]]:
    """The one that loses less, of the graph and of what it was tuned to, and its forced floats."""
    target, graph, patches = inputs.target, inputs.graph.value, inputs.patches.value
    trained = make_evaluator(target, graph, tuned, patches, inputs.holdout.value, out / "tuned")
    if trained is None:
        return evaluator, forced
    trained_as_float = frozenset(tuned.rounding.floats)
    losses = [
        evaluator.loss(evaluator.tuner.range_estimators[0], forced | trained_as_float),
        trained.loss(trained.tuner.range_estimators[0], forced - trained_as_float),
    ]
    message = "%s: with %d floats INT8 loses %.4f dB (worst crop %.3f), trained on %.4f (%.3f)"
    figures = (f for loss in losses for f in (loss.mean_db, loss.worst_db))
    log.info(message, target, len(trained_as_float), *figures)
    if inputs.config.bounds.share(losses[1]) < inputs.config.bounds.share(losses[0]):
        return trained, forced - trained_as_float
    log.warning(NO_HELP, target)
    return evaluator, forced


def _search(
    evaluator: Evaluator,
    ranges: str,
    config: QuantizeConfig,
    forced: frozenset[str],
    tuned: QatStudent | None,
) -> tuple[Found, Harms | None]:
    """The best floats, and the harms where they had to be measured."""
    evaluate, confirm = partial(evaluator.loss, ranges), partial(evaluator.confirm, ranges)
    if tuned and config.bounds.hold(every := evaluate(forced)):  # trained to need no floats
        best = Candidate(forced, every, 0.0, confirm(forced))
        return Found(best, core.is_kept(best, config.bounds), (best,)), None
    harms = evaluator.harms(ranges)
    found = core.search(harms, config.bounds, evaluate, confirm, tries=config.tries, forced=forced)
    return found, harms


def _plan_recipe(inputs: SearchInputs, out: Path) -> QuantPlan:
    """The target's fixed recipe, with what it loses."""
    config, held = inputs.config, inputs.holdout.value
    graph, patches = inputs.graph.value, inputs.patches.value
    tuned = inputs.tuned.value if inputs.tuned else None
    of = (inputs.target, graph, tuned, patches, held)
    loss, tuned = measure_recipe(*of, config.bounds, out)
    return QuantPlan(
        target=inputs.target,
        ranges="",
        rest="",
        floats=(),
        drop_db=loss.mean_db,
        worst_db=loss.worst_db,
        added_mse=loss.added_mse,
        met=config.bounds.hold(replace(loss, margin_db=0.0)),  # as the gate asks
        max_drop_db=config.max_drop_db,
        max_worst_db=config.max_worst_drop_db,
        holdout=held,
        fixed=True,
        tuned=tuned,
    )


def make_evaluator(
    target: str,
    graph: Graph,
    tuned: QatStudent | None,
    patches: PatchSet,
    held: Holdout,
    folder: Path,
) -> Evaluator | None:
    """Of candidates of a graph, or of what it was tuned to, held against its FP32; None where the
    target has a fixed recipe for it."""
    folder.mkdir(exist_ok=True)
    chosen = find(target)
    of, scheme = (tuned.graph, tuned.rounding) if tuned else (graph, None)
    request = BuildRequest(of, "int8", folder, patches, scheme=scheme)
    searched = Feature.FLOAT_SEARCH in chosen.features
    tuner = chosen.tuner(request) if searched else None
    if tuner is None:
        return None
    evaluator = Evaluator(tuner, held, multiple=graph.multiple, folder=folder)
    fp32 = chosen.build(BuildRequest(graph, "fp32", folder / "fp32"))
    with closing(chosen.open(fp32)) as session:
        evaluator.hold_against(session)
    return evaluator


def floats_for_budget(evaluator: Evaluator, size: tuple[int, int], share: float) -> list[str]:
    """The floats that bring most for `share` of the time that everything in INT8 takes.

    What they bring is weighed by the default bounds: other bounds need no other training.
    """
    evaluator.settle_rest(size, _PACE)
    harms = evaluator.harms(evaluator.tuner.range_estimators[0])
    return core.knapsack_floats(harms, QuantizeConfig().bounds, share)


def check_floats(config: QuantizeConfig, graph: Graph) -> None:
    """Refuse a layer that is not there, before any target is built.

    Raises:
        UsageError: names it, and the nearest.
    """
    if not config.float:
        return
    import onnx

    nodes = onnx.load(graph.file, load_external_data=False).graph.node
    known = [node.name for node in nodes if node.op_type != "Constant"]
    for name in config.float:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
            raise UsageError(
                f"quantize.float: no operation {name!r} in {graph.file}",
                hint=f"the nearest: {', '.join(close)}",
            )


def _best_ranges(evaluator: Evaluator, bounds: Bounds) -> str:
    """The recipe that loses least with first and last convolution and skip additions float."""
    usual = [op.name for op in evaluator.operations if op.part]
    shares: dict[str, float] = {}
    for ranges in evaluator.tuner.range_estimators:
        log.info("ranges %s: quantising", ranges)
        shares[ranges] = bounds.share(evaluator.loss(ranges, usual))
    best = min(shares, key=lambda ranges: shares[ranges])
    log.info("ranges %s lose least", best)
    return best


def _measure_front(
    evaluator: Evaluator, ranges: str, found: Found, size: tuple[int, int]
) -> tuple[FrontPoint, ...]:
    """The best and some more of the Pareto front by work, each timed."""
    every = found.pareto
    spread = {round(n * (len(every) - 1) / (_POINTS - 1)) for n in range(_POINTS)}
    drawn = [one for n, one in enumerate(every) if n in spread or one == found.best]
    times = evaluator.times_ms(ranges, [one.floats for one in drawn], size, _PACE)
    return tuple(
        FrontPoint(
            ms=ms,
            drop_db=one.loss.mean_db,
            worst_db=one.loss.worst_db,
            floats=len(one.floats),
            chosen=one.floats == found.best.floats,
        )
        for one, ms in zip(drawn, times, strict=True)
    )


def _tell(target: str, config: QuantizeConfig, found: Found, seconds: float) -> None:
    loss, count = found.best.confirmed or found.best.loss, len(found.best.floats)
    text = f"{loss.mean_db:.3f} dB lost on crops that confirm it, worst {loss.worst_db:.3f}"
    if found.bounds_met:
        log.info("%s: %d operations stay float; %s; %.0f s", target, count, text, seconds)
    else:
        log.warning(
            "%s: no INT8 keeps quantize.max_drop_db=%g, max_worst_drop_db=%g; best found: %s",
            target, config.max_drop_db, config.max_worst_drop_db, text,
        )  # fmt: skip


def _float_layers(
    operations: Sequence[Operation],
    floats: Collection[str],
    forced: Collection[str],
    harms: Harms | None,
    front: Sequence[FrontPoint],
) -> tuple[FloatLayer, ...]:
    """Each with its share, by work, of what all floats together were measured to take longer."""
    extra_ms = max(0.0, next((p.ms for p in front if p.chosen), front[0].ms) - front[0].ms)
    whole = max(1.0, core.sum_work(operations, floats))
    return tuple(
        _float_layer(op, forced, harms, op.work / whole * extra_ms)
        for op in operations
        if op.name in floats
    )


def _float_layer(
    op: Operation, forced: Collection[str], harms: Harms | None, cost_ms: float
) -> FloatLayer:
    part = f"{op.part}: " if op.part else ""
    why, harm = "asked for: quantize.float", harms.alone(op.name) if harms else None
    if op.name not in forced and harm:
        lost = f"{harm.mean_db:.4f} dB (worst crop {harm.worst_db:.3f})"
        why = f"{part}INT8 here alone loses {lost} for {cost_ms:.2g} ms"
    return FloatLayer(op.name, op.kind, harm.mean_db if harm else 0.0, cost_ms, why)
