"""What a stranger may put into a bundle, with hashes and seal that fit: refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_makers import Json, graph, make_bundle, refit, rewrite
from onnx import numpy_helper
from typer.testing import CliRunner

from mipkd.core.errors import UsageError
from pipeline import cli
from pipeline.machine.remote.job_file import parse_job

MODEL = "model/cpu-fp32/model.onnx"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def ended(*words: object) -> tuple[int, str, str]:
    """Exit code and both outputs; an exception of the program fails the test."""
    said = CliRunner().invoke(cli.app, [str(word) for word in words])
    if said.exception and not isinstance(said.exception, SystemExit):
        raise said.exception
    return said.exit_code, said.stdout, said.stderr


def refused(bundle: Path, *words: str) -> None:
    """Every command that reads a bundle says the same one line and ends with 2."""
    before = {file: file.stat().st_mtime_ns for file in bundle.rglob("*")}
    for command in ("verify", "check", "bench"):
        code, out, err = ended(command, bundle)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) == (2, 1), (command, out, err)
        for word in words:
            assert word in err.replace("\n", " "), (command, err)
    assert {file: file.stat().st_mtime_ns for file in bundle.rglob("*")} == before


def test_the_small_bundle_itself_is_good(bundle: Path) -> None:
    refit(bundle)
    code, out, err = ended("verify", bundle)
    assert code == 0, (out, err)
    assert "same  cpu fp32: every value equal" in out


def set_in(*path: Any, value: Any) -> Callable[[Json], None]:
    """Sets a value deep in a JSON object."""

    def change(stated: Any) -> None:
        for step in path[:-1]:
            stated = stated[step]
        stated[path[-1]] = value

    return change


def add_file(name: str) -> Callable[[Json], None]:
    def change(stated: Json) -> None:
        stated["files"][name] = stated["files"][MODEL]

    return change


def repeat_model(stated: Json) -> None:
    stated["models"] *= 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (set_in("scale", value=10**9), "scale"),
        (set_in("scale", value=0), "scale"),
        (set_in("scale", value=2.0), "scale"),
        (set_in("scale", value=3), "scale"),
        (set_in("multiple", value=10**400), "multiple"),
        (set_in("models", value={}), "models"),
        (set_in("models", 0, value=[]), "models.0"),
        (set_in("models", 0, "margin", value=-5), "margin"),
        (set_in("models", 0, "margin", value=10**9), "margin"),
        (set_in("models", 0, "multiple", value=0), "multiple"),
        (set_in("models", 0, "size_bytes", value=-1), "size_bytes"),
        (set_in("models", 0, "kind", value="proven"), "kind"),
        (set_in("models", 0, "precision", value="int4"), "precision"),
        (set_in("models", 0, "target", value="../cpu"), "target"),
        (set_in("models", 0, "file", value="model/cpu-fp32/other.onnx"), "other.onnx"),
        (set_in("models", 0, "file", value="golden/lr/a.png"), "file"),
        (set_in("models", 0, "file", value="/etc/passwd"), "file"),
        (repeat_model, "cpu-fp32"),
        (set_in("files", MODEL, "size", value=-1), "size"),
        (set_in("files", MODEL, "sha256", value="0"), "sha256"),
        (set_in("files", value=[]), "files"),
        *(
            (add_file(name), "files")
            for name in (
                *("../x", "/x", "a/../x", "C:/x", "c:x", "\\\\host\\x", "a\\..\\x", "//host/x"),
                *("CON", "model/nul.onnx", "x/com1", "a\u0000b", "x ", "x.", "a//b", "./a", ""),
                *("MODEL/CPU-FP32/model.onnx", "a:stream", "\ud800", "a\nb"),
            )
        ),
    ],
)
def test_a_manifest_that_states_what_cannot_be(
    bundle: Path, change: Callable[[Json], None], word: str
) -> None:
    refit(bundle, change)
    refused(bundle, "manifest.json", word)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"schema":' * 100_000,
        '{"schema": 1, "models": ' + "[" * 900 + "]" * 900 + "}",
        '{"schema": 1, "schema": 1}',
        '{"schema": 1, "scale": 1e400}',
        '{"schema": 1, "scale": NaN}',
        '{"schema": ' + "9" * 5000 + "}",
        "\ufeff{}",
        "",
    ],
)
def test_json_that_no_writer_of_ours_makes(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    refused(bundle, "manifest.json")


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("provenance.json", dict.clear, "tests"),
        ("provenance.json", set_in("gates", "max_mean_drop_db", value="much"), "gates"),
        ("provenance.json", set_in("gates", "no_such", value=1), "gates"),
        ("provenance.json", set_in("gates", value=[]), "gates"),
        ("provenance.json", set_in("failures", value=[{}]), "failures.0"),
        ("provenance.json", set_in("config", "bench", "sizes", value=[[10**9, 1]]), "sizes"),
        ("provenance.json", set_in("config", "bench", "min_time_s", value=1e9), "min_time_s"),
        ("provenance.json", set_in("config", "bench", value=7), "BenchSettings"),
        ("quality/cpu-fp32.json", set_in("scores", 0, "metrics", "psnr_y", value="30"), "psnr_y"),
        ("quality/cpu-fp32.json", set_in("target", value="openvino"), "openvino"),
        ("quality/cpu-fp32.json", dict.clear, "role"),
        ("bench/cpu-fp32.json", set_in("latencies", 0, "samples_s", 3, value=0), "samples_s.3"),
        ("bench/cpu-fp32.json", set_in("latencies", 0, "samples_s", 3, value=-1), "samples_s.3"),
        ("bench/cpu-fp32.json", set_in("latencies", 0, "samples_s", 3, value=None), "samples_s.3"),
        ("bench/cpu-fp32.json", set_in("latencies", 0, "size", 0, value=0), "size"),
        ("bench/cpu-fp32.json", set_in("size_bytes", value=-1), "size_bytes"),
        ("bench/cpu-fp32.json", set_in("host", "cores", value=-1), "cores"),
        ("bench/cpu-fp32.json", set_in("kernels", value={"int8": -1}), "kernels"),
    ],
)
def test_records_that_state_what_cannot_be(
    bundle: Path, name: str, change: Callable[[Json], None], word: str
) -> None:
    rewrite(bundle, name, change)
    code, _, err = ended("verify", bundle)
    assert code == 2
    assert word in err.replace("\n", " ")
    assert name in err.replace("\n", "")
    assert err.count("error: ") == 1


@pytest.mark.parametrize("number", ["1e400", "NaN", "-Infinity"])
def test_figures_that_are_no_numbers(bundle: Path, number: str) -> None:
    file = bundle / "quality/cpu-fp32.json"
    file.write_text(file.read_text().replace("30.0", number))
    refit(bundle)
    code, _, err = ended("check", bundle)
    assert (code, err.count("error: ")) == (2, 1)
    assert "no finite number" in err


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("cpu", {"session.use_ort_model_bytes_directly": "1"}),
        ("cpu", {"ep.context_file_path": "/x"}),
        ("cpu", {"session.intra_op.allow_spinning": "2"}),
        ("cpu", {"session.intra_op.allow_spinning": "0\n"}),
        ("openvino", {"CACHE_DIR": "/anywhere"}),
        ("openvino", {"cache": "../../.."}),
        ("openvino", {"PERFORMANCE_HINT": "FAST"}),
        ("openvino:gpu", {"CONFIG_FILE": "x.xml"}),
        ("openvino", {"DEVICE_ID": "1"}),
        ("coreml", {"compute_units": "MOST"}),
        ("tensorrt", {"plugins": "evil.so"}),
        ("null", {"any": "thing"}),
    ],
)
def test_runtime_options_that_no_model_may_bring(
    bundle: Path, target: str, options: dict[str, str]
) -> None:
    name = f"{target}-fp32".replace(":", "-")
    (bundle / "model/cpu-fp32").rename(bundle / "model" / name)

    def change(stated: Json) -> None:
        stated["files"][f"model/{name}/model.onnx"] = stated["files"].pop(MODEL)
        stated["models"][0] |= {
            "target": target,
            "file": f"model/{name}/model.onnx",
            "options": options,
        }

    refit(bundle, change)
    refused(bundle, "manifest.json", "runtime option", next(iter(options)))


def test_a_target_that_is_not_here_is_a_row(bundle: Path) -> None:
    (bundle / "model/cpu-fp32").rename(bundle / "model/mine-fp32")

    def change(stated: Json) -> None:
        stated["files"]["model/mine-fp32/model.onnx"] = stated["files"].pop(MODEL)
        stated["models"][0] |= {"target": "mine", "file": "model/mine-fp32/model.onnx"}

    refit(bundle, change)
    code, out, _ = ended("verify", bundle)
    assert code == 6
    assert "FAILED  mine fp32: " in out
    assert "'mine'" in out


@pytest.mark.parametrize("place", ["model/cpu-fp32/engines/blob.bin", "model/more", "x/engines/y"])
def test_every_file_is_on_the_list_or_told(bundle: Path, place: str) -> None:
    file = bundle / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"planted")
    code, out, _ = ended("verify", bundle)
    assert code == 6
    assert f"NOT OF THIS BUNDLE  {place}" in out
    assert ended("check", bundle)[0] == 6


@pytest.mark.parametrize("name", ["model", "model/cpu-fp32", MODEL, "golden/lr/a.png"])
def test_links_are_told_and_what_they_lead_to_is_not_opened(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    (bundle / name).rename(tmp_path / "elsewhere")
    (bundle / name).symlink_to(tmp_path / "elsewhere")
    code, out, _ = ended("verify", bundle)
    assert code == 6
    assert f"A LINK  {name}" in out or f"A LINK OR A PIPE, NO FILE  {name}" in out
    if name.startswith("model"):
        assert "not replayed  cpu fp32: its files are not those of the bundle" in out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
@pytest.mark.parametrize("name", [MODEL, "manifest.json", "golden/lr/a.png"])
def test_a_pipe_is_never_read(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    assert ended("verify", bundle)[0] == (2 if name == "manifest.json" else 6)


def with_weights_in(location: str) -> onnx.ModelProto:
    """The graph with its weights in another file."""
    model = graph()
    (weights,) = model.graph.initializer
    data = numpy_helper.to_array(weights)
    onnx.external_data_helper.set_external_data(weights, location, length=data.nbytes)
    weights.ClearField("raw_data")
    return model


@pytest.mark.parametrize("where", ["../../secret", "/secret", "sub/secret", "secret", "..\\secret"])
def test_weights_in_a_file_that_is_not_beside_the_model(
    bundle: Path, tmp_path: Path, where: str
) -> None:
    outside = tmp_path / "secret"
    outside.write_bytes(np.ones(36, np.float32).tobytes())
    location = str(outside) if where == "/secret" else where
    (bundle / MODEL).write_bytes(with_weights_in(location).SerializeToString())
    refit(bundle)
    code, out, _ = ended("verify", bundle)
    assert code == 6
    assert "which is no file beside it" in out


def test_weights_named_deep_inside_a_graph_are_seen(tmp_path: Path) -> None:
    from targets._onnx.outside_files import refuse_outside_files

    inner = with_weights_in("../x").graph
    node = onnx.helper.make_node("If", ["go"], ["out"], then_branch=inner, else_branch=inner)
    outer = onnx.helper.make_graph([node], "g", [], [])
    file = tmp_path / "model.onnx"
    file.write_bytes(onnx.helper.make_model(outer).SerializeToString())
    with pytest.raises(UsageError, match=r"'\.\./x'"):
        refuse_outside_files(file)
    file.write_bytes(graph().SerializeToString())
    refuse_outside_files(file)


def test_weights_beside_the_model_and_on_the_list_are_read(bundle: Path) -> None:
    (data,) = (numpy_helper.to_array(w) for w in graph().graph.initializer)
    (bundle / "model/cpu-fp32/model.weights").write_bytes(data.tobytes())
    (bundle / MODEL).write_bytes(with_weights_in("model.weights").SerializeToString())

    def change(stated: Json) -> None:
        stated["files"]["model/cpu-fp32/model.weights"] = dict(stated["files"][MODEL])
        parts = (bundle / "model/cpu-fp32").iterdir()
        stated["models"][0]["size_bytes"] = sum(file.stat().st_size for file in parts)

    refit(bundle, change)
    for kind in ("quality", "bench"):
        file = bundle / kind / "cpu-fp32.json"
        size = json.loads((bundle / "manifest.json").read_text())["models"][0]["size_bytes"]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"size_bytes": size}))
    refit_again = json.loads((bundle / "manifest.json").read_text())
    refit_again["content"] = ""
    (bundle / "manifest.json").write_text(json.dumps(refit_again))
    refit(bundle)
    code, out, err = ended("verify", bundle)
    assert code == 0, (out, err)


def test_the_seal_is_printed_and_compared(bundle: Path) -> None:
    code, out, _ = ended("verify", bundle)
    seal = out.splitlines()[0].removeprefix("seal: ")
    assert (code, len(seal)) == (0, 64)
    assert ended("verify", bundle, "--sha256", seal.upper())[0] == 0
    code, out, _ = ended("verify", bundle, "--sha256", "0" * 64)
    assert (code, out.splitlines()[-1]) == (6, "verify: FAIL")
    for wrong in ("", seal[:-1], seal[:12], "g" * 64):
        code, _, err = ended("verify", bundle, "--sha256", wrong)
        assert code == 2, wrong
        assert "--sha256: not 64 hex digits" in err


def test_another_bundle_with_hashes_that_fit_has_another_seal(bundle: Path) -> None:
    _, out, _ = ended("verify", bundle)
    seal = out.splitlines()[0].removeprefix("seal: ")
    rewrite(bundle, "quality/cpu-fp32.json", set_in("scores", 0, "metrics", "psnr_y", value=99.0))
    assert ended("verify", bundle)[0] == 0
    code, out, _ = ended("verify", bundle, "--sha256", seal)
    assert code == 6
    assert "another bundle" in out


def job(**change: Any) -> bytes:
    """A kit's `job.json`, changed."""
    built = {
        **{"target": "cpu", "precision": "fp32", "role": "student", "size_bytes": 9},
        **{"file": "models/0/model.onnx", "scale": 2, "multiple": 1},
        "options": {"session.intra_op.allow_spinning": "0"},
    }
    built |= {name: change.pop(name) for name in list(change) if name in built}
    stated = {
        **{"schema": 2, "target": "cpu", "models": [built], "images": []},
        **{"settings": {}, "files": {"models/0/model.onnx": "0" * 64}},
    }
    return json.dumps(stated | change).encode()


@pytest.mark.parametrize(
    "change",
    [
        {"file": "/etc/passwd"},
        {"file": "models/0/../../../x"},
        {"file": "models/1/model.onnx"},
        {"files": {"../x": "0" * 64, "models/0/model.onnx": "0" * 64}},
        {"options": {"session.load_model_format": "ORT"}},
        {"scale": 10**9},
        {"settings": {"sizes": [[10**9, 1]]}},
        {"settings": {"min_time_s": -1}},
    ],
)
def test_a_job_that_leads_elsewhere_or_states_what_cannot_be(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    (good,) = parse_job(job(), tmp_path).builts
    assert good.file == tmp_path / "models/0/model.onnx"
    assert good.options == {"session.intra_op.allow_spinning": "0"}
    with pytest.raises(UsageError):
        parse_job(job(**change), tmp_path)
