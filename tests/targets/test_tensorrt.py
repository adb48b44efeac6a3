"""What NVIDIA's parser and builder take, what is refused before they see it, what it costs.

TensorRT-RTX parses and builds without a GPU; its pixels are then ONNX Runtime's.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from calibration.sensitive_layers import ATTENTION_FLOAT
from mipkd.core import plugins
from mipkd.core.errors import MissingError, UnsupportedError
from mipkd.core.folders import list_images
from mipkd.core.images import crop_to_multiple, downscale, psnr_y, read_rgb
from mipkd.core.quiet import quiet
from mipkd.core.records import Graph, PatchSet
from mipkd.distill.teacher import TeacherOptions, identify
from mipkd.export.onnx import export
from targets._images import upscale
from targets._onnx import onnx_float16
from targets._onnxruntime.session import OrtSession
from targets._tensorrt import engine
from targets._tensorrt.cuda import gpu
from targets._tensorrt.profile import Profile
from targets._tensorrt.session import InProfile, SizeSessions
from targets._tensorrt.target import TensorRt
from targets._tensorrt.types import Parser, type_graph
from targets.base import BuildRequest, FloatArray, Session
from targets.tensorrt import TARGET as TENSORRT
from targets.tensorrt_rtx import TARGET

pytestmark = pytest.mark.skipif(bool(TARGET.why_not()), reason=TARGET.why_not() or "-")
no_gpu = pytest.mark.skipif(gpu() is not None, reason="describes a machine without a GPU")

PROFILE = Profile.of(((24, 40), (32, 32)))
TINY = {
    "edsr": {"channels": 16, "blocks": 2},
    "rcan": {"channels": 16, "groups": 2, "blocks": 2},
    "swinir": {"channels": 12, "groups": 1, "layers": 2},
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Graph]:
    found = {}
    for family, sizes in TINY.items():
        arch = plugins.load("mipkd.archs", family, "ARCH")
        torch.manual_seed(0)
        net = arch.make(replace(arch.paper(2), **sizes)).eval()
        out = tmp_path_factory.mktemp(family)
        found[family] = export(net, out=out, metadata={}, role="student", family=family)
    return found


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    noise = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    return stored(noise, tmp_path_factory.mktemp("patches"))


def stored(images_NHWC: Any, folder: Path) -> PatchSet:
    np.save(folder / "patches.npy", images_NHWC)
    size = images_NHWC.shape[1:3]
    return PatchSet(folder / "patches.npy", "", "test", len(images_NHWC), size)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("family", TINY)
def test_every_student_parses_and_builds(
    family: str, precision: str, graphs: dict[str, Graph], patches: PatchSet, tmp_path: Path
) -> None:
    built = TARGET.build(BuildRequest(graphs[family], precision, tmp_path, patches))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]  # no engine beside it
    assert built.precision == precision
    model = onnx.load(built.file)
    kinds = {t.data_type for t in model.graph.initializer}
    assert (TensorProto.FLOAT16 in kinds) == (precision != "fp32")
    assert (TensorProto.INT8 in kinds) == (precision == "int8")
    ends = (*model.graph.input, *model.graph.output)
    assert {e.type.tensor_type.elem_type for e in ends} == {TensorProto.FLOAT}
    assert (ATTENTION_FLOAT in built.notes) == ((family, precision) == ("swinir", "int8"))


def test_onnx_runtimes_default_is_refused_before_the_builder_sees_it(
    graphs: dict[str, Graph], patches: PatchSet, tmp_path: Path
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Two(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([{"lr": np.full((1, 3, 16, 16), v, np.float32)} for v in (0, 1)])

        def get_next(self) -> Any:
            return next(self.left, None)

    file = tmp_path / "ort.onnx"
    with quiet("root"):
        quantize_static(graphs["edsr"].file, file, Two())
    with pytest.raises(UnsupportedError, match=r"DequantizeLinear '.*' reads the INT32 bias") as e:
        TARGET.build(BuildRequest(replace(graphs["edsr"], file=file), "fp32", tmp_path / "out"))
    assert "QuantizeBias=False" in e.value.hint
    assert not (tmp_path / "out").exists()
    with pytest.raises(UnsupportedError, match="the parser rejects the graph"):
        build(file.read_bytes())


def test_nncfs_default_is_refused_before_the_builder_sees_it(
    graphs: dict[str, Graph], tmp_path: Path
) -> None:
    model = onnx.load(graphs["edsr"].file)
    images = [{"lr": np.random.default_rng(0).random((1, 3, 16, 16), np.float32)}]
    with quiet("root"):
        import nncf

        quantized = nncf.quantize(model, nncf.Dataset(images), subset_size=1)
    file = tmp_path / "nncf.onnx"
    onnx.save(quantized, file)
    with pytest.raises(UnsupportedError, match=r"Linear '.*' has a UINT8 zero point"):
        TARGET.build(BuildRequest(replace(graphs["edsr"], file=file), "fp32", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UnsupportedError, match=r"not computed as it is written: .*UINT8"):
        build(file.read_bytes())


def build(model: bytes) -> bytes:
    flavour = TARGET._flavour
    return engine.build(flavour.load(), model, PROFILE)


@pytest.mark.parametrize(
    ("message", "doubtful"),
    [
        ("TensorRT doesn't support QuantizeLinear of UINT8: read as INT8", True),
        ("Non-zero zero point is not supported", True),
        ("Your model has INT64 weights: cast down to INT32", True),
        ("(foreignNode) Converting conv weight scales to fp32.", True),  # none of ours are FP16
        ("Unable to determine GPU memory usage", False),
    ],
)
def test_warnings_about_types_are_told_from_others(message: str, doubtful: bool) -> None:
    assert bool(engine.doubtful([message])) == doubtful


@no_gpu
def test_what_fp16_cannot_hold_becomes_bf16_and_says_so(
    graphs: dict[str, Graph], tmp_path: Path
) -> None:
    model = onnx.load(graphs["edsr"].file)
    first = next(t for t in model.graph.initializer if len(t.dims) == 4)
    loud = numpy_helper.to_array(first) * np.float32(1e5)
    first.CopyFrom(numpy_helper.from_array(loud, first.name))
    onnx.save(model, tmp_path / "loud.onnx")
    graph = replace(graphs["edsr"], file=tmp_path / "loud.onnx")
    built = TARGET.build(BuildRequest(graph, "fp16", tmp_path / "out"))
    assert (built.precision, built.executes) == ("fp16", "bf16")
    assert "asked for fp16, the runtime executes bf16" in built.notes
    assert any("BF16, not FP16" in note for note in built.notes)
    with pytest.raises(MissingError, match="cannot simulate this graph") as caught:
        TARGET.open(built)
    assert "bf16 needs an NVIDIA GPU" in caught.value.hint


def test_a_foreign_graph_of_an_older_opset_builds_too(tmp_path: Path) -> None:
    weight = np.zeros((3, 3, 1, 1), np.float32)
    weight[range(3), range(3)] = 1 / 3
    nodes = [
        helper.make_node("Conv", ["in", "weight"], ["a"], "first"),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], "up", mode="nearest"),
        helper.make_node("Conv", ["b", "weight"], ["out"], "last"),
    ]
    scales = np.array([1, 1, 2, 2], np.float32)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "thirds",
            [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", 3, "h", "w"])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3, "H", "W"])],
            [numpy_helper.from_array(v, k) for k, v in (("weight", weight), ("scales", scales))],
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "foreign.onnx")
    graph = Graph(tmp_path / "foreign.onnx", "", "student", 2, 1, 13, "onnx")
    built = TARGET.build(BuildRequest(graph, "fp16", tmp_path / "out"))
    image = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    with closing(TARGET.open(built)) as session:
        found = session.run(image)
    np.testing.assert_allclose(found[..., ::2, ::2], image / 9, rtol=2e-3)


def test_an_engine_is_built_once_for_a_graph_a_profile_and_a_machine(
    graphs: dict[str, Graph], tmp_path: Path
) -> None:
    trt, model = TARGET._flavour.load(), graphs["edsr"].file.read_bytes()
    profile = PROFILE
    plan = engine.engine(trt, model, profile, cache=tmp_path)
    assert len(plan) > 10_000
    (file,) = tmp_path.glob("*.plan")
    assert file.read_bytes() == plan
    file.write_bytes(b"from the cache")
    assert engine.engine(trt, model, profile, cache=tmp_path) == b"from the cache"
    assert engine.engine(trt, model, profile, cache=None) != b"from the cache"
    others = (profile, Profile.of(((24, 41),)))
    keys = {engine.key(trt, m, p, d) for m in (model, b"other") for p in others for d in (None, 0)}
    assert len(keys) == 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT-RTX takes it, to no effect
def test_timings_are_kept_for_the_next_engine(graphs: dict[str, Graph], tmp_path: Path) -> None:
    model, timings = graphs["edsr"].file.read_bytes(), tmp_path / "timings"
    for _ in range(2):
        assert engine.build(TARGET._flavour.load(), model, PROFILE, timings=timings)
        assert timings.stat().st_size


@pytest.mark.parametrize(
    ("sizes", "multiple", "profile"),
    [
        ((), 1, "16x16-320x180-320x256"),  # WIDTHxHEIGHT, as sizes are written everywhere
        (((180, 320), (64, 64), (256, 256)), 1, "16x16-320x180-320x256"),
        (((1080, 1920),), 1, "16x16-1920x1080-1920x1080"),
        (((180, 320),), 7, "21x21-322x182-322x182"),
        (((8, 12),), 1, "8x8-12x8-12x8"),
    ],
)
def test_a_profile_is_of_the_sizes_that_were_asked_for(
    sizes: tuple[tuple[int, int], ...], multiple: int, profile: str
) -> None:
    assert str(Profile.of(sizes, multiple)) == profile
    assert Profile.parse(profile) == Profile.of(sizes, multiple)
    assert Profile.parse("16-256-1280") == Profile((16, 16), (256, 256), (1280, 1280))


class Seen(Session):
    """Repeats pixels twice, and notes the sizes that it is given."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        self.sizes.append(lr_NCHW.shape[2:])
        return lr_NCHW.repeat(2, 2).repeat(2, 3)


@pytest.mark.parametrize(
    ("size", "given"),
    [
        ((24, 40), {(24, 40)}),
        ((17, 33), {(17, 33)}),  # in one piece
        ((33, 40), {(32, 40)}),
        ((100, 100), {(32, 40)}),
        ((5, 9), {(32, 40)}),  # padded
        ((5, 30), {(32, 40)}),
    ],
)
def test_an_image_beyond_the_profile_is_cut_or_padded(
    size: tuple[int, int], given: set[tuple[int, int]]
) -> None:
    seen, lr = Seen(), np.random.default_rng(0).random((1, 3, *size), np.float32)
    found = InProfile(seen, PROFILE, margin=5, multiple=1).run(lr)
    assert set(seen.sizes) == given
    np.testing.assert_array_equal(found, lr.repeat(2, 2).repeat(2, 3))


def test_a_dla_gets_a_session_for_each_size_once() -> None:
    opened: dict[tuple[int, int], Seen] = {}

    def open_for(size: tuple[int, int]) -> Seen:
        assert size not in opened
        return opened.setdefault(size, Seen())

    sessions = SizeSessions(open_for)
    for size in ((24, 40), (32, 32), (24, 40)):
        assert sessions.run(np.zeros((1, 3, *size), np.float32)).shape[2] == 2 * size[0]
    assert {size: one.sizes for size, one in opened.items()} == {
        (24, 40): [(24, 40)] * 2,
        (32, 32): [(32, 32)],
    }
    sessions.close()


def test_a_reference_is_given_the_tiles_of_an_engine() -> None:
    seen, session = Seen(), InProfile(Seen(), PROFILE, margin=5, multiple=1)
    around = session.around(seen)
    around.run(np.zeros((1, 3, 20, 20), np.float32))
    around.run(np.zeros((1, 3, 20, 90), np.float32))
    assert set(seen.sizes) == {(20, 20), (32, 40)}


@no_gpu
def test_without_a_gpu_rtx_simulates_and_tensorrt_says_what_it_lacks() -> None:
    assert (TARGET.simulated, TENSORRT.simulated) == (True, False)
    assert "no NVIDIA GPU and driver found; sudo ubuntu-drivers install" in TENSORRT.why_not()
    assert "tensorrt is not installed; pip install tensorrt; and" in TENSORRT.why_not()


def test_a_missing_package_is_named_with_its_cure() -> None:
    absent = TensorRt(engine.Flavour("absent", ("no_such_module",), "pip install absent", True))
    assert absent.why_not().startswith("absent is not installed; pip install absent")
    with pytest.raises(MissingError, match="absent: the package is not installed"):
        absent.versions()


@no_gpu
def test_building_without_a_gpu_where_one_is_needed_says_so(
    graphs: dict[str, Graph], tmp_path: Path
) -> None:
    with pytest.raises(MissingError, match="no NVIDIA GPU and driver found"):
        TENSORRT.build(BuildRequest(graphs["edsr"], "fp32", tmp_path))


def test_an_operator_that_onnx_does_not_define_is_named(graphs: dict[str, Graph]) -> None:
    model = onnx.load(graphs["edsr"].file)
    odd = helper.make_node("Gelu", [model.graph.node[-1].input[0]], ["x"], "odd", domain="maker")
    model.graph.node.insert(len(model.graph.node) - 1, odd)
    model.opset_import.append(helper.make_opsetid("maker", 1))
    with pytest.raises(UnsupportedError, match=r"'odd' is a maker\.Gelu, not of ONNX"):
        onnx_float16.convert_to_16_bits(model, onnx_float16.FP16)


@pytest.mark.gpu
@pytest.mark.skipif(gpu() is None, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_engine_gives_the_pixels_of_its_graph(
    precision: str, graphs: dict[str, Graph], patches: PatchSet, tmp_path: Path
) -> None:
    from targets._tensorrt.session import SimulatedSession

    built = TARGET.build(BuildRequest(graphs["edsr"], precision, tmp_path, patches))
    image = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    with (
        closing(TARGET.open(built)) as session,
        closing(SimulatedSession(built.file, "expected")) as expected,
    ):
        pixels = [upscale(s, image, scale=2).astype(int) for s in (session, expected)]
    assert np.abs(pixels[0] - pixels[1]).max() <= (1 if precision == "fp32" else 4)


@pytest.mark.slow
def test_int8_costs_a_real_net_little(assets: Path, tmp_path: Path) -> None:
    photos = list_images(assets / "train" / "BSDS400")[::50]
    lr = [downscale(crop_to_multiple(read_rgb(f), 4), 4)[8:72, 8:72] for f in photos]
    calibration = stored(np.stack(lr), tmp_path)
    weights = assets / "weights" / "edsr_baseline_x4_deq8.pt"
    _, net = identify(weights, role="teacher", options=TeacherOptions())
    graph = export(net.eval(), out=tmp_path, metadata={}, role="student", family="edsr")
    folder = assets / "test" / "Set5"
    psnr = {}
    for precision in ("fp32", "fp16", "int8"):
        made = TARGET.build(BuildRequest(graph, precision, tmp_path / precision, calibration))
        with closing(TARGET.open(made)) as session:
            psnr[precision] = [
                psnr_y(
                    upscale(
                        session,
                        read_rgb(folder / "LR_bicubic" / "X4" / f"{hr.stem}x4.png"),
                        scale=4,
                    ),
                    crop_to_multiple(read_rgb(hr), 4),
                    border=4,
                )
                for hr in list_images(folder / "HR")
            ]
    loss = {p: np.subtract(psnr["fp32"], found) for p, found in psnr.items()}
    assert np.mean(psnr["fp32"]) == pytest.approx(32.04, abs=0.01)
    assert loss["fp16"].mean() < 0.005
    assert loss["int8"].mean() < 0.06
    assert loss["int8"].max() < 0.15


@pytest.mark.parametrize("family", ["edsr", "rcan"])
def test_scales_and_what_lies_between_quantizers_are_fp32(
    family: str, graphs: dict[str, Graph], patches: PatchSet, tmp_path: Path
) -> None:
    """TensorRT builds no FP16 scales on an Orin (its issue 4832)."""
    built = TARGET.build(BuildRequest(graphs[family], "int8", tmp_path, patches))
    model = onnx.shape_inference.infer_shapes(onnx.load(built.file)).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.value_info, *model.input)}
    kinds |= {t.name: t.data_type for t in model.initializer}
    makers = {tensor: node for node in model.node for tensor in node.output}
    halves = 0
    for node in model.node:
        floats = {kinds[t] for t in (*node.input, *node.output) if t in kinds} & {1, 10}
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert floats == {TensorProto.FLOAT}, node.name
            assert makers.get(node.input[0], node).op_type != "Cast" or (
                kinds.get(makers[node.input[0]].input[0]) == TensorProto.FLOAT16
            )
        elif node.op_type == "Conv":
            reads = makers[node.input[0]].op_type
            quantized = reads == "DequantizeLinear"
            assert floats == ({TensorProto.FLOAT} if quantized else {TensorProto.FLOAT16})
            halves += not quantized
    # The first and the last; those of RCAN's channel attention are not quantised either.
    assert halves == (2 if family == "edsr" else 10)


def test_fp16_keeps_in_fp32_what_would_overflow_where_no_bf16_is_read(
    graphs: dict[str, Graph], tmp_path: Path
) -> None:
    def loud(*convolutions: int) -> Graph:
        model = onnx.load(graphs["edsr"].file)
        weights = [t for t in model.graph.initializer if len(t.dims) == 4]
        for index, factor in zip(convolutions, (1e6, 1e-6), strict=False):
            value = numpy_helper.to_array(weights[index]) * np.float32(factor)
            weights[index].CopyFrom(numpy_helper.from_array(value, weights[index].name))
        onnx.save(model, tmp_path / "loud.onnx")
        return replace(graphs["edsr"], file=tmp_path / "loud.onnx")

    old, new = Parser.of("10.3.0"), Parser.of("10.16.2")
    request = BuildRequest(loud(1, 2), "fp16", tmp_path)  # within a block
    model, kind, notes = type_graph(request, old)
    assert kind == "fp16"
    assert "and TensorRT 10.3.0 may read no BF16" in notes[0]
    kinds = [t.data_type for t in model.graph.initializer if len(t.dims) == 4]
    assert kinds.count(TensorProto.FLOAT) == 2
    assert kinds.count(TensorProto.FLOAT16) == len(kinds) - 2
    lr = np.random.default_rng(0).random((1, 3, 20, 24), np.float32)
    sessions = [OrtSession(m, {}) for m in (model.SerializeToString(), request.graph.file)]
    found, wanted = (session.run(lr) for session in sessions)
    assert np.abs(found - wanted).max() < 0.01 * np.abs(wanted).max()
    assert type_graph(request, new)[1] == "bf16"
    everywhere = replace(request, graph=loud(0))
    with pytest.raises(UnsupportedError, match=r"all layers would overflow it .* TensorRT 10\.3"):
        type_graph(everywhere, old)
    with pytest.raises(UnsupportedError, match=r"bf16 needs ONNX opset 22; TensorRT 10\.3\.0"):
        type_graph(replace(request, precision="bf16"), old)


@pytest.mark.parametrize(
    ("version", "opset"),
    [("10.3.0", 20), ("10.7.0.23", 20), ("10.16.2.10", 24), ("11.4.1", 24), ("", 20), ("?", 20)],
)
def test_what_a_release_reads_is_known_by_its_version(version: str, opset: int) -> None:
    assert Parser.of(version).opset == opset


def test_a_graph_of_a_later_opset_is_refused_by_its_number(
    graphs: dict[str, Graph], tmp_path: Path
) -> None:
    model = onnx.version_converter.convert_version(onnx.load(graphs["edsr"].file), 22)
    onnx.save(model, tmp_path / "later.onnx")
    request = BuildRequest(replace(graphs["edsr"], file=tmp_path / "later.onnx"), "fp32", tmp_path)
    with pytest.raises(UnsupportedError, match=r"of opset 22; TensorRT 10\.3\.0 reads up to 20"):
        type_graph(request, Parser.of("10.3.0"))
    assert type_graph(request, Parser.of("10.16.2"))[1] == "fp32"
