"""What a user gave: checkpoints, graphs and folders of images, known by their content."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.patches import find_large
from mipkd.core.errors import UsageError
from mipkd.core.image_sets import hash_folder
from mipkd.core.measurement import Against
from mipkd.core.records import Graph, Model, PatchSet, Photos, TestSet
from mipkd.distill.data import ImageKind, look_at_photos, look_at_tests, name_source
from mipkd.distill.pair_reader import Size
from mipkd.distill.teacher import refuse_scale
from mipkd.export.foreign_graph import external_files
from pipeline.bundle.licences import licence_warning
from pipeline.config import Config
from pipeline.context import RunContext
from pipeline.lr_only import LrOnly, check_lr_only, find_lr_only, find_lr_only_tests
from pipeline.receipts import hash_file
from pipeline.run import Run
from pipeline.stage import NotInKey, Ref, Source
from pipeline.stages.calibrate import CalibrateInputs, calibrate
from pipeline.stages.compare_teacher import CompareTeacherInputs
from pipeline.stages.export import AdoptInputs, adopt
from pipeline.stages.identify import IdentifyInputs, identify
from pipeline.stages.keep_apart import ImageFolder, KeepApartInputs, check_apart, keep_apart
from pipeline.stages.prepare import PhotosInputs, TestsInputs, photos, scale_of, tests
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

    @property
    def reference(self) -> tuple[Ref[Model] | Ref[Graph], Against]:
        """The net whose image stands for a truth that is not there, and which it is."""
        return (self.teacher, "teacher") if self.teacher else (self.like, "student")


@dataclass(frozen=True)
class Images:
    """What is trained, judged and calibrated on."""

    photos: Ref[Photos]
    tests: Ref[TestSet]
    sizes: ImageSizes | None = None  # of a plan, which prepares no image
    # Of photos that are LR frames without truth: the net whose image stands for it.
    reference: Ref[Model] | Ref[Graph] | None = None
    against: Against = "truth"


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
    images, photos = sources_with_truth(on)
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
        looked_at = CompareTeacherInputs(teacher, images or photos, config.degradation)
        alone = on.lr_only.data
        check_teacher(on.run, looked_at, config.identify, config.teacher, teaches_alone=alone)
        if teacher.record and (warning := licence_warning(teacher.record)):
            log.warning("%s", warning)
    return Nets(teacher, model, graph)


def sources_with_truth(on: RunContext) -> tuple[Source | None, Source | None]:
    """Test images and photos, where they are not LR frames without truth."""
    config = on.config
    return (
        None if on.lr_only.val else source_of_folder(config.val),
        None if on.lr_only.data else source_of_folder(config.data),
    )


def prepare_images(
    config: Config, run: Run, like: int | Nets, lr_only: LrOnly, patch: int
) -> Images:
    """Training photos with none of the test images among them, and the test images, for nets or,
    without any, for a scale.

    Raises:
        UsageError: a test image, or a copy of one, is among the photos; a plan says so too.
    """
    scale = like if isinstance(like, int) else like.like
    none: tuple[None, Against] = None, "truth"
    reference, against = none if isinstance(like, int) else like.reference
    test_set, degradation = source_of_folder(config.val), config.degradation
    if lr_only.val:
        of_tests = TestsInputs(scale, test_set, reference, against)
    else:
        of_tests = TestsInputs(scale, test_set, degradation=degradation)
    of_photos = PhotosInputs(patch, scale, source_of_folder(config.data), lr_only.data, degradation)
    prepared, pixels = run.step(tests, of_tests), run.step(photos, of_photos)
    factor, sizes = scale_of(scale), None
    if run.dry and factor:
        sizes = _look_at_images(config, lr_only, factor, patch)
    apart = KeepApartInputs(pixels, (prepared,))
    if run.dry and not run.remembers(keep_apart, apart):
        frames = [factor or 1 if lacks else 0 for lacks in (lr_only.data, lr_only.val)]
        folders = map(ImageFolder, (config.data, config.val), frames)
        check_apart(next(folders), tuple(folders))
    run.step(keep_apart, apart)
    if not lr_only.data:
        return Images(pixels, prepared, sizes)
    return Images(pixels, prepared, sizes, reference, against)


def _look_at_images(config: Config, lr_only: LrOnly, scale: int, patch: int) -> ImageSizes:
    of_photos, of_tests = (ImageKind(lacks) for lacks in (lr_only.data, lr_only.val))
    shown = look_at_tests(config.val, scale=scale, kind=of_tests)
    photos = look_at_photos(config.data, scale=scale, patch=patch, kind=of_photos)
    return ImageSizes(tuple(photos), tuple(shown))


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
    lr_only = find_lr_only(config)
    check_lr_only(config, lr_only)
    return Subject(
        teacher,
        options,
        config.student,
        photos,
        sets,
        lr_only=lr_only.data,
        lr_only_tests=find_lr_only_tests(config, tests),
        degradation=config.degradation,
    )
