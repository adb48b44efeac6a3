"""What this machine can target, and what a checkpoint is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mipkd.core.records import Told
from pipeline.bench.agent import tell
from pipeline.bench.host import describe_host
from pipeline.device.device import reached
from targets.base import every, find


def examine_machine(address: str | None = None, sets: Sequence[str] = ()) -> dict[str, Any]:
    """The host, here or at an address, and of each target and variant: usable or not, why not."""
    names = every()
    told = _told_at(address, names, sets) if address else {n: tell(find(n)) for n in names}
    targets = {
        name: {
            "usable": not one.why_not,
            "why_not": one.why_not,
            "simulated": not one.why_not and one.simulated,
            "precisions": list(one.precisions),
            "versions": one.versions,
        }
        for name, one in told.items()
    }
    host = told[names[0]].host if address else describe_host()
    return {"host": asdict(host), "targets": targets}


def _told_at(address: str, names: Sequence[str], sets: Sequence[str]) -> dict[str, Told]:
    from pipeline.config import load

    with reached(load({"device": {"address": address}}, sets=sets).device) as device:
        assert device is not None, "it has an address"
        return device.probe(names)


def machine_printed(found: dict[str, Any]) -> str:
    """What `examine_machine` found: a line about the machine, and one a target."""
    host, targets = found["host"], found["targets"]
    memory = f"{host['memory_bytes'] / 2**30:.0f} GiB"
    wide = max(map(len, targets))
    lines = [
        f"{host['cpu']}, {host['cores']} cores, {memory}, {host['system']}",
        f"fast arithmetic: {', '.join(host['features']) or 'none known'}",
        "",
        f"{'target':<{wide}}  here  precisions, or what is missing; how to get it",
        *(f"{name:<{wide}}  {_standing(one)}" for name, one in targets.items()),
        "",
        "use them: mipkd-pipeline run --target NAME,NAME; what each is: docs/targets.md",
    ]
    return "\n".join(lines)


def _standing(one: dict[str, Any]) -> str:
    """Of one target: whether it is here, and with what, or why not."""
    if one["why_not"]:
        return f"no    {one['why_not']}"
    precisions = ", ".join(one["precisions"])
    return f"yes   {precisions}" + (" (pixels simulated, not timed)" if one["simulated"] else "")


def examine_checkpoint(file: Path, images: Path | None, sets: Sequence[str]) -> dict[str, Any]:
    """Architecture, scale, sizes and how each fact is known; with images, PSNR and SSIM.

    `--set identify.image_range=255` and the like settle what the file cannot tell.
    """
    from mipkd.distill import teacher as teachers
    from mipkd.distill.data import load_tests, prepare_tests, probe_images
    from mipkd.distill.supported_losses import list_supported
    from pipeline.bench.pixels import score
    from pipeline.config import load
    from pipeline.stages.assess import TorchSession

    options = load({"teacher": file}, sets=sets).identify
    model, net = teachers.identify(
        file,
        role="teacher",
        options=options,
        probe=lambda scale: probe_images(images, scale=scale),
    )
    found: dict[str, Any] = {
        "file": str(file),
        "sha256": model.sha256,
        "arch": model.arch,
        "scale": model.scale,
        "layout": model.layout,
        "hyper": model.hyper,
        "image_range": model.hyper.get("image_range"),
        "settled": model.settled,
        "params": model.params,
        "gmacs": model.gmacs,
        "licence": model.licence,
    }
    if not net.in_parts:
        found["losses"] = list_supported(net)
    if images:
        with TemporaryDirectory() as folder:
            tests = prepare_tests(images, scale=model.scale, out=Path(folder))
            scores = score(
                TorchSession(net),
                tests=load_tests(tests),
                scale=model.scale,
                multiple=net.multiple,
                out=Path(folder) / "outputs",
            )
        found["images"] = len(scores)
        found["lr_from"] = tests.lr_from
        found["psnr_y_db"] = round(statistics.fmean(s.psnr_y_db for s in scores), 4)
        found["ssim_y"] = round(statistics.fmean(s.ssim_y for s in scores), 5)
    return found


def printed(found: dict[str, Any], indent: str = "") -> str:
    """A nested finding as lines of `name: value`."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", printed(value, indent + "  ")]
        elif value not in ("", [], {}, None):
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            lines.append(f"{indent}{name}: {shown}")
    return "\n".join(lines)
