"""What of a run decides how long its steps take, as far as its plan knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from mipkd.archs.base import arch_names, load_arch
from mipkd.core.image_headers import size_of
from mipkd.core.records import Graph, Model, Photos, TestSet
from mipkd.distill import student as students
from mipkd.distill import teacher as teachers
from mipkd.distill.cache_fill import count_lr_pixels
from pipeline.config import Config
from pipeline.inputs import ImageSizes
from pipeline.plan.speeds import Sized
from pipeline.run import Event
from pipeline.student_grid import an_example


@dataclass(frozen=True)
class Outline:
    """The nets, and how many pixels there are to work on."""

    config: Config
    teacher: Model | None
    student: Sized | None  # None: a graph, or of no family of ours
    given: str  # a finished student, by content
    operations: int  # convolutions and matrix products of the student
    photo_pixels: int  # LR, of all
    test_pixels: int  # LR, of all
    tests: int

    @property
    def decides(self) -> dict[str, Any]:
        """For the kind of a timing."""
        return {
            "student": self.student.decides if self.student else self.given,
            "teacher": [self.teacher.arch, self.teacher.hyper] if self.teacher else None,
            "tests": self.test_pixels,
        }


def outline(config: Config, events: Sequence[Event], sizes: ImageSizes | None) -> Outline:
    """What is known of a run from its steps; `sizes` are of images that are only planned."""
    records = {f"{one.stage} {one.label}".strip(): one.record for one in events}
    teacher, model = records.get("identify teacher"), records.get("identify student")
    graph, photos, tests = (records.get(name) for name in ("adopt", "photos", "tests"))
    student = _choose_student(config, teacher, model)
    shown = _test_sizes(tests, sizes)
    return Outline(
        config=config,
        teacher=teacher,
        student=student,
        given="".join(one.sha256 for one in (model, graph) if one),
        operations=_count_operations(student, graph),
        photo_pixels=_count_photo_pixels(photos, sizes),
        test_pixels=sum(map(prod, shown)),
        tests=len(shown),
    )


def _choose_student(config: Config, teacher: Model | None, model: Model | None) -> Sized | None:
    """As the run will; of "auto" one that may be chosen."""
    if model:
        known = model.arch in arch_names()
        return Sized(model.arch, teachers.hyper_of(load_arch(model.arch), model)) if known else None
    if teacher is None or config.model:
        return None
    spec = config.student
    if spec == "auto":
        spec = an_example(teacher, config.fit.candidates)
    arch, hyper = students.choose(teacher, spec)
    return Sized(arch.name, hyper)


def _count_operations(student: Sized | None, graph: Graph | None) -> int:
    """Of a net, or of a graph."""
    if student:
        with torch.device("meta"):
            net = load_arch(student.arch).make(student.hyper).to_deployed()
        return sum(isinstance(one, nn.Conv2d | nn.Linear) for one in net.modules())
    if graph is None:
        return 0
    import onnx

    nodes = onnx.load(graph.file, load_external_data=False).graph.node
    return sum(node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") for node in nodes)


def _count_photo_pixels(photos: Photos | None, sizes: ImageSizes | None) -> int:
    if sizes:
        return sum(map(prod, sizes.photos))
    return count_lr_pixels(photos) if photos else 0


def _test_sizes(tests: TestSet | None, sizes: ImageSizes | None) -> list[tuple[int, int]]:
    if sizes:
        return list(sizes.tests)
    return [size_of(tests.lr_file(name)) for name in tests.images] if tests else []
