"""Files made to stop or fill the machine are refused; all of them run in benchmarks/hostile.py."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

import hostile_bundles as bundles
import hostile_checkpoints as checkpoints
import hostile_graphs as graphs
import hostile_images as images
import numpy as np
import pytest
from checkpoint_makers import TRAINED, tiny
from measured import Measured, measure
from PIL import Image

from mipkd.core import memory
from mipkd.core.apart import LimitError
from mipkd.core.archives import check_inflation
from mipkd.core.errors import MipkdError, UnsupportedError, UsageError
from mipkd.core.image_headers import bytes_to_read, size_of
from mipkd.core.images import read_rgb
from mipkd.distill.files import read_content, write_state
from mipkd.distill.recognise import recognise
from mipkd.export.adopt_onnx import adopt
from pipeline import config, doctor
from pipeline.bundle.manifest import Model
from pipeline.bundle.trial import try_models
from pipeline.limits import LimitsConfig
from pipeline.machine.kit import Kit
from pipeline.upscale.pictures import read_picture

MOST_S, MOST_BYTES = 60, 2**30  # of a command, on a busy machine; alone each is under 20 s


def check_refusal(found: Measured) -> None:
    assert found.code in (2, 3, 5), found.err
    assert len(found.complaints) == 1, found.err
    assert "Traceback" not in found.err
    assert "a bug of" not in found.err
    assert found.peak_bytes < MOST_BYTES


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        checkpoints.inflated_pickle,
        checkpoints.many_keys,
        checkpoints.sparse,
    ],
)
def test_doctor_refuses_a_checkpoint(make: checkpoints.Maker, tmp_path: Path) -> None:
    file = make(tmp_path)
    check_refusal(measure("doctor", file, folder=tmp_path, limit_s=MOST_S))
    assert [*tmp_path.iterdir()] == [file]


@pytest.mark.slow
@pytest.mark.parametrize("make", [graphs.endless_scan, graphs.functions_of_functions])
def test_a_run_refuses_a_graph(make: checkpoints.Maker, tmp_path: Path) -> None:
    words = (
        "run",
        "--model",
        make(tmp_path),
        "--demo-data",
        "--target",
        "cpu",
        "--out",
        tmp_path / "run",
    )
    check_refusal(measure(*words, folder=tmp_path, limit_s=MOST_S))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (checkpoints.holds_itself, "no tensors"),
        (checkpoints.nested_dicts, "no tensors"),
        (checkpoints.many_laughs, "no tensors"),
        (checkpoints.many_keys, "more than 50000 tensors"),
        (checkpoints.empty_tensors, "more than 50000 tensors"),
        (checkpoints.expanded, "claim 10000"),
        (checkpoints.expanded_half, "values, in a file of"),
        (checkpoints.sparse, "claim 10000"),
        (checkpoints.bytearray_of, "damaged"),
        (checkpoints.array_of, "damaged"),
        (checkpoints.code_in_pickle, "os.system"),
        (checkpoints.nested_header, "damaged"),
        (checkpoints.overflowing_shape, "damaged"),
    ],
)
def test_a_checkpoint_is_refused_before_it_takes_memory(
    make: checkpoints.Maker, says: str, tmp_path: Path
) -> None:
    file = make(tmp_path)
    memory.reset_peak()
    before = memory.peak_bytes() or 0
    with pytest.raises(MipkdError, match=says):
        recognise(file)
    assert (memory.peak_bytes() or 0) - before < 2**29


def test_an_archive_that_would_grow_a_hundredfold_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for number in range(10):
            packed.writestr(f"archive/data/{number}", bytes(10**7))
    with pytest.raises(UsageError, match="bytes that claims to hold 100000000"):
        read_content(file)
    noise = np.random.default_rng(0).bytes(2**20)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data/0", noise)
    check_inflation(file)
    file.write_bytes(noise)
    check_inflation(file)  # it is none


@pytest.mark.parametrize("make", bundles.RESULTS)
def test_what_a_kit_brought_back_is_refused(make: checkpoints.Maker, tmp_path: Path) -> None:
    file = make(tmp_path)
    with pytest.raises(UsageError, match=file.name):
        Kit(file)
    assert [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize(
    "make",
    [
        *(
            images.png_of_a_header,
            images.jpeg,
            images.gif,
            images.bmp,
            images.tiff,
        ),
        *(images.postscript, images.portable_pixmap),
    ],
)
def test_an_image_is_refused_by_its_header(make: checkpoints.Maker, tmp_path: Path) -> None:
    file = make(tmp_path)
    memory.reset_peak()
    before = memory.peak_bytes() or 0
    with pytest.raises(UsageError, match="cannot be read as an image"):
        read_rgb(file)
    assert (memory.peak_bytes() or 0) - before < 2**28
    assert [*tmp_path.iterdir()] == [file]


def test_a_tile_that_is_larger_than_its_image_counts(tmp_path: Path) -> None:
    file = images.tiff_tile(tmp_path)
    assert size_of(file) == (8, 8)
    with pytest.raises(UsageError, match="megapixels"):
        read_rgb(file)


def test_a_picture_is_held_against_the_memory_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    Image.new("RGB", (1000, 800)).save(file)
    needed = bytes_to_read(file)
    assert needed >= 3 * 1000 * 800
    assert read_picture(file, needed).rgb_HWC.shape == (800, 1000, 3)
    with pytest.raises(UsageError, match=r"reading 1000x800 pixels takes .* of --memory") as caught:
        read_picture(file, needed - 1)
    assert "--memory" in caught.value.hint
    Image.new("RGBA", (1000, 800)).save(file)
    assert bytes_to_read(file) > needed


@pytest.mark.parametrize("text", bundles.CONFIGS.values(), ids=bundles.CONFIGS)
def test_a_configuration_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match="config"):
        config.load({}, file=file)


@pytest.mark.parametrize(
    ("make", "count"),
    [(graphs.functions_of_functions, r"1e\+12"), (graphs.many_nodes, r"5e\+04")],
)
def test_operators_are_counted_before_anything_opens_them(
    make: checkpoints.Maker, count: str, tmp_path: Path
) -> None:
    file = make(tmp_path)
    with pytest.raises(UnsupportedError, match=f"it holds {count} operators"):
        adopt(file, scale=None, image_range=None, probe=lambda scale: [], out=tmp_path)


def model_of(make: checkpoints.Maker, bundle: Path) -> Model:
    """A bundle's only model, of a hostile graph."""
    home = bundle / "model" / "cpu-fp32"
    home.mkdir(parents=True)
    shutil.move(make(bundle), home / "model.onnx")
    place = "model/cpu-fp32/model.onnx"
    return Model("cpu", "fp32", "measured", place, 4, 2, 1, {}, (), {}, 7, "")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (graphs.endless_loop, "cpu fp32: not done after 1"),
        (graphs.endless_scan, "cpu fp32: it took more than 512 MiB of memory"),
        (graphs.slow_products, "cpu fp32: (not done after|it took more)"),
        (graphs.pad_where_it_runs, "cpu fp32: (it took more|cannot be run)"),
    ],
)
def test_a_model_of_a_bundle_is_ended_by_its_limits(
    make: checkpoints.Maker, says: str, tmp_path: Path
) -> None:
    model = model_of(make, tmp_path)
    with pytest.raises(MipkdError, match=says):
        try_models(tmp_path, [model], LimitsConfig(seconds=1.5))


def test_a_good_model_passes_its_trial(tmp_path: Path) -> None:
    try_models(tmp_path, [model_of(graphs.good_graph, tmp_path)], LimitsConfig())


def test_limits_follow_the_size_of_the_files_and_the_settings(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"1")
    large.write_bytes(bytes(10**7))
    least, most = LimitsConfig().of(small), LimitsConfig().of(small, large)
    for one, other in ((least, most), (least, least.later)):
        assert other is not None
        assert one.seconds < other.seconds  # type: ignore[operator]
        assert one.memory_bytes < other.memory_bytes  # type: ignore[operator]
    asked = LimitsConfig(seconds=500, memory_gib=3).of(small)
    assert round(asked.seconds or 0) == 500
    assert asked.memory_bytes == 3 * 2**30 + 16
    loaded = config.load({}, sets=["limits.seconds=7", "limits.memory_gib=2"]).limits
    assert loaded == LimitsConfig(seconds=7, memory_gib=2)


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux counts it")
def test_reading_beyond_the_limits_says_what_raises_them() -> None:
    with pytest.raises(LimitError, match=r"doctor .*: it took more than .* MiB") as caught:
        doctor.examine_checkpoint(TRAINED, None, ["limits.memory_gib=1e-6"])
    assert "--set limits.memory_gib=N" in caught.value.hint


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of POSIX stands for a full disk")
def test_a_full_disk_is_the_systems_own_error_for_weights_too(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_state(tiny(), tmp_path / "net.safetensors", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "net.safetensors.partial")
    assert not (tmp_path / "net.safetensors").exists()
