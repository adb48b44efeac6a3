"""Evidence of a run whose photos and scores are real and whose times are made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from skimage import data

from mipkd.core import records
from mipkd.core.evidence import Evidence
from mipkd.core.images import crop_to_multiple, downscale, resize_bicubic, write_png
from mipkd.core.measurement import Host, Latency, Measurement
from mipkd.core.records import Distilled, Graph, Model, PatchSet, Photos
from pipeline.bench.pixels import score_images
from pipeline.judge.bounds import GateConfig
from pipeline.judge.gates import judge

BUSY = "busy machine: other programs took 83% of the CPU (bound 70%, bench.max_busy)"
SCALE = 2
SIZES = ((64, 64), (180, 320))
_PLAIN = {("student", "fp32"): 6.0, ("student", "int8"): 2.6, ("teacher", "fp32"): 42.0}
_HALF = {("student", "fp32"): 3.9, ("student", "bf16"): 2.1, ("student", "int8"): 1.2}
MS: dict[str, dict[tuple[str, str], float]] = {  # p50 at the smaller size
    "cpu": _PLAIN,
    "openvino": _HALF | {("teacher", "fp32"): 25.0},
    "tensorrt": {key: ms / 9 for key, ms in _PLAIN.items()},
    "coreml": _PLAIN,
    "jetson": _PLAIN,
}


class EvidenceOf:
    """Photos of scikit-image, and "networks" that are bicubic plus a share of what it misses."""

    def __init__(
        self,
        root: Path,
        *,
        targets: Sequence[str] = ("cpu", "openvino"),
        simulated: Sequence[str] = (),
        student: float = 0.35,
        int8: float = 0.3485,
        int8_on_cpu: float = 0.27,
        side: int = 160,
    ) -> None:
        self.root, self.random, self.simulated = root, np.random.default_rng(0), simulated
        self.targets = (*targets, *simulated)
        photos = {"chelsea": data.chelsea(), "coffee": data.coffee(), "rocket": data.rocket()}
        photos |= {f"{name}-left": photo[20:, 20:] for name, photo in photos.items()}
        self.hr = {name: photo[60:, 100:][:side, : side + 40] for name, photo in photos.items()}
        self.hr = {name: crop_to_multiple(hr, SCALE) for name, hr in self.hr.items()}
        (root / "tests" / "hr").mkdir(parents=True)
        for name, hr in self.hr.items():
            write_png(root / "tests" / "hr" / f"{name}.png", hr)
        shares = {"bicubic": 0.0, "teacher": 0.365, "student": student}
        self.measured = [self.one(role, "reference", "fp32", s) for role, s in shares.items()]
        for target in self.targets:
            for role, precision in MS[target]:
                share = {"int8": int8, "bf16": 0.349}.get(precision, student)
                share = int8_on_cpu if (target, precision) == ("cpu", "int8") else share
                if role == "student" or target not in simulated:
                    self.measured.append(self.one(role, target, precision, share))
        self.evidence = self.all()

    def one(self, role: str, target: str, precision: str, share: float) -> Measurement:
        out = self.root / "outputs" / f"{target}-{role}-{precision}"
        scores = ()
        if target == "reference" or role == "student":
            made = ((name, self.upscaled(hr, share), hr) for name, hr in self.hr.items())
            scores = score_images(made, scale=SCALE, out=out)
        return Measurement(
            role=role,
            target=target,
            precision=precision,
            size_bytes=0 if role == "bicubic" else int(8e5 if precision == "int8" else 2.4e6),
            latencies=self.latencies(role, target, precision),
            scores=scores,
            outputs=out if scores else None,
            versions={} if role == "bicubic" else {"numpy": np.__version__},
            notes=("first and last convolution kept float",) if precision == "int8" else (),
            file=self.root / "build" / "ab12" / f"{target}-{precision}.bin",
            simulated=target in self.simulated,
        )

    def upscaled(self, hr_HWC: np.ndarray, share: float) -> np.ndarray:
        bicubic = resize_bicubic(downscale(hr_HWC, SCALE), hr_HWC.shape[:2]).astype(float)
        better = bicubic + share * (hr_HWC - bicubic)
        return np.rint(np.clip(better, 0, 255)).astype(np.uint8)

    def latencies(self, role: str, target: str, precision: str) -> tuple[Latency, ...]:
        if target == "reference" or target in self.simulated:
            return ()
        found = []
        for size in SIZES:
            usual_s = MS[target][role, precision] * 1e-3 * size[0] * size[1] / 4096
            noise = self.random.gamma(2.0, 0.02, 120 if role == "student" else 30)
            samples = tuple(float(usual_s * (1 + n)) for n in noise)
            found.append(Latency(size, samples, warmup=3, cold_start_s=usual_s * 4))
        return tuple(found)

    def all(self) -> Evidence:
        measurements = tuple(self.measured)
        return Evidence(
            name="edsr-to-c32b8",
            command="mipkd-pipeline run --teacher edsr.pth --target " + ",".join(self.targets),
            created="2026-01-02T03:04:05+00:00",
            commit="abc1234",
            smoke=False,
            teacher=self.model("teacher", 64, 16, 1_369_859, 90.1),
            student=self.model("student", 32, 8, 190_000, 12.4),
            distilled=Distilled(
                model=self.model("student", 32, 8, 190_000, 12.4),
                curves=self.curves(),
                pictures=(),
                steps=300,
                seconds=95.0,
                losses=("reconstruction", "logits", "feature", "block"),
                psnr_y_db=31.2,
            ),
            graph=Graph(
                file=self.root / "student.onnx",
                sha256="c" * 64,
                role="student",
                scale=SCALE,
                multiple=1,
                opset=20,
                family="edsr",
                parity_max_abs=4.2e-7,
                parity_images=3,
            ),
            tests=records.TestSet(
                folder=self.root / "tests",
                sha256="d" * 64,
                source="photos",
                scale=SCALE,
                images=tuple(self.hr),
                lr_from="bicubic",
            ),
            photos=Photos(
                self.root, "e" * 64, "train", SCALE, 400, skipped=("broken.jpg: truncated",)
            ),
            calibration=PatchSet(self.root / "patches.npy", "f" * 64, "train", 64, (64, 64)),
            host=Host("0123456789ab", "A CPU", 2, 8 * 2**30, "Linux 6 x86_64", ("avx512_vnni",)),
            measurements=measurements,
            failures=(),
            verdict=judge(GateConfig(), measurements, ()),
            config={"target": list(self.targets), "distill": {"steps": 300, "lr": 2e-4}},
            seconds={"distill": 95.0, "measure cpu": 12.5},
            not_measured=("energy: not measured",),
            warnings=("broken.jpg: cannot be read, left out",),
        )

    def model(self, role: str, width: int, depth: int, params: int, gmacs: float) -> Model:
        return Model(
            role=role,
            file=self.root / f"{role}.safetensors",
            sha256="a" * 64,
            arch="edsr",
            hyper={"width": width, "depth": depth, "scale": SCALE, "image_range": 255.0},
            scale=SCALE,
            layout="original",
            settled={"image_range": "layout original", "res_scale": "probe on 3 images"},
            params=params,
            gmacs=gmacs,
            licence="Apache-2.0",
        )

    def curves(self) -> Path:
        file = self.root / "metrics.jsonl"
        with file.open("w") as lines:
            for step in range(1, 301):
                noise = float(self.random.gamma(20, 0.05))
                row = {"step": step, "total": 0.1 * noise * step**-0.3, "lr": 1e-4}
                row |= {"reconstruction": 0.03 * noise * step**-0.2, "logits": 0.02 * noise}
                row |= {"feature": 0.04 * noise, "block": 0.005 * noise * step**-0.1}
                if step % 50 == 0:
                    row["psnr_y_db"] = 31.2 - 3 / step**0.5
                if step in (50, 100):  # it rests from step 150 on
                    row |= {"reconstruction_error": 0.45, "teacher_share": step / 200}
                    row |= {"body_gradient_share/mixture_of_priors": step * 1e-5}
                lines.write(json.dumps(row) + "\n")
            lines.write('{"step": 301, "tot')  # a run that was killed leaves half a line
        return file


def disturbed(evidence: Evidence) -> Evidence:
    """As if other programs had run beside one target."""
    found = tuple(
        replace(m, invalid_because=BUSY) if m.target == "openvino" else m
        for m in evidence.measurements
    )
    return replace(evidence, measurements=found, verdict=judge(GateConfig(), found, ()))
