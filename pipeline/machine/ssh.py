"""A machine behind SSH: OpenSSH's own client, whose commands share one connection.

The user's configuration of OpenSSH holds: keys, jumps, known hosts. A host key that it does not
accept is never accepted here, and nothing is asked: what needs a password fails.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mipkd.core.errors import MipkdError, MissingError, UsageError
from pipeline.machine.base import DeviceConfig
from pipeline.machine.remote.agent_machine import AgentMachine
from pipeline.machine.remote.link import LinkError, Remote

_FORM = re.compile(
    r"ssh://(?:(?P<user>[^@/:]+)@)?(?P<host>\[[\w:.%]+\]|[\w.-]+)(?::(?P<port>\d+))?/?"
)
_ALIVE_S, _ALIVE_TRIES = 5, 3  # a link that is silent for their product is dead
_IDLE_S = 60  # the shared connection closes itself: also when this program was killed


@dataclass(frozen=True)
class Address:
    """Where a device is; what is left out comes from OpenSSH's configuration."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"ssh://{user}{host}" + (f":{self.port}" if self.port else "")


def address_of(text: str) -> Address:
    """An address written as ssh://[user@]host[:port].

    Raises:
        UsageError: it is not of that form; what is told holds no password that was in it.
    """
    hint = "write ssh://[user@]host[:port]; keys and jumps belong in OpenSSH's configuration"
    if re.match(r"ssh://[^/@]*:[^/]*@", text):
        raise UsageError("--device: a password in an address is not taken", hint=hint)
    found = _FORM.fullmatch(text)
    if not found or found["host"].startswith("-") or (found["user"] or "").startswith("-"):
        raise UsageError(f"--device: {text!r} is no address", hint=hint)
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"--device: there is no port {port}", hint=hint)
    return Address(found["host"].strip("[]"), found["user"], port)


class SshLink:
    """The way to one device."""

    def __init__(self, address: Address, config: Path | None, connect_timeout_s: float) -> None:
        if not shutil.which("ssh"):
            raise MissingError("--device: there is no ssh here", hint="install OpenSSH's client")
        self.address, self._host = str(address), address.host
        self._plain = ["ssh", *(["-F", str(config)] if config else [])]
        self._plain += ["-p", str(address.port)] if address.port else []
        self._plain += ["-l", address.user] if address.user else []
        # Short, since a socket's path has about 100 bytes; only we may enter it.
        self._folder = tempfile.mkdtemp(prefix="mipkd-", dir="/tmp")
        options = {
            "BatchMode": "yes",
            "ClearAllForwardings": "yes",
            "ConnectTimeout": max(1, round(connect_timeout_s)),
            "ControlMaster": "auto",
            "ControlPath": f"{self._folder}/c",
            "ControlPersist": _IDLE_S,
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "LogLevel": "ERROR",
            "PermitLocalCommand": "no",
            "RemoteCommand": "none",
            "RequestTTY": "no",
            "ServerAliveCountMax": _ALIVE_TRIES,
            "ServerAliveInterval": _ALIVE_S,
        }
        self._ssh = [*self._plain, *(f"-o{name}={value}" for name, value in options.items())]

    def start(self, script: str) -> Remote:
        """Start a POSIX shell script there, whatever the user's own shell is."""
        command = [*self._ssh, "--", self._host, "sh -c " + shlex.quote(script)]
        return Remote(command, {**os.environ, "LC_ALL": "C", "SSH_ASKPASS_REQUIRE": "never"})

    def drop(self) -> None:
        """Close the shared connection, dead or alive; the next command makes a new one."""
        command = [*self._ssh, "-O", "exit", "--", self._host]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=10, check=False)

    def close(self) -> None:
        """Leave nothing behind."""
        self.drop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def explain(self, exit_code: int, complaint: str) -> MipkdError | None:
        """What OpenSSH's exit code 255 means, by what it said."""
        if exit_code != 255:
            return None
        name = shlex.join([*self._plain, self._host])
        if "IDENTIFICATION HAS CHANGED" in complaint or "host key has changed" in complaint:
            return UsageError(
                f"{self.address}: its host key is not the one that is known: another machine "
                "answers, or it was set up anew",
                hint=f"find out which; only then: ssh-keygen -R, and run `{name}` once",
            )
        if "Host key verification failed" in complaint:
            return UsageError(
                f"{self.address}: its host key is not known here",
                hint=f"run `{name}` once and compare the key with the device's own "
                "(there: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)",
            )
        if "Permission denied" in complaint or "Too many authentication failures" in complaint:
            return UsageError(
                f"{self.address}: not let in: {_last(complaint)}",
                hint=f"`{name}` must work without a password: ssh-copy-id, IdentityFile, ssh-add",
            )
        if "onfiguration option" in complaint or "Bad owner or permissions" in complaint:
            return UsageError(f"{self.address}: ssh refuses its settings: {_last(complaint)}")
        return LinkError(
            f"{self.address}: no connection: {_last(complaint) or 'it was closed'}",
            hint=f"is the device on, and does `{name}` reach it?",
        )


def _last(complaint: str) -> str:
    return complaint.splitlines()[-1].strip() if complaint else ""


def _machine(config: DeviceConfig) -> AgentMachine:
    address = address_of(config.address or "")
    return AgentMachine(SshLink(address, config.ssh_config, config.connect_timeout_s), config)


MACHINE = _machine
