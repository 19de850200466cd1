"""Roles that move and workers that leave, on real processes under load: nothing fails, nothing restarts."""

import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from services.local.__main__ import run
from tests.support.running import RunningMesh

pytestmark = pytest.mark.system

OPTIONS = (
    "--engine", "paced", "--paced-model", "prefill_ms=5,0.05,0 decode_ms=10,0,0.1", "--prompt-workers", "2",
    "--token-workers", "2", "--pool-managers", "2",
)  # fmt: skip
CLIENTS = 6
TOKENS = 40


class Load:
    """Clients that ask again as soon as they were answered."""

    def __init__(self, mesh: RunningMesh) -> None:
        self._mesh = mesh
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]
        self.answered = 0
        self.failures: list[str] = []

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        body = {"model": "bytes", "prompt": f"client {number} " * 20, "max_tokens": TOKENS, "ignore_eos": True}
        while not self._over.is_set():
            try:
                answer = self._mesh.post("/v1/completions", body, timeout_s=30.0)
                assert answer["usage"]["completion_tokens"] == TOKENS
                self.answered += 1
            except Exception as error:
                self.failures.append(repr(error))


@contextmanager
def under_load(mesh: RunningMesh) -> Iterator[Load]:
    load = Load(mesh)
    load.start()
    try:
        mesh.wait_for(lambda: load.answered >= CLIENTS, 20, "the first answers")
        yield load
    finally:
        load.stop()


def worker(mesh: RunningMesh, name: str) -> dict[str, Any]:
    (found,) = [w for w in mesh.ready_workers() if w["id"].startswith(name + ".")]
    return found


def changes(mesh: RunningMesh) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mesh.get("/mesh")["role_changes"]
    return found


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(arguments) == 0
    return capsys.readouterr().out


def active_manager(mesh: RunningMesh) -> str:
    said = [found[1] for line in mesh.lines if (found := re.match(r"(pool-manager-\d) \| .*\bactive\b", line))]
    return said[-1] if said else ""


def test_roles_and_drain_by_hand_and_a_pool_manager_that_dies(capsys: pytest.CaptureFixture[str]) -> None:
    with RunningMesh(*OPTIONS) as mesh:
        mesh.wait_for(lambda: bool(active_manager(mesh)), 10, "an active pool manager")
        with under_load(mesh) as load:
            a_role_changes_at_once(mesh, capsys)
            a_standby_takes_over(mesh, capsys)
            a_drained_worker_stays_away(mesh)
            answered = load.answered
            mesh.wait_for(lambda: load.answered > answered + 2 * CLIENTS, 20, "answers after all that")
        assert load.failures == []
        mesh.settle()


def a_role_changes_at_once(mesh: RunningMesh, capsys: pytest.CaptureFixture[str]) -> None:
    before = worker(mesh, "token-0")
    asked_at = time.monotonic()
    said = command(capsys, "role", "token-0", "prompt", "--url", mesh.url)
    assert time.monotonic() - asked_at < 2.0
    assert said.startswith(f"{before['id']}: token → prompt within ")
    after = worker(mesh, "token-0")
    assert (after["id"], after["pid"], after["role"]) == (before["id"], before["pid"], "prompt")
    mesh.wait_for(lambda: bool(changes(mesh)), 2, "the event")
    (event,) = changes(mesh)
    assert (event["worker"], event["was"], event["role"]) == (before["id"], "token", "prompt")
    with urllib.request.urlopen(mesh.url + "/metrics", timeout=5) as answer:
        assert 'splitmesh_role_changes_total{from="token",to="prompt"} 1.0' in answer.read().decode()


def a_standby_takes_over(mesh: RunningMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """The token pool loses its last worker just when the manager is dead that would have to repair it."""
    dead = active_manager(mesh)
    mesh.signal(dead, 9)
    leaving = worker(mesh, "token-1")
    said = command(capsys, "drain", "token-1", "--url", mesh.url)
    assert said.splitlines()[-1].startswith(f"{leaving['id']} has left after ")
    mesh.wait_for(lambda: not psutil.pid_exists(leaving["pid"]), 5, "the drained process to end")
    mesh.wait_for(lambda: len(changes(mesh)) == 2, 10, "a repair")
    repair = changes(mesh)[0]
    assert repair["role"] == "token" and "the token pool lost its last worker" in repair["reason"]


def a_drained_worker_stays_away(mesh: RunningMesh) -> None:
    mesh.wait_for(lambda: any("token-1 has left; it is not started again" in line for line in mesh.lines), 5)
    time.sleep(1.0)
    assert not [w for w in mesh.ready_workers() if w["id"].startswith("token-1.")]
