"""Downloads a public trace: to a temporary name, checked, then renamed, so that a file by the final name is whole."""

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from loadgen.traces.catalogue import SOURCES, Source
from shared.errors import ConfigError

TIMEOUT_S = 30.0  # without a byte
PIECE_BYTES = 1 << 18


def fetch(name: str, console: Console, *, url: str | None = None, out: Path | None = None) -> Path:
    """Raises ConfigError, and leaves no file, when it cannot be had whole and as published."""
    source = SOURCES.get(name)
    if source is None:
        raise ConfigError(f"no public trace is named {name!r}; known are {', '.join(SOURCES)}")
    address = url or source.url
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--url must begin with http:// or https://, not {address!r}")
    path = out or Path(source.file_name)
    if source.sha256 is not None and path.is_file() and _sha256_of(path) == source.sha256:
        console.print(f"{path} is here already, and is the published file", soft_wrap=True)
        return path
    found = _download(name, address, path, source, console)
    if source.sha256 is None:
        console.print(f"{path}: SHA-256 {found}; no checksum is pinned to compare it with", soft_wrap=True)
    else:
        console.print(f"{path}: the published file (SHA-256 {found})", soft_wrap=True)
    console.print(f"{source.licence}", soft_wrap=True)
    return path


def _download(name: str, address: str, path: Path, source: Source, console: Console) -> str:
    """Returns the SHA-256 of what is at `path` now."""
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise ConfigError(f"cannot write into {path.parent}: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            found = _copy(name, address, file, source, console)
        if source.sha256 not in (None, found):
            raise ConfigError(f"{name}: {address} is not the published file: SHA-256 {found}, not {source.sha256}")
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
    finally:  # also on Ctrl-C
        Path(partial).unlink(missing_ok=True)
    return found


def _copy(name: str, address: str, file: IO[bytes], source: Source, console: Console) -> str:
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response, _bar(console) as progress:
            length = response.headers.get("Content-Length")
            total = int(length) if length else source.size_bytes
            task = progress.add_task(name, total=total)
            received = 0
            while piece := response.read(PIECE_BYTES):
                file.write(piece)
                digest.update(piece)
                received += len(piece)
                progress.update(task, completed=received)
    except urllib.error.HTTPError as error:
        raise ConfigError(
            f"{address}: HTTP {error.code} {error.reason}; give the file's new place with --url"
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise ConfigError(_out_of_reach(name, address, error)) from error
    if length and received != int(length):
        raise ConfigError(f"{address}: broke off after {received:,} of {int(length):,} bytes; try again")
    return digest.hexdigest()


def _out_of_reach(name: str, address: str, error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    made = " or --trace azure-conv" if name.startswith("azure-conv") else ""
    made = " or --trace azure-code" if name.startswith("azure-code") else made
    return f"cannot reach {address} ({reason}); bring the file from elsewhere and give --trace FILE{made}"


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console
    )


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
