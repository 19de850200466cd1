"""A mesh of real processes, started the way a user starts it, looked at through its API, ended as Ctrl-C would."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
START_S = 120.0


class RunningMesh:
    """`with RunningMesh("--engine", "fake") as mesh:` then `mesh.url`, `mesh.workers()`, `mesh.kill("token-0")`."""

    def __init__(
        self,
        *options: str,
        api_key: str | None = None,
        environment: dict[str, str] | None = None,
        start_s: float = START_S,
    ) -> None:
        self._options = options + (("--api-key", api_key) if api_key else ())
        self._headers = {"content-type": "application/json"} | (
            {"authorization": f"Bearer {api_key}"} if api_key else {}
        )
        self._environment = environment or {}
        self._start_s = start_s
        self.lines: list[str] = []
        self.url = ""

    def __enter__(self) -> "RunningMesh":
        own = {k: v for k, v in os.environ.items() if not k.startswith("SPLITMESH_") or k == "SPLITMESH_CACHE"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.local", "up", "--port", "0", *self._options],
            cwd=ROOT,
            env={**own, "HF_HUB_OFFLINE": "1", **self._environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.wait_for(lambda: bool(self.url) or self.process.poll() is not None, self._start_s, "a URL")
            assert self.url, "the mesh did not start:\n" + "".join(self.lines[-40:])
        except BaseException:
            self._end()
            raise
        self.processes = {p.pid: p for p in psutil.Process(self.process.pid).children(recursive=True)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            print("".join(self.lines[-60:]))
        exit_code = self._end()
        left = [p for p in self.processes.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        for process in left:
            process.kill()
        if kind is None:
            assert exit_code == 0, f"exit code {exit_code}:\n" + "".join(self.lines[-40:])
            assert not left, f"processes left behind: {left}"

    def _end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            exit_code = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            exit_code = self.process.wait()
        self._reader.join(5)
        if self.process.stdout:
            self.process.stdout.close()
        return exit_code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if "serving at" in line:
                self.url = next(word for word in line.split() if word.startswith("http")).removesuffix("/v1")

    # ---- looking ----

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 10.0, what: str = "") -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {timeout_s} s for {what or condition}\n" + "".join(self.lines[-30:]))
            time.sleep(0.05)

    def get(self, path: str) -> Any:
        request = urllib.request.Request(self.url + path, headers=self._headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: dict[str, Any], timeout_s: float = 120.0) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), self._headers)
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.loads(answer.read())

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    @property
    def model(self) -> str:
        name: str = self.get("/v1/models")["data"][0]["id"]
        return name

    def workers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/mesh")["workers"]
        return found

    def pid(self, name: str) -> int:
        """Of a worker or service by its plain name (`token-0`, `router-0`)."""
        mesh = self.get("/mesh")
        members = [m for m in mesh["workers"] + mesh["services"] if m["state"] != "lost"]
        return int(next(m["pid"] for m in members if m["id"].split(".")[0] == name))

    def redis_pid(self) -> int:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(p.pid for p in children if "redis" in " ".join(p.cmdline()[:1]) or "redis-server" in p.name())

    def signal(self, name: str, number: int) -> int:
        pid = self.redis_pid() if name == "redis" else self.pid(name)
        os.kill(pid, number)
        return pid

    def ready_workers(self) -> Sequence[dict[str, Any]]:
        return [w for w in self.workers() if w["state"] == "ready"]

    def settle(self, timeout_s: float = 10.0) -> None:
        """All blocks of all workers free, none leaked."""

        def free() -> bool:
            workers = self.ready_workers()
            return bool(workers) and all(w["kv_blocks_used"] == w["kv_blocks_cached"] for w in workers)

        self.wait_for(free, timeout_s, "all KV blocks to be free")
        assert all(w["kv_blocks_leaked"] == 0 for w in self.workers())
