"""What a user gave: checkpoints, graphs and folders of images, known by their content."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.patches import find_large
from mipkd.core.errors import UsageError
from mipkd.core.image_sets import hash_folder
from mipkd.core.records import Graph, Model, PatchSet, Photos, TestSet
from mipkd.distill.data import look_at_photos, look_at_tests, name_source
from mipkd.distill.pair_reader import Size
from mipkd.distill.teacher import refuse_scale
from mipkd.export.foreign_graph import external_files
from pipeline.bundle.licences import licence_warning
from pipeline.config import Config
from pipeline.context import RunContext
from pipeline.receipts import hash_file
from pipeline.run import Run
from pipeline.stage import NotInKey, Ref, Source
from pipeline.stages.calibrate import CalibrateInputs, calibrate
from pipeline.stages.export import AdoptInputs, adopt
from pipeline.stages.identify import IdentifyInputs, identify
from pipeline.stages.keep_apart import KeepApartInputs, check_apart, keep_apart
from pipeline.stages.prepare import PhotosInputs, Scale, TestsInputs, photos, scale_of, tests
from pipeline.study import Subject
from pipeline.teacher_check import check_teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Nets:
    """The nets that were given; one of them at least is there."""

    teacher: Ref[Model] | None
    model: Ref[Model] | None  # a finished student, as a checkpoint
    graph: Ref[Graph] | None  # or as an ONNX graph

    @property
    def like(self) -> Ref[Model] | Ref[Graph]:
        """The one whose scale the others must have."""
        found = self.teacher or self.model or self.graph
        assert found is not None, "a configuration has a teacher or a model"
        return found


@dataclass(frozen=True)
class Images:
    """What is trained, judged and calibrated on."""

    photos: Ref[Photos]
    tests: Ref[TestSet]
    sizes: ImageSizes | None = None  # of a plan, which prepares no image


@dataclass(frozen=True)
class ImageSizes:
    """LR height and width of the images that would be used."""

    photos: tuple[Size, ...]
    tests: tuple[Size, ...]


def identify_nets(on: RunContext) -> Nets:
    """The teacher and the finished student, where they were given.

    Raises:
        MipkdError: a file that is no net, or nets of two scales.
    """
    config = on.config
    images, photos = source_of_folder(config.val), source_of_folder(config.data)
    teacher = identify_checkpoint(on, "teacher", config.teacher, photos, label="teacher")
    foreign = is_graph(config.model)
    file = None if foreign else config.model
    model = identify_checkpoint(on, "student", file, photos, label="student")
    graph = adopt_graph(on, config.model if foreign else None, images)
    check_scale("--model", model or graph, teacher)
    if graph and graph.record and config.scale not in (None, graph.record.scale):
        refuse_scale(config.model, graph.record.scale, config.scale)
    teaches = not config.model or (config.qat.run and config.qat.taught_by == "teacher")
    if teacher and teaches:
        check_teacher(on.run, teacher, images or photos, config.identify, config.teacher)
        if teacher.record and (warning := licence_warning(teacher.record)):
            log.warning("%s", warning)
    return Nets(teacher, model, graph)


def prepare_images(config: Config, run: Run, scale: Scale, patch: int) -> Images:
    """Training photos with none of the test images among them, and the test images.

    Raises:
        UsageError: a test image, or a copy of one, is among the photos; a plan says so too.
    """
    test_set = run.step(tests, TestsInputs(scale, source_of_folder(config.val)))
    pixels = run.step(photos, PhotosInputs(patch, scale, source_of_folder(config.data)))
    sizes = (
        _look_at_images(config, factor, patch) if run.dry and (factor := scale_of(scale)) else None
    )
    apart = KeepApartInputs(pixels, (test_set,))
    if run.dry and not run.remembers(keep_apart, apart):
        check_apart(config.data, (config.val,))
    run.step(keep_apart, apart)
    return Images(pixels, test_set, sizes)


def _look_at_images(config: Config, scale: int, patch: int) -> ImageSizes:
    tests = look_at_tests(config.val, scale=scale)
    return ImageSizes(tuple(look_at_photos(config.data, scale=scale, patch=patch)), tuple(tests))


def choose_patches(on: RunContext, images: Images) -> Ref[PatchSet]:
    """What quantisers calibrate on.

    Raises:
        UsageError: too few photos, or too small; a plan says so too.
    """
    config = on.config.calibrate
    if images.sizes:
        source = name_source(on.config.data, for_tests=False)
        find_large(images.sizes.photos, size=config.size, seed=config.seed, source=source)
    return on.run.step(calibrate, CalibrateInputs(config, images.photos))


def is_graph(file: Path | None) -> bool:
    """Whether a finished student is an ONNX graph, and no checkpoint."""
    return file is not None and file.suffix == ".onnx"


def identify_checkpoint(
    on: RunContext, role: str, file: Path | None, photos: Source | None, *, label: str
) -> Ref[Model] | None:
    """The model in a checkpoint; what it does not tell is settled on training photos."""
    if file is None:
        return None
    options, scale = on.config.identify, on.config.scale
    options = options.model_copy(update={"scale": scale}) if scale else options
    limits = NotInKey(on.config.limits)
    inputs = IdentifyInputs(options, source_of_file(file), role, photos, limits)
    return on.run.step(identify, inputs, label=label)


def adopt_graph(
    on: RunContext, file: Path | None, images: Source | None, baseline: str = ""
) -> Ref[Graph] | None:
    """The student in an ONNX graph, ours or a `baseline` of that name."""
    if file is None:
        return None
    source, weights = source_of_file(file), tuple(map(source_of_file, external_files(file)))
    limits = NotInKey(on.config.limits)
    inputs = AdoptInputs(on.config.adopt, source, weights, images, baseline, limits)
    return on.run.step(adopt, inputs, label=baseline)


def source_of_file(path: Path | None) -> Source:
    """A file.

    Raises:
        UsageError: there is none.
    """
    assert path is not None
    if not path.is_file():
        raise UsageError(f"{path}: no such file", hint="check the path of --teacher or --model")
    return Source(path, hash_file(path))


def source_of_folder(path: Path | None) -> Source | None:
    """A folder of images, where one was given."""
    return Source(path, hash_folder(path)) if path else None


def check_scale(
    option: str,
    other: Ref[Model] | Ref[Graph] | None,
    like: Ref[Model] | Ref[Graph] | None,
) -> None:
    """Refuse nets of two scales; what is only planned is not known.

    Raises:
        UsageError: names both.
    """
    if not (other and like and other.record and like.record):
        return
    if other.record.scale != like.record.scale:
        raise UsageError(
            f"{option}: its scale is x{other.record.scale}, the {like.record.role}'s "
            f"x{like.record.scale}",
            hint="give nets of the same scale",
        )


def study_subject(config: Config, tests: Sequence[Path | None]) -> Subject:
    """What a study trains, from the configuration of a run."""
    options = config.identify.model_copy(update={"scale": config.scale or config.identify.scale})
    sets = tuple(source_of_folder(test) for test in tests)
    teacher, photos = source_of_file(config.teacher), source_of_folder(config.data)
    return Subject(teacher, options, config.student, photos, sets)
