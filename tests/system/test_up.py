"""`splitmesh up` as people run it: real processes, the fake engine, and nothing left afterwards."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.local.embedded_redis import PREFIX, sweep_abandoned

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
START_WITHIN_S = 60.0
STOP_WITHIN_S = 25.0


class Up:
    """One `splitmesh up`; `said` collects everything that it prints."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.local", "up", "--port", "0", *arguments], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.family: list[psutil.Process] = []

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip())

    def until(self, condition: Callable[[], object], limit_s: float = START_WITHIN_S) -> None:
        give_up_at = time.monotonic() + limit_s
        while not condition():
            assert self.process.poll() is None, "\n".join(self.said)
            assert time.monotonic() < give_up_at, "\n".join(self.said)
            time.sleep(0.05)

    def until_said(self, text: str) -> None:
        self.until(lambda: any(text in line for line in self.said))

    def serving(self) -> "Up":
        self.until_said("serving at")
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        return self

    @property
    def url(self) -> str:
        (line,) = [line for line in self.said if line.startswith("serving at")]
        found = re.search(r"http://[\d.]+:\d+", line)
        assert found is not None
        return found[0]

    def mesh(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url + "/mesh", timeout=5) as answer:
            result: dict[str, Any] = json.load(answer)
            return result

    def end(self, limit_s: float = STOP_WITHIN_S) -> int:
        """Wait for the end that was asked for."""
        code = self.process.wait(limit_s)
        self._reader.join()
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        if self.process.stdout:
            self.process.stdout.close()


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test alone keeps temporary files; short, as socket paths must be."""
    with tempfile.TemporaryDirectory(prefix="up-") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)


@pytest.fixture
def start(temporary: Path) -> Iterator[Callable[..., Up]]:
    """Starts meshes and sees to it that none survives the test."""
    started: list[Up] = []

    def begin(*arguments: str, **options: Any) -> Up:
        started.append(Up(*arguments, **options))
        return started[-1]

    yield begin
    for one in started:
        one.close()


def complete(url: str, prompt: str) -> dict[str, Any]:
    body = json.dumps({"model": "bytes", "prompt": prompt, "max_tokens": 8, "ignore_eos": True}).encode()
    request = urllib.request.Request(url + "/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        result: dict[str, Any] = json.load(answer)
        return result


def ready_pids(up: Up, role: str) -> list[int]:
    return [one["pid"] for one in up.mesh()["workers"] if (one["role"], one["state"]) == (role, "ready")]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_leaves_nothing_behind(start: Callable[..., Up], number: signal.Signals, temporary: Path) -> None:
    """On the way: secrets are on nobody's command line."""
    secrets = {"SPLITMESH_MESH_SECRET": "my-secret"}
    up = start("--engine", "fake", environment=secrets).serving()
    lines = " ".join(" ".join(process.cmdline()) for process in up.family)
    assert "my-secret" not in lines and "password" not in lines
    assert complete(up.url, "hello")["usage"]["completion_tokens"] == 8
    mesh = up.mesh()
    assert {worker["role"]: worker["state"] for worker in mesh["workers"]} == {"prompt": "ready", "token": "ready"}
    assert {service["service"] for service in mesh["services"]} >= {"gateway", "router", "pool_manager"}
    assert len(up.family) == 6
    assert len(list(temporary.glob(PREFIX + "*"))) == 1
    up.process.send_signal(number)
    assert up.end() == 0, "\n".join(up.said)
    assert alive(up.family) == []
    assert list(temporary.iterdir()) == []
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(up.url + "/health", timeout=1)


def test_a_killed_worker_is_started_again_and_said_so(start: Callable[..., Up]) -> None:
    up = start("--engine", "fake").serving()
    (token,) = [worker for worker in up.mesh()["workers"] if worker["role"] == "token"]
    os.kill(token["pid"], signal.SIGKILL)
    up.until_said("token-0 was ended by SIGKILL; starting it again in 0.5 s")
    up.until_said("token-0 is ready again")
    up.until(lambda: [pid for pid in ready_pids(up, "token") if pid != token["pid"]])
    assert complete(up.url, "again")["usage"]["completion_tokens"] == 8


def test_nothing_survives_when_it_is_killed(start: Callable[..., Up], temporary: Path) -> None:
    """The kernel ends the children; the private directory goes when the next Redis is made."""
    up = start("--engine", "fake").serving()
    up.process.kill()
    up.end()
    give_up_at = time.monotonic() + 5
    while alive(up.family) and time.monotonic() < give_up_at:
        time.sleep(0.05)
    assert alive(up.family) == []
    sweep_abandoned()
    assert list(temporary.iterdir()) == []


def test_ctrl_c_on_a_terminal_reaches_the_mesh_and_not_who_started_it() -> None:
    """As under `make up`: the starter, here a shell, is not interrupted and sees exit code 0."""
    command = f"{sys.executable} -m services.local up --engine fake --port 0; echo ended with $?"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execvp("bash", ["bash", "-c", command])
    shown, asked = b"", False
    with contextlib.suppress(OSError):  # the terminal is gone with its last process
        while data := os.read(terminal, 1 << 16):
            shown += data
            if b"stop        Ctrl-C" in shown and not asked:
                os.write(terminal, b"\x03")
                asked = True
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    assert b"nothing is left behind" in shown and b"ended with 0" in shown, shown.decode()


def test_asking_twice_stops_at_once(start: Callable[..., Up]) -> None:
    up = start("--engine", "fake").serving()
    gateway = next(service for service in up.mesh()["services"] if service["service"] == "gateway")
    os.kill(gateway["pid"], signal.SIGSTOP)  # it will not stop when asked
    up.process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    up.process.send_signal(signal.SIGINT)
    up.end(5)
    assert alive(up.family) == []


def test_mixed_workers_serve_alone(start: Callable[..., Up]) -> None:
    up = start("--engine", "fake", "--prompt-workers", "0", "--token-workers", "0", "--mixed-workers", "2").serving()
    assert [worker["role"] for worker in up.mesh()["workers"]] == ["mixed", "mixed"]
    assert complete(up.url, "colocated")["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--bogus"], "splitmesh: unknown option --bogus"),
        (["--model", "no-such-model"], "splitmesh: unknown model 'no-such-model'"),
        (["--engine", "fake", "--redis-url", "redis://127.0.0.1:1"], "splitmesh: nothing answers at --redis-url"),
        (["--engine", "fake", "--kv-memory", "100000GiB"], "splitmesh: not enough memory: 2 workers need"),
        (["--prompt-workers", "0"], "splitmesh: nobody could serve"),
    ],
)
def test_what_cannot_work_is_one_line(start: Callable[..., Up], arguments: list[str], complaint: str) -> None:
    up = start(*arguments, environment={"HF_HUB_OFFLINE": "1"})
    assert up.end(START_WITHIN_S) != 0
    assert [line for line in up.said if line.startswith("splitmesh:")] == [up.said[-1]]
    assert up.said[-1].startswith(complaint)


def test_a_port_in_use_is_one_line(start: Callable[..., Up]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = start("--engine", "fake", "--port", str(port))
        assert up.end() != 0
    assert len(up.said) == 1
    assert up.said[0].startswith(f"splitmesh: cannot listen on 127.0.0.1:{port}: Address already in use")
