"""What was measured of one model on one target: raw samples, scores, and where that was.

The one record of a measurement: a device sends it back, a run remembers it, and bundles, baselines
and `results.json` hold it. Medians, ratios and drops are functions of it (`pipeline.bench`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from mipkd.core.precision import FLOATS, QUANTIZED, executed_precision
from mipkd.core.ranges import Bytes, Count, Range, Sample, Seconds, Side

REFERENCE = "reference"  # the target of figures that the others are held against
BY_KIT = "kit"  # in the place of a device's address

# What images are scored against: the truth or, of LR frames without one, that net's FP32 image.
Against = Literal["truth", "teacher", "student"]
Kind = Literal["measured", "emulated", "simulated", "reference"]


@dataclass(frozen=True)
class Host:
    """A machine."""

    id: str  # short hash of what decides its speed
    cpu: str  # name of the processor
    cores: Count  # that the process may keep busy
    memory_bytes: Bytes  # that it may use
    system: str  # operating system, release, machine
    features: tuple[str, ...] = ()  # instruction sets that matter here
    emulated: bool = False  # another processor runs its instructions: its times mean nothing


@dataclass(frozen=True)
class Latency:
    """Raw samples of one model at one input size; nothing is averaged away."""

    size: tuple[Side, Side]  # LR height, width
    samples_s: tuple[Sample, ...]  # of one image each, in the order in which they were taken
    warmup: Count  # calls between the cold start and the first counted one
    cold_start_s: Seconds  # first inference after opening
    invalid_because: str = ""  # why the samples should not be believed; empty when they can be
    joules_per_frame: Annotated[float, Range(0)] | None = (
        None  # mean power while running x time, idle power included
    )
    power_from: str = ""  # the meter and its rails
    at_s: tuple[Seconds, ...] = ()  # when each sample began, since the first
    end_to_end_s: Seconds | None = None  # median from bytes to bytes: copy in, run, copy out
    load_s: Seconds | None = None  # opening the model, before its first inference
    # What load and first inferences up to this size added to the process's memory at most; a GPU's
    # own is not in it.
    memory_bytes: Bytes | None = None


@dataclass(frozen=True)
class Stream:
    """Frames of a camera through one model, from bytes to bytes; nothing is averaged away."""

    size: tuple[Side, Side]  # LR height, width
    fps: Annotated[float, Range(0)]  # of the camera; 0: a frame was due when there was room for it
    pixels: str  # what the bytes in and out are
    in_flight: Count  # frames that were worked on at a time at most
    waiting: Count  # frames that waited at most; of more the oldest were dropped
    given: Count = 0  # frames that were due
    # When each frame that came out was ready, and all before it: seconds since the first was due.
    ready_s: tuple[Sample, ...] = ()
    age_s: tuple[Sample, ...] = ()  # of each then, since it was due at the camera
    invalid_because: str = ""  # why none of it should be believed; empty when it can be
    # Mean power over the whole stream x time, idle power included, over the frames that came out.
    joules_per_frame: Annotated[float, Range(0)] | None = None
    power_from: str = ""  # the meter and its rails

    @property
    def dropped(self) -> int:
        """Frames that were due and did not come out."""
        return self.given - len(self.age_s)


@dataclass(frozen=True)
class ImageScore:
    """Quality of one output against the truth, or what stands for it, a border of `scale` pixels
    cropped."""

    image: str  # its name
    metrics: dict[str, float]  # value of each metric by its name, such as "psnr_y"
    # Mean of output less truth of each channel, in levels: what gates on a tint are judged by.
    shift_rgb: tuple[float, float, float] | None = None

    @property
    def psnr_y_db(self) -> float:
        """The metric that most is judged by; NaN where it was not measured."""
        return self.metrics.get("psnr_y", float("nan"))

    @staticmethod
    def as_now(stated: dict[str, Any]) -> dict[str, Any]:
        """Two metrics were fields of their own before results.json 2.0."""
        fields = {"psnr_y_db": "psnr_y", "ssim_y": "ssim_y"}
        found = {name: stated[field] for field, name in fields.items() if field in stated}
        return {"metrics": found, **stated}


@dataclass(frozen=True)
class Measurement:
    """One model at one precision, measured on one target."""

    role: str  # "student", "teacher", "bicubic" or a rival's name
    target: str  # "reference" for FP32 on ONNX Runtime, quality only
    precision: str  # fp32, bf16, fp16, w8 (FP16 with 8-bit weights) or int8
    size_bytes: Bytes = 0  # of the model on disk
    latencies: tuple[Latency, ...] = ()  # one entry an input size
    scores: tuple[ImageScore, ...] = ()  # of the pixels that this runtime produced
    outputs: Path | None = None  # folder of those pixels, uint8 PNGs
    versions: dict[str, str] = field(default_factory=dict)  # packages that can change a figure
    notes: tuple[str, ...] = ()  # what a reader should know: layers kept float, fallbacks
    invalid_because: str = ""  # why no time here should be believed; empty when they can be
    file: Path | None = None  # the model that was measured, the one to ship
    simulated: bool = False  # not the device itself made the pixels, and nothing was timed
    emulated: bool = False  # so it is, by the runtime itself on an emulated processor
    # Power mode, clocks and temperatures of the board, before and while it was measured.
    conditions: dict[str, str] = field(default_factory=dict)
    # Address of the machine that measured, or "kit"; empty for the one that ran the pipeline.
    device: str = ""
    host: Host | None = None  # the machine that measured
    # How many convolutions and matrix products run in each precision, as the runtime tells of the
    # compiled model there; empty where it does not tell.
    kernels: dict[str, Count] = field(default_factory=dict)
    # Operators that a delegate of the runtime refuses, by its name; "" of one that takes them all.
    refused_by: dict[str, str] = field(default_factory=dict)
    stream: Stream | None = None  # frames at a camera's rate, where that was asked for
    against: Against = "truth"  # what the scores are against, as of the test set

    @property
    def kind(self) -> Kind:
        """How its figures came about."""
        if self.target == REFERENCE:
            return "reference"
        if self.emulated:
            return "emulated"
        return "simulated" if self.simulated else "measured"

    @staticmethod
    def as_now(stated: dict[str, Any]) -> dict[str, Any]:
        """Files of quality in bundles had images for scores before results.json 2.0."""
        return {"scores": stated.get("images", ()), **stated}

    @property
    def executes(self) -> str:
        """The precision that runs; that asked for where the runtime does not tell."""
        return executed_precision(self.kernels) or self.precision

    @property
    def runs_in_float(self) -> bool:
        """Whether it was to be quantised, and the runtime says that nothing of it is."""
        return self.precision in QUANTIZED and self.executes in FLOATS

    @property
    def doubt(self) -> str:
        """Why any of its samples should not be believed; empty when all can be."""
        found = [self.invalid_because, *(one.invalid_because for one in self.latencies)]
        found += [self.stream.invalid_because] if self.stream else []
        return "; ".join(dict.fromkeys(filter(None, found)))
