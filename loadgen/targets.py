"""What is compared: servers that run already (`name=URL`), or commands that are started and stopped (`name=COMMAND`).

A command names its port as `{port}`; its output goes to a file that is read when it fails. It is stopped as
Ctrl-C would stop it.
"""

import os
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from shared.errors import ConfigError

PORT = "{port}"
STOP_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Either `url` or `command` is given."""

    name: str
    url: str | None = None
    command: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Target":
        """`name=http://…` or `name=command with {port}`. Raises ConfigError."""
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip() or "/" in name:
            raise ConfigError(f"target {text!r}: expected NAME=URL or NAME='COMMAND with {PORT}'", param="target")
        if value.startswith(("http://", "https://")):
            return cls(name=name, url=value)
        if PORT not in value:
            raise ConfigError(f"target {name}: its command must take its port from {PORT}", param="target")
        try:
            return cls(name=name, command=tuple(shlex.split(value)))
        except ValueError as error:
            raise ConfigError(f"target {name}: {error} in its command", param="target") from error


class Serving:
    """A target that can be asked at `url`. Of a process that we started we know whether it lives and what it uses."""

    def __init__(self, target: Target, url: str, process: "subprocess.Popen[bytes] | None", log: Path | None) -> None:
        self.name, self.url = target.name, url
        self.is_ours = process is not None
        self._process, self._log = process, log

    def check(self) -> None:
        """Raises ConfigError when the process has ended."""
        if self._process is not None and (code := self._process.poll()) is not None:
            lines = self._log.read_text(errors="replace").split("\n") if self._log else []
            last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
            raise ConfigError(f"target {self.name} ended with code {code}: {last[:300]}", param="target")

    def cpu_s(self) -> float | None:
        """Processor time of all its processes so far; None if it is not ours."""
        if self._process is None:
            return None
        total_s = 0.0
        with suppress(psutil.NoSuchProcess):
            for process in (own := psutil.Process(self._process.pid), *own.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    total_s += times.user + times.system
        return total_s


@contextmanager
def serving(target: Target) -> Iterator[Serving]:
    """The target, started if it is a command; whether it answers yet is for the caller to find out."""
    if target.url is not None:
        yield Serving(target, target.url, None, None)
        return
    port = _free_port()
    argv = [word.replace(PORT, str(port)) for word in target.command]
    with tempfile.TemporaryDirectory(prefix="loadgen-") as directory:
        log = Path(directory) / "output"
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            except OSError as error:
                raise ConfigError(f"target {target.name}: cannot start {argv[0]}: {error.strerror}") from error
        try:
            yield Serving(target, f"http://127.0.0.1:{port}", process, log)
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask, then make sure; none of its descendants is left. Ctrl-C waits until that is so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_WITHIN_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    signal.signal(signal.SIGINT, before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
