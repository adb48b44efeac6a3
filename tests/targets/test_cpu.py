"""Weights of 7 bits where the CPU that runs them would clip sums, of 8 bits elsewhere."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mipkd.core.measurement import Host
from mipkd.core.records import Graph, PatchSet, TargetInfo
from pipeline.bench.host import describe_host
from targets.base import BuildRequest
from targets.cpu import TARGET


def told(system: str, *features: str) -> TargetInfo:
    host = Host("there", "another CPU", 4, 2**33, system, features)
    return TargetInfo("cpu", "", False, ("fp32", "int8"), {"onnxruntime": "1.32"}, host)


def largest_weight(file: Path) -> int:
    tensors = onnx.load(file).graph.initializer
    weights = [numpy_helper.to_array(t) for t in tensors if t.data_type == TensorProto.INT8]
    return max(int(np.abs(w.astype(int)).max()) for w in weights if w.ndim == 4)


@pytest.mark.parametrize(
    ("on", "bits"),
    [
        (told("Linux 6.8 x86_64", "avx2", "avx512f"), 7),
        (told("Linux 6.8 x86_64", "avx2", "avx512f", "avx512_vnni"), 8),
        (told("Linux 6.8 x86_64", "avx2", "avx_vnni"), 8),
        (told("Windows 11 AMD64"), 7),
        (told("Darwin 24.1 arm64", "neon", "dotprod"), 8),
        (told("Linux 5.15 aarch64", "neon"), 8),
    ],
    ids=lambda value: (
        f"{value.host.system} {value.host.features}" if isinstance(value, TargetInfo) else ""
    ),
)
def test_the_cpu_that_runs_it_decides(
    on: TargetInfo, bits: int, thirds: Graph, noise: PatchSet, tmp_path: Path
) -> None:
    built = TARGET.build(BuildRequest(thirds, "int8", tmp_path / "out", noise, on=on))
    assert largest_weight(built.file) == (64 if bits == 7 else 127)
    assert any("7 bits" in note for note in built.notes) == (bits == 7)


def test_without_another_machine_this_one_decides(
    thirds: Graph, noise: PatchSet, tmp_path: Path
) -> None:
    host = describe_host()
    has_vnni = any("vnni" in feature for feature in host.features)
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    built = TARGET.build(BuildRequest(thirds, "int8", tmp_path / "out", noise))
    assert largest_weight(built.file) == (64 if is_x86 and not has_vnni else 127)
