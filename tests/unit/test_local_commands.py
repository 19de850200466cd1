"""The small commands of `splitmesh`: status, models, doctor, and what is no command."""

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from services.local import doctor
from services.local.__main__ import run
from services.local.models import models
from services.local.status import status
from shared.runtime.supervise import Supervisor

ROOT = Path(__file__).parents[2]
MESH = {
    "version": "0.1.0",
    "models": ["m"],
    "workers": [
        {"id": "token-10.a1b2c3", "service": "token_worker", "pid": 1234567, "role": "token", "pool": "mixed",
         "state": "ready", "model": "m", "queue_tokens": 12, "running": 3, "kv_blocks_total": 100, "kv_blocks_used": 25,
         "kv_blocks_cached": 0, "kv_blocks_leaked": 0, "transport": "ucx", "cores": "0-1"},
    ],
    "services": [{"id": "gateway-0.b2", "service": "gateway", "pid": 8, "state": "ready"}],
}  # fmt: skip


@pytest.fixture
def gateway() -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/mesh" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(MESH).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def screen() -> Console:
    return Console(file=io.StringIO(), width=160)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_status_shows_workers_and_services(gateway: str) -> None:
    console = screen()
    assert status(["--url", gateway], console) == 0
    for text in ("token-10.a1b2c3", "mixed", "25/100", "ucx", "0-1", "gateway-0.b2", "0.1.0"):
        assert text in shown(console)
    assert max(map(len, shown(console).splitlines())) <= 80


def test_a_reader_that_leaves_early_is_no_error(gateway: str) -> None:
    command = f"{sys.executable} -m services.local status --json --url {gateway} | true"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_status_as_json_is_what_the_mesh_answers(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--json", "--url", gateway + "/"]) == 0
    assert json.loads(capsys.readouterr().out) == MESH


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["status", "--url", "http://127.0.0.1:1"], "no mesh answers at http://127.0.0.1:1/mesh"),
        (["status", "--colour"], "unrecognized arguments: --colour; see splitmesh status --help"),
        (["down"], "unknown command 'down'; known are up, status, role, drain, models, doctor"),
        (["up", "--bogus"], "unknown option --bogus; see splitmesh up --help"),
        (["up", "--port", "high"], "--port 'high': give a whole number from 0 to 65535"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"splitmesh: {complaint}")
    assert said.count("\n") == 1


def test_a_gateway_without_the_page_is_named(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--url", gateway + "/elsewhere"]) == 2
    assert "answers 404" in capsys.readouterr().err


def test_no_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "splitmesh COMMAND" in capsys.readouterr().out


def test_models_says_what_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPLITMESH_CACHE", str(tmp_path))
    console = screen()
    assert models([], console) == 0
    assert "smollm2-135m-instruct" in shown(console) and "fetched by the first" in shown(console)


async def test_doctor_speaks_to_the_embedded_redis() -> None:
    async with Supervisor() as supervisor:
        (finding,) = await doctor.redis(supervisor)
    assert finding.level == "ok" and "ping" in finding.text


async def test_doctor_notices_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPLITMESH_CACHE", str(tmp_path / "file" / "cache"))
    async with Supervisor() as supervisor:
        (finding,) = await doctor.cache(supervisor)
        assert finding.level == "failed"
        monkeypatch.setenv("SPLITMESH_CACHE", str(tmp_path / "cache"))
        (finding,) = await doctor.cache(supervisor)
        assert finding.level == "ok"


async def test_doctor_knows_versions_and_the_machine() -> None:
    async with Supervisor() as supervisor:
        found = {finding.subject: finding for finding in await doctor.versions(supervisor)}
        found |= {finding.subject: finding for finding in await doctor.machine(supervisor)}
    assert found["redis"].text.startswith("8.")
    assert int(found["cores"].text) >= 1


async def test_doctor_tries_both_transports() -> None:
    async with Supervisor() as supervisor:
        found = {finding.subject: finding for finding in await doctor.transports(supervisor)}
    assert list(found) == ["ucx", "tcp"]
    assert found["tcp"].level == "ok" and "GB/s" in found["tcp"].text
    assert found["ucx"].level in ("ok", "remark")
