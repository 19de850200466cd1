"""Directories that are built once: what `stored` returns is complete and unchanged since it was built.

A directory appears by one rename, with a manifest of the size and hash of every file; whatever does not match its
manifest is thrown away and built again. A lock file lets one process build while the others wait.
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

from shared.errors import ConfigError
from shared.models.progress import Progress

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20


def stored(path: Path, version: str, build: Callable[[Path], None], progress: Progress) -> Path:
    """`path`, with what `build(directory)` made of `version`. Raises ConfigError for a full disk and the like."""
    try:
        if _intact(path, version):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock"), progress):
            if not _intact(path, version):
                _build(path, version, build)
    except OSError as error:
        raise ConfigError(
            f"cannot store the model in {path}: {error.strerror or error}; point SPLITMESH_CACHE to a place with room"
        ) from error
    return path


def _build(path: Path, version: str, build: Callable[[Path], None]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    partial.mkdir()
    try:
        build(partial)
        files = {file.name: _fingerprint(file) for file in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps({"version": version, "files": files}, indent=1))
        _remove(path)
        partial.rename(path)
    finally:
        _remove(partial)


def _intact(path: Path, version: str) -> bool:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["version"] != version:
            return False
        sizes_match = all((path / name).stat().st_size == want[0] for name, want in manifest["files"].items())
        return sizes_match and all(_fingerprint(path / name) == want for name, want in manifest["files"].items())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _fingerprint(path: Path) -> list[int | str]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return [path.stat().st_size, digest.hexdigest()]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Held by this process until the end; the kernel lets go of it if the process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that prepares the model", 0, 0)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
