"""`results.json`, the contract for machines: its fields, their meaning, their JSON schema.

Within a major `schema_version` fields are only added.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = "1.6"

Word = Literal["PASS", "FAIL", "INVALID"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class RunFacts(_Part):
    """Which run this is, and how to repeat it."""

    name: str
    """Name of the run's folder."""
    command: str
    """Command line that makes it again."""
    created: str
    """When it ended, ISO 8601, UTC."""
    commit: str
    """Git commit of the program, "+" when changed; empty when installed from a wheel."""
    smoke: bool
    """Trained or judged on sample photos: shows that all works, is not a result."""
    config: dict[str, Any]
    """The configuration, whole."""
    seconds: dict[str, float]
    """Wall time of each step when it was made."""


class GateResult(_Part):
    """One gate."""

    name: str
    """What was judged, such as "mean drop"."""
    subject: str
    """Whom it concerns: target and precision, or "student"."""
    outcome: Word
    """What it came to."""
    figure: float | None
    """The figure that was judged; null when there is none."""
    bound: float | None
    """The bound it must keep; null when the gate has none."""
    unit: str
    """Unit of figure and bound."""
    reason: str
    """Where the figure comes from, or why there is none."""


class Shipping(_Part):
    """What to ship for a target."""

    target: str
    """The target."""
    precision: str
    """The precision; empty when nothing may be shipped."""
    reason: str
    """Why this one, or why none."""
    summary: str
    """Its size, speed and quality in words; empty when nothing may be shipped."""
    file: str
    """Name of the model's file, within the run's folder where it lies in it; may be empty."""
    size_bytes: int | None
    """Its size on disk."""
    simulated: bool = False
    """Whether nothing ran on the device: its pixels were simulated, its speed is not known."""


class VerdictResult(_Part):
    """May it be shipped?"""

    outcome: Word
    """FAIL if a gate failed, else INVALID if one could not be judged, else PASS."""
    sentence: str
    """The verdict in words."""
    gates: list[GateResult]
    """Every gate."""
    remarks: list[str]
    """What no gate forbids and a reader should know."""
    recommended: list[Shipping]
    """What to ship, one entry a target."""


class ModelFacts(_Part):
    """A network, teacher or student."""

    arch: str
    """Family: edsr, rcan, swinir ...; "onnx" for a foreign graph."""
    hyper: dict[str, Any]
    """Sizes of the network, in the family's own words."""
    scale: int
    """Upscaling factor."""
    layout: str
    """Whose key names its checkpoint had."""
    settled: dict[str, str]
    """Facts that tensors cannot tell, and how each was settled."""
    params: int | None
    """Number of parameters; null when not known."""
    gmacs: float | None
    """Multiply-accumulates at LR 256x256, in units of 10^9; null when not known."""
    sha256: str
    """Hash of the weights."""
    licence: str
    """Licence of the weights as far as they say."""


class HealthResult(_Part):
    """A figure of whether the distillation did what its name says, when it was last measured."""

    name: str
    """reconstruction_error: mean absolute error of the teacher's features through the mixers over
    their mean magnitude; teacher_share: of the mixed path's parts, those that ran the teacher's
    blocks; body_gradient_share/LOSS: of the gradient on the student's blocks, that loss's."""
    value: float
    """The figure."""
    remark: str
    """What is bad about it; empty where nothing is."""


class TrainingFacts(_Part):
    """How the student was trained."""

    steps: int
    """Optimiser steps."""
    seconds: float
    """Wall time."""
    losses: list[str]
    """Names of the loss terms."""
    psnr_y_db: float | None
    """Mean validation PSNR-Y of the exported weights."""
    before: dict[str, float] = {}
    """Of a student that started as its teacher's projection: mean validation PSNR-Y before the
    first step of the student, of bicubic, of a student that only inherited and of the teacher."""
    health: list[HealthResult] = []
    """Figures of the distillation's health; none where nothing is distilled."""


class GraphFacts(_Part):
    """The student's FP32 ONNX graph."""

    sha256: str
    """Hash of the file."""
    opset: int
    """ONNX operator set."""
    multiple: int
    """Height and width of inputs must be multiples of it."""
    parity_max_abs: float | None
    """Largest difference to torch on real images in [0, 1]; null when there is no torch net."""
    parity_images: int
    """How many images that was measured on."""


class ImagesFacts(_Part):
    """A set of images that was used."""

    source: str
    """Where they came from."""
    sha256: str
    """Hash of their contents and preparation."""
    count: int
    """How many there are."""
    skipped: list[str]
    """Those that could not be used."""
    is_sample: bool
    """Whether they are the sample photos."""
    detail: str
    """What else matters: where the LR images come from, size of patches."""


class HostFacts(_Part):
    """A machine."""

    id: str
    """Short hash of what decides its speed."""
    cpu: str
    """Name of the processor."""
    cores: int
    """Cores that the process may keep busy."""
    memory_bytes: int
    """Memory that it may use."""
    system: str
    """Operating system, release, machine."""
    features: list[str]
    """Instruction sets that matter here."""


class RatioResult(_Part):
    """A ratio of interleaved medians."""

    value: float
    """How many times as fast."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    against: str
    """The precision it is held against."""


class RangeResult(_Part):
    """An interval in milliseconds."""

    low: float
    """Its lower end."""
    high: float
    """Its upper end."""


class LatencyResult(_Part):
    """Latency at one input size; seconds only in the raw samples."""

    height: int
    """LR height in pixels."""
    width: int
    """LR width in pixels."""
    samples: int
    """Number of timed calls."""
    p50_ms: float | None
    """Median."""
    p90_ms: float | None
    """90th percentile."""
    p99_ms: float | None
    """99th percentile; near the maximum when there are under 100 samples."""
    cold_start_ms: float | None
    """First call at this size."""
    warmups: int
    """Calls between the cold start and the first timed one."""
    speedup_over_teacher: RatioResult | None
    """Against the teacher's fastest float precision on this target."""
    speedup_over_fp32: RatioResult | None
    """Against the same network in FP32 on this target."""
    invalid_because: str
    """Why the samples should not be believed; empty when they can be."""
    samples_s: list[float]
    """Raw samples in seconds, in the order they were taken."""
    joules_per_frame: float | None = None
    """Mean power while running times latency, idle power included; null when not measured."""
    power_from: str = ""
    """The meter and its rails."""
    p50_range: RangeResult | None = None
    """95 % interval of p50, in ms, from the order of the samples."""
    p90_range: RangeResult | None = None
    """The same of p90."""
    p99_range: RangeResult | None = None
    """The same of p99."""
    end_to_end_ms: float | None = None
    """Median from 8-bit pixels to 8-bit pixels, conversions included; null when not measured."""
    load_ms: float | None = None
    """Opening the model, before its first call; null when not measured."""
    memory_mb: float | None = None
    """Host memory, in units of 10^6 bytes, that the process had more at most after load and first
    calls up to this size; a GPU's own is not in it; null where the system does not tell."""


class ImageResult(_Part):
    """Quality on one image: Y channel, border of `scale` pixels cropped."""

    image: str
    """Name of the image."""
    psnr_y_db: float | None
    """PSNR; 100 stands for equal images."""
    ssim_y: float | None
    """SSIM."""
    drop_db: float | None
    """PSNR lost against the same network in FP32."""


class QualityResult(_Part):
    """Quality over all test images."""

    psnr_y_db: float
    """Mean PSNR-Y."""
    ssim_y: float
    """Mean SSIM-Y."""
    mean_drop_db: float | None
    """Mean PSNR-Y lost against the same network in FP32; null for references."""
    worst_drop_db: float | None
    """Largest loss on one image."""
    worst_image: str
    """That image."""
    images: list[ImageResult]
    """Every image."""


class MeasurementResult(_Part):
    """One model at one precision on one target."""

    role: str
    """Which model: student, teacher, bicubic, or the name of a rival."""
    target: str
    """The target; "reference" for FP32 on ONNX Runtime, quality only."""
    precision: str
    """fp32, bf16, fp16, w8 (FP16 with 8-bit weights) or int8."""
    kind: Literal["measured", "simulated", "reference"]
    """"measured": ran on that runtime; "simulated": another engine made the pixels, nothing was
    timed; "reference": what others are held against."""
    size_bytes: int | None
    """Size of the model on disk."""
    latencies: list[LatencyResult]
    """One entry an input size."""
    quality: QualityResult | None
    """Of the pixels this runtime produced; null when only its latency was measured."""
    versions: dict[str, str]
    """Packages that can change a figure."""
    notes: list[str]
    """Layers kept float, fallbacks."""
    invalid_because: str
    """Why nothing here should be believed; empty when it can be."""
    conditions: dict[str, str] = {}
    """Power mode, clocks and temperatures of the board, before and while it was measured."""
    device: str = ""
    """Address of the machine that measured, or "kit"; empty for the one that ran the pipeline."""
    host: HostFacts | None = None
    """That machine; null where it is `host` of the run."""


class FloatLayerResult(_Part):
    """An operation that INT8 does not compute."""

    name: str
    """Its name in the ONNX graph."""
    kind: str
    """What it computes: Conv, Add ..."""
    harm_db: float
    """Mean PSNR-Y that it alone in INT8 would lose on the holdout."""
    cost_ms: float
    """What it takes longer as a float, at least what can be measured."""
    reason: str
    """Why it stays float."""


class FrontPointResult(_Part):
    """A way to quantise that no other tried beats in both time and loss."""

    ms: float
    """Latency at the search's LR size: everything in INT8 and the costs of what is float."""
    drop_db: float
    """Mean PSNR-Y lost on the holdout against the target's own FP32."""
    worst_db: float
    """The same on the crop that loses most."""
    floats: int
    """How many operations stay float."""
    chosen: bool
    """Whether this one was built."""


class PlanResult(_Part):
    """How a target's INT8 was made."""

    target: str
    """The target."""
    fixed: bool = False
    """Nothing was searched: the target's own recipe for nets of that kind."""
    ranges: str
    """Recipe for the ranges of activations."""
    rest: str
    """Precision of what stays float."""
    operations: int
    """How many operations INT8 could compute."""
    floats: list[FloatLayerResult]
    """Those that stay float."""
    met: bool
    """Whether the bounds on the loss hold on the holdout."""
    drop_db: float | None
    """Mean loss on the holdout: what to expect on images of that kind."""
    worst_db: float | None
    """The same on the crop that loses most."""
    front: list[FrontPointResult]
    """The fastest first."""
    height: int
    """LR height at which costs were measured."""
    width: int
    """LR width at which costs were measured."""
    holdout_photos: int
    """Crops of photos that calibration did not use."""
    holdout_pages: int
    """Drawn pages with letters and flat colours."""
    holdout_sha256: str
    """Hash of their pixels."""


class FailureResult(_Part):
    """What did not run."""

    target: str
    """The target."""
    precision: str
    """The precision, or "all"."""
    stage: str
    """Where it failed."""
    what: str
    """What happened."""
    hint: str
    """The next step, if there is one."""
    role: str
    """Whose build failed: "student", "teacher" or the name of a rival."""


class IntervalResult(_Part):
    """A figure over the test images."""

    value: float
    """The mean, or the share of two means."""
    low: float
    """Lower end of the 95 % interval over the images."""
    high: float
    """Upper end of it."""


class GainResult(_Part):
    """What the student has over a rival on one target at one precision."""

    target: str
    """The target."""
    precision: str
    """The precision."""
    kind: Literal["measured", "simulated"]
    """How both came by their pixels."""
    images: int
    """How many images both have a score of."""
    psnr_y_db: float | None
    """The student's mean PSNR-Y over them."""
    rival_psnr_y_db: float | None
    """The rival's."""
    gain_db: IntervalResult | None
    """Student less rival, image by image; null when it cannot be told."""
    retained: IntervalResult | None
    """Share of the FP32 gain over the same images; null when it cannot be told."""
    why_not: str
    """Why something is null; empty when nothing is."""
    rival_speed: RatioResult | None
    """How many times as fast as the student the rival is, at the largest LR size."""


class RivalResult(_Part):
    """Another student of the same making, to see what the method brought."""

    name: str
    """Its role among the measurements: a method, or the name of a file."""
    sentence: str
    """Whether the gain over it survives, in words."""
    model: ModelFacts | None
    """What it is; null when it could not be made."""
    training: TrainingFacts | None
    """How it was trained; null when it was finished before."""
    fp32_gain_db: IntervalResult | None
    """What the student has over it in FP32, of the references; null when it cannot be told."""
    gains: list[GainResult]
    """One entry a target and precision at which the student gave pixels."""
    plans: list[PlanResult]
    """Which of its layers INT8 leaves float, where that was searched."""


class Results(_Part):
    """All of a run's results."""

    schema_version: str
    """Version of this format: major.minor."""
    run: RunFacts
    """Which run this is."""
    verdict: VerdictResult
    """May it be shipped?"""
    teacher: ModelFacts | None
    """The teacher; null when a finished student was judged."""
    student: ModelFacts
    """The student."""
    training: TrainingFacts | None
    """How the student was trained; null when it was finished before."""
    graph: GraphFacts
    """The exported graph."""
    tests: ImagesFacts
    """Test images."""
    photos: ImagesFacts | None
    """Training photos."""
    calibration: ImagesFacts | None
    """Patches that the quantisers saw."""
    host: HostFacts
    """The machine that ran the pipeline, and measured what no other did."""
    measurements: list[MeasurementResult]
    """Every measurement."""
    failures: list[FailureResult]
    """What did not run."""
    not_measured: list[str]
    """What a reader might look for and will not find, with why."""
    warnings: list[str]
    """What the steps warned of."""
    plans: list[PlanResult] = []
    """Which layers INT8 leaves float, one entry a target where that was searched."""
    rivals: list[RivalResult] = []
    """Whom the student was compared with; empty without --compare."""
