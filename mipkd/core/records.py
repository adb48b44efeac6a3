"""Small frozen records that stages hand to each other; every one is plain JSON plus paths.

Sizes are `(height, width)` in pixels, times in seconds, files absolute paths.
"""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Model:
    """A network that has been identified: what is in a checkpoint and how we know it."""

    role: str  # "teacher" or "student"
    file: Path
    sha256: str
    arch: str  # name of a file in mipkd/archs, "onnx" for a foreign graph
    hyper: dict[str, Any]  # arguments of the architecture's Hyper
    scale: int
    layout: str  # whose key names: "original", "basicsr", ...
    settled: dict[str, str]  # fact -> how it was settled, where tensors cannot tell
    params: int
    gmacs: float  # at LR 256x256
    licence: str = "unknown"


@dataclass(frozen=True)
class Photos:
    """Training photos decoded once: uint8 HR and LR pixels in two flat files and an index."""

    folder: Path
    sha256: str  # of the photos' contents and the way they were prepared
    source: str
    scale: int
    count: int
    skipped: tuple[str, ...] = ()
    is_sample: bool = False


@dataclass(frozen=True)
class Directions:
    """Principal directions of a teacher's features, fitted on patches of photos."""

    file: Path
    sha256: str  # of it
    positions: tuple[int, ...]  # indices into the teacher's blocks
    width: int  # of the latents at each position
    error: float  # of restored features, in their mean magnitude, at the worst position


@dataclass(frozen=True)
class TeacherCache:
    """What a teacher makes of whole photos: its images and, where it has directions, its latents.

    Flat files of 16-bit floats and an index, photo by photo in the order of the photos.
    """

    folder: Path
    teacher: str  # sha256 of its weights
    photos: str  # sha256 of the photos
    directions: Directions | None
    size_bytes: int
    seconds: float

    @property
    def contents(self) -> str:
        """What it was made of: two of one description hold the same."""
        return f"{self.teacher} {self.photos} {self.directions.sha256 if self.directions else ''}"


@dataclass(frozen=True)
class TestSet:
    """Images to validate on: `<folder>/hr/*.png` and `<folder>/lr/*.png` of the same names."""

    folder: Path
    sha256: str
    source: str
    scale: int
    images: tuple[str, ...]
    lr_from: str  # "published" files or "bicubic" of our own
    skipped: tuple[str, ...] = ()
    is_sample: bool = False


@dataclass(frozen=True)
class Distilled:
    """A trained student and the trace of its training."""

    model: Model
    curves: Path  # JSON lines: step, every loss term, lr, seconds
    pictures: tuple[Path, ...]
    steps: int
    seconds: float
    losses: tuple[str, ...]
    psnr_y_db: float  # of the exported (EMA) weights, mean over the validation images


def model_of(net: Model | Distilled) -> Model:
    """The model, trained here or given."""
    return net.model if isinstance(net, Distilled) else net


@dataclass(frozen=True)
class Graph:
    """An ONNX graph: RGB NCHW float32 in [0, 1] in and out, dynamic height and width."""

    file: Path
    sha256: str
    role: str
    scale: int
    multiple: int  # height and width of the input must be multiples of it
    opset: int
    family: str  # name of the architecture, "onnx" when unknown
    parity_max_abs: float | None = None  # against torch on real images, in [0, 1]
    parity_images: int = 0
    licence: str = "unknown"
    model: Model | None = None  # the torch net it was made from; none for a foreign graph


@dataclass(frozen=True)
class PatchSet:
    """LR patches for calibration: one .npy of uint8 RGB, shape NHWC."""

    file: Path
    sha256: str
    source: str
    count: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Holdout:
    """LR and HR crops that no range was read from: two .npy of uint8 RGB, shape NHWC."""

    lr: Path
    hr: Path
    sha256: str
    source: str
    photos: int  # crops of photos; the first ones
    pages: int  # drawn pages with letters, flat colours and gradients; the last ones
    size: tuple[int, int]  # LR
    scale: int


@dataclass(frozen=True)
class Grid:
    """The 256 values that a feature map is rounded to, and the inputs that read it rounded."""

    # Operations in the ONNX graph, and which input of each; the operation "" is the result.
    readers: tuple[tuple[str, int], ...]
    scale: float  # between two values
    zero: int  # which of 0 to 255 stands for 0.0


@dataclass(frozen=True)
class Rounding:
    """All that INT8 rounds on a target."""

    grids: tuple[Grid, ...]
    # Operations whose weights are rounded, and how many steps the largest of a channel has.
    weights: tuple[tuple[str, float], ...]
    floats: tuple[str, ...] = ()  # operations that it leaves alone


@dataclass(frozen=True)
class Tuned:
    """A student trained on with the rounding of a target's INT8, and that rounding as it ended."""

    graph: Graph  # its weights as floats
    rounding: Rounding
    curves: Path
    steps: int
    seconds: float
    losses: tuple[str, ...]


@dataclass(frozen=True)
class FloatLayer:
    """An operation that INT8 does not compute, and what that brings and costs."""

    name: str  # in the ONNX graph
    kind: str  # "Conv", "Add", ...
    harm_db: float  # mean PSNR-Y that it would lose on the holdout if it alone were INT8
    cost_ms: float  # on the target, at the LR size of the search
    reason: str


@dataclass(frozen=True)
class FrontPoint:
    """A way to quantise that no other beats in both time and loss."""

    ms: float  # everything in INT8, and the costs of what is float
    drop_db: float  # mean PSNR-Y on the holdout, below the target's own FP32
    worst_db: float  # the same on the crop that loses most
    floats: int  # how many operations stay float
    chosen: bool = False


@dataclass(frozen=True)
class QuantPlan:
    """How to quantise a graph for a target: what a search found, or what a user asked for."""

    target: str
    ranges: str  # name of the recipe for ranges of activations
    rest: str  # precision of what stays float
    floats: tuple[FloatLayer, ...]
    drop_db: float | None  # predicted: on the holdout
    worst_db: float | None
    met: bool  # whether the bounds hold on the holdout
    max_drop_db: float = 0.0  # the bounds
    max_worst_db: float = 0.0
    front: tuple[FrontPoint, ...] = ()
    holdout: Holdout | None = None
    operations: int = 0  # that INT8 could compute
    size: tuple[int, int] = (0, 0)  # LR at which costs were measured
    fixed: bool = False  # nothing was searched: the target's own recipe
    tuned: Tuned | None = None  # what is quantised in place of the graph, on grids of its own

    @property
    def spared(self) -> tuple[str, ...]:
        """Operations that stay float beside `floats`: those it was trained with as floats."""
        return self.tuned.rounding.floats if self.tuned else ()

    @property
    def counted(self) -> str:
        """How many operations stay float, in words."""
        return f"{len(self.floats) + len(self.spared)} of {self.operations} operations"


@dataclass(frozen=True)
class Rival:
    """A student that ours is held against, made in the same way."""

    name: str  # its role in graphs, builds and measurements
    model: Model | None  # none if it could not be made
    distilled: Distilled | None  # none when a finished one was given
    plans: tuple[QuantPlan, ...]


@dataclass(frozen=True)
class Built:
    """A model in a target's own format, ready to be opened on a device."""

    target: str
    precision: str
    role: str
    file: Path
    size_bytes: int
    scale: int
    multiple: int
    options: dict[str, str] = field(default_factory=dict)  # given to the runtime when opening
    notes: tuple[str, ...] = ()  # what a reader should know: layers kept float, fallbacks
    versions: dict[str, str] = field(default_factory=dict)  # of what built it


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
class Told:
    """What a machine tells of one target on it: all that a build for that machine must know."""

    target: str
    why_not: str  # "" if it can run the target
    simulated: bool
    precisions: tuple[str, ...]
    versions: dict[str, str]
    host: Host


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


@dataclass(frozen=True)
class Failure:
    """A row of the report for what did not run."""

    target: str
    precision: str
    stage: str
    what: str
    hint: str = ""
    role: str = "student"


class Outcome(str, Enum):
    """What a gate, or all of them, came to."""

    PASS = "PASS"
    FAIL = "FAIL"
    INVALID = "INVALID"


@dataclass(frozen=True)
class Gate:
    """One line of the verdict: a figure, its bound and the reason."""

    name: str
    subject: str  # "openvino int8"
    outcome: Outcome
    figure: float | None
    bound: float
    unit: str
    reason: str


@dataclass(frozen=True)
class Recommendation:
    """What to ship for a target; no precision when nothing passes there."""

    target: str
    precision: str
    reason: str
    simulated: bool = False  # nothing ran on the device, so nothing can be recommended


@dataclass(frozen=True)
class Verdict:
    """All gates and what they come to."""

    outcome: Outcome
    gates: tuple[Gate, ...]
    remarks: tuple[str, ...] = ()  # what no gate forbids and a reader should know
    recommended: tuple[Recommendation, ...] = ()  # one a target


@dataclass(frozen=True)
class Evidence:
    """All that a report is made from."""

    name: str  # of the run
    command: str  # that reproduces it
    created: str  # ISO 8601, UTC
    commit: str  # of this program's checkout, "" when installed from a wheel
    smoke: bool  # trained or judged on sample photos: not a result
    teacher: Model | None
    student: Model
    distilled: Distilled | None
    graph: Graph  # the student's FP32 graph
    tests: TestSet
    photos: Photos | None
    calibration: PatchSet | None
    host: Host
    # Every role with target "reference" (FP32 on ONNX Runtime, no latency) gives quality; those
    # with a real target give latency, and of students, ours and rivals, quality.
    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...]
    verdict: Verdict
    config: dict[str, Any]
    seconds: dict[str, float]  # stage -> wall time
    not_measured: tuple[str, ...]  # what a reader might look for and will not find, with why
    warnings: tuple[str, ...] = ()  # what the steps warned of
    plans: tuple[QuantPlan, ...] = ()  # how the student's INT8 was made, where it was searched
    builts: tuple[Built, ...] = ()  # every model that was built, measured or not
    rivals: tuple[Rival, ...] = ()  # whom the student was compared with, in that order


@dataclass(frozen=True)
class SetScores:
    """Every image of one test set."""

    source: str
    images: tuple[ImageScore, ...]


@dataclass(frozen=True)
class Pace:
    """What a training takes on one machine, validation and checkpoints apart."""

    start_s: float  # once: the first weights, and what the first step adds
    step_s: float  # mean over the whole schedule
    compiled: bool = False  # whether the steps were
    why_not: str = ""  # why it could not be timed


@dataclass(frozen=True)
class Trained:
    """One arm from one seed."""

    arm: str
    seed: int
    steps: int
    seconds: float
    peak_rss_bytes: int | None
    curves: Path
    scores: tuple[SetScores, ...]
    budget_s: float | None = None  # of training; None: the steps are given, not the seconds

    @property
    def name(self) -> str:
        """Of its row in tables."""
        return arm_name(self.arm, self.budget_s)


def arm_name(arm: str, budget_s: float | None) -> str:
    """An arm, and its seconds where it has a budget: "mipkd, 60 s"."""
    return arm if budget_s is None else f"{arm}, {budget_s:g} s"


@dataclass(frozen=True)
class Study:
    """All that a study has found so far."""

    name: str
    command: str
    created: str
    commit: str
    host: Host
    teacher: Model
    student: Model
    photos: Photos
    config: dict[str, Any]
    teacher_scores: tuple[SetScores, ...]
    bicubic_scores: tuple[SetScores, ...]
    trained: tuple[Trained, ...]
    against: tuple[str, ...]
    missing: tuple[str, ...]  # trainings that failed, and why
    paces: dict[str, Pace] = field(default_factory=dict)  # by arm, where they got equal time
