"""Who made a bundle: signed by ssh-keygen, and checked against a file of signers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mipkd.core.errors import MissingError, StageError, UsageError
from pipeline.bundle import manifest
from pipeline.bundle.provenance import PROVENANCE, RUN, provenance, run_facts
from pipeline.bundle.signature import NAMESPACE, sign, signature_of, verify_signature
from pipeline.report.results_file import read_results

Command = Callable[..., Any]
ANN, BOB = "ann@example.org", "bob@example.org"
pytestmark = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="needs ssh-keygen, of OpenSSH's client"
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The least that is one; of a model that nothing here can run."""
    home = tmp_path / "bundle"
    (home / "model" / "jetson-fp32").mkdir(parents=True)
    (home / "model" / "jetson-fp32" / "model.onnx").write_bytes(b"weights")
    evidence = read_results(Path(__file__).parent / "golden" / "results-1.6.json")
    (home / PROVENANCE).write_text(json.dumps(provenance(evidence, "0", {})))
    (home / RUN).write_text(json.dumps(run_facts(evidence)))
    model = manifest.Model(
        *("jetson", "fp32", "simulated", "model/jetson-fp32/model.onnx", 7, 4, 1),
        *({}, (), {}, 7, ""),
    )
    listed = manifest.list_files(home)
    manifest.write(manifest.Manifest(1, "run", "", "0", 4, 1, (model,), listed), home)
    return home


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "ann")


@pytest.fixture
def signers(tmp_path: Path, key: Path) -> Path:
    """Ann's key and Bob's."""
    file = tmp_path / "allowed_signers"
    bob = make_key(tmp_path / "bob").with_suffix(".pub")
    file.write_text(f"{ANN} {key.with_suffix('.pub').read_text()}{BOB} {bob.read_text()}")
    return file


def make_key(file: Path) -> Path:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(file)]
    subprocess.run(words, check=True)
    return file


def test_a_signed_bundle_is_its_signers(
    bundle: Path, key: Path, signers: Path, ended: Command
) -> None:
    said = ended("bundle", "sign", bundle, "--key", key)
    assert (said.code, said.out.split(": ")[0]) == (0, "signed")
    assert (bundle / "manifest.json.sig").read_text().startswith("-----BEGIN SSH SIGNATURE-----")
    assert not manifest.problems(bundle, manifest.read(bundle))
    said = ended("verify", bundle, "--signer", ANN, "--allowed-signers", signers)
    assert f"signature: good, by {ANN}, ED25519 key SHA256:" in said.out
    assert said.code == 0, said.out


def test_it_is_signed_again_by_another(bundle: Path, key: Path, signers: Path) -> None:
    sign(bundle, key)
    sign(bundle, signers.with_name("bob"))
    assert verify_signature(bundle, BOB, signers).good
    assert verify_signature(bundle, ANN, signers).what == f"signed by {BOB}, not by {ANN}"


def test_what_is_not_the_signers_fails_by_a_line(
    bundle: Path, key: Path, signers: Path, ended: Command
) -> None:
    words = ("verify", bundle, "--signer", ANN, "--allowed-signers", signers)

    def line() -> str:
        said = ended(*words)
        first, last = said.out.splitlines()
        assert (said.code, said.err, last) == (6, "", "verify: FAIL")
        return str(first)

    assert line() == "signature: FAIL: not signed"
    sign(bundle, key)
    text = signers.read_text()
    signers.write_text("\n".join(text.splitlines()[1:]))
    assert line() == f"signature: FAIL: no key of {ANN} in {signers} made it"
    signers.write_text(text.replace(f"{ANN} ", f'{ANN} valid-before="20200101" '))
    assert "key has expired" in line()
    signers.write_text(text.replace(f"{ANN} ", f'{ANN} namespaces="git" '))
    assert "namespace" in line()
    signers.write_text(text)
    stated = manifest.read(bundle)
    manifest.write(replace(stated, name="another"), bundle)  # sealed anew, as anyone can
    assert "does not fit manifest.json" in line()


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 70_000, b"-----BEGIN SSH SIGNATURE-----\n"])
def test_what_is_no_signature_is_refused(
    content: bytes, bundle: Path, signers: Path, ended: Command
) -> None:
    signature_of(bundle).write_bytes(content)
    found = verify_signature(bundle, ANN, signers)
    assert not found.good
    assert found.what


def test_a_signature_for_anything_else_is_none_of_a_bundle(
    bundle: Path, key: Path, signers: Path
) -> None:
    stated = (bundle / manifest.MANIFEST).read_bytes()
    words = ["ssh-keygen", "-Y", "sign", "-n", "git", "-f", str(key)]
    made = subprocess.run(words, input=stated, capture_output=True, check=True).stdout
    signature_of(bundle).write_bytes(made)
    assert not verify_signature(bundle, ANN, signers).good
    assert NAMESPACE != "git"


def test_a_changed_file_fails_though_the_signature_is_good(
    bundle: Path, key: Path, signers: Path, ended: Command
) -> None:
    sign(bundle, key)
    (bundle / "model/jetson-fp32/model.onnx").write_bytes(b"another")
    said = ended("verify", bundle, "--signer", ANN, "--allowed-signers", signers)
    assert said.code == 6
    assert "signature: good" in said.out
    assert "CHANGED  model/jetson-fp32/model.onnx" in said.out
    with pytest.raises(UsageError, match="not signed"):
        sign(bundle, key)


def test_only_the_signatures_own_name_is_let_in(bundle: Path, key: Path) -> None:
    sign(bundle, key)
    (bundle / "model" / "manifest.json.sig").write_text("")
    (bundle / "manifest.json.sig.bak").write_text("")
    found = {p.file for p in manifest.problems(bundle, manifest.read(bundle))}
    assert found == {"model/manifest.json.sig", "manifest.json.sig.bak"}


def test_without_a_signer_no_program_is_started(
    bundle: Path, key: Path, tmp_path: Path, ended: Command
) -> None:
    assert "signature: not signed" in ended("verify", bundle).out
    sign(bundle, key)
    code = (
        "import sys\n"
        "def hook(event, _):\n"
        "    if event in ('subprocess.Popen', 'os.exec', 'os.posix_spawn', 'os.system'):\n"
        "        sys.stderr.write('STARTED'); raise SystemExit(99)\n"
        "from pipeline.cli.sign import tell_signature\n"
        "from pathlib import Path\n"
        "sys.addaudithook(hook)\n"
        "print(tell_signature(Path(sys.argv[1]), None, None))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(bundle)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "signature: signed, not checked: --signer WHO --allowed-signers FILE\n"


def test_what_is_not_there_is_said(
    bundle: Path, key: Path, signers: Path, ended: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ended("bundle", "sign", bundle, "--key", key.with_name("none"))
    assert (said.code, said.err.splitlines()[1]) == (2, "hint: make one: ssh-keygen -t ed25519")
    said = ended("verify", bundle, "--signer", ANN, "--allowed-signers", key.with_name("none"))
    assert (said.code, said.err.count("\n")) == (2, 2)
    monkeypatch.setenv("HOME", str(key.parent))
    said = ended("verify", bundle, "--signer", ANN)
    assert f"{key.parent}/.ssh/allowed_signers: no such file" in said.err
    said = ended("verify", bundle, "--allowed-signers", signers)
    assert (said.code, said.err.splitlines()[0]) == (2, "error: --allowed-signers: no --signer")
    said = ended("verify", bundle, "--signer", " ", "--allowed-signers", signers)
    assert (said.code, said.err.splitlines()[0]) == (2, "error: --signer: no name")
    (key.parent / "no key").write_text("none")
    with pytest.raises(StageError, match="did not sign"):
        sign(bundle, key.parent / "no key")
    sign(bundle, key)
    monkeypatch.setenv("PATH", str(key.parent / "nowhere"))
    said = ended("verify", bundle, "--signer", ANN, "--allowed-signers", signers)
    assert (said.code, said.err.splitlines()[0]) == (4, "error: ssh-keygen: not found")


def test_a_program_in_the_working_folder_is_not_run(
    bundle: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "ssh-keygen"
    planted.write_text("#!/bin/sh\ntouch planted-ran\n")
    planted.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for path in (".", "", ":."):
        monkeypatch.setenv("PATH", path)
        with pytest.raises(MissingError):
            sign(bundle, key)
    assert not (tmp_path / "planted-ran").exists()
