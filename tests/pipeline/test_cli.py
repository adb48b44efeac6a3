"""What a user sees: one clear line, a hint, the right exit code, and a run that ends well."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mipkd.archs import edsr
from mipkd.core.errors import StageError
from mipkd.core.images import read_rgb, resize_bicubic, write_png
from mipkd.distill import checkpoint
from mipkd.distill.teacher import save
from pipeline import cli
from targets.base import every, find

TINY = [
    *("--steps", "2", "--target", "cpu,null"),
    *("--set", "distill.batch=2", "--set", "distill.patch=16", "--set", "calibrate.count=4"),
    *("--set", "calibrate.size=16", "--set", "bench.sizes=[[16, 16]]"),
    *("--set", "identify.accept_worse_than_bicubic=true"),  # the teacher is not trained
    *("--set", "bench.min_time_s=0.05", "--set", "bench.warmup_s=0.01"),
    *("--set", "bench.max_busy=1"),  # other work on the machine is not our subject
    *("--set", "quantize.photos=2", "--set", "quantize.pages=1", "--set", "quantize.size=[16, 16]"),
]


def ended(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, run in this process."""
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    hyper = edsr.Hyper(scale=2, channels=8, blocks=2)
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save(edsr.EDSR(hyper), edsr.ARCH, hyper, file, licence="CC0-1.0")
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return drawn(tmp_path / "photos", seed=0)


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """Images to test on."""
    return drawn(tmp_path / "shown", seed=1)


def drawn(folder: Path, seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(2):
        coarse = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        write_png(folder / f"{index}.png", resize_bicubic(coarse, (96, 112)))
    return folder


def test_one_command_trains_measures_and_reports(
    teacher: Path, photos: Path, shown: Path, tmp_path: Path
) -> None:
    (photos / "broken.png").write_bytes(b"not a photo")
    run = tmp_path / "run"
    command = ("run", "--teacher", teacher, "--data", photos, "--val", shown, "--out", run, *TINY)
    code, out, err = ended(*command)
    assert code in (6, 7), err  # two steps teach nothing
    assert "verdict:" in out
    assert "skipped broken.png" in err
    results = json.loads((run / "report/latest/results.json").read_text())
    assert {"cpu", "null"} <= {m["target"] for m in results["measurements"]}
    assert any("broken.png" in warning for warning in results["warnings"])
    assert (run / "report/latest/index.html").stat().st_size < 5e6

    code, out, _ = ended("plan", *command[1:])
    assert "0 of" in out.splitlines()[-1]
    code, out, _ = ended("plan", *command[1:], "--set", "distill.lr=1e-4")
    lines = dict(line.split(maxsplit=2)[1::-1] for line in out.splitlines()[:-1])
    assert lines["identify"] == lines["photos"] == lines["tests"] == "skip"
    assert lines["distill"] == lines["measure"] == "run"
    assert "config.lr null -> 0.0001" in out
    assert out.startswith("about ")
    assert " of them training; memory up to " in out.splitlines()[0]

    first = read_rgb(photos / "0.png")
    write_png(photos / "more.png", first[::-1])
    code, out, _ = ended("plan", *command[1:])
    changed = [line for line in out.splitlines() if "  the photos changed" in line]
    assert {"photos", "distill"} <= {line.split()[1] for line in changed}

    code, out, _ = ended("report", run)
    assert code == 0


def test_a_finished_model_enters_after_distillation(
    teacher: Path, photos: Path, shown: Path, tmp_path: Path
) -> None:
    code, _out, err = ended(
        *("run", "--model", teacher, "--data", photos, "--val", shown, "--out", tmp_path / "r"),
        *TINY[2:],  # no steps: nothing is trained
    )
    assert code in (0, 6, 7), err
    assert "distill" not in err


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        (("--foo",), "No such option: --foo", "see mipkd-pipeline --help"),
        (("rnu",), "No such command 'rnu'", "see mipkd-pipeline --help"),
        (("run", "--foo"), "No such option: --foo", "see mipkd-pipeline run --help"),
        (("run", "--steps", "x"), "Invalid value for '--steps'", "see mipkd-pipeline run --help"),
        (("train",), "Missing option '--arch'", "see mipkd-pipeline train --help"),
    ],
)
def test_a_wrong_command_line_is_answered_as_other_wrong_input_is(
    words: tuple[str, ...], what: str, hint: str
) -> None:
    result = CliRunner().invoke(cli.app, words, prog_name="mipkd-pipeline")
    assert result.exit_code == 2
    first, *_, last = result.stderr.splitlines()
    assert first.startswith(f"error: {what}")
    assert last == f"hint: {hint}"


def test_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "teacher.pth").write_bytes(b"plain text, no weights")
    code, _, err = ended("doctor", tmp_path / "teacher.pth")
    assert code == 2
    assert "error: " in err
    assert "teacher.pth: not a checkpoint" in err
    assert "hint: " in err
    assert "Traceback" not in err


def test_doctor_says_of_every_target_whether_it_is_here_or_how_to_get_it() -> None:
    code, shown, _ = ended("doctor")
    assert code == 0
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    found = json.loads(ended("doctor", "--json")[1])["targets"]
    assert list(found) == every()
    assert "openvino:gpu" in found
    for name, one in found.items():
        assert one["usable"] == (find(name).why_not() == "")
        here, told = lines[name].split(maxsplit=2)[1:]
        assert here == ("yes" if one["usable"] else "no")
        assert told.startswith(", ".join(one["precisions"]) or one["why_not"])
    if found["coreml"]["usable"]:
        assert lines["coreml"].endswith("coreml:ane, or build.fixed_sizes")


class Trap:
    def __reduce__(self) -> object:
        return (print, ("the pickle ran",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"params": Trap()}, tmp_path / "zip.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Trap()))
    for name in ("zip.pth", "bare.pth"):
        code, out, err = ended("doctor", tmp_path / name)
        assert code == 2
        assert "the pickle ran" not in out + err


def test_an_unknown_architecture_names_the_nearest(tmp_path: Path) -> None:
    state = {"head.0.weight": torch.zeros(8, 3, 3, 3), "body.0.body.0.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "t.pth")
    code, _, err = ended("doctor", tmp_path / "t.pth")
    assert code in (3, 4)  # 4: spandrel, which may know it, is not installed
    assert "nearest is edsr" in err
    assert "body.0.body.2.weight" in err


def test_a_model_of_another_scale(teacher: Path, photos: Path, tmp_path: Path) -> None:
    hyper = edsr.Hyper(scale=4, channels=8, blocks=1)
    save(edsr.EDSR(hyper), edsr.ARCH, hyper, tmp_path / "x4.safetensors", licence="")
    model = tmp_path / "x4.safetensors"
    code, _, err = ended(
        *("run", "--teacher", teacher, "--model", model, "--data", photos),
        *("--val", photos, "--out", tmp_path / "r"),
    )
    assert code == 2
    assert "scale is x4, the teacher's x2" in err
    command = ("run", "--teacher", teacher, "--data", photos, "--scale", 3)
    code, _, err = ended(*command, "--out", tmp_path / "s")
    assert code == 2
    assert "its scale is x2" in err


@pytest.mark.parametrize(
    ("words", "code", "what", "hint"),
    [
        (("--target", "openvio"), 2, "unknown name 'openvio'", "did you mean openvino?"),
        (("--student", "esdr:c8b1"), 2, "unknown family 'esdr'", "did you mean edsr?"),
        (("--student", "edsr:wide"), 2, "cannot read 'wide'", "edsr:c32"),
        (("--precision", "int9"), 2, "unknown name 'int9'", "did you mean int8?"),
        (("--set", "distill.ls=1"), 2, "distill.ls: unknown setting", "lr"),
        (("--set", "distill.lr=fast"), 2, "distill.lr", ""),
        (("--set", "distill.losses=[{name='logit'}]"), 2, "unknown loss 'logit'", "logits?"),
        (("--config", "absent.toml"), 2, "cannot read absent.toml", ""),
    ],
)
def test_a_wrong_word_gets_the_nearest_right_one(
    teacher: Path,
    photos: Path,
    shown: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    code: int,
    what: str,
    hint: str,
) -> None:
    command = ("run", "--teacher", teacher, "--data", photos, "--val", shown, "--target", "null")
    small = ("--set", "distill.patch=16", "--set", "calibrate.size=16")
    small += ("--set", "identify.accept_worse_than_bicubic=true")
    got, _, err = ended(*command, "--out", tmp_path / "run", *small, *words)
    assert got == code
    assert what in err
    assert hint in err


def test_photos_smaller_than_a_patch(teacher: Path, photos: Path, tmp_path: Path) -> None:
    command = ("run", "--teacher", teacher, "--data", photos, "--val", photos, *TINY)
    code, _, err = ended(*command, "--out", tmp_path / "r", "--set", "distill.patch=64")
    assert code == 2
    assert "112x96 is smaller than a patch" in err


def test_an_empty_folder(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    code, _, err = ended(
        "run", "--teacher", teacher, "--data", tmp_path / "none", "--out", tmp_path / "r"
    )
    assert code == 2
    assert "no image in it" in err


def test_an_output_that_cannot_be_written(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = ended("run", "--teacher", teacher, "--out", tmp_path / "file" / "run")
    assert code == 2
    assert "cannot write to" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full to fill a disk")
def test_a_disk_that_fills_while_training_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"fits": "a", "step": 1})
    (tmp_path / "checkpoint.pt.partial").symlink_to("/dev/full")
    with pytest.raises(StageError, match="No space left on device") as caught:
        checkpoint.save(tmp_path, {"fits": "a", "step": 2, "weights": torch.zeros(100_000)})
    assert "run the same command again" in caught.value.hint
    assert checkpoint.load(tmp_path, "a") == {"fits": "a", "step": 1}


def test_help_is_quick_and_names_every_command() -> None:
    code = (
        "import sys; sys.argv = ['mipkd-pipeline', '--help']\n"
        "from pipeline.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("run", "plan", "doctor", "report"):
        assert f"\n  {command}" in shown.stdout
