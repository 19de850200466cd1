"""A real Redis for tests: killed, stopped and emptied at will, gone when the test ends."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from services.local.embedded_redis import EmbeddedRedis


class RedisServer:
    """One server on a private unix socket; `url` stays valid over restarts, and so does its append-only file.
    `binary`: another than that of the mesh."""

    def __init__(self, binary: str | None = None) -> None:
        self._embedded = EmbeddedRedis()
        if binary is not None:
            self._embedded.command[0] = binary
        self.url = self._embedded.url
        self.directory: Path = self._embedded.directory
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._embedded.command, stdout=subprocess.DEVNULL)
        for _ in range(500):
            try:
                self.client().ping()
                return
            except redis.RedisError:
                time.sleep(0.01)
        raise RuntimeError("the Redis server does not answer")

    def client(self) -> "redis.Redis":
        return redis.Redis.from_url(self.url, socket_timeout=2, protocol=2)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        self._embedded.remove()


@pytest.fixture(scope="session")
def redis_session() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def system_redis_session() -> Iterator[RedisServer]:
    """The Redis that this machine's system has, which is a newer one: versions answer differently."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on PATH (Debian: apt-get install redis-server); the embedded one is tested anyway")
    server = RedisServer(binary)
    yield server
    server.close()


@pytest.fixture
def system_redis_url(system_redis_session: RedisServer) -> str:
    system_redis_session.client().flushall()
    return system_redis_session.url


@pytest.fixture
def redis_url(redis_session: RedisServer) -> str:
    """An empty Redis, shared by tests that do it no harm."""
    redis_session.client().flushall()
    return redis_session.url


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of the test's own, to be killed, paused or emptied."""
    server = RedisServer()
    yield server
    server.close()
