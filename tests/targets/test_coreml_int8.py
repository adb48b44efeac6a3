"""8-bit convolutions of Core ML packages: what is stored, what stays float, what it costs."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mipkd.core import plugins
from mipkd.core.errors import MissingError
from mipkd.core.folders import list_images
from mipkd.core.images import crop_to_multiple, downscale, psnr_y, read_rgb
from mipkd.core.records import Graph, PatchSet
from mipkd.distill.data import load_tests, prepare_tests
from mipkd.distill.teacher import TeacherOptions, identify, save_copy
from pipeline.stages.build import load_deployed
from targets._coreml.quantize import Range, quantize_convolutions
from targets._images import upscale
from targets.base import BuildRequest
from targets.coreml import TARGET

pytestmark = pytest.mark.skipif(bool(TARGET.why_not()), reason=TARGET.why_not() or "-")
ROOT = Path(__file__).resolve().parents[2]


def stored(patches_NHWC: Any, folder: Path) -> PatchSet:
    np.save(folder / "patches.npy", patches_NHWC)
    size = patches_NHWC.shape[1:3]
    return PatchSet(folder / "patches.npy", "", "test", len(patches_NHWC), size)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    return stored(pixels, tmp_path_factory.mktemp("noise"))


def graph_of(model: Any, net: Any, folder: Path) -> Graph:
    file = folder / "model.onnx"
    return Graph(file, "", "student", net.scale, net.multiple, 20, model.arch, model=model)


def operations(package: Path) -> Any:
    from targets._coreml.package import read_spec

    functions = read_spec(package).mlProgram.functions
    (block,) = functions["main"].block_specializations.values()
    return block.operations


def test_all_but_the_first_and_the_last_convolution_compute_on_8_bits(
    noise: PatchSet, tmp_path: Path
) -> None:
    from targets._coreml.package import read_spec

    preset = ROOT / "pipeline/presets/teacher_x2.safetensors"
    model, net = identify(preset, role="student", options=TeacherOptions())
    built = TARGET.build(
        BuildRequest(
            graph_of(model, net, tmp_path), "int8", tmp_path / "out", noise, load_net=load_deployed
        )
    )
    found = operations(built.file)
    kinds = Counter(o.type for o in found)
    assert kinds["quantize"] == kinds["dequantize"] == kinds["conv"] - 2
    assert kinds["constexpr_affine_dequantize"] == kinds["conv"] - 2
    makers = {o.outputs[0].name: o.type for o in found}
    inputs = [
        tuple(makers[o.inputs[name].arguments[0].name] for name in ("x", "weight"))
        for o in found
        if o.type == "conv"
    ]
    assert set(inputs[1:-1]) == {("dequantize", "constexpr_affine_dequantize")}
    assert not {"dequantize", "constexpr_affine_dequantize"} & {*inputs[0], *inputs[-1]}
    assert read_spec(built.file).specificationVersion == 8  # iOS 17, macOS 14
    assert "2 convolutions (first, last) and skip additions stay FP16" in built.notes
    assert "needs macOS 14 or iOS 17" in built.notes


@pytest.mark.parametrize(
    ("family", "told"),
    [("rcan", "convolutions of pooled values stay FP16"), ("swinir", "window attention")],
)
def test_what_gains_nothing_stays_float_and_is_noted(
    family: str, told: str, noise: PatchSet
) -> None:
    arch = plugins.load("mipkd.archs", family, "ARCH")
    net = arch.make(arch.shrink(arch.paper(2), {"rcan": "g1b2", "swinir": "c60r1"}[family])).eval()
    _, notes = quantize_convolutions(net, noise)
    assert any(told in note for note in notes)


def test_ranges_leave_out_what_is_rare_and_start_at_zero_where_nothing_is_negative() -> None:
    found = Range()
    values = torch.linspace(0, 10, 100_001)
    values[-5:] = 1e4
    found.widen(values[None, None, None])
    scale, zero = found.codes()
    assert (found.low, zero) == (0, 0)
    assert scale == pytest.approx(10 / 255, rel=1e-3)
    found.widen(torch.full((1, 1, 1, 8), -20.0))
    assert found.codes() == (pytest.approx(20 / 127), 128)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_the_simulation_quantizes_as_torch_does(kind: str) -> None:
    from targets._coreml.mil_ops import OPS

    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scale = 0.013  # some values are clipped
    zero, low, high = {"uint8": (128, 0, 255), "int8": (0, -128, 127)}[kind]
    given = {"scale": torch.tensor(scale), "zero_point": torch.tensor(zero)}
    codes = OPS["quantize"](torch, {"input": x, "output_dtype": kind, **given})
    assert torch.equal(codes, codes.to(getattr(torch, kind)).float())
    back = OPS["dequantize"](torch, {"input": codes, **given})
    wanted = torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high)
    torch.testing.assert_close(back, wanted)


def test_without_patches_it_says_what_is_missing(tmp_path: Path) -> None:
    preset = ROOT / "pipeline/presets/teacher_x2.safetensors"
    model, net = identify(preset, role="student", options=TeacherOptions())
    with pytest.raises(MissingError, match="coreml int8 needs calibration patches"):
        TARGET.build(
            BuildRequest(graph_of(model, net, tmp_path), "int8", tmp_path, load_net=load_deployed)
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "known", "float_db"),
    [
        ("mlperf_edsr/edsr_f64b5_x2.pt", {"mean_shift": False, "image_range": 255.0}, 37.652),
    ],
)
def test_int8_costs_a_real_net_little(
    weights: str, known: dict[str, Any], float_db: float, assets: Path, tmp_path: Path
) -> None:
    options = TeacherOptions(**known)
    model, net = identify(assets / "weights" / weights, role="student", options=options)
    save_copy(model, net, tmp_path / "student.safetensors")
    model = replace(model, file=tmp_path / "student.safetensors")
    photos = list_images(assets / "train" / "BSDS400")[::12][:32]
    lr = [downscale(crop_to_multiple(read_rgb(f), net.scale), net.scale) for f in photos]
    patches = stored(np.stack([image[8:72, 8:72] for image in lr]), tmp_path)
    pairs = load_tests(prepare_tests(assets / "test/Set5", scale=net.scale, out=tmp_path / "set5"))
    psnr = {}
    for precision in ("fp16", "int8"):
        graph = graph_of(model, net, tmp_path)
        built = TARGET.build(
            BuildRequest(graph, precision, tmp_path / precision, patches, load_net=load_deployed)
        )
        with closing(TARGET.open(built)) as session:
            psnr[precision] = [
                psnr_y(upscale(session, lr, scale=net.scale), hr, border=net.scale)
                for _, lr, hr in pairs
            ]
    drop = np.subtract(psnr["fp16"], psnr["int8"])
    print(
        f"{weights}: {np.mean(psnr['fp16']):.3f} dB, int8 loses {drop.mean():.4f}, {drop.max():.4f}"
    )
    assert np.mean(psnr["fp16"]) > float_db - 0.01
    assert drop.mean() < 0.05
    assert drop.max() < 0.1
