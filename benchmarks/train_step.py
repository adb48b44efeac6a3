"""What a training step costs, phase by phase, against what its arithmetic must cost.

`python -m benchmarks.train_step [--teacher edsr:c256b32] [--student edsr:c64b32] [--scale 4]`

Each phase is measured alone, in rounds together with the whole step; a figure is the median of
the rounds. The floor is the phase's multiply-adds, as torch counts them forward and backward,
over the rate that this machine reaches in a large matrix product of the same precision. Weights
are random and patches come from the sample photos: neither changes what a step costs.

`--cached` measures instead what a step of each method costs over one without a teacher, where the
teacher has seen the photos once before: x2, teacher edsr:c64b5, student edsr:c32b2.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from operator import truediv
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mipkd.core.records import Photos, TeacherCache
from mipkd.distill import student as students
from mipkd.distill.batch import Sampler
from mipkd.distill.cache_fill import fill_cache
from mipkd.distill.compatibility import resolve_positions
from mipkd.distill.data import prepare_photos
from mipkd.distill.gpu_sampler import choose_sampler
from mipkd.distill.hardware import find_device
from mipkd.distill.latent_directions import find_directions, read_cache_directions
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.distill.settings import DistillConfig
from mipkd.distill.train_step import Learner
from mipkd.losses.base import Pass
from pipeline.bench.host import describe_host

MOST_OVER_PARTS, MOST_DATA = 1.15, 0.03
LEAST_OF_FLOOR, LEAST_OVER_PLAIN = 0.5, 3.0  # on a GPU
# Methods whose teacher is kept: their losses, and what a step may cost over one of pixel alone.
CACHED: dict[str, tuple[tuple[dict[str, Any], ...], float]] = {
    "logits": (({"name": "pixel"}, {"name": "logits"}), 1.10),
    "feature prior": (
        (
            {"name": "pixel"},
            {"name": "logits"},
            {"name": "mixture_of_priors", "encoder": "pca", "block_weight": 0},
        ),
        1.6,
    ),
}
_LATENTS = 24  # directions that a trained edsr:c64b5 x2 needs
_PARTS = ("data", "teacher", "student", "mixers", "mixed path", "optimiser")


def main() -> None:
    """Print the phases; exit with 1 when the step costs more than its parts allow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="edsr:c256b32")
    parser.add_argument("--student", default="edsr:c64b32")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cached", action="store_true", help="steps whose teacher is kept")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    asked = parser.parse_args()
    if asked.cached:
        sys.exit(_over_scratch(asked))
    found = measure(asked)
    print(json.dumps(found, indent=1) if asked.json else _table(found))
    slow = found["device"] != "cpu" and found["share_of_floor"] < LEAST_OF_FLOOR
    sys.exit(slow or found["step_over_parts"] > MOST_OVER_PARTS or found["data_share"] > MOST_DATA)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds and floors of every phase, and the bounds' figures."""
    config = DistillConfig(
        method="mipkd",
        init="random",
        batch=asked.batch,
        patch=asked.patch,
        precision=asked.precision,
        device=asked.device,
    )
    nets = [
        arch.make(hyper)
        for arch, hyper in (
            students.choose_without_teacher(spec, asked.scale)
            for spec in (asked.student, asked.teacher)
        )
    ]
    learner = Learner(config, nets[0], nets[1])
    with tempfile.TemporaryDirectory() as folder:
        photos = prepare_photos(None, scale=asked.scale, patch=asked.patch, out=Path(folder))
        sampler = PatchSampler(photos, patch=asked.patch, batch=asked.batch, seed=0)
        phases = _phases(learner, choose_sampler(sampler, learner.device))
        rate = _matmul_rate(learner)
        floors = {name: _flops(phase) / rate for name, phase in phases.items()}
        seconds = _timed(phases, asked.rounds, learner.device)
    seconds["mixed path"] = max(0.0, seconds["both mixers"] - seconds["mixers"])
    floors["mixed path"] = max(0.0, floors["both mixers"] - floors["mixers"])
    parts = sum(seconds[name] for name in _PARTS)
    return {
        "host": describe_host().cpu,
        "device": device_name(learner.device),
        "precision": str(learner.autocast or torch.float32).removeprefix("torch."),
        "torch": torch.__version__,
        "matmul_tflops": rate / 1e12,
        "seconds": {name: seconds[name] for name in (*_PARTS, "step")},
        "floor_seconds": {name: floors[name] for name in (*_PARTS, "step")},
        "steps_per_s": 1 / seconds["step"],
        "step_over_parts": seconds["step"] / parts,
        "data_share": seconds["data"] / seconds["step"],
        "share_of_floor": floors["step"] / seconds["step"],
    }


def _over_scratch(asked: argparse.Namespace) -> bool:
    """Print what steps cost over scratch's; whether one is over its bound."""
    taught = {name: losses for name, (losses, _) in CACHED.items()}
    with tempfile.TemporaryDirectory() as folder:
        photos = prepare_photos(None, scale=2, patch=asked.patch, out=Path(folder))
        phases: dict[str, Callable[[], object]] = {}
        for name, losses in {"scratch": ({"name": "pixel"},), **taught}.items():
            phases |= _steps(name, losses, photos, asked)
        samples = _samples(phases, asked.rounds, find_device(asked.device))
    seconds = {name: statistics.median(found) for name, found in samples.items()}
    # Round by round: what else the machine does slows all steps of a round alike.
    ratios = {
        name: statistics.median(map(truediv, samples[name], samples["scratch"])) for name in taught
    }
    over = any(ratio > CACHED[name][1] for name, ratio in ratios.items())
    if asked.json:
        print(json.dumps({"seconds": seconds, "over_scratch": ratios}, indent=1))
        return over
    print(f"{describe_host().cpu}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, share in seconds.items():
        print(f"{name}: {share * 1e3:.1f} ms")
    for name in CACHED:
        print(f"{name} / scratch: {ratios[name]:.3f} (bound {CACHED[name][1]})")
    return over


def _steps(
    name: str, losses: tuple[dict[str, Any], ...], photos: Photos, asked: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    """A step with a filled cache, and its data alone."""
    config = DistillConfig(
        losses=losses,
        batch=asked.batch,
        patch=asked.patch,
        precision=asked.precision,
        device=asked.device,
    )
    student, teacher = (
        arch.make(hyper)
        for arch, hyper in (
            students.choose_without_teacher(spec, 2) for spec in ("edsr:c32b2", "edsr:c64b5")
        )
    )
    cache = None
    if any(loss.needs_teacher for loss in config.build_losses().values()):
        out, found = photos.folder / name, None
        out.mkdir()
        at = resolve_positions(config, config.build_losses().values(), student, teacher).teacher
        if at:
            found = find_directions(teacher, photos, at, _LATENTS, out)
        fill_cache(teacher, photos, found, out)
        cache = TeacherCache(out, "teacher", photos.sha256, found, 0, 0.0)
    learner = Learner(config, student, teacher, principal=read_cache_directions(cache))
    plain = PatchSampler(photos, patch=asked.patch, batch=asked.batch, seed=0, cache=cache)
    sampler, steps = choose_sampler(plain, learner.device), iter(range(1, 10**9))
    return {
        name: lambda: learner.advance(sampler),
        f"data of {name}": lambda: learner._read_batch(sampler, next(steps)),
    }


def _phases(learner: Learner, sampler: Sampler) -> dict[str, Callable[[], object]]:
    """The whole step, and each part of it on inputs that were made before."""
    learner.start(sampler)
    batch = learner._next_batch(sampler)
    with torch.no_grad():
        seen = learner.forward.run_nets(batch, (0, len(batch)))
    loss, helper = learner.losses["mixture_of_priors"], learner.helpers["mixture_of_priors"]
    alone = loss.model_copy(update={"block_weight": 0.0})
    pixel, logits = learner.losses["pixel"], learner.losses["logits"]
    assert learner.teacher is not None
    teacher, student = learner.teacher, learner.student

    def autocast() -> torch.autocast:
        kind, on = learner.device.type, learner.autocast is not None
        return torch.autocast(kind, learner.autocast, enabled=on)

    def run_teacher() -> None:
        with torch.no_grad(), autocast():
            teacher.forward_with_taps(batch.lr_NCHW, learner.positions.teacher)

    def run_student() -> None:
        with autocast():
            image, features = student.forward_with_taps(batch.lr_NCHW, learner.positions.student)
            now = _leaf(seen, features, image)
            terms = {**pixel(now, None), **logits(now, None)}
            total = torch.stack([t.float() for t in terms.values()]).sum()
        # What the mixers send back enters with the image's gradient, as in a step.
        torch.autograd.backward(
            [total, *features], [None, *(torch.zeros_like(f) for f in features)]
        )

    def run_mixers(which: Any) -> Callable[[], None]:
        def run() -> None:
            features = [f.detach().requires_grad_() for f in seen.student_features]
            with autocast():
                terms = which(_leaf(seen, features, seen.student_image.detach()), helper)
                total = torch.stack([t.float() for t in terms.values()]).sum()
            total.backward()

        return run

    def run_optimiser() -> None:
        learner._clip_gradients()
        learner.optimiser.step()
        learner._update_average()

    steps = iter(range(1, 10**9))

    def read_batch() -> None:
        learner._read_batch(sampler, next(steps))

    return {
        "data": read_batch,
        "teacher": run_teacher,
        "student": run_student,
        "mixers": run_mixers(alone),
        "both mixers": run_mixers(loss),
        "optimiser": run_optimiser,
        "step": lambda: learner.advance(sampler),
    }


def _leaf(seen: Pass, features: list[torch.Tensor], image: torch.Tensor) -> Pass:
    """The pass with these in the student's place."""
    changed = {**vars(seen), "student_features": features, "student_image": image}
    chance = {"coins": random.Random(0), "generator": torch.Generator(image.device)}
    return Pass(**(changed | chance))


def _timed(
    phases: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each phase."""
    samples = _samples(phases, rounds, device)
    return {name: statistics.median(found) for name, found in samples.items()}


def _samples(
    phases: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each phase, run in random order within each round after four warm-ups."""
    samples: dict[str, list[float]] = {name: [] for name in phases}
    order = random.Random(0)
    for number in range(rounds + 4):
        for name in order.sample(list(phases), len(phases)):
            wait(device)
            start = perf_counter()
            phases[name]()
            wait(device)
            if number >= 4:
                samples[name].append(perf_counter() - start)
    return samples


def _flops(phase: Callable[[], object]) -> float:
    stance = torch.compiler.set_stance("force_eager")  # it counts what torch is asked for
    with stance, FlopCounterMode(display=False) as counter:
        phase()
    return float(counter.get_total_flops())


def _matmul_rate(learner: Learner) -> float:
    """Operations a second of the best of some products of large square matrices."""
    size = 8192 if learner.device.type == "cuda" else 2048
    kind = learner.autocast or torch.float32
    a, b = (torch.randn(size, size, device=learner.device).to(kind) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        wait(learner.device)
        start = perf_counter()
        a @ b
        wait(learner.device)
        best = min(best, perf_counter() - start)
    return 2 * size**3 / best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _table(found: dict[str, Any]) -> str:
    lines = ["| Phase | ms | floor ms | floor / time |", "|---|---:|---:|---:|"]
    for name, seconds in found["seconds"].items():
        floor = found["floor_seconds"][name]
        lines.append(
            f"| {name} | {seconds * 1e3:.1f} | {floor * 1e3:.1f} | {floor / seconds:.2f} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"{found['host']}, {found['device']}, {found['precision']}, torch {found['torch']}: "
            f"{found['matmul_tflops']:.2f} TFLOPS in a matrix product",
            f"step / sum of its parts: {found['step_over_parts']:.3f} (bound {MOST_OVER_PARTS})",
            f"data: {found['data_share']:.2%} of a step (bound {MOST_DATA:.0%})",
            f"steps a second: {found['steps_per_s']:.2f}",
        ]
    )


if __name__ == "__main__":
    main()
