"""What container engines ask, over a real socket; and the addresses that names stand for."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest

from services.gateway.__main__ import refuse_default_secret
from shared.errors import ConfigError
from shared.runtime import own_address as own
from shared.runtime.config import Settings
from shared.runtime.launch import DEFAULT_SECRET
from shared.runtime.own_address import is_loopback, own_address
from shared.runtime.probe import answer_probes


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_a_process_lives_before_it_serves(http: aiohttp.ClientSession) -> None:
    port, serving = free_port(), False
    server = await answer_probes(port, lambda: serving)

    async def status(path: str) -> int:
        async with http.get(f"http://127.0.0.1:{port}{path}") as response:
            return response.status

    async with server:
        assert (await status("/health"), await status("/ready"), await status("/")) == (200, 503, 404)
        asked = (sys.executable, "-m", "shared.runtime.probe", str(port))
        assert (await asyncio.to_thread(subprocess.run, asked, capture_output=True)).returncode == 1
        serving = True
        assert await status("/ready") == 200
        assert (await asyncio.to_thread(subprocess.run, asked, capture_output=True)).returncode == 0
        with pytest.raises(ConfigError, match=f"--probe-port {port}: "):
            await answer_probes(port, lambda: True)
    told = await asyncio.to_thread(subprocess.run, asked, capture_output=True, text=True)
    assert (told.returncode, told.stdout.partition(":")[0]) == (1, f"nobody answers on port {port}")


async def test_who_says_nothing_or_nonsense_holds_nobody_up(http: aiohttp.ClientSession) -> None:
    port = free_port()
    async with await answer_probes(port, lambda: True):
        _, silent = await asyncio.open_connection("127.0.0.1", port)
        reader, noisy = await asyncio.open_connection("127.0.0.1", port)
        noisy.write(b"\xff" * 5000 + b"\n")
        assert await reader.read() == b"", "too long a line"
        async with http.get(f"http://127.0.0.1:{port}/health") as response:
            assert response.status == 200
        silent.close()
        noisy.close()


async def test_of_a_name_the_own_address_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async def named(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(None, None, None, "", (ip, 0)) for ip in ("10.9.9.9", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", named, raising=False)
    assert await own_address("mesh") == "127.0.0.1"
    assert await own_address("mesh:7001") == "127.0.0.1:7001"
    assert await own_address("192.0.2.1") == "192.0.2.1", "taken literally, whoever has it"
    assert await own_address("0.0.0.0:7") == "0.0.0.0:7"


async def test_a_name_of_other_machines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def named(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(None, None, None, "", ("192.0.2.1", 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", named, raising=False)
    monkeypatch.setattr(own, "WITHIN_S", 0.3)
    with pytest.raises(ConfigError, match=r"--kv-bind mesh: mesh is 192\.0\.2\.1, and no network interface here"):
        await own_address("mesh", param="kv_bind")


def test_loopback() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.0.1", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "mesh")] == [False] * 3


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"mesh_secret": DEFAULT_SECRET, "host": "127.0.0.1"}, False),
        ({"mesh_secret": DEFAULT_SECRET, "host": "0.0.0.0", "published": "127.0.0.1"}, False),
        ({"mesh_secret": DEFAULT_SECRET, "host": "0.0.0.0"}, True),
        ({"mesh_secret": DEFAULT_SECRET, "host": "0.0.0.0", "published": "192.0.2.1"}, True),
        ({"mesh_secret": "own", "host": "0.0.0.0"}, False),
        ({"mesh_secret": "own", "host": "0.0.0.0", "redis_url": f"redis://:{DEFAULT_SECRET}@redis:6379/0"}, True),
    ],
)
def test_the_default_secret_is_for_this_machine_alone(settings: dict[str, str], refused: bool) -> None:
    if not refused:
        refuse_default_secret(Settings(**settings))
        return
    with pytest.raises(ConfigError, match="with the default secret: set SPLITMESH_MESH_SECRET and"):
        refuse_default_secret(Settings(**settings))
