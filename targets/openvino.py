"""OpenVINO on this machine: every precision set explicitly, INT8 by NNCF.

`open` needs numpy and openvino alone; `build` needs the host's nncf too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from mipkd.core.errors import MissingError, UnsupportedError
from mipkd.core.records import Built, Graph, PatchSet, Told

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from targets.base import FloatArray

DEVICE = "CPU"
_CLIPPED = 1e-4  # share of values that a range leaves out
_INSTALL = 'pip install "mipkd-pipeline[openvino]"'
_HINT = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoSession:
    """A compiled model and one inference request."""

    def __init__(self, file: Path, options: dict[str, str]) -> None:
        self._model: Any = _openvino().Core().compile_model(str(file), DEVICE, options)
        self._request: Any = self._model.create_infer_request()

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled batch, shape (N, C, S*H, S*W); valid until the next call."""
        self._request.infer([lr_NCHW], share_inputs=True, share_outputs=True)
        return self._request.get_output_tensor(0).data  # type: ignore[no-any-return]

    def close(self) -> None:
        """Drop the model and its threads."""
        self._request = self._model = None


class OpenVino:
    """OpenVINO's CPU device."""

    name = "openvino"
    makes_pixels = True
    simulated = False

    def precisions(self) -> tuple[str, ...]:
        """FP32, BF16 or FP16 where the device computes in it, INT8."""
        fast = [name for name in ("bf16", "fp16") if name.upper() in _capabilities()]
        return ("fp32", *fast[:1], "int8")

    def why_not(self) -> str:
        """Missing where openvino is; a device that only runs models needs no nncf."""
        return "" if _version("openvino") else f"openvino is not installed; {_INSTALL}"

    def versions(self) -> dict[str, str]:
        """openvino, numpy, and nncf where it is installed."""
        found = {name: _version(name) for name in ("openvino", "nncf", "numpy")}
        return {name: known for name, known in found.items() if known}

    def build(
        self,
        graph: Graph,
        precision: str,
        calibration: PatchSet | None,
        out: Path,
        *,
        on: Told | None = None,
    ) -> Built:
        """`out`/model.xml and .bin, FP32 weights or INT8 ones."""
        if precision not in self.precisions():
            raise UnsupportedError(
                f"openvino: {precision!r} is not computed natively on this CPU",
                hint="known: " + ", ".join(self.precisions()),
            )
        out.mkdir(parents=True, exist_ok=True)
        file = out / "model.xml"
        notes: tuple[str, ...] = ()
        rest = precision
        with _quiet():
            openvino = _openvino()
            model = openvino.convert_model(str(graph.file))
            if precision == "int8":
                rest = next((p for p in self.precisions() if p in ("bf16", "fp16")), "fp32")
                model, notes = _quantized(model, calibration, rest)
            # By default it would write FP16 weights, and "fp32" would not be FP32.
            openvino.save_model(model, str(file), compress_to_fp16=False)
        return Built(
            target=self.name,
            precision=precision,
            role=graph.role,
            file=file,
            size_bytes=file.stat().st_size + file.with_suffix(".bin").stat().st_size,
            scale=graph.scale,
            multiple=graph.multiple,
            options={"INFERENCE_PRECISION_HINT": _HINT[rest], "PERFORMANCE_HINT": "LATENCY"},
            notes=notes,
        )

    def open(self, built: Built) -> OpenVinoSession:
        """A compiled model on all cores."""
        return OpenVinoSession(built.file, built.options)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _openvino() -> Any:
    with _unreported():
        import openvino
    return openvino


def _capabilities() -> list[str]:
    return list(_openvino().Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))


def _quantized(model: Any, patches: PatchSet | None, rest: str) -> tuple[Any, tuple[str, ...]]:
    """NNCF's mixed preset; first and last convolution and the skips stay float.

    What each part of the recipe costs and saves: docs/decisions/0003-int8-recipes.md.
    """
    if patches is None:
        raise MissingError("openvino int8 needs calibration patches", hint="give photos: --data")
    if not _version("nncf"):
        raise MissingError("openvino int8 needs nncf, which is not installed", hint=_INSTALL)
    import nncf

    from calibration.patches import as_batches
    from calibration.scopes import ATTENTION_NOTE

    nncf.set_log_level(logging.ERROR)
    found = _scopes(model)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(as_batches(patches)),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=patches.count,
        model_type=nncf.ModelType.TRANSFORMER if found.attention else None,
        advanced_parameters=_ranges(),
        ignored_scope=nncf.IgnoredScope(names=[*found.head, *found.tail, *found.adds]),
    )
    kept = f"{len(found.head) + len(found.tail)} convolutions (first, last)"
    notes = [f"{kept} and {len(found.adds)} skip additions stay {rest.upper()}"]
    return quantized, (*notes, ATTENTION_NOTE) if found.attention else tuple(notes)


def _ranges() -> Any:
    """Activation ranges: of each patch all but 1 value in 10,000, over all patches the widest.

    By default NNCF takes the mean of the patches' ranges, and clips whatever is brighter.
    """
    from nncf import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    low, high = (
        StatisticsCollectorParameters(
            StatisticsType.QUANTILE, aggregator, quantile_outlier_prob=_CLIPPED
        )
        for aggregator in (AggregatorType.MIN, AggregatorType.MAX)
    )
    return AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParameters(low, high)
    )


def _scopes(model: Any) -> Any:
    """Found on the converted graph: conversion fuses and renames operations."""
    from calibration.scopes import Node, scopes

    def tensor(output: Any) -> str:
        return f"{output.get_node().get_friendly_name()}:{output.get_index()}"

    def data(op: Any) -> tuple[str, ...]:
        sources = [op.input_value(i) for i in range(op.get_input_size())]
        return tuple(tensor(s) for s in sources if s.get_node().get_type_name() != "Constant")

    nodes = [
        Node(
            op.get_friendly_name(),
            op.get_type_name(),
            data(op),
            tuple(tensor(output) for output in op.outputs()),
        )
        for op in model.get_ordered_ops()
        if op.get_type_name() not in ("Constant", "Parameter", "Result")
    ]
    result = model.get_results()[0].input_value(0)
    return scopes(nodes, image=tensor(model.input(0)), result=tensor(result))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converter's and NNCF's advice out of the user's terminal."""
    with (
        _unreported(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """Let nobody be told that somebody uses this.

    Importing openvino or nncf and converting a model are reported to their maker, without
    asking, unless the user has opted out or the program seems to run in CI.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


TARGET = OpenVino()
