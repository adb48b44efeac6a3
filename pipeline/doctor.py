"""What this machine can target, and what a checkpoint is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mipkd.core import plugins
from mipkd.core.apart import Limits, call_apart
from mipkd.core.errors import UsageError
from mipkd.core.lr_frames import is_lr_only
from mipkd.core.names import printable
from mipkd.core.records import TargetInfo
from mipkd.metrics.base import Metric, list_metrics
from pipeline.machine.base import DeviceConfig, connect
from targets.base import every, find

if TYPE_CHECKING:
    from mipkd.archs.base import SRNet
    from mipkd.distill.teacher import TeacherOptions


def examine_machine(config: DeviceConfig | None = None) -> dict[str, Any]:
    """The host, this one or at an address, each target and variant, and each metric, which is
    computed here: usable, or why not."""
    _warn_of_plugins()
    with connect(config or DeviceConfig()) as machine:
        offered = machine.offers(every())
    targets = {name: _examine_target(info) for name, info in offered.items()}
    host = asdict(next(iter(offered.values())).host)
    metrics = {name: _say_missing(metric) for name, metric in list_metrics().items()}
    return {"host": host, "targets": targets, "metrics": metrics}


def _say_missing(metric: Metric) -> str:
    """What a metric needs and a run would not find unless it is given; "" if nothing."""
    if metric.backbone is None:
        return ""
    weights = f"weights of {metric.backbone.title}: --set metrics.weights.{metric.name}=FILE"
    return "; ".join(filter(None, (metric.backbone.why_not(), weights)))


def _examine_target(info: TargetInfo) -> dict[str, Any]:
    """What a run would find: models are built here, for whichever machine runs them."""
    target = None if info.why_not else find(info.target)
    lacking = {p: target.why_not_build(p) for p in info.precisions} if target else {}
    cannot_build = {precision: why for precision, why in lacking.items() if why}
    return {
        "usable": not info.why_not,
        "why_not": info.why_not,
        "simulated": not info.why_not and info.simulated,
        "emulated": not info.why_not and info.emulated,
        "precisions": [one for one in info.precisions if one not in cannot_build],
        "cannot_build": cannot_build,
        "versions": info.versions,
        "remark": target.remark if target else "",
    }


def _warn_of_plugins() -> None:
    """Warn of each plug-in that does not load; `targets.base.every` does so of targets."""
    list_metrics()
    plugins.load_all("pipeline.machine", "MACHINE")
    if find_spec("torch"):  # families and losses are made of it
        from mipkd.archs.base import load_archs

        load_archs()
        plugins.load_all("mipkd.losses", "LOSS", type)


def describe_machine(found: dict[str, Any]) -> str:
    """What `examine_machine` found: a line about the machine, and one a target."""
    host, targets = found["host"], found["targets"]
    size = host["memory_bytes"]
    memory = f"{size / 2**30:.0f} GiB" if size else "memory unknown"
    wide = max(map(len, targets))
    lines = [
        printable(f"{host['cpu']}, {host['cores']} cores, {memory}, {host['system']}"),
        f"fast arithmetic: {', '.join(host['features']) or 'none known'}",
        "",
        f"{'target':<{wide}}  here  precisions, or what is missing; how to get it",
        *(printable(f"{name:<{wide}}  {_describe_target(one)}") for name, one in targets.items()),
        "",
        f"metrics: {', '.join(name for name, missing in found['metrics'].items() if not missing)}",
        *(f"{name} needs {missing}" for name, missing in found["metrics"].items() if missing),
        "",
        "use them: mipkd-pipeline run --target NAME,NAME; what each is: docs/targets.md",
    ]
    return "\n".join(lines)


def _describe_target(one: dict[str, Any]) -> str:
    """Of one target: whether it is here, and with what, or why not."""
    if one["why_not"]:
        return f"no    {one['why_not']}"
    said = ", ".join(one["precisions"])
    if one["simulated"]:
        said += f" ({'emulated' if one['emulated'] else 'pixels simulated'}, not timed)"
    lacking = "".join(f"; {name} {why}" for name, why in one["cannot_build"].items())
    return f"yes   {said}{lacking}" + (f"; {one['remark']}" if one["remark"] else "")


def examine_checkpoint(file: Path, images: Path | None, sets: Sequence[str]) -> dict[str, Any]:
    """Architecture, scale, sizes and how each fact is known; with images, PSNR and SSIM.

    `--set identify.image_range=255` and the like settle what the file cannot tell. It is read in a
    process of its own, within `[limits]`.
    """
    from pipeline.config import load

    config = load({"teacher": file}, sets=sets)
    if images and is_lr_only(images):
        raise UsageError(
            f"doctor: {printable(images)}: LR frames without truth have no PSNR",
            hint="--images with HR photos, or a set with HR/ and LR/",
        )
    # Once it is read, how long its net takes on the user's images is the user's own choice.
    limits = replace(config.limits.of(file), later=Limits())
    return call_apart(f"doctor {file}", limits, _examine, file, images, config.identify)


def _examine(file: Path, images: Path | None, options: TeacherOptions) -> dict[str, Any]:
    from mipkd.distill import teacher as teachers
    from mipkd.distill.probe import choose_photos
    from mipkd.distill.supported_losses import list_supported

    model, net = teachers.identify(
        file,
        role="teacher",
        options=options,
        probe=lambda scale: choose_photos(None, images, scale=scale),
    )
    named = ("sha256", "arch", "scale", "layout", "hyper", "settled", "params", "gmacs", "licence")
    found = {"file": str(file), **{name: getattr(model, name) for name in named}}
    found["image_range"] = model.hyper.get("image_range")
    if not net.in_parts:
        found["losses"] = list_supported(net)
    return found | (_score_checkpoint(net, model.scale, images) if images else {})


def _score_checkpoint(net: SRNet, scale: int, images: Path) -> dict[str, Any]:
    """Mean PSNR and SSIM on a test set, or on photos; and what bicubic has."""
    from mipkd.core.images import psnr_y, resize_bicubic
    from mipkd.distill.data import load_tests, prepare_tests
    from pipeline.bench.pixels import score
    from pipeline.stages.assess import TorchSession

    with TemporaryDirectory() as folder:
        tests = prepare_tests(images, scale=scale, out=Path(folder))
        pairs = load_tests(tests)
        bicubic = [
            psnr_y(resize_bicubic(lr, hr.shape[:2]), hr, border=scale) for _, lr, hr in pairs
        ]
        scores = score(
            TorchSession(net),
            tests=pairs,
            scale=scale,
            multiple=net.multiple,
            out=Path(folder) / "outputs",
        )
    return {
        "images": len(scores),
        "lr_from": tests.lr_from,
        "psnr_y_db": round(statistics.fmean(s.metrics["psnr_y"] for s in scores), 4),
        "ssim_y": round(statistics.fmean(s.metrics["ssim_y"] for s in scores), 5),
        "bicubic_psnr_y_db": round(statistics.fmean(bicubic), 4),
    }


def check_quality(found: dict[str, Any], sets: Sequence[str]) -> None:
    """Refuse a checkpoint that bicubic beats on the images it was measured on.

    Raises:
        UnsupportedError: it does, and that was not accepted.
    """
    from pipeline.config import load
    from pipeline.teacher_check import refuse_worse_than_bicubic

    file = Path(found["file"])
    if (
        "images" in found
        and not load({"teacher": file}, sets=sets).identify.accept_worse_than_bicubic
    ):
        refuse_worse_than_bicubic(
            found["file"],
            found["psnr_y_db"],
            found["bicubic_psnr_y_db"],
            f"{found['images']} images",
        )


def describe(found: dict[str, Any], indent: str = "") -> str:
    """A nested finding as lines of `name: value`."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", describe(value, indent + "  ")]
        elif value not in ("", [], {}, None):
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            shown = f"{shown} at LR 256x256" if name == "gmacs" else shown
            lines.append(f"{indent}{name}: {printable(str(shown))}")
    return "\n".join(lines)
