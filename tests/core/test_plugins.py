"""Plug-ins are found in folders, on the path and in packages; one that is broken stops nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mipkd.core import plugins
from mipkd.core.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = Path(__file__).with_name("example_package")


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """`code` run with our packages and `path` importable."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path)))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


def doctor(*path: Path) -> subprocess.CompletedProcess[str]:
    """`mipkd-pipeline doctor --json`."""
    code = """
        import sys
        from pipeline.cli import main
        sys.argv = ["mipkd-pipeline", "doctor", "--json"]
        main()
    """
    return python(code, *path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the example among them, installed as any package is."""
    pytest.importorskip("pip")
    source, site = (tmp_path_factory.mktemp("example") / name for name in ("source", "site"))
    shutil.copytree(EXAMPLE, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--target", str(site)]
    done = subprocess.run([*pip, *options, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site


def test_what_an_installed_package_offers_is_found(installed: Path) -> None:
    done = python(
        """
        from mipkd.core import plugins
        from mipkd.metrics.base import find_metric
        from targets.base import every, find
        assert "repeat" in every()
        print(find("repeat").versions(), type(find("repeat")).__module__)
        print("twin" in plugins.names("mipkd.archs"))
        print(plugins.load("mipkd.archs", "twin", "ARCH").name)
        print(plugins.load("mipkd.losses", "squared", "LOSS")(weight=2.0).weight)
        print(find_metric("brightest").unit)
        """,
        installed,
    )
    assert done.returncode == 0, done.stderr
    told = ["{'numpy': 'any'} mipkd_example", "True", "twin", "2.0", "levels"]
    assert done.stdout.splitlines() == told
    targets = json.loads(doctor(installed).stdout)["targets"]
    assert targets["repeat"]["usable"]
    assert targets["repeat"]["precisions"] == ["fp32"]


def test_a_model_is_built_and_run_by_an_installed_target(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"any")
    done = python(
        f"""
        from pathlib import Path
        import numpy as np
        from mipkd.core.records import Graph
        from targets._images import upscale
        from targets.base import BuildRequest, find
        folder = Path({str(tmp_path)!r})
        graph = Graph(folder / "net.onnx", "", "student", 2, 1, 20, "edsr")
        target = find("repeat")
        built = target.build(BuildRequest(graph, "fp32", folder / "out"))
        image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
        larger = upscale(target.open(built), image, scale=2)
        print(larger[::2, ::2].ravel().tolist(), built.size_bytes)
        """,
        installed,
    )
    assert done.stdout.strip() == f"{list(range(12))} 3", done.stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A note.", "target notes does not load: SyntaxError"),
        ("import no_such_runtime", "target notes does not load: ModuleNotFoundError"),
        ("MEANING = 42", "target notes: targets.notes offers no TARGET"),
        ("TARGET = 'mine'", "target notes: targets.notes offers no TARGET, a Target"),
    ],
)
def test_a_file_that_is_no_target_is_a_warning_of_doctor(
    text: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/notes.py").write_text(text)
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"cpu", "null"} <= set(json.loads(done.stdout)["targets"])
    assert reason in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_target_that_fails_when_asked_is_not_usable_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/odd.py").write_text(
        textwrap.dedent(
            """
            from targets.null import Null
            class Odd(Null):
                name = "odd"
                def why_not(self):
                    return {}["gone"]
            TARGET = Odd()
            """
        )
    )
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stderr
    odd = json.loads(done.stdout)["targets"]["odd"]
    assert (odd["usable"], odd["why_not"]) == (False, "KeyError: 'gone'")


def test_a_broken_entry_point_is_a_warning_too(tmp_path: Path) -> None:
    meta = tmp_path / "broken-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text("[mipkd.targets]\ngone = no_such_package:TARGET\n")
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gone" not in json.loads(done.stdout)["targets"]
    said = " ".join(done.stderr.split())
    assert "target gone does not load: ModuleNotFoundError" in said
    assert "mend or remove no_such_package:TARGET" in said


def test_a_broken_architecture_does_not_keep_a_checkpoint_from_being_read(tmp_path: Path) -> None:
    (tmp_path / "mipkd/archs").mkdir(parents=True)
    (tmp_path / "mipkd/archs/notes.py").write_text("import no_such_library")
    preset = ROOT / "pipeline/presets/teacher_x2.safetensors"
    done = python(
        f"""
        from pathlib import Path
        from mipkd.distill.teacher import TeacherOptions, identify
        print(identify(Path({str(preset)!r}), role="teacher", options=TeacherOptions())[0].arch)
        """,
        tmp_path,
    )
    assert done.stdout.strip() == "edsr", done.stderr
    assert done.stderr.count("arch notes does not load") == 1


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="target: unknown name 'openvin'") as caught:
        plugins.load("targets", "openvin", "TARGET")
    assert "did you mean openvino?" in caught.value.hint


def test_names_are_public_files_alone() -> None:
    names = plugins.names("targets")
    assert {"cpu", "openvino"} <= set(names)
    assert not [name for name in names if name.startswith("_") or name == "base"]
