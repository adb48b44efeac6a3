"""Run the teacher over the photos once, for all trainings that read what it makes of them."""

from pathlib import Path
from time import perf_counter

from mipkd.core.records import Directions, Model, Photos, TeacherCache
from mipkd.distill import teacher as teachers
from mipkd.distill.cache_fill import fill_cache
from mipkd.distill.cache_store import link_images
from mipkd.distill.hardware import find_device
from mipkd.distill.latent_directions import find_directions
from pipeline.run import stage


@stage(version=2)
def directions(
    width: int | None,
    teacher: Model,
    photos: Photos,
    positions: tuple[int, ...],
    device: str,
    out: Path,
) -> Directions:
    """The principal directions of the teacher's features; `width` None: as many as are needed."""
    net = teachers.load(teacher).to(find_device(device))
    return find_directions(net, photos, positions, width, out)


@stage(version=1, resumes=True)
def teacher_cache(
    config: None,
    teacher: Model,
    photos: Photos,
    directions: Directions | None,
    device: str,
    same_images: TeacherCache | None,
    out: Path,
) -> TeacherCache:
    """The teacher's images of all photos and, in `directions`, its latents; goes on after the last
    photo that is whole. `same_images` is a cache that has those images already."""
    start = perf_counter()
    if same_images:
        link_images(same_images, out)
    else:
        fill_cache(teachers.load(teacher).to(find_device(device)), photos, directions, out)
    return TeacherCache(
        folder=out,
        teacher=teacher.sha256,
        photos=photos.sha256,
        directions=directions,
        size_bytes=sum(file.stat().st_size for file in out.glob("*.f16")),
        seconds=round(perf_counter() - start, 1),
    )
