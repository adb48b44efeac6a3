"""What a GPU without TensorRT can show of the targets that need both: under three minutes.

    python -m benchmarks.gpu_check --json gpu.json

The driver: memory, copies and a stream through `targets/_tensorrt/cuda.py`, and what it says when
memory is out. torch: milliseconds of nets with random weights, in FP32, in FP16 with channels last,
and that compiled. `tensorrt:torch`: its exported program there, up to where torch-tensorrt takes
over. Pixels of that in FP16 against the FP16 graph that ONNX Runtime simulates for a Jetson. Exit
code 1 when bytes do not come back, or pixels are further apart than FP16's tolerance.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from mipkd.core import plugins
from mipkd.core.errors import StageError
from mipkd.core.images import psnr_of, read_rgb
from mipkd.core.precision import tolerance_of
from mipkd.core.samples import sample_tests
from mipkd.export.onnx import export
from targets._tensorrt.cuda import Cuda, gpu
from targets._tensorrt.from_torch import typed_program
from targets._tensorrt.profile import Profile
from targets.base import BuildRequest, find

_CALLS, _WARM = 30, 5
_TOO_MANY = 1 << 50  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="*", default=["edsr:c64b16", "rlfn:c52b6"])
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(180, 320), help="LR height, width")
    parser.add_argument("--device", default="cuda", help="cpu tries this script without a GPU")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found: dict[str, Any] = {"device": _name(asked.device), "torch": torch.__version__}
    if asked.device != "cpu":
        found["driver"] = check_driver()
    found["nets"] = {spec: check_net(spec, asked) for spec in asked.nets}
    text = json.dumps(found, indent=1)
    print(text)
    if asked.json:
        asked.json.write_text(text)
    bad = [spec for spec, one in found["nets"].items() if not one["pixels"]["within_tolerance"]]
    sys.exit(bool(bad) or not found.get("driver", {"bytes_came_back": True})["bytes_came_back"])


def check_driver() -> dict[str, Any]:
    """What our way to the driver finds, copies there and back, and says when memory is out."""
    with closing(Cuda()) as cuda:
        sent = np.random.default_rng(0).random((1, 3, 180, 320), np.float32)
        back, address = np.empty_like(sent), cuda.allocate(sent.nbytes)
        cuda.upload(sent, address)
        cuda.download(address, back)
        cuda.wait()
        cuda.free(address)
        try:
            cuda.allocate(_TOO_MANY)
            said = "nothing"
        except StageError as error:
            said = f"{error.what}; {error.hint}"
    return {
        "gpu": str(gpu()),
        "bytes_came_back": bool(np.array_equal(sent, back)),
        "out_of_memory": said,
    }


def check_net(spec: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a net in torch, and the pixels of its FP16 in three ways."""
    family, _, sizes = spec.partition(":")
    arch = plugins.load("mipkd.archs", family, "ARCH")
    torch.manual_seed(0)
    net = arch.make(arch.shrink(arch.paper(asked.scale), sizes)).eval().to_deployed()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        graph = export(net, out=Path(folder), metadata={}, role="student", family=family)
        built = find("jetson").build(BuildRequest(graph, "fp16", Path(folder) / "fp16"))
        lr_NCHW = _image(asked.size)
        with closing(find("jetson").open(built)) as session:
            simulated = session.run(lr_NCHW)
    net = net.to(asked.device)
    milliseconds = time_ways(net, torch.from_numpy(lr_NCHW).to(asked.device))
    profile = Profile.of((tuple(asked.size),), graph.multiple)
    exported = typed_program(net, "fp16", profile).module()
    with torch.inference_mode():
        ran = exported(torch.from_numpy(lr_NCHW).to(asked.device)).float().cpu().numpy()
    return {"milliseconds": milliseconds, "pixels": compare(ran, simulated)}


def time_ways(net: Any, lr: torch.Tensor) -> dict[str, float]:
    """Medians of calls that block, one way after the other."""
    ways: dict[str, Callable[[], Any]] = {"fp32": lambda: net(lr)}
    half = deepcopy(net).half().to(memory_format=torch.channels_last)
    lr_16 = lr.half().contiguous(memory_format=torch.channels_last)
    ways["fp16 channels_last"] = lambda: half(lr_16)
    if lr.is_cuda:
        compiled = torch.compile(half)
        ways["fp16 channels_last compiled"] = lambda: compiled(lr_16)
    with torch.inference_mode():
        return {name: _median_ms(call, lr.device) for name, call in ways.items()}


def compare(ran: np.ndarray, simulated: np.ndarray) -> dict[str, Any]:
    """Levels of 255 and dB between two images' values in 0 to 1."""
    first, second = (np.rint(np.clip(sr, 0, 1) * 255) for sr in (ran, simulated))
    levels, bound = float(np.abs(first - second).max()), tolerance_of("fp16")
    psnr_db = psnr_of(float(np.square(first - second).mean()))
    within = levels <= bound.levels and psnr_db >= bound.psnr_db
    return {"levels": levels, "psnr_db": psnr_db, "within_tolerance": bool(within)}


def _median_ms(call: Callable[[], Any], device: torch.device) -> float:
    samples = []
    for _ in range(_WARM + _CALLS):
        start = perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        samples.append(perf_counter() - start)
    return round(statistics.median(samples[_WARM:]) * 1e3, 3)


def _image(size: tuple[int, int]) -> np.ndarray:
    """Part of a test photo that comes with the package, shape (1, 3, H, W), in 0 to 1."""
    photo = read_rgb(sample_tests()[0])
    height, width = size
    tiled = np.tile(photo, (-(-height // len(photo)), -(-width // photo.shape[1]), 1))
    part = tiled[:height, :width].astype(np.float32) / 255
    return np.ascontiguousarray(part.transpose(2, 0, 1)[None])


def _name(device: str) -> str:
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


if __name__ == "__main__":
    main()
