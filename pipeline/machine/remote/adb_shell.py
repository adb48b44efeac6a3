"""One Android phone over adb: its shell, and files to it and from it.

After Android's documentation of adb (https://developer.android.com/tools/adb). It never drove a
phone of ours: tests put a program in its place that plays one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from mipkd.core.errors import MipkdError, MissingError, StageError, UsageError
from pipeline.machine.base import MachineLostError

_FORM = re.compile(r"adb://([\w.:-]*)/?")  # a serial number, or host:port of a phone on the network
_LIMIT_S = 120.0
_STATES = {
    "unauthorized": "unlock it and allow this computer to debug it",
    "no devices/emulators": "connect it, and switch USB debugging on in its developer options",
    "more than one": "name one of `adb devices`: adb://SERIAL",
    "' not found": "name one of `adb devices`: adb://SERIAL",
    "offline": "unplug it and plug it in again",
}


def serial_of(address: str) -> str:
    """The serial number in `adb://[SERIAL]`; "" for the only phone there is.

    Raises:
        UsageError: it is not of that form.
    """
    found = _FORM.fullmatch(address)
    if not found or found[1].startswith("-"):
        hint = "write adb:// for the only phone, or adb://SERIAL"
        raise UsageError(f"--device: {address!r} is no address", hint=hint)
    return found[1]


class AdbShell:
    """A phone that answers to adb."""

    def __init__(self, address: str) -> None:
        """
        Raises:
            MissingError: there is no adb here.
        """
        serial, adb = serial_of(address), shutil.which("adb")
        if not adb:
            hint = "install Android's platform tools, which hold it"
            raise MissingError("--device: there is no adb here", hint=hint)
        self.address, self._command = address, [adb, *(["-s", serial] if serial else [])]

    def run(self, script: str, *, limit_s: float = _LIMIT_S, failing: bool = False) -> str:
        """What a shell script prints there, errors included; `failing` takes any exit code.

        Raises:
            MachineLostError: the phone cannot be reached.
            StageError: the script failed, or took too long.
        """
        done = self._adb("shell", f"({script}) 2>&1", limit_s=limit_s)
        if done.returncode and (lost := self._explain(done.stderr)):
            raise lost
        if done.returncode and not failing:
            last = (done.stdout + done.stderr).strip().rpartition("\n")[2]
            raise StageError(f"{self.address}: exit code {done.returncode}: {last[:200]}")
        return done.stdout.replace("\r\n", "\n")

    def push(self, file: Path, there: str) -> None:
        """Copy a file to the phone."""
        self._copy("push", str(file), there)

    def pull(self, there: str, file: Path) -> None:
        """Copy a file from the phone."""
        self._copy("pull", there, str(file))

    def _copy(self, *words: str) -> None:
        done = self._adb(*words, limit_s=10 * _LIMIT_S)
        if done.returncode:
            said = done.stderr + done.stdout
            last = said.strip().rpartition("\n")[2]
            raise self._explain(said) or StageError(
                f"{self.address}: adb {words[0]}: {last[:200]}",
                hint="another folder there: --set device.folder=/data/local/tmp/NAME",
            )

    def _adb(self, *words: str, limit_s: float) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self._command, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StageError(f"{self.address}: no answer in {limit_s:g} s") from error

    def _explain(self, said: str) -> MipkdError | None:
        """Why the phone cannot be reached, from what adb says; None if it can."""
        for line in said.splitlines():
            for words, cure in _STATES.items():
                if words in line and re.match(r"(adb|error): ", line):
                    return MachineLostError(f"{self.address}: {line.strip()}", hint=cure)
        return None
