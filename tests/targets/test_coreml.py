"""Core ML packages: what the saved files hold, against torch's own pixels."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mipkd.archs.base import SRNet
from mipkd.core import plugins
from mipkd.core.errors import MipkdError, StageError, UnsupportedError, UsageError
from mipkd.core.images import crop_to_multiple, downscale, psnr_y, read_rgb
from mipkd.core.records import Built, Graph, PatchSet
from mipkd.core.samples import sample_photos
from mipkd.distill.data import load_tests, prepare_tests
from mipkd.distill.teacher import TeacherOptions, describe, identify, save
from mipkd.export.onnx import export
from mipkd.export.receptive_field import find_receptive_field
from pipeline.bench.models import probe_target
from pipeline.stage import ready
from pipeline.stages.build import BuildConfig, BuildInputs, build, load_deployed
from targets._images import upscale
from targets.base import BuildRequest, Session, find
from targets.coreml import OFF_ANE, TARGET

pytestmark = pytest.mark.skipif(bool(TARGET.why_not()), reason=TARGET.why_not() or "-")
ROOT = Path(__file__).resolve().parents[2]
PRECISIONS = ("fp32", "fp16", "w8", "int8")
SIZES = {
    "edsr": {"channels": 16, "blocks": 2},
    "rcan": {"channels": 16, "groups": 2, "blocks": 2},
    "swinir": {"channels": 24, "groups": 1, "layers": 2, "heads": 4},
}
WORST = {"fp32": 2e-6, "fp16": 4e-3, "w8": 4e-2, "int8": 8e-2}  # of a pixel in [0, 1]
STEPS = 40
PSNR_BOUNDS_DB = {"fp32": 0.01, "fp16": 0.02, "w8": 0.05, "int8": 0.05}


@dataclass(frozen=True)
class Subject:
    """A net and the record of its graph; nothing here reads the graph's file."""

    net: SRNet
    graph: Graph


def subject(family: str, folder: Path, *, scale: int = 2, **sizes: Any) -> Subject:
    arch = plugins.load("mipkd.archs", family, "ARCH")
    hyper = replace(arch.paper(scale), **sizes)
    torch.manual_seed(0)
    net = arch.make(hyper).eval()
    if sizes.get("direct"):
        taught(net)
    file = folder / f"{family}.safetensors"
    save(net, arch, hyper, file, licence="Apache-2.0")
    model = describe(arch, hyper, role="student", file=file, licence="Apache-2.0")
    return Subject(net, graph_of(net, family, folder, model))


def graph_of(net: SRNet, family: str, folder: Path, model: Any) -> Graph:
    return Graph(
        file=folder / "model.onnx",
        sha256="",
        role="student",
        scale=net.scale,
        multiple=net.multiple,
        opset=20,
        family=family,
        licence=model.licence,
        model=model,
    )


def taught(net: SRNet) -> None:
    """A few steps of training, begun from the LR image with each pixel repeated.

    So its PSNR is that of a photo, and a wrong weight costs what it does in a trained net.
    """
    body = net.get_submodule("after") if hasattr(net, "after") else net.blocks[-1]
    lift, up = (net.get_submodule(name).get_parameter("weight") for name in ("lift", "up.0"))
    with torch.no_grad():
        body.get_parameter("weight").mul_(0.01)
        up.mul_(0.01)
        for colour in range(3):
            lift[colour] = 0
            lift[colour, colour, 1, 1] = 1
            up[colour * net.scale**2 : (colour + 1) * net.scale**2, colour, 1, 1] = 1
    pixels = torch.from_numpy(read_rgb(sample_photos()[0]).copy()).permute(2, 0, 1) / 255
    chance = torch.Generator().manual_seed(0)
    learner = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(STEPS):
        tops, lefts = (torch.randint(s - 64, (8,), generator=chance) for s in pixels.shape[1:])
        corners = zip(tops.tolist(), lefts.tolist(), strict=True)
        hr = torch.stack([pixels[:, t : t + 64, x : x + 64] for t, x in corners])
        lr = nn.functional.interpolate(hr, scale_factor=0.5, mode="bicubic", antialias=True)
        loss = (net(lr) - hr).abs().mean()
        learner.zero_grad()
        loss.backward()
        learner.step()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coreml")


@pytest.fixture(scope="module")
def subjects(folder: Path) -> dict[str, Subject]:
    return {f: subject(f, folder, direct=True, **sizes) for f, sizes in SIZES.items()}


@pytest.fixture(scope="module")
def patches(folder: Path) -> PatchSet:
    """24 patches of 48x48 LR pixels, halved sample photos."""
    photos = [downscale(crop_to_multiple(read_rgb(f), 2), 2) for f in sample_photos()[:4]]
    corners = [(t, x) for t in (0, 48) for x in (0, 40, 80)]
    found = [p[t : t + 48, x : x + 48] for p in photos for t, x in corners]
    np.save(folder / "patches.npy", np.stack(found))
    return PatchSet(folder / "patches.npy", "", "samples", len(found), (48, 48))


@pytest.fixture(scope="module")
def package(
    subjects: dict[str, Subject], patches: PatchSet, folder: Path
) -> Callable[[str, str], Built]:
    made: dict[tuple[str, str], Built] = {}

    def build(family: str, precision: str) -> Built:
        key = (family, precision)
        if key not in made:
            out = folder / family / precision
            made[key] = TARGET.build(
                BuildRequest(
                    subjects[family].graph, precision, out, patches, load_net=load_deployed
                )
            )
        return made[key]

    return build


def noise(height: int, width: int) -> Any:
    return np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32)


def by_torch(net: SRNet, lr_NCHW: Any) -> Any:
    with torch.inference_mode():
        return net(torch.from_numpy(lr_NCHW)).numpy()


@pytest.mark.parametrize(
    ("family", "precision"),
    # Those of SwinIR take long.
    [(f, p) for f in SIZES for p in (PRECISIONS if f != "swinir" else ("fp32", "int8"))],
)
def test_a_saved_package_gives_torchs_pixels_at_any_size(
    family: str,
    precision: str,
    subjects: dict[str, Subject],
    package: Callable[[str, str], Built],
) -> None:
    net, built = subjects[family].net, package(family, precision)
    assert built.notes[:2] == (f"LR sizes {max(2, net.multiple)} to 2048 a side", OFF_ANE)
    with closing(TARGET.open(built)) as session:
        for height, width in ((16, 40), (48, 24)):
            lr = noise(height, width)
            assert np.abs(session.run(lr) - by_torch(net, lr)).max() < WORST[precision]


def test_w8_rounds_the_weights_of_each_output_channel_to_255_steps(
    subjects: dict[str, Subject], package: Callable[[str, str], Built]
) -> None:
    from targets._coreml.simulate import Program

    held = Program(package("edsr", "w8").file).constants.values()
    large = [p.detach() for p in subjects["edsr"].net.parameters() if p.numel() > 2048]
    assert len(large) == 5
    for weight in large:
        step = weight.abs().amax((1, 2, 3), keepdim=True) / 127
        alike = [c for c in held if getattr(c, "dtype", None) == torch.float32]
        off = [((c - weight).abs() / step).max() for c in alike if c.shape == weight.shape]
        assert 0.4 < min(off) < 0.6  # a step's half, and what FP16 adds to it


def test_weights_get_smaller_with_the_precision(package: Callable[[str, str], Built]) -> None:
    sizes = [package("edsr", p).size_bytes for p in PRECISIONS]
    assert sizes[1] < 0.65 * sizes[0]
    assert sizes[2] < 0.8 * sizes[1]


@pytest.fixture(scope="module")
def set5(assets: Path, folder: Path) -> list[Any]:
    """Set5's pairs at x2."""
    return load_tests(prepare_tests(assets / "test/Set5", scale=2, out=folder / "set5"))


class TorchSession(Session):
    """Torch behind the interface of a session."""

    def __init__(self, net: SRNet) -> None:
        self.net = net

    def run(self, lr_NCHW: Any) -> Any:
        return by_torch(self.net, lr_NCHW)


def mean_psnr_db(session: Any, pairs: list[Any], net: SRNet) -> float:
    scores = [
        psnr_y(upscale(session, lr, scale=net.scale, multiple=net.multiple), hr, border=net.scale)
        for _, lr, hr in pairs
    ]
    return float(np.mean(scores))


@pytest.fixture(scope="module")
def torch_db(set5: list[Any]) -> Callable[[SRNet], float]:
    """Mean PSNR of torch's own pixels, made once for each net."""
    return cache(lambda net: mean_psnr_db(TorchSession(net), set5, net))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", SIZES)
def test_on_set5_simulated_psnr_is_torchs(
    family: str,
    precision: str,
    set5: list[Any],
    torch_db: Callable[[SRNet], float],
    subjects: dict[str, Subject],
    package: Callable[[str, str], Built],
) -> None:
    net = subjects[family].net
    of_torch = torch_db(net)
    assert of_torch > 28  # else a difference would mean little
    with closing(TARGET.open(package(family, precision))) as session:
        drop = of_torch - mean_psnr_db(session, set5, net)
    assert abs(drop) < PSNR_BOUNDS_DB[precision]


@pytest.fixture(scope="module")
def trained(folder: Path) -> Subject:
    """The small teacher that comes with the program."""
    model, net = identify(
        ROOT / "pipeline/presets/teacher_x2.safetensors", role="student", options=TeacherOptions()
    )
    return Subject(net, graph_of(net, "edsr", folder, model))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_trained_edsr_keeps_its_psnr_on_set5(
    precision: str,
    set5: list[Any],
    torch_db: Callable[[SRNet], float],
    trained: Subject,
    patches: PatchSet,
    tmp_path: Path,
) -> None:
    net = trained.net
    of_torch = torch_db(net)
    assert of_torch > 36
    built = TARGET.build(
        BuildRequest(trained.graph, precision, tmp_path / "out", patches, load_net=load_deployed)
    )
    with closing(TARGET.open(built)) as session:
        drop = of_torch - mean_psnr_db(session, set5, net)
    assert abs(drop) < PSNR_BOUNDS_DB[precision]


def test_a_package_for_apps_takes_and_gives_8_bit_images(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    from targets._coreml.package import read_spec

    net, graph = subjects["edsr"].net, subjects["edsr"].graph
    request = BuildRequest(graph, "fp16", tmp_path, load_net=load_deployed, pixels="uint8")
    built = TARGET.build(request)
    assert built.file == tmp_path / "images.mlpackage"
    about = read_spec(built.file).description
    kinds = [about.input[0], about.output[0]]
    assert [k.type.WhichOneof("Type") for k in kinds] == ["imageType"] * 2
    assert about.metadata.userDefined["mipkd.range"] == "0..255"
    lr = np.rint(noise(17, 30) * 255).astype(np.uint8)
    lr[..., :4] = 255  # some output lies beyond white: it must be clipped
    wanted = np.rint(by_torch(net, lr.astype(np.float32) / 255).clip(0, 1) * 255)
    with closing(TARGET.open(built)) as session:
        assert session.takes_uint8
        found = np.asarray(session.run(lr))  # type: ignore[arg-type]  # bytes
    assert found.dtype == np.uint8
    assert (found.min(), found.max()) == (wanted.min(), wanted.max())
    difference = np.abs(found.astype(np.float32) - wanted)
    assert difference.max() <= 1
    assert difference.mean() < 0.1


def test_a_package_says_whose_it_is_and_what_it_takes(package: Callable[[str, str], Built]) -> None:
    from targets._coreml.package import read_spec

    built = package("swinir", "w8")
    assert built.notes[-1] == "activations are FP16"
    about = read_spec(built.file).description.metadata
    assert (about.author, about.license) == ("mipkd-pipeline", "Apache-2.0")
    assert about.shortDescription == "Super-resolution x2 (swinir, w8)"
    assert about.userDefined["mipkd.multiple"] == "8"
    assert about.userDefined["mipkd.colour"] == "RGB"


def test_the_same_net_gives_the_same_files(
    subjects: dict[str, Subject], package: Callable[[str, str], Built], tmp_path: Path
) -> None:
    first = package("edsr", "w8").file
    second = TARGET.build(
        BuildRequest(subjects["edsr"].graph, "w8", tmp_path, load_net=load_deployed)
    ).file
    files = [f.relative_to(first) for f in first.rglob("*") if f.is_file()]
    assert len(files) == 3
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes()


def copied(built: Built, tmp_path: Path) -> Built:
    """The package elsewhere: what is read there cannot be what the converter still holds."""
    return replace(built, file=Path(shutil.copytree(built.file, tmp_path / "copy.mlpackage")))


def test_one_flipped_bit_in_the_weights_is_noticed(
    package: Callable[[str, str], Built], tmp_path: Path
) -> None:
    built = copied(package("edsr", "fp32"), tmp_path)
    (weights,) = built.file.rglob("weight.bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StageError, match=r"weights/weight\.bin is not what was built"):
        TARGET.open(built)
    weights.unlink()
    with pytest.raises(StageError, match="no file"):
        TARGET.open(built)


def changed(built: Built, change: Callable[[Any], None]) -> Built:
    from targets._coreml.package import model_file, read_spec

    spec = read_spec(built.file)
    change(spec)
    model_file(built.file).write_bytes(spec.SerializeToString())
    return built


def test_weights_are_read_from_the_file(
    package: Callable[[str, str], Built], tmp_path: Path
) -> None:
    from targets._coreml.package import WEIGHTS_SHA256

    def forget(spec: Any) -> None:
        del spec.description.metadata.userDefined[WEIGHTS_SHA256]

    built = changed(copied(package("edsr", "fp32"), tmp_path), forget)
    (weights,) = built.file.rglob("weight.bin")
    lr = noise(8, 8)
    with closing(TARGET.open(built)) as session:
        before = session.run(lr)
    content = bytearray(weights.read_bytes())
    content[128:1024] = bytes(896)  # values of the first blob
    weights.write_bytes(content)
    with closing(TARGET.open(built)) as session:
        assert not np.allclose(session.run(lr), before)
    weights.write_bytes(content[:-64])
    with pytest.raises(StageError, match="its weights do not load"):
        TARGET.open(built)


def test_an_unknown_operation_is_named(
    package: Callable[[str, str], Built], tmp_path: Path
) -> None:
    def rename(spec: Any) -> None:
        (block,) = spec.mlProgram.functions["main"].block_specializations.values()
        next(o for o in block.operations if o.type == "relu").type = "sinh"

    built = changed(copied(package("edsr", "fp32"), tmp_path), rename)
    with pytest.raises(UnsupportedError, match="operation 'sinh'") as caught:
        TARGET.open(built)
    assert "pixel_shuffle" in caught.value.hint


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    built = Built("coreml", "fp32", "student", tmp_path / "no.mlpackage", 0, 2, 1)
    with pytest.raises(UsageError, match="no Core ML package"):
        TARGET.open(built)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda g: replace(g, model=None), "has no torch net"),
        (lambda g: replace(g, model=replace(g.model, arch="DAT")), "DAT is none of the families"),
    ],
)
def test_a_graph_without_a_net_of_ours_is_refused(
    change: Callable[[Graph], Graph], told: str, subjects: dict[str, Subject], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=told) as caught:
        TARGET.build(
            BuildRequest(change(subjects["edsr"].graph), "fp32", tmp_path, load_net=load_deployed)
        )
    assert caught.value.hint


def test_a_net_that_no_range_suits_gets_one_size_and_says_so(folder: Path) -> None:
    sizes = {"channels": 8, "blocks": 1, "middle": 8}
    rlfn = subject("rlfn", folder, **sizes)
    asked = ((64, 48), (40, 40))
    request = BuildRequest(rlfn.graph, "fp32", folder / "rlfn", load_net=load_deployed)
    built = TARGET.build(replace(request, sizes=asked, fixed_sizes=True))
    assert built.notes == (
        "LR sizes 48x64 alone; other images are padded to one of them, or cut into tiles",
        "it cannot be converted for several sizes",
    )
    lr = noise(64, 48)
    with closing(TARGET.open(built)) as session:
        assert np.abs(session.run(lr) - by_torch(rlfn.net, lr)).max() < 1e-5
        assert session.run(noise(20, 30)).shape == (1, 3, 40, 60)
    built = TARGET.build(request)
    assert built.notes[0].startswith("LR sizes 256x256 alone")
    assert OFF_ANE not in built.notes


@pytest.fixture(scope="module")
def for_ane(subjects: dict[str, Subject], folder: Path) -> Built:
    """A package for some sizes, the usual one first."""
    asked = ((24, 40), (32, 32), (48, 64))
    request = BuildRequest(subjects["edsr"].graph, "fp32", folder / "ane", load_net=load_deployed)
    return find("coreml:ane").build(replace(request, sizes=asked, margin=9))


def test_the_neural_engines_package_takes_the_sizes_asked_for_alone(for_ane: Built) -> None:
    from targets._coreml.package import listed_sizes, read_spec
    from targets._coreml.simulate import Program

    spec = read_spec(for_ane.file)
    assert listed_sizes(spec) == ((24, 40), (32, 32), (48, 64))
    assert for_ane.notes[0].startswith("LR sizes 40x24, 32x32, 64x48 alone")
    with pytest.raises(UnsupportedError, match="takes RGB images of LR 40x24, 32x32, 64x48, not"):
        Program(for_ane.file)(noise(24, 24))


@pytest.mark.parametrize("size", [(24, 40), (48, 64), (90, 33), (50, 200), (17, 23)])
def test_other_sizes_are_tiled_or_padded_as_torch_would_be(
    size: tuple[int, int], for_ane: Built, subjects: dict[str, Subject]
) -> None:
    from targets._tiles import FixedSizes

    net, lr = subjects["edsr"].net, noise(*size)
    with closing(find("coreml:ane").open(for_ane)) as session:
        found = session.run(lr)
        assert isinstance(session, FixedSizes)
        wanted = session.around(TorchSession(net)).run(lr)
    assert np.abs(found - wanted).max() < 2e-6
    if min(size) >= 48:  # no side was padded, and EDSR with two blocks sees 7 pixels far
        assert np.abs(found - by_torch(net, lr)).max() < 2e-6


def test_a_run_s_build_finds_the_margin_and_compares_under_the_same_tiles(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    from targets._coreml.package import margin_of, read_spec

    graph = export(subjects["edsr"].net, out=tmp_path, metadata={}, role="student", family="edsr")
    graph = replace(graph, model=subjects["edsr"].graph.model)
    info = replace(probe_target("coreml:ane"), local=True)
    asked = (BuildConfig(), "fp32", info, ready(graph), None, None)
    (tmp_path / "out").mkdir()
    inputs = BuildInputs(*asked, sizes=((24, 40), (32, 32)))
    built = build.function(inputs, out=tmp_path / "out")  # noise of 41x31 is compared, too
    margin = margin_of(read_spec(built.file))
    assert margin == find_receptive_field(graph.file).radius != BuildRequest.margin


def test_packages_for_apps_take_one_size_or_a_list_too(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    from targets._coreml.package import listed_sizes, read_spec

    request = BuildRequest(subjects["edsr"].graph, "fp16", tmp_path, load_net=load_deployed)
    request = replace(request, fixed_sizes=True, pixels="uint8")
    for sizes in (((24, 40),), ((24, 40), (32, 32))):
        spec = read_spec(TARGET.build(replace(request, sizes=sizes)).file)
        assert listed_sizes(spec) == sizes
        assert spec.description.metadata.userDefined["mipkd.margin"] == "32"


def test_compute_units_are_checked_before_anything_is_opened(tmp_path: Path) -> None:
    options = {"compute_units": "TPU"}
    built = Built("coreml", "fp32", "student", tmp_path, 0, 2, 1, options)
    with pytest.raises(MipkdError, match=r"compute_units: 'TPU'; known: ALL.*CPU_AND_NE"):
        TARGET.open(built)


@pytest.mark.parametrize(
    ("name", "units"), [("cpu", "CPU_ONLY"), ("gpu", "CPU_AND_GPU"), ("ane", "CPU_AND_NE")]
)
def test_a_variant_is_the_same_package_for_some_compute_units(
    name: str,
    units: str,
    subjects: dict[str, Subject],
    package: Callable[[str, str], Built],
    tmp_path: Path,
) -> None:
    variant = find(f"coreml:{name}")
    assert (variant.name, variant.simulated) == (f"coreml:{name}", TARGET.simulated)
    built = variant.build(
        BuildRequest(subjects["edsr"].graph, "fp16", tmp_path / name, load_net=load_deployed)
    )
    plain = package("edsr", "fp16")
    assert built.target == f"coreml:{name}"
    assert (built.options["compute_units"], plain.options["compute_units"]) == (units, "ALL")
    files = [f.relative_to(plain.file) for f in plain.file.rglob("*") if f.is_file()]
    assert all((plain.file / f).read_bytes() == (built.file / f).read_bytes() for f in files)
    with closing(variant.open(built)) as session:
        assert session.run(noise(16, 24)).shape == (1, 3, 32, 48)


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="coreml: unknown variant 'npu'") as caught:
        find("coreml:npu")
    assert "ane, cpu, gpu" in caught.value.hint


def test_only_a_mac_measures() -> None:
    assert TARGET.simulated == (sys.platform != "darwin")


def test_a_machine_without_coremltools_is_told_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("targets.coreml.version_of", lambda package: "")
    assert 'pip install "mipkd-pipeline[coreml]"' in TARGET.why_not()


@pytest.mark.mac
@pytest.mark.skipif(sys.platform != "darwin", reason="needs macOS: Core ML predicts only there")
@pytest.mark.parametrize("units", ["CPU_ONLY", "ALL"])
def test_a_mac_gives_the_simulated_pixels(units: str, package: Callable[[str, str], Built]) -> None:
    from targets._coreml.simulate import Program

    built = replace(package("edsr", "fp16"), options={"compute_units": units})
    lr = noise(32, 48)
    with closing(TARGET.open(built)) as session:
        assert np.abs(session.run(lr) - Program(built.file)(lr)).max() < 5e-3
