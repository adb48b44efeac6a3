"""What was measured of one model on one target: raw samples, scores, and where that was."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """The machine that measured."""

    id: str
    cpu: str
    cores: int
    memory_bytes: int
    system: str
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Latency:
    """Raw samples of one model at one input size; nothing is averaged away."""

    size: tuple[int, int]  # LR height, width
    samples_s: tuple[float, ...]
    warmup: int
    cold_start_s: float  # first inference after opening
    invalid_because: str = ""
    joules_per_frame: float | None = None  # mean power while running x time, idle power included
    power_from: str = ""  # the meter and its rails
    at_s: tuple[float, ...] = ()  # when each sample began, since the first
    end_to_end_s: float | None = None  # median from bytes to bytes: copy in, run, copy out
    load_s: float | None = None  # opening the model, before its first inference
    # What load and first inferences up to this size added to the process's memory at most.
    memory_bytes: int | None = None


@dataclass(frozen=True)
class ImageScore:
    """Quality of one output against the truth: Y channel, border of `scale` pixels cropped."""

    image: str
    psnr_y_db: float
    ssim_y: float
    shift_rgb: tuple[float, float, float] | None = None  # mean of output less truth, in levels


BY_KIT = "kit"  # in the place of a device's address


@dataclass(frozen=True)
class Measurement:
    """One model at one precision, measured on one target."""

    role: str  # "student", "teacher", "bicubic" or a rival's name
    target: str
    precision: str
    size_bytes: int
    latencies: tuple[Latency, ...]
    scores: tuple[ImageScore, ...]
    outputs: Path | None  # folder of the uint8 PNGs this runtime produced
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    invalid_because: str = ""
    file: Path | None = None  # the model that was measured, the one to ship
    simulated: bool = False  # another engine made the pixels, and nothing was timed
    # Power mode, clocks and temperatures of the board, before and while it was measured.
    conditions: dict[str, str] = field(default_factory=dict)
    # Address of the machine that measured, or `BY_KIT`; "" for the one that ran the pipeline.
    device: str = ""
    host: Host | None = None  # that machine, where it is another one
