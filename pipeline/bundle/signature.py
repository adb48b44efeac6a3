"""`manifest.json.sig`: an OpenSSH signature of the manifest, which holds the hash of every file.

Keys, passphrases, agents and hardware tokens are ssh-keygen's affair (`man ssh-keygen`, -Y).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mipkd.core import durable
from mipkd.core.errors import MissingError, StageError, UsageError
from mipkd.core.names import printable
from pipeline.bundle import manifest

NAMESPACE = "mipkd-pipeline-bundle"  # a signature made for anything else is none of a bundle
_LARGEST = 2**16  # bytes; an RSA key of 16384 bits signs in about 6,000
_LIMIT_S = 60.0  # to check one; making one may wait for a passphrase or a touch
_NOISE = ("Could not verify signature", "Signature verification failed")


@dataclass(frozen=True)
class Signed:
    """What a signature was found to be."""

    good: bool
    what: str  # by whom, or what is wrong with it


def signature_of(bundle: Path) -> Path:
    """Where a bundle's signature lies if it has one."""
    return bundle / manifest.SIGNATURE


def sign(bundle: Path, key: Path) -> Path:
    """Sign a whole bundle with an OpenSSH key, or the one of an agent that a public key names.

    Raises:
        UsageError: no bundle, a changed one, no such key.
        MissingError: no ssh-keygen.
        StageError: ssh-keygen did not sign; it has said why.
    """
    wrong = manifest.problems(bundle, manifest.read(bundle))
    if wrong:
        raise UsageError(
            f"{bundle}: {wrong[0].file} is {wrong[0].what}: not signed",
            hint="see all: mipkd-pipeline verify",
        )
    if not key.is_file():
        raise UsageError(f"--key {key}: no such file", hint="make one: ssh-keygen -t ed25519")
    words = [_ssh_keygen(), "-Y", "sign", "-n", NAMESPACE, "-f", str(key.resolve())]
    stated = (bundle / manifest.MANIFEST).read_bytes()
    # What it says goes to the user: a hardware key asks there to be touched.
    made = subprocess.run(words, input=stated, stdout=subprocess.PIPE)
    if made.returncode or not made.stdout:
        raise StageError(
            f"bundle sign: ssh-keygen did not sign with {key}", hint="its own words are above"
        )
    durable.write_bytes(signature_of(bundle), made.stdout)
    return signature_of(bundle)


def verify_signature(bundle: Path, signer: str, allowed_signers: Path) -> Signed:
    """Whether the manifest is as `signer` signed it, by a key that the file says is theirs.

    Raises:
        UsageError: no bundle, no name, no file of signers.
        MissingError: no ssh-keygen.
    """
    if not signer.strip():
        raise UsageError("--signer: no name", hint="give one that stands in --allowed-signers")
    stated = bundle / manifest.MANIFEST
    if not stated.is_file():
        raise UsageError(f"{stated}: no bundle", hint="give the folder bundle/ of a run, whole")
    if not allowed_signers.is_file():
        raise UsageError(
            f"--allowed-signers {allowed_signers}: no such file",
            hint=f"a line of it: {signer} ssh-ed25519 AAAA... (man ssh-keygen, ALLOWED SIGNERS)",
        )
    signature = signature_of(bundle)
    if not os.path.lexists(signature):
        return Signed(False, "not signed")
    if not signature.is_file() or signature.stat().st_size > _LARGEST:
        return Signed(False, f"{signature.name} is no signature")
    return _check(stated.read_bytes(), signature.resolve(), signer, allowed_signers.resolve())


def _check(stated: bytes, signature: Path, signer: str, allowed: Path) -> Signed:
    about = ["-n", NAMESPACE, "-s", str(signature)]
    code, _, said = _ask(["check-novalidate", *about], stated)
    if code:
        why = _first_line(said) or "made over another manifest.json, or damaged"
        return Signed(False, f"the signature does not fit manifest.json: {why}")
    code, out, said = _ask(["verify", "-f", str(allowed), "-I", signer, *about], stated)
    if not code:
        return Signed(True, f"by {signer}, {_key_in(out)}")
    return Signed(False, _first_line(said) or _name_others(signature, signer, allowed))


def _name_others(signature: Path, signer: str, allowed: Path) -> str:
    """Why a signature that fits is not the signer's: whose it is, as far as the file knows."""
    words = ["find-principals", "-f", str(allowed), "-s", str(signature)]
    code, found, _ = _ask(words, b"")
    who = printable(", ".join(found.splitlines())) if not code else ""
    return (
        f"signed by {who}, not by {signer}" if who else f"no key of {signer} in {allowed} made it"
    )


def _ask(words: list[str], stated: bytes) -> tuple[int, str, str]:
    """Exit code, answer and messages of `ssh-keygen -Y ...`."""
    try:
        ran = subprocess.run(
            [_ssh_keygen(), "-Y", *words], input=stated, capture_output=True, timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return -1, "", f"ssh-keygen took over {_LIMIT_S:.0f} s"
    out, said = (text.decode(errors="replace") for text in (ran.stdout, ran.stderr))
    return ran.returncode, out, said


def _first_line(said: str) -> str:
    lines = (line.strip() for line in said.splitlines())
    return printable(next((line for line in lines if line and not line.startswith(_NOISE)), ""))


def _key_in(answer: str) -> str:
    """Kind and fingerprint, as in `Good "x" signature for WHO with ED25519 key SHA256:...`."""
    return answer.strip().rpartition(" with ")[2]


def _ssh_keygen() -> str:
    """The program, never one that lies in the working folder, where Windows looks first.

    Raises:
        MissingError: none.
    """
    name = "ssh-keygen.exe" if os.name == "nt" else "ssh-keygen"
    for folder in map(Path, os.get_exec_path()):
        if folder.is_absolute() and (found := shutil.which(str(folder / name))):
            return found
    raise MissingError("ssh-keygen: not found", hint="install OpenSSH's client, 8.2 or newer")
