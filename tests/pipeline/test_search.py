"""The search on real runtimes keeps its bounds, goes on where it was, and says when it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calibration.patches import choose
from calibration.search import Loss
from mipkd.core import plugins, records
from mipkd.core.errors import UsageError
from mipkd.core.images import crop_to_multiple, downscale, read_rgb, write_png
from mipkd.core.photos import PhotoWriter
from mipkd.core.records import Graph, Holdout, PatchSet, Photos, QuantPlan
from mipkd.core.samples import sample_photos
from mipkd.distill import teacher as teachers
from mipkd.export.onnx import export
from pipeline.bench.models import probe_target
from pipeline.config import load
from pipeline.flow import measure_all
from pipeline.quantize.evaluator import Crops, Evaluator
from pipeline.quantize.hold_out import HoldOutInputs, hold_out
from pipeline.quantize.qat import QatConfig, QatInputs, qat
from pipeline.quantize.search import QuantizeConfig, SearchInputs, check_floats, search
from pipeline.run import Run
from pipeline.stage import ready
from pipeline.stages.build import BuildConfig, BuildInputs, build
from pipeline.stages.keep_apart import KeepApartInputs, keep_apart
from targets.base import FloatArray, Session

SMALL = QuantizeConfig(photos=4, pages=1, crop=24, size=(24, 24))

Search = Callable[..., QuantPlan]


def list_textured() -> list[Path]:
    """Sample photos in whose corners INT8 loses what can be seen."""
    return [one for one in sample_photos() if one.stem.startswith(("casa", "oakland", "tea"))]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    folder = tmp_path_factory.mktemp("store")
    writer = PhotoWriter(folder)
    files = list_textured()
    for file in files:
        hr = np.ascontiguousarray(crop_to_multiple(read_rgb(file), 2)[:160, :160])
        writer.add(file.name, hr, downscale(hr, 2))
    writer.close()
    return Photos(folder=folder, sha256="", source="samples", scale=2, count=len(files))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    arch = plugins.load("mipkd.archs", "edsr", "ARCH")
    torch.manual_seed(0)
    net = arch.make(arch.shrink(arch.paper(2), "c8b1")).eval()
    out = tmp_path_factory.mktemp("graph")
    return export(net, out=out, metadata={}, role="student", family="edsr")


@pytest.fixture
def found(photos: Photos, graph: Graph, tmp_path: Path) -> Search:
    patches: PatchSet = choose(photos, count=4, size=24, seed=0, out=tmp_path)
    held: Holdout = hold_out.function(HoldOutInputs(SMALL, ready(photos), 0), out=tmp_path)

    def run(config: QuantizeConfig, out: Path, target: str = "cpu") -> QuantPlan:
        out.mkdir(exist_ok=True)
        inputs = SearchInputs(config, target, ready(graph), ready(patches), ready(held))
        return search.function(inputs, out=out)

    return run


def test_a_loose_bound_leaves_nothing_float(found: Search, tmp_path: Path) -> None:
    plan = found(
        SMALL.model_copy(update={"max_drop_db": 50.0, "max_worst_drop_db": 90.0}), tmp_path
    )
    assert plan.met
    assert plan.floats == ()
    assert sum(point.chosen for point in plan.front) == 1


def test_a_tight_bound_is_kept_or_said_to_be_broken(
    found: Search, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = found(SMALL.model_copy(update={"max_drop_db": 1e-9, "tries": 1}), tmp_path)
    assert plan.drop_db is not None
    assert not plan.met or plan.drop_db <= 1e-9
    assert plan.met or "no INT8 keeps quantize.max_drop_db=1e-09" in caplog.text


def test_an_interrupted_search_goes_on_and_ends_the_same(found: Search, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"max_drop_db": 0.01})
    whole = found(config, tmp_path / "a")
    file = tmp_path / "a" / "measured.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    half = lines[: len(lines) // 2]
    file.write_text("".join(half) + lines[len(half)][:20])  # killed while it wrote
    again = found(config, tmp_path / "a")
    assert file.read_text().startswith("".join(half))
    assert {layer.name for layer in again.floats} == {layer.name for layer in whole.floats}
    assert again.drop_db == whole.drop_db


def test_a_busy_machine_ends_at_the_same_floats(
    found: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL.model_copy(update={"max_drop_db": 0.01})
    idle = found(config, tmp_path / "idle")
    noise = np.random.default_rng(0)

    def disturbed(self: Evaluator, sessions: dict[str, Session], *_: object) -> dict[str, float]:
        return {name: float(noise.uniform(1, 9)) for name in sessions}

    monkeypatch.setattr(Evaluator, "_time", disturbed)
    busy = found(config, tmp_path / "busy")
    assert [layer.name for layer in busy.floats] == [layer.name for layer in idle.floats]
    assert (busy.drop_db, busy.worst_db) == (idle.drop_db, idle.worst_db)


def test_seconds_are_refused_with_what_takes_their_place() -> None:
    with pytest.raises(UsageError, match="limit_s is no more") as caught:
        load({}, sets=["quantize.limit_s=200"])
    assert caught.value.hint == "--set quantize.tries=16"


def test_layers_asked_for_stay_float_and_unknown_ones_are_refused(
    found: Search, graph: Graph, tmp_path: Path
) -> None:
    loose = {"max_drop_db": 50.0, "max_worst_drop_db": 90.0}
    plan = found(SMALL.model_copy(update=loose | {"float": ("node_conv2d_1",)}), tmp_path)
    asked = {layer.name: layer.reason for layer in plan.floats}
    assert asked["node_conv2d_1"] == "asked for: quantize.float"
    with pytest.raises(UsageError, match="no operation 'node_conv2d_l'") as caught:
        check_floats(SMALL.model_copy(update={"float": ("node_conv2d_l",)}), graph)
    assert caught.value.hint.startswith("the nearest: node_conv2d")


class Brighter(Session):
    """Doubles a grey image and adds some levels."""

    def __init__(self, levels: float) -> None:
        self.levels = levels

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        return lr_NCHW.repeat(2, axis=2).repeat(2, axis=3) + np.float32(self.levels / 255)

    def close(self) -> None:
        pass


def test_a_loss_that_nobody_sees_counts_as_none(tmp_path: Path) -> None:
    for name, side in (("lr", 16), ("hr", 32)):
        np.save(tmp_path / f"{name}.npy", np.full((1, side, side, 3), 128, np.uint8))
    files = (tmp_path / "lr.npy", tmp_path / "hr.npy")
    crops = Crops(Holdout(*files, "", "grey", 1, 0, (16, 16), 2), multiple=1)
    equal, near, far = (crops.errors(Brighter(levels)) for levels in (0, 1, 4))
    assert crops.loss(equal, near) == Loss(0.0, 0.0)  # 100 dB and 49
    assert crops.loss(near, far).worst_db == pytest.approx(45 - 37.4, abs=0.2)


@pytest.mark.parametrize("target", ["openvino", "jetson"])
def test_other_bounds_need_no_other_training(target: str, tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"only planned")

    def keys(**quantize: float) -> dict[str, str]:
        run = Run(tmp_path / "run", dry=True)
        asked = {"model": tmp_path / "net.pth", "target": (target,), "qat": {"run": True}}
        measure_all(load(asked | {"demo_data": True, "quantize": quantize}), run)
        return run.keys

    usual, loose = keys(), keys(max_drop_db=0.5, max_worst_drop_db=2.0)
    differing = {step for step in usual if usual[step] != loose[step]}
    assert f"qat {target}" in usual
    assert differing == {f"search {target}", f"build {target} student int8", f"measure {target}"}


@pytest.mark.parametrize("target", ["cpu", "jetson"])
@pytest.mark.parametrize("helps", [True, False])
def test_training_on_with_the_rounding_is_kept_where_it_helps(
    helps: bool, target: str, photos: Photos, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    arch = plugins.load("mipkd.archs", "edge", "ARCH")  # enlarges before it is trained
    hyper = arch.shrink(arch.paper(2), "c8b2")
    torch.manual_seed(0)
    net = arch.make(hyper).eval()
    teachers.save(net, arch, hyper, tmp_path / "net.safetensors", licence="")
    model = teachers.describe(
        arch, hyper, role="student", file=tmp_path / "net.safetensors", licence=""
    )
    graph = export(net, out=tmp_path, metadata={}, role="student", family="edge")
    patches = choose(photos, count=4, size=24, seed=0, out=tmp_path)
    held = hold_out.function(HoldOutInputs(SMALL, ready(photos), 0), out=tmp_path)
    config = QatConfig(run=True, spare=0, steps=20, batch=2, patch=16, lr=2e-4)
    (tmp_path / "qat").mkdir()
    tuned = qat.function(
        QatInputs(
            config=config,
            target=target,
            net=ready(model),
            teacher=None,
            graph=ready(graph),
            patches=ready(patches),
            photos=ready(photos),
            holdout=ready(held),
            split_seed=0,
            size=SMALL.size,
        ),
        out=tmp_path / "qat",
    )
    assert tuned.steps == 20
    assert tuned.graph.sha256 != graph.sha256
    if helps:  # over ranges of the dark
        np.save(patches.file, np.zeros_like(np.load(patches.file)) + 8)
    else:
        coarse = [replace(grid, scale=50 * grid.scale) for grid in tuned.rounding.grids]
        tuned = replace(tuned, rounding=replace(tuned.rounding, grids=tuple(coarse)))
    (tmp_path / "search").mkdir()
    loose = SMALL.model_copy(update={"max_drop_db": 1.0, "max_worst_drop_db": 1000.0})
    of = (ready(graph), ready(patches), ready(held), ready(tuned))
    plan = search.function(SearchInputs(loose, target, *of), out=tmp_path / "search")
    assert (plan.tuned is not None) == helps
    assert ("has not helped" in caplog.text) != helps
    if helps:
        assert plan.floats == ()
        assert plan.met
        (tmp_path / "built").mkdir()
        of = (ready(graph), ready(patches), ready(plan))
        inputs = BuildInputs(BuildConfig(), "int8", probe_target(target), *of)
        built = build.function(inputs, out=tmp_path / "built")
        assert "trained on with INT8's rounding: 20 steps" in built.notes[-1]


def test_a_test_image_among_the_photos_is_refused(photos: Photos, tmp_path: Path) -> None:
    hr = np.ascontiguousarray(crop_to_multiple(read_rgb(list_textured()[1]), 2)[:160, :160])
    for kind, image in (("hr", hr), ("lr", downscale(hr, 2))):
        (tmp_path / kind).mkdir()
        write_png(tmp_path / kind / "seen.png", image)
    tests = records.TestSet(
        folder=tmp_path, sha256="", source="tests", scale=2, images=("seen",), lr_from="bicubic"
    )
    with pytest.raises(UsageError, match="is the test image seen of tests"):
        keep_apart.function(KeepApartInputs(ready(photos), (ready(tests),)), out=tmp_path)
