"""Train the small x2 teacher that comes with the package, from nothing, on free photos.

    python docs/results/demo-teacher/train.py ASSETS/train/photos_hires WORK_FOLDER

The photos (CC0, CC-BY, CC-BY-SA; sources in README.md beside this file) are halved first, which
hides their JPEG traces. Interrupted, the same command goes on.
"""

import logging
import sys
from pathlib import Path

import torch

from mipkd.archs.edsr import ARCH, Hyper
from mipkd.core.folders import list_images
from mipkd.core.images import downscale, read_rgb, write_png
from mipkd.distill.data import load_tests, prepare_photos, prepare_tests
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.distill.settings import DistillConfig
from mipkd.distill.teacher import save
from mipkd.distill.trainer import TrainingInputs, train

HYPER = Hyper(scale=2, channels=32, blocks=8)
CONFIG = DistillConfig(method="scratch", init="random", steps=3000, batch=16, lr=1e-3)


def main(photos: Path, work: Path) -> None:
    """Write `work`/teacher_x2.safetensors."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    halved = work / "halved"
    if not halved.exists():
        halved.mkdir(parents=True)
        for file in list_images(photos):
            write_png(halved / f"{file.stem}.png", downscale(read_rgb(file), 2))
    for name in ("photos", "train"):
        (work / name).mkdir(exist_ok=True)
    store = prepare_photos(halved, scale=HYPER.scale, patch=CONFIG.patch, out=work / "photos")
    tests = prepare_tests(None, scale=HYPER.scale, out=work / "tests")
    torch.manual_seed(CONFIG.seed)
    student = ARCH.make(HYPER)
    sampler = PatchSampler(store, patch=CONFIG.patch, batch=CONFIG.batch, seed=CONFIG.seed)
    inputs = TrainingInputs(CONFIG, student, None, sampler)
    trained = train(inputs, tests=load_tests(tests), out=work / "train")
    file = work / "teacher_x2.safetensors"
    save(trained.student, ARCH, HYPER, file, licence="Apache-2.0")
    print(f"{file}: {trained.psnr_y_db:.2f} dB on the sample photos, {trained.seconds:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
