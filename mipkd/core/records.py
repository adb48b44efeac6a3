"""Small frozen records that stages hand to each other; every one is plain JSON plus paths.

Sizes are `(height, width)` in pixels, times in seconds, files absolute paths.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from mipkd.core.measurement import Against, Host
from mipkd.core.ranges import Bytes, Count, Multiple, Range, Scale, Seconds, Side


@dataclass(frozen=True)
class Model:
    """A network that has been identified: what is in a checkpoint and how we know it."""

    role: str  # "teacher" or "student"
    file: Path  # its weights
    sha256: str  # of the weights
    arch: str  # name of a file in mipkd/archs, "onnx" for a foreign graph
    hyper: dict[str, Any]  # arguments of the architecture's Hyper
    scale: Scale  # upscaling factor
    layout: str  # whose key names: "original", "basicsr", ...
    settled: dict[str, str]  # fact -> how it was settled, where tensors cannot tell
    params: Count  # 0 when not known
    gmacs: Annotated[float, Range(0)]  # at LR 256x256, in units of 10^9; 0 when not known
    licence: str = "unknown"  # of the weights as far as they say


FRAMES = "frames"  # in the place of where LR images came from: they are all there is


@dataclass(frozen=True)
class Photos:
    """Training photos decoded once: uint8 HR and LR pixels in two flat files and an index."""

    folder: Path  # of those files
    sha256: str  # of the photos' contents and the way they were prepared
    source: str  # where they came from
    scale: Scale  # of the LR pixels
    count: Count  # of photos
    skipped: tuple[str, ...] = ()  # those that could not be used, and why
    is_sample: bool = False  # whether they are the sample photos
    # Of the files in that folder that look like photos, by why they were left out: how many.
    left_out: dict[str, Count] = field(default_factory=dict)
    # Of our own: "bicubic" or "degraded"; "published" files; some of both: "mixed" or "partly
    # degraded"; "frames" without truth.
    lr_from: str = "bicubic"

    @property
    def has_truth(self) -> bool:
        """Whether there are HR photos, and not LR frames alone."""
        return self.lr_from != FRAMES


@dataclass(frozen=True)
class Directions:
    """Principal directions of a teacher's features, fitted on patches of photos."""

    file: Path
    sha256: str  # of it
    positions: tuple[int, ...]  # indices into the teacher's blocks
    width: Count  # of the latents at each position
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
    size_bytes: Bytes
    seconds: Seconds

    @property
    def contents(self) -> str:
        """What it was made of: two of one description hold the same."""
        return f"{self.teacher} {self.photos} {self.directions.sha256 if self.directions else ''}"


@dataclass(frozen=True)
class TestSet:
    """Images to validate on: `<folder>/hr/*.png` and `<folder>/lr/*.png` of the same names."""

    folder: Path  # of those files
    sha256: str  # of their contents and preparation
    source: str  # where they came from
    scale: Scale  # of the LR images
    images: tuple[str, ...]  # names
    lr_from: str  # as of photos
    skipped: tuple[str, ...] = ()  # those that could not be used, and why
    is_sample: bool = False  # whether they are the sample photos
    # Of the files in that folder that look like photos, by why they were left out: how many.
    left_out: dict[str, Count] = field(default_factory=dict)
    # Names of LR images without truth, beside the others: a broken model shows itself on them.
    probes: tuple[str, ...] = ()
    # What its HR images are: the truth or, of LR frames without one, what that net makes of them.
    against: Against = "truth"

    @property
    def has_truth(self) -> bool:
        """Whether its HR images are the truth."""
        return self.against == "truth"

    def lr_file(self, name: str) -> Path:
        """Where the LR pixels of an image or a probe lie."""
        return self.folder / "lr" / f"{name}.png"

    def hr_file(self, name: str) -> Path:
        """Where the truth of an image lies, or what stands for it."""
        return self.folder / "hr" / f"{name}.png"


@dataclass(frozen=True)
class Distilled:
    """A trained student and the trace of its training."""

    model: Model  # the student
    curves: Path  # JSON lines: step, every loss term, lr, seconds
    pictures: tuple[Path, ...]  # of validation images, as training went on
    steps: Count  # of the optimiser
    seconds: Seconds  # wall time
    losses: tuple[str, ...]  # names of the loss terms
    psnr_y_db: float  # of the exported (EMA) weights, mean over the validation images


def model_of(net: Model | Distilled) -> Model:
    """The model, trained here or given."""
    return net.model if isinstance(net, Distilled) else net


@dataclass(frozen=True)
class Graph:
    """An ONNX graph: RGB NCHW float32 in [0, 1] in and out, dynamic height and width."""

    file: Path  # .onnx
    sha256: str  # of the file
    role: str  # of its model: student, teacher or a rival's name
    scale: Scale  # upscaling factor
    multiple: Multiple  # height and width of the input must be multiples of it
    opset: Count  # ONNX operator set
    family: str  # name of the architecture, "onnx" when unknown
    parity_max_abs: float | None = None  # against torch on real images, in [0, 1]
    parity_images: Count = 0  # how many images that was measured on
    licence: str = "unknown"  # of the weights
    model: Model | None = None  # the torch net it was made from; none for a foreign graph


@dataclass(frozen=True)
class PatchSet:
    """LR patches for calibration: one .npy of uint8 RGB, shape NHWC."""

    file: Path  # .npy
    sha256: str  # of the pixels
    source: str  # where the photos came from
    count: Count  # of patches
    size: tuple[Side, Side]  # height, width


@dataclass(frozen=True)
class Holdout:
    """LR and HR crops that no range was read from: two .npy of uint8 RGB, shape NHWC."""

    lr: Path  # the LR crops
    hr: Path  # the HR crops
    sha256: str  # of their pixels
    source: str  # where the photos came from
    photos: Count  # crops of photos; the first ones
    pages: Count  # drawn pages with letters, flat colours and gradients; the last ones
    size: tuple[Count, Count]  # LR
    scale: Count  # HR over LR; 0 of older runs, which did not say
    confirming_lr: Path | None = None  # as many of other photos, and other pages: they confirm
    confirming_hr: Path | None = None  # their HR crops
    against: Against = "truth"  # what the HR crops are, as of a test set


@dataclass(frozen=True)
class QuantParams:
    """Scale and zero point of a feature map in INT8, and the inputs that read it rounded."""

    # Operations in the ONNX graph, and which input of each; the operation "" is the result.
    readers: tuple[tuple[str, int], ...]
    scale: float  # between two values
    zero_point: int  # which of 0 to 255 stands for 0.0

    @staticmethod
    def as_now(stated: dict[str, Any]) -> dict[str, Any]:
        """Records of before said `zero`."""
        return {"zero_point": stated["zero"], **stated} if "zero" in stated else stated


@dataclass(frozen=True)
class QuantScheme:
    """All that INT8 rounds on a target."""

    grids: tuple[QuantParams, ...]  # of feature maps
    # Operations whose weights are rounded, and how many steps the largest of a channel has.
    weights: tuple[tuple[str, float], ...]
    floats: tuple[str, ...] = ()  # operations that it leaves alone


@dataclass(frozen=True)
class QatStudent:
    """A student trained on with the rounding of a target's INT8, and that rounding as it ended."""

    graph: Graph  # its weights as floats
    rounding: QuantScheme  # as it ended
    curves: Path  # JSON lines, as of a training
    steps: Count  # of the optimiser
    seconds: Seconds  # wall time
    losses: tuple[str, ...]  # names of the loss terms


@dataclass(frozen=True)
class FloatLayer:
    """An operation that INT8 does not compute, and what that brings and costs."""

    name: str  # in the ONNX graph
    kind: str  # "Conv", "Add", ...
    harm_db: float  # mean PSNR-Y that it would lose on the holdout if it alone were INT8
    cost_ms: float  # its share, by work, of what all floats were measured to take longer
    reason: str  # why it stays float


@dataclass(frozen=True)
class FrontPoint:
    """A way to quantise that no other beats in both time and loss."""

    ms: Annotated[float, Range(0)]  # measured on the target, at the LR size of the search
    drop_db: float  # mean PSNR-Y below the target's own FP32, on the crops that it was chosen on
    worst_db: float  # the same on the crop that loses most
    floats: Count  # how many operations stay float
    chosen: bool = False  # whether this one was built


@dataclass(frozen=True)
class QuantPlan:
    """How to quantise a graph for a target: what a search found, or what a user asked for."""

    target: str  # whose INT8 it is
    ranges: str  # name of the recipe for ranges of activations
    rest: str  # precision of what stays float
    floats: tuple[FloatLayer, ...]  # operations that stay float
    drop_db: float | None  # predicted: on crops of the holdout that only confirm
    worst_db: float | None  # the same on the crop that loses most
    met: bool  # whether the bounds hold on the holdout
    max_drop_db: float = 0.0  # the bounds
    max_worst_db: float = 0.0  # on the crop that loses most
    front: tuple[FrontPoint, ...] = ()  # what was tried, the fastest first
    holdout: Holdout | None = None  # crops on which losses were measured
    operations: Count = 0  # that INT8 could compute
    size: tuple[int, int] = (0, 0)  # LR at which costs were measured
    fixed: bool = False  # nothing was searched: the target's own recipe
    added_mse: float | None = None  # squared error more than FP32's, in levels of Y, on those crops
    tuned: QatStudent | None = None  # what is quantised in place of the graph, on grids of its own
    out_of_tries: bool = False  # the search ended with its tries: fewer floats may do

    @property
    def trained_as_float(self) -> tuple[str, ...]:
        """Operations that stay float beside `floats`: those it was trained with as floats."""
        return self.tuned.rounding.floats if self.tuned else ()

    @property
    def counted(self) -> str:
        """How many operations stay float, in words."""
        return f"{len(self.floats) + len(self.trained_as_float)} of {self.operations} operations"


@dataclass(frozen=True)
class TriedStudent:
    """A net that `--student auto` timed, and how far it came."""

    spec: str  # family and size
    gmacs: Annotated[float, Range(0)]  # at LR 256x256, in units of 10^9
    p90_ms: dict[
        str, float
    ]  # by target: of the fastest precision; none where it could not be timed
    precision: dict[str, str]  # by target: which one that is
    psnr_y_db: tuple[float, ...]  # after each rung that it was trained in, mean over the crops
    foretold_db: tuple[
        float, ...
    ]  # after each rung, for the end of the next; at last of the training
    dropped: str  # why; "" of the one that was chosen


@dataclass(frozen=True)
class StudentSearch:
    """How `--student auto` came to its net: successive halving of those within the budget."""

    spec: str  # of the net that was chosen
    budget_ms: float  # p90 of the fastest precision on every target
    size: tuple[Side, Side]  # LR height and width of that
    seed: Count  # of the trainings
    steps: Count  # of all trainings together, at most
    rungs: tuple[Count, ...]  # the step that a net was trained to in each
    crops: Count  # of photos that were not trained on: what nets were ranked by
    tried: tuple[TriedStudent, ...]  # the chosen one first, then those that came furthest


@dataclass(frozen=True)
class Rival:
    """A student that ours is held against, made in the same way."""

    name: str  # its role in graphs, builds and measurements
    model: Model | None  # none if it could not be made
    distilled: Distilled | None  # none when a finished one was given
    plans: tuple[QuantPlan, ...]  # how its INT8 was made


@dataclass(frozen=True)
class Built:
    """A model in a target's own format, ready to be opened on a device."""

    target: str  # that opens it
    precision: str  # that was asked for
    role: str  # of its model: student, teacher or a rival's name
    file: Path  # a folder for a package
    size_bytes: Bytes  # on disk
    scale: Scale  # upscaling factor
    multiple: Multiple  # height and width of the input must be multiples of it
    options: dict[str, str] = field(default_factory=dict)  # given to the runtime when opening
    notes: tuple[str, ...] = ()  # what a reader should know: layers kept float, fallbacks
    versions: dict[str, str] = field(default_factory=dict)  # of what built it
    # The precision that runs, read back from the compiled model; "" where the runtime cannot tell.
    executes: str = ""
    # Operators that a delegate of the runtime refuses, by its name; "" of one that takes them all.
    refused_by: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetInfo:
    """One target on one machine: all that a build for that machine must know."""

    target: str
    why_not: str  # "" if it can run the target
    simulated: bool  # its times would mean nothing: another engine runs there, or it is emulated
    precisions: tuple[str, ...]
    versions: dict[str, str]
    host: Host
    local: bool = False  # whether that machine is the one that runs the pipeline
    # What that machine is set to: board, power mode, limits of its clocks. Figures belong to it.
    settings: dict[str, str] = field(default_factory=dict)
    emulated: bool = False  # the runtime itself runs there, on an emulated processor
