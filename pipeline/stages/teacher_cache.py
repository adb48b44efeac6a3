"""Run the teacher over the photos once, for all trainings that read what it makes of them."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from mipkd.core.records import Directions, Model, Photos, TeacherCache
from mipkd.distill import teacher as teachers
from mipkd.distill.cache_fill import fill_cache
from mipkd.distill.cache_store import link_images
from mipkd.distill.hardware import find_device
from mipkd.distill.latent_directions import find_directions
from pipeline.stage import NotInKey, Ref, stage


@dataclass(frozen=True)
class DirectionsInputs:
    """Positions among a teacher's blocks; `width` None: as many directions as are needed."""

    width: int | None
    teacher: Ref[Model]
    photos: Ref[Photos]
    positions: tuple[int, ...]
    device: str


@stage(version=2)
def directions(inputs: DirectionsInputs, *, out: Path) -> Directions:
    """The principal directions of the teacher's features."""
    net = teachers.load(inputs.teacher.value).to(find_device(inputs.device))
    return find_directions(net, inputs.photos.value, inputs.positions, inputs.width, out)


@dataclass(frozen=True)
class TeacherCacheInputs:
    """`same_images` is a cache of other latents that has the teacher's images already."""

    teacher: Ref[Model]
    photos: Ref[Photos]
    directions: Ref[Directions] | None
    device: str
    same_images: NotInKey[Ref[TeacherCache] | None]


@stage(version=1, resumes=True)
def teacher_cache(inputs: TeacherCacheInputs, *, out: Path) -> TeacherCache:
    """The teacher's images of all photos and, in `directions`, its latents; goes on after the last
    photo that is whole."""
    start = perf_counter()
    teacher, photos = inputs.teacher.value, inputs.photos.value
    directions = inputs.directions.value if inputs.directions else None
    if same := inputs.same_images.value:
        link_images(same.value, out)
    else:
        net = teachers.load(teacher).to(find_device(inputs.device))
        fill_cache(net, photos, directions, out)
    return TeacherCache(
        folder=out,
        teacher=teacher.sha256,
        photos=photos.sha256,
        directions=directions,
        size_bytes=sum(file.stat().st_size for file in out.glob("*.f16")),
        seconds=round(perf_counter() - start, 1),
    )
