"""What INT8 by a target's fixed recipe loses: nothing is searched."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path

from calibration.search import Bounds, Loss
from mipkd.core.records import Built, Graph, Holdout, PatchSet, QatStudent
from pipeline.quantize.evaluator import Crops
from targets.base import BuildRequest, find

log = logging.getLogger(__name__)

NO_HELP = "%s: training on has not helped INT8: left out"


def measure_recipe(
    target: str,
    graph: Graph,
    tuned: QatStudent | None,
    patches: PatchSet,
    held: Holdout,
    bounds: Bounds,
    out: Path,
) -> tuple[Loss, QatStudent | None]:
    """The loss on the crops that confirm, and what the graph was tuned to, if that loses less."""
    chosen = find(target)
    halves = [Crops(held, multiple=graph.multiple, confirming=late) for late in (False, True)]

    def errors(built: Built) -> list[list[float]]:
        with closing(chosen.open(built)) as session:
            return [crops.errors(session) for crops in halves]

    def losses(request: BuildRequest) -> list[Loss]:
        after = errors(chosen.build(request))
        return [crops.loss(*pair) for crops, *pair in zip(halves, fp32, after, strict=True)]

    fp32 = errors(chosen.build(BuildRequest(graph, "fp32", out / "fp32", patches)))
    on, confirmed = losses(BuildRequest(graph, "int8", out / "int8", patches))
    message = "%s: INT8 by its fixed recipe loses %.3f dB on the holdout, worst crop %.3f"
    log.info(message, target, confirmed.mean_db, confirmed.worst_db)
    if tuned is None:
        return confirmed, None
    request = BuildRequest(tuned.graph, "int8", out / "tuned", patches, scheme=tuned.rounding)
    trained, trained_confirmed = losses(request)
    log.info("%s: trained on %.3f, %.3f", target, trained.mean_db, trained.worst_db)
    if bounds.share(trained) < bounds.share(on):
        return trained_confirmed, tuned
    log.warning(NO_HELP, target)
    return confirmed, None
