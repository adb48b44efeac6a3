"""Whatever bytes others' files hold, readers give their record or one of the project's errors."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save as save_safetensors

from mipkd.core.errors import MipkdError
from mipkd.core.image_headers import pixels_in
from mipkd.core.images import read_rgb
from mipkd.core.measurement import Host
from mipkd.core.records import Built, TargetInfo
from mipkd.distill.teacher import TeacherOptions, identify
from mipkd.export.adopt_onnx import adopt
from mipkd.export.receptive_field import find_receptive_field
from pipeline import config
from pipeline.bench.latency import BenchSettings
from pipeline.bundle import manifest
from pipeline.bundle.measurements import read_measurements, write_measurements
from pipeline.bundle.provenance import PROVENANCE, provenance, read_provenance
from pipeline.judge.baseline import load
from pipeline.judge.check import check
from pipeline.machine.kit import Kit
from pipeline.machine.remote import job_file
from pipeline.report import curves, history
from pipeline.report.figures import compute_figures
from pipeline.report.results_file import read_results, write_results
from pipeline.run import Run

GOLDEN = Path(__file__).parents[1] / "pipeline" / "golden"
Read = Callable[[Path], object]


def quick(count: int) -> Callable[[Any], Any]:
    """The same inputs at every run, and no more than `count` of them."""

    def apply(test: Any) -> Any:
        known = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
        chosen = settings(
            max_examples=count,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=known,
        )
        return chosen(test)

    return apply


# JSON that is well-formed and means something else: of every kind, of every size.
WORDS = st.one_of(
    st.sampled_from(["", "..", "/etc/passwd", "a\0b", "\udce9", "NaN", "int8", "reference", "1.0"]),
    st.text(max_size=8),
)
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**70, 10**400, 0.0, -0.5, float("inf"), float("nan")]),
    st.integers(-5, 5),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to every part of a JSON value; of a long list the first and the last alone."""
    yield path
    if isinstance(value, dict):
        for name, one in value.items():
            yield from places(one, (*path, name))
    elif isinstance(value, list):
        for at in {0, len(value) - 1} if value else ():
            yield from places(value[at], (*path, at))


def changed(value: Any, path: tuple[Any, ...], new: Any, *, drop: bool = False) -> Any:
    if not path:
        return new
    made = dict(value) if isinstance(value, dict) else list(value)
    if drop and len(path) == 1:
        del made[path[0]]
    else:
        made[path[0]] = changed(made[path[0]], path[1:], new, drop=drop)
    return made


@st.composite
def mutations(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with up to two parts replaced or left out."""
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(places(value))))
        drop = bool(path) and draw(st.booleans())
        value = changed(value, path, None if drop else draw(VALUES), drop=drop)
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a few changed, cut off or put in; now and then others altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=64))
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        # Most of what matters stands at the beginning.
        most = draw(st.sampled_from([min(64, len(made)), min(400, len(made)), len(made)]))
        at = draw(st.integers(0, most))
        made[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(made[: draw(st.integers(0, len(made)))] if draw(st.integers(0, 4)) == 0 else made)


def accept(read: Read, source: Path) -> None:
    """Read it; errors of ours say something and where."""
    try:
        read(source)
    except MipkdError as error:
        told = error
    else:
        return
    assert told.what
    assert told.exit_code in (2, 3, 4, 5)


def dump(value: Any, file: Path) -> Path:
    file.write_text(json.dumps(value))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the golden run, with a model's file that nobody opens."""
    home = tmp_path_factory.mktemp("bundle")
    evidence = read_results(GOLDEN / "results-1.6.json")
    write_measurements(evidence.measurements, home)
    stated = provenance(replace(evidence, config={"bench": {}, "gates": {}}), "0", {})
    dump(stated, home / PROVENANCE)
    (home / "model" / "cpu-fp32").mkdir(parents=True)
    (home / "model" / "cpu-fp32" / "model.onnx").write_bytes(b"none")
    model = manifest.Model(
        *("cpu", "fp32", "measured", "model/cpu-fp32/model.onnx", 4, 4, 1),
        *({}, (), {}, 7, ""),
    )
    listed = manifest.list_files(home)
    made = manifest.Manifest(manifest.SCHEMA, "run", "", "0", 4, 1, (model,), listed)
    manifest.write(made, home)
    return home


@pytest.mark.parametrize("kind", ["parts", "bytes"])
def test_manifests(kind: str, bundle: Path, folder: Path) -> None:
    text = (bundle / manifest.MANIFEST).read_bytes()
    (folder / "manifest").mkdir(exist_ok=True)
    file = folder / "manifest" / manifest.MANIFEST

    def read(home: Path) -> None:
        stated = manifest.read(home)
        manifest.check_models(stated)
        manifest.problems(home, stated)
        check(home)

    @quick(80)
    @given(mutations(json.loads(text)) if kind == "parts" else damaged(text))
    def fuzz(made: Any) -> None:
        file.write_bytes(made if kind == "bytes" else json.dumps(made).encode())
        accept(read, file.parent)

    fuzz()


@pytest.mark.parametrize("name", [PROVENANCE, "bench/cpu-int8.json", "quality/cpu-int8.json"])
def test_figures_in_a_bundle_whose_hashes_are_right(
    name: str, bundle: Path, tmp_path: Path
) -> None:
    """Whoever writes a file can hash it too: what is judged is read with care."""
    import shutil

    home = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    text = (home / name).read_bytes()

    @quick(40)
    @given(mutations(json.loads(text)))
    def fuzz(made: Any) -> None:
        dump(made, home / name)
        manifest.write(replace(manifest.read(home), files=manifest.list_files(home)), home)
        accept(read_provenance, home)
        accept(read_measurements, home)
        accept(check, home)
        accept(load, home)

    fuzz()


@pytest.mark.parametrize("version", ["1.6", "2.0", "bytes"])
def test_results(version: str, folder: Path) -> None:
    old = GOLDEN / "results-1.6.json"
    evidence = read_results(old)
    file = folder / "results.json"
    write_results(evidence, compute_figures(evidence), file, folder)
    text = (old if version == "1.6" else file).read_bytes()

    def read(source: Path) -> None:
        compute_figures(read_results(source))

    @quick(50)
    @given(damaged(text) if version == "bytes" else mutations(json.loads(text)))
    def fuzz(made: Any) -> None:
        target = folder / f"results-{version}.json"
        target.write_bytes(made if isinstance(made, bytes) else json.dumps(made).encode())
        accept(read, target)
        accept(load, target)

    fuzz()


def test_baselines(folder: Path) -> None:
    @quick(80)
    @given(mutations(json.loads((GOLDEN / "baseline-1.json").read_text())))
    def fuzz(made: Any) -> None:
        accept(load, dump(made, folder / "baseline.json"))

    fuzz()


def test_histories_and_curves(folder: Path) -> None:
    line = {
        **{"created": "2026-01-01", "run": "a", "commit": "", "host": "", "cpu": "", "size": ""},
        **{"target": "cpu", "precision": "fp32", "p50_ms": 1.0, "psnr_y_db": 30.0},
        **{"tests": "", "verdict": "PASS"},
    }
    file = folder / "lines.jsonl"

    @quick(100)
    @given(mutations(line), st.binary(max_size=9))
    def fuzz(made: Any, more: bytes) -> None:
        file.write_bytes((json.dumps(made) + "\n").encode() * 2 + more)
        accept(history.read, file)
        accept(curves.read_rows, file)
        accept(curves.last_health, file)

    fuzz()


@st.composite
def toml(draw: st.DrawFn) -> bytes:
    known = sorted(config.Config.model_fields)
    name = draw(st.sampled_from(known))
    value = draw(st.sampled_from(["1", "-1", "1e999", "nan", "true", "[]", "{}", '"x"', "[[[]]]"]))
    inner = draw(st.sampled_from(["lr", "steps", "sizes", "metrics", "method", "losses"]))
    text = draw(st.sampled_from([f"{name} = {value}", f"[{name}]\n{inner} = {value}"]))
    return draw(st.one_of(st.just(text.encode()), damaged(text.encode())))


def test_configurations(folder: Path) -> None:
    file = folder / "config.toml"

    @quick(150)
    @given(toml())
    def fuzz(made: bytes) -> None:
        file.write_bytes(made)
        accept(lambda source: config.load({}, file=source), file)

    fuzz()


@pytest.mark.parametrize("deep", ["[" * 100_000, "a." * 5_000 + "b = 1", "x = " + "9" * 5_000])
def test_what_is_nested_too_deep_is_damaged(deep: str, folder: Path) -> None:
    for name, read in (("deep.json", load), ("deep.toml", lambda f: config.load({}, file=f))):
        (folder / name).write_text(deep)
        with pytest.raises(MipkdError):
            read(folder / name)  # type: ignore[operator]


def test_records_of_a_run(tmp_path: Path) -> None:
    evidence = read_results(GOLDEN / "results-1.6.json")
    Run(tmp_path).save_record("record.json", evidence.measurements[0])
    stated = json.loads((tmp_path / "record.json").read_text())
    kind = type(evidence.measurements[0])

    def read(root: Path) -> None:
        try:
            Run(root).load_record("record.json", kind)
        except ValueError:  # as it promises: whoever asks says which command makes it anew
            raise MipkdError("damaged") from None

    @quick(80)
    @given(mutations(stated))
    def fuzz(made: Any) -> None:
        dump(made, tmp_path / "record.json")
        accept(read, tmp_path)

    fuzz()


def kit_results(file: Path) -> bytes:
    host = Host("a", "CPU", 1, 2**30, "Linux")
    info = TargetInfo("cpu", "", False, ("fp32",), {}, host)
    outputs = file.parent / "outputs"
    (outputs / "0").mkdir(parents=True, exist_ok=True)
    job_file.write_image(outputs / "0" / "0.npy", np.zeros((4, 4, 3), np.uint8))
    model = file.parent / "model.onnx"
    model.write_bytes(b"none")
    built = Built("cpu", "fp32", "student", model, 4, 2, 1)
    job = job_file.write_job(file.parent / "job.zip", "cpu", [built], BenchSettings())
    with zipfile.ZipFile(file.parent / "job.zip") as packed:
        text = packed.read(job_file.JOB)
    evidence = read_results(GOLDEN / "results-1.6.json")
    found = job_file.StoredResults(job.id, info, evidence.measurements[:1])
    job_file.write_results(file, found, outputs)
    with zipfile.ZipFile(file, "a") as whole:
        whole.writestr(job_file.JOB, text)
    return file.read_bytes()


@pytest.mark.parametrize("kind", ["bytes", "parts"])
def test_results_of_a_kit(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "results.zip"
    content = kit_results(file)
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        parts = {name: packed.read(name) for name in packed.namelist()}

    @quick(150)
    @given(
        damaged(content)
        if kind == "bytes"
        else mutations({name: json.loads(parts[name]) for name in ("results.json", "job.json")})
    )
    def fuzz(made: Any) -> None:
        file.write_bytes(made if kind == "bytes" else sealed(parts, made))
        accept(Kit, file)

    fuzz()


def sealed(parts: dict[str, bytes], made: Any) -> bytes:
    """A zip whose seal fits what was changed in it."""
    made = made if isinstance(made, dict) else {}
    texts = {name: json.dumps(made.get(name)).encode() for name in ("results.json", "job.json")}
    stated = made.get("results.json")
    job = stated.get("job") if isinstance(stated, dict) else ""
    if job == job_file.hash_of(parts["job.json"]):
        job = stated["job"] = job_file.hash_of(texts["job.json"])
        texts["results.json"] = json.dumps(stated).encode()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as packed:
        for name, content in {**parts, **texts}.items():
            if name == "seal":
                text = str(job).encode(errors="surrogateescape") + texts["results.json"]
                content = job_file.hash_of(text).encode()
            packed.writestr(name, content)
    return data.getvalue()


def edsr_like() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"head.0": (4, 3), "body.0.body.0": (4, 4), "body.0.body.2": (4, 4), "body.1": (4, 4)}
    shapes |= {"tail.0.0": (16, 4), "tail.1": (3, 4)}
    state = {f"{name}.weight": torch.rand(*shape, 3, 3) for name, shape in shapes.items()}
    return state | {f"{name}.bias": torch.rand(shape[0]) for name, shape in shapes.items()}


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_checkpoints(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"net{ending}"
    if ending == ".pth":
        torch.save(edsr_like(), file)
        content = file.read_bytes()
    else:
        content = save_safetensors(edsr_like(), {"arch": "edsr", "hyper": '{"channels": 4}'})

    @quick(80)
    @given(damaged(content))
    def fuzz(made: bytes) -> None:
        file.write_bytes(made)
        accept(lambda source: identify(source, role="teacher", options=TeacherOptions()), file)

    fuzz()


def test_headers_of_checkpoints(tmp_path: Path) -> None:
    """The header of safetensors is JSON after its length."""
    hyper = {"channels": 4, "blocks": 1, "scale": 2, "image_range": 1.0, "res_scale": 0.1}
    hyper |= {"mean": [0.4, 0.4, 0.4], "direct": False}
    content = save_safetensors(edsr_like(), {"arch": "edsr", "hyper": json.dumps(hyper)})
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    file = tmp_path / "net.safetensors"
    facts = st.one_of(mutations(hyper).map(json.dumps), st.text(max_size=5), st.just("[" * 5_000))
    with_hyper = facts.map(lambda text: changed(header, ("__metadata__", "hyper"), text))

    @quick(70)
    @given(st.one_of(mutations(header), with_hyper))
    def fuzz(made: Any) -> None:
        text = json.dumps(made).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data)
        accept(lambda source: identify(source, role="student", options=TeacherOptions()), file)

    fuzz()


def small_graph() -> bytes:
    weight = numpy_helper.from_array(np.ones((12, 3, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["lr", "w"], ["wide"]),
        helper.make_node("DepthToSpace", ["wide"], ["sr"], blocksize=2),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, "h", "w"])
        for name in ("lr", "sr")
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


def test_graphs(tmp_path: Path) -> None:
    file, out = tmp_path / "net.onnx", tmp_path / "out"
    out.mkdir()

    def read(source: Path) -> None:
        graph = adopt(source, scale=None, image_range=1.0, probe=lambda scale: [], out=out)
        find_receptive_field(graph.file, graph.multiple)

    @quick(150)
    @given(damaged(small_graph()))
    def fuzz(made: bytes) -> None:
        file.write_bytes(made)
        accept(read, file)

    fuzz()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_images(kind: str, tmp_path: Path) -> None:
    data = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, kind)
    file = tmp_path / f"photo.{kind.lower()}"

    @quick(80)
    @given(damaged(data.getvalue()))
    def fuzz(made: bytes) -> None:
        file.write_bytes(made)
        pixels_in(file)
        accept(read_rgb, file)

    fuzz()
