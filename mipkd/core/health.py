"""What the health figures of a training say, in words."""

MOST_RECONSTRUCTION_ERROR = 0.15
FAIR_SHARES = (0.3, 0.7)
LEAST_BODY_GRADIENT_SHARE = 0.1
BODY_GRADIENT = "body_gradient_share/"  # how the names of those figures begin
BEFORE = "before/"  # how the names of scores before the first step begin
_OF_IMAGES = (
    "pixel",
    "logits",
    "crosskd",
    "dukd",
    "psnr_drop",
)  # they are what others are measured against


def is_health(name: str) -> bool:
    """Whether a figure of a training's curves is one of its health."""
    return name in ("reconstruction_error", "teacher_share") or name.startswith(BODY_GRADIENT)


def remark(name: str, value: float) -> str:
    """What is bad about a figure of `mipkd.distill.health_probe`; empty where nothing is."""
    if name == "reconstruction_error" and value > MOST_RECONSTRUCTION_ERROR:
        return (
            f"encoder and decoder change the teacher's features by {value:.0%} of their size: "
            "mixtures teach that error too. Raise latent_width of the loss, or take encoder pca"
        )
    if name == "teacher_share":
        return _of_teacher_share(value)
    loss = name.removeprefix(BODY_GRADIENT)
    if loss not in (name, *_OF_IMAGES) and value < LEAST_BODY_GRADIENT_SHARE:
        return (
            f"{loss} gives {value:.1%} of the gradient on the student's body: "
            "the body learns next to nothing from it"
        )
    return ""


def _of_teacher_share(value: float) -> str:
    if value == 0:
        return "no teacher block runs in the mixed path: nothing of the teacher's body is passed on"
    if value == 1:
        return "no student block runs in the mixed path: only the teacher's blocks are heard"
    low, high = FAIR_SHARES
    if not low <= value <= high:
        return (
            f"the teacher's blocks are {value:.0%} of the mixed path, not about half: "
            "the nets' blocks are hardly mixed"
        )
    return ""
