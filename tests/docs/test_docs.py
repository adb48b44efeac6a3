"""Every command in README and docs runs as it stands there, in page order."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pipeline import cli
from pipeline.bench.latency import BenchSettings, find_doubt
from pipeline.config import load

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "PACKAGE.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROGRAM = "mipkd-pipeline"
# For lines of options alone, most of which are of INT8.
OPTIONS = f"{PROGRAM} plan --teacher edsr.pth --target openvino --precision int8"
OPTIONS += " --set quantize.search=true"  # the desk has it off

# Commands of the program that are not run here, whole as they are typed, and why.
_NO_DEVICE = "needs a device that lets us in by SSH; a loopback one is in tests/machine"
SKIPPED = {
    "mipkd-pipeline run": "tests/pipeline/test_demo.py runs it, on one of its targets",
    "mipkd-pipeline run --teacher span_x4_ch48.safetensors --student span:c28 --data photos/ --val "
    "Set5/ --target openvino": "a real net; docs/results/front-x4 has what came of it",
    "mipkd-pipeline doctor --device ssh://pi@raspberrypi": _NO_DEVICE,
    "mipkd-pipeline run --teacher edsr.pth --data photos/ --val Set5/ --target cpu "
    "--device ssh://pi@raspberrypi --set device.python=~/venv/bin/python": _NO_DEVICE,
    "torchrun --standalone --nproc-per-node 4 --no-python mipkd-pipeline run --teacher rcan.pth "
    "--data photos/ --val Set5/ --set distill.batch=64": "needs cores for four processes of torch; "
    "two are run in tests/distill/test_ranks.py",
}

_COSIGN = (
    "cosign sign-blob --bundle manifest.sigstore.json runs/edsr/bundle/manifest.json",
    "cosign attest-blob --statement runs/edsr/bundle/provenance.json --bundle "
    "provenance.sigstore.json",
    "cosign verify-blob --bundle manifest.sigstore.json --certificate-identity ann@example.org "
    "--certificate-oidc-issuer https://github.com/login/oauth runs/edsr/bundle/manifest.json",
)

# Lines of other programs, and why they are not run.
OTHERS = {
    "make demo": "installs; what it runs is in tests/pipeline/test_demo.py",
    **dict.fromkeys(
        (
            "pip install .",
            "pip install '.[openvino]'",
            "pip install mipkd-pipeline",
            "pip install 'mipkd-pipeline[openvino]'",
            "docker build -t mipkd-pipeline .",
        ),
        "installs; tests/test_package.py and test_container.py hold what",
    ),
    "ffmpeg -i in.mkv -f yuv4mpegpipe - | mipkd-pipeline upscale runs/edsr/bundle - -o - | ffmpeg "
    "-i - out.mkv": "ffmpeg is not installed here; tests/pipeline/test_video.py pipes y4m",
    "make check": "runs these tests",
    "make test": "runs these tests",
    "make docs": "installs; the pages are built in test_site.py",
    "ssh-keygen -t ed25519 -f release-key": "asks for a passphrase; conftest.py makes such a key",
    "uv pip compile --universal --generate-hashes ci/requirements.in -o ci/runtimes.txt": "asks an "
    "index of packages; tests/test_pins.py holds what `make lock` made in this way",
    **dict.fromkeys(_COSIGN, "cosign is not installed here"),
    "python docs/results/demo-teacher/train.py ASSETS/train/photos_hires WORK": "needs the assets",
}

# Blocks that are no commands, by how they begin.
NO_COMMANDS = {
    "- uses: YOUR-ORGANISATION/": "a step of a workflow",
    "[[distill.losses]]": "settings",
    "#!/bin/bash": "a job of Slurm",
    "apiVersion: batch/v1": "a job of Kubernetes",
}

# Two training steps make a student worse than bicubic: its run fails by that gate, and so does
# what judges its bundle anew. All others end with 0.
WORSE_THAN_BICUBIC = ("run --teacher ", "run --config ", "check runs/edsr", "collect ")
# As `check` and as `run` have it.
GATE = ("FAIL    student: gain over bicubic", "FAIL    better than bicubic, student: ")
# What a busy machine may do to any latency: in a verdict, and as `bench` tells it.
OF_TIME = re.compile(
    r"(FAIL|INVALID) +(\S+ \S+: (latency|slowdown) at |latency at )"
    r"|\S+ \S+: INVALID: (\d+ samples in|\d+ of \d+ samples are under|unstable: |busy machine: )"
)

# What readers have from earlier days: made from what the commands before have made.
KEPT = {
    "released/": "runs/edsr/bundle",
    "models/new": "runs/student/bundle",
    "models/released": "runs/student/bundle",
    "runs/a": "runs/edsr",
    "runs/b": "runs/edsr",
}


@dataclass
class Block:
    """Lines of code that stand together, those that go on below joined."""

    page: Path
    language: str
    lines: list[str] = field(default_factory=list)

    @property
    def holds_commands(self) -> bool:
        begins = any(self.lines[0].startswith(start) for start in NO_COMMANDS)
        return self.language in ("", "sh") and not begins


def blocks(page: Path) -> Iterator[Block]:
    block, fenced, held = None, False, ""
    for line in page.read_text().splitlines():
        fence = re.match(r"\s*```(\S*)", line)
        if fence or (line.strip() and not fenced and not line.startswith("    ")):
            if block and block.lines:
                yield block
            block = None
            fenced = not fenced if fence else fenced
            if fenced and fence:
                block = Block(page, fence[1])
        elif line.strip():
            block = block or Block(page, "")
            held += line.strip() + " "
            if not held.endswith("\\ "):
                block.lines.append(typed(held))
                held = ""
            else:
                held = held[:-2]
    if block and block.lines:
        yield block


def typed(line: str) -> str:
    """Without what is said about it, and with single spaces."""
    return " ".join(re.sub(r"\s#\s.*", "", line).split())


def lines() -> list[tuple[Path, str]]:
    return [
        (b.page, x) for page in PAGES for b in blocks(page) if b.holds_commands for x in b.lines
    ]


TYPED = [(page, line) for page, line in lines() if line not in OTHERS]
RESULTS = ROOT / "docs/results"
SKIPPED |= {line: "what it wrote lies beside it" for page, line in TYPED if RESULTS in page.parents}
LABELS = [f"{page.relative_to(ROOT)}: {line[:70]}" for page, line in TYPED]


def words_of(line: str) -> list[str]:
    """Of the program's command: its name left out."""
    words = shlex.split(f"{OPTIONS} {line}" if line.startswith("--") else line)
    return words[words.index(PROGRAM) + 1 :] if PROGRAM in words else []


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class Reader:
    """Types the commands in the order of the pages, each once."""

    def __init__(self, desk: Path, patch: pytest.MonkeyPatch) -> None:
        self.desk, self.patch = desk, patch
        self.ended: list[Ended | None] = []

    def told(self, number: int) -> Ended:
        """What a command ended with, all before it having been typed."""
        while len(self.ended) <= number:
            _, line = TYPED[len(self.ended)]
            self.ended.append(None if line in SKIPPED else self.enter(line))
        found = self.ended[number]
        assert found
        return found

    def enter(self, line: str) -> Ended:
        self.patch.chdir(self.desk)
        if line.startswith("python3 "):
            return self.start(line.split()[1:])
        words = words_of(line)
        assert words, f"{line}: another program's: list it in OTHERS, and why it is not run"
        if path := re.match(r"PYTHONPATH=(\S+)", line):
            return self.start(["-c", "from pipeline.cli import main; main()", *words], path[1])
        self.bring(words)
        if "--steps" in words:  # a page's number is for a net that shall be good
            words[words.index("--steps") + 1] = "2"
        return self.run(words)

    def start(self, words: list[str], path: str = "") -> Ended:
        """Python in a process of its own."""
        env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), path))}
        ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env)
        return Ended(ran.returncode, ran.stdout, ran.stderr)

    def run(self, words: list[str]) -> Ended:
        result = CliRunner().invoke(cli.app, words)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(result.exit_code, result.stdout, result.stderr)

    def bring(self, words: list[str]) -> None:
        """What a command names and no command makes."""
        for word in words:
            if word in KEPT and not Path(word).exists():
                shutil.copytree(KEPT[word], word, symlinks=True)
        if "baseline.json" in words and not Path("baseline.json").exists():
            new = ["--update-baseline", "--reason", "first"]
            assert self.run(["check", words[1], "--baseline", "baseline.json", *new]).code == 0


@pytest.fixture(scope="module")
def reader(desk: Path) -> Iterator[Reader]:
    with pytest.MonkeyPatch.context() as patch:
        yield Reader(desk, patch)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(TYPED)), ids=LABELS)
def test_a_command_does_what_the_page_says(number: int, reader: Reader) -> None:
    _, line = TYPED[number]
    if line in SKIPPED:
        pytest.skip(f"NOT RUN, {SKIPPED[line]}")
    if ("--key" in line or "--signer" in line) and not shutil.which("ssh-keygen"):
        pytest.skip("NOT RUN, needs ssh-keygen, of OpenSSH's client")
    ended, fails = reader.told(number), is_worse_than_bicubic(line)
    stopped = [x for x in ended.out.splitlines() if re.match(r"FAIL|INVALID|\S+ \S+: INVALID", x)]
    of_time = [x for x in stopped if OF_TIME.match(x)]
    rest = [x for x in stopped if x not in of_time]
    assert [x.startswith(GATE) for x in rest] == ([True] if fails else []), ended
    assert ended.code in ((6,) if fails else (0, 6, 7) if of_time else (0,)), ended
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "samples_s", [(0.1,) * 3, (0.01,) * 5 + (0.1,) * 20, (0.1,) * 20 + (3.0,) * 20]
)
def test_what_bench_says_of_a_busy_machine_is_known_here(samples_s: tuple[float, ...]) -> None:
    assert OF_TIME.match(f"cpu int8: INVALID: {find_doubt(samples_s, BenchSettings())}")


def test_a_model_whose_output_is_wrong_is_not_taken_for_a_busy_machine() -> None:
    assert not OF_TIME.match("cpu int8: INVALID: output has values that are not finite")


def is_worse_than_bicubic(line: str) -> bool:
    return " ".join(words_of(line)).startswith(WORSE_THAN_BICUBIC)


def test_there_are_commands() -> None:
    assert len(TYPED) > 25


@pytest.mark.parametrize("line", SKIPPED)
def test_what_is_not_run_is_taken_all_the_same(line: str) -> None:
    if not (words := words_of(line)):
        pytest.skip("a script's command")
    name, *rest = words
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    context = command.make_context(name, rest)
    load({"teacher": "teacher.pth", "data": "photos"}, sets=context.params["sets"] or ())


def test_what_is_listed_here_stands_in_the_pages() -> None:
    every = [line for page in PAGES for block in blocks(page) for line in block.lines]
    assert set(SKIPPED) | set(OTHERS) <= set(every)
    assert all(any(line.startswith(start) for line in every) for start in NO_COMMANDS)


def test_settings_in_the_pages_are_ones_that_the_program_has(tmp_path: Path) -> None:
    every = [block for page in PAGES for block in blocks(page) if block.language == "toml"]
    assert len(every) > 1
    for block in every:
        (tmp_path / "mipkd.toml").write_text("\n".join(block.lines))
        load({"teacher": "teacher.pth"}, folder=tmp_path)
