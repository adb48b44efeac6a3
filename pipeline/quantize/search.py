"""Choose which layers INT8 leaves float on a target, by what each loses and costs there."""

import difflib
import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Annotated

from pydantic import Field

from calibration import search as core
from calibration.search import Bounds, Candidate, Found, Loss, Measured, Operation, round_time
from mipkd.core.errors import UsageError
from mipkd.core.records import (
    Built,
    FloatLayer,
    FrontPoint,
    Graph,
    Holdout,
    PatchSet,
    QatStudent,
    QuantPlan,
)
from pipeline.bench.latency import BenchSettings
from pipeline.quantize.evaluator import Crops, Evaluator
from pipeline.quantize.hold_out import HoldoutConfig
from pipeline.stage import Ref, stage
from targets.base import BuildRequest, Feature, Tuner, find

log = logging.getLogger(__name__)

Decibels = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0)]

_PACE = BenchSettings(
    warmup_s=0.1, min_time_s=1.2, min_samples=24, max_time_s=10.0, attempts=1, max_drift=9.0
)


_SLACK = 0.01  # of the time with everything in INT8: nobody can tell it from noise
_NO_HELP = "%s: training on has not helped INT8: left out"
_FOR_RANGES, _FOR_HARMS = 0.4, 0.8  # shares of the time limit by which they should be done


class QuantizeConfig(HoldoutConfig):
    """What INT8 may lose on photos that nothing was calibrated on, and how long to search."""

    search: bool = True  # without it each target's fixed recipe
    max_drop_db: Decibels = 0.05  # PSNR-Y below the target's own FP32, mean over the holdout
    max_worst_drop_db: Decibels = 0.3  # the same, on the crop that loses most
    limit_s: Seconds = 300.0  # after it the search ends with the best so far
    size: tuple[int, int] = (128, 128)  # LR height and width at which costs are measured
    float: tuple[str, ...] = ()  # operations of the ONNX graph that stay float in any case

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


@stage(version=11, resumes=True, apart=True)
def search(inputs: SearchInputs, *, out: Path) -> QuantPlan:
    """How to quantise the graph.

    Raises:
        UnsupportedError: the graph is quantised already.
    """
    started = monotonic()
    config, target = inputs.config, inputs.target
    graph, patches, held = inputs.graph.value, inputs.patches.value, inputs.holdout.value
    tuned, bounds = inputs.tuned.value if inputs.tuned else None, config.bounds
    evaluator = make_evaluator(target, graph, None, patches, held, out)
    if evaluator is None:
        if config.float:
            log.warning("%s: its recipe for %s leaves out quantize.float", target, graph.family)
        return _by_recipe(inputs, out)
    tuner, operations = evaluator.tuner, evaluator.operations
    forced = frozenset(op.name for op in operations) & frozenset(config.float)
    if tuned and (trained := make_evaluator(target, graph, tuned, patches, held, out / "tuned")):
        trained_as_float = frozenset(tuned.rounding.floats)
        losses = [
            evaluator.loss(tuner.range_estimators[0], forced | trained_as_float),
            trained.loss(trained.tuner.range_estimators[0], forced - trained_as_float),
        ]
        message = "%s: with %d floats INT8 loses %.4f dB (worst crop %.3f), trained on %.4f (%.3f)"
        figures = (f for loss in losses for f in (loss.mean_db, loss.worst_db))
        log.info(message, target, len(trained_as_float), *figures)
        if bounds.share(losses[1]) < bounds.share(losses[0]):
            evaluator, tuner, operations = trained, trained.tuner, trained.operations
            forced -= trained_as_float
        else:
            log.warning(_NO_HELP, target)
            tuned = None
    evaluator.settle_rest(config.size, _PACE)
    ranges = _best_ranges(
        evaluator, tuner, operations, bounds, _clock(started + _FOR_RANGES * config.limit_s)
    )
    every = evaluator.loss(ranges, forced)
    harms, costs_ms = dict[str, Loss](), dict[str, float]()
    if tuned and bounds.hold(every):  # trained to need no floats
        base_ms = evaluator.base_ms(ranges, config.size, _PACE)
        best = Candidate(forced, every, 0.0)
        found = Found(best, bounds_met=True, pareto=(best,))
    else:
        base_ms, costs_ms = evaluator.costs_ms(ranges, config.size, _PACE)
        harms = _harms(evaluator, ranges, operations, _clock(started + _FOR_HARMS * config.limit_s))
        coarse_ms = {name: round_time(ms) for name, ms in costs_ms.items()}
        found = core.search(
            Measured(operations, harms, coarse_ms, bounds),
            lambda floats: evaluator.loss(ranges, floats),
            slack_ms=_SLACK * round_time(base_ms, parts=2),
            forced=forced,
            late=_clock(started + config.limit_s),
        )
    if found.best.floats or tuned:
        evaluator.refine_rest(ranges, found.best.floats, config.size, _PACE)
        found = core.with_remeasured_loss(found, evaluator.loss(ranges, found.best.floats), bounds)
    _tell(target, config, found, monotonic() - started)
    return QuantPlan(
        target=target,
        ranges=ranges,
        rest=evaluator.rest,
        floats=tuple(
            _float_layer(op, forced, harms.get(op.name), costs_ms.get(op.name, 0.0))
            for op in operations
            if op.name in found.best.floats
        ),
        drop_db=found.best.loss.mean_db,
        worst_db=found.best.loss.worst_db,
        met=found.bounds_met,
        max_drop_db=config.max_drop_db,
        max_worst_db=config.max_worst_drop_db,
        front=tuple(_point(one, base_ms, costs_ms, found) for one in found.pareto),
        holdout=held,
        operations=len(operations) + (len(tuned.rounding.floats) if tuned else 0),
        size=config.size,
        tuned=tuned,
    )


def _by_recipe(inputs: SearchInputs, out: Path) -> QuantPlan:
    """What the target's fixed recipe loses on the holdout; nothing is searched."""
    config, target = inputs.config, inputs.target
    graph, patches, held = inputs.graph.value, inputs.patches.value, inputs.holdout.value
    tuned = inputs.tuned.value if inputs.tuned else None
    chosen, crops = find(target), Crops(held, multiple=graph.multiple)

    def psnrs(built: Built) -> list[float]:
        with closing(chosen.open(built)) as session:
            return crops.psnrs(session)

    def build(precision: str) -> Built:
        return chosen.build(BuildRequest(graph, precision, out / precision, patches))

    fp32 = psnrs(build("fp32"))
    loss = crops.loss(fp32, psnrs(build("int8")))
    message = "%s: INT8 by its fixed recipe loses %.3f dB on the holdout, worst crop %.3f"
    log.info(message, target, loss.mean_db, loss.worst_db)
    if tuned:
        request = BuildRequest(tuned.graph, "int8", out / "tuned", patches, scheme=tuned.rounding)
        trained = crops.loss(fp32, psnrs(chosen.build(request)))
        log.info("%s: trained on %.3f, %.3f", target, trained.mean_db, trained.worst_db)
        if config.bounds.share(trained) < config.bounds.share(loss):
            loss = trained
        else:
            log.warning(_NO_HELP, target)
            tuned = None
    return QuantPlan(
        target=target,
        ranges="",
        rest="",
        floats=(),
        drop_db=loss.mean_db,
        worst_db=loss.worst_db,
        met=config.bounds.hold(loss),
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
    ranges = evaluator.tuner.range_estimators[0]
    base_ms, costs_ms = evaluator.costs_ms(ranges, size, _PACE)
    harms = _harms(evaluator, ranges, evaluator.operations, lambda: False)
    coarse_ms = {name: round_time(ms) for name, ms in costs_ms.items()}
    known = Measured(evaluator.operations, harms, coarse_ms, QuantizeConfig().bounds)
    return core.knapsack_floats(known, share * base_ms)


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


def _clock(end: Seconds) -> Callable[[], bool]:
    return lambda: monotonic() > end


def _best_ranges(
    evaluator: Evaluator,
    tuner: Tuner,
    operations: tuple[Operation, ...],
    bounds: Bounds,
    late: Callable[[], bool],
) -> str:
    """The recipe that loses least with first and last convolution and skip additions float."""
    usual = [op.name for op in operations if op.part]
    shares: dict[str, Seconds] = {}
    for ranges in tuner.range_estimators:
        if shares and late():
            log.warning("search: no time left for ranges %s", ranges)
            break
        log.info("ranges %s: quantising", ranges)
        shares[ranges] = bounds.share(evaluator.loss(ranges, usual))
    best = min(shares, key=lambda ranges: shares[ranges])
    log.info("ranges %s lose least", best)
    return best


def _harms(
    evaluator: Evaluator, ranges: str, operations: tuple[Operation, ...], late: Callable[[], bool]
) -> dict[str, Loss]:
    """Of each operation; once it is late, of one of those that are alike for all of them."""
    harms: dict[str, Loss] = {}
    of_kind: dict[str, Loss] = {}
    copied = 0
    for number, op in enumerate(operations, 1):
        if op.alike in of_kind and late():
            harms[op.name] = of_kind[op.alike]
            copied += 1
            continue
        harms[op.name] = of_kind[op.alike] = evaluator.harm(ranges, op.name)
        if number % 10 == 0 or number == len(operations):
            log.info("what INT8 harms: %d of %d operations", number, len(operations))
    if copied:
        log.warning("search: out of time: %d harms are those of a layer that is alike", copied)
    return harms


def _tell(target: str, config: QuantizeConfig, found: Found, seconds: Seconds) -> None:
    loss, count = found.best.loss, len(found.best.floats)
    text = f"{loss.mean_db:.3f} dB lost on the holdout, worst crop {loss.worst_db:.3f}"
    if found.bounds_met:
        log.info("%s: %d operations stay float; %s; %.0f s", target, count, text, seconds)
    else:
        log.warning(
            "%s: no INT8 keeps quantize.max_drop_db=%g, max_worst_drop_db=%g; best found: %s",
            target, config.max_drop_db, config.max_worst_drop_db, text,
        )  # fmt: skip


def _float_layer(
    op: Operation, forced: frozenset[str], harm: Loss | None, cost_ms: float
) -> FloatLayer:
    part = f"{op.part}: " if op.part else ""
    why = "asked for: quantize.float"
    if op.name not in forced and harm:
        lost = f"{harm.mean_db:.4f} dB (worst crop {harm.worst_db:.3f})"
        why = f"{part}INT8 here alone loses {lost} for {cost_ms:.2g} ms"
    return FloatLayer(op.name, op.kind, harm.mean_db if harm else 0.0, cost_ms, why)


def _point(
    one: Candidate, base_ms: Seconds, costs_ms: Mapping[str, float], found: Found
) -> FrontPoint:
    return FrontPoint(
        ms=base_ms + sum(costs_ms.get(name, 0.0) for name in one.floats),
        drop_db=one.loss.mean_db,
        worst_db=one.loss.worst_db,
        floats=len(one.floats),
        chosen=one.floats == found.best.floats,
    )
