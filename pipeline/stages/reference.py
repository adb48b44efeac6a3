"""What the targets' pixels are compared with: bicubic, and the models in FP32."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from mipkd.core.images import resize_bicubic
from mipkd.core.measurement import ImageScore, Measurement
from mipkd.core.records import Graph, TestSet
from mipkd.distill.data import load_probes, load_tests
from pipeline.bench.pixels import keep_output, score, score_images
from pipeline.reference_net import FP32_ON
from pipeline.stage import Ref, stage
from targets._images import upscale
from targets.base import BuildRequest, find


@dataclass(frozen=True)
class ReferenceInputs:
    """Graphs of one scale, and the images they are compared on."""

    graphs: tuple[Ref[Graph], ...]
    tests: Ref[TestSet]


@stage(version=6)
def reference(inputs: ReferenceInputs, *, out: Path) -> tuple[Measurement, ...]:
    """Quality without latency of bicubic and of each graph in FP32."""
    pairs, graphs = load_tests(inputs.tests.value), [ref.value for ref in inputs.graphs]
    bicubic = out / "bicubic"
    scale = graphs[0].scale
    upscaled = ((name, resize_bicubic(lr, hr.shape[:2]), hr) for name, lr, hr in pairs)
    found = [
        _to_measurement("bicubic", 0, score_images(upscaled, scale=scale, out=bicubic), bicubic, {})
    ]
    target = find(FP32_ON)
    versions = target.versions()
    for graph in graphs:
        built = target.build(BuildRequest(graph, "fp32", out / f"{graph.role}-build"))
        with closing(target.open(built)) as session:
            outputs = out / graph.role
            scores = score(session, tests=pairs, scale=scale, multiple=graph.multiple, out=outputs)
            for name, lr in load_probes(inputs.tests.value):
                sr = upscale(session, lr, scale=scale, multiple=graph.multiple)
                keep_output(name, sr, out=outputs)
        found.append(_to_measurement(graph.role, built.size_bytes, scores, outputs, versions))
    return tuple(replace(one, against=inputs.tests.value.against) for one in found)


def _to_measurement(
    role: str,
    size_bytes: int,
    scores: tuple[ImageScore, ...],
    outputs: Path,
    versions: dict[str, str],
) -> Measurement:
    return Measurement(
        role=role,
        target="reference",
        precision="fp32",
        size_bytes=size_bytes,
        latencies=(),
        scores=scores,
        outputs=outputs,
        versions=versions,
    )
