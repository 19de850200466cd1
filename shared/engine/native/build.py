"""Compile the kernels for this processor, once: `python -m shared.engine.native.build` does so ahead of time."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from shared.cache import default_cache

HERE = Path(__file__).parent
SOURCES = ("attention.c", "decode.c", "layer.c", "few_rows.c")
HEADERS = ("attention.h", "numbers.h")
# Not -ffast-math: the exponential counts on exact rounding. OpenMP's own library is not linked: it is torch's.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-strict-aliasing", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
LIMIT_S = 120


class NoKernels(Exception):
    """They cannot be compiled here; the message says why in one line."""


def library() -> Path:
    """The compiled library, from the cache if it is there. Raises NoKernels."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoKernels("no C compiler")
    folder = default_cache() / "kernels"
    path = folder / f"{_key(compiler)}.so"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                _compile(compiler, Path(scratch), path)
        except OSError as error:
            raise NoKernels(f"{compiler}: {error.strerror or error}") from error
    return path


def _key(compiler: str) -> str:
    """Changes with the sources, the flags, the compiler and the processor."""
    parts = [(HERE / name).read_bytes() for name in (*SOURCES, *HEADERS)]
    return hashlib.sha256(b"\0".join([*parts, " ".join((compiler, *FLAGS)).encode(), _processor()])).hexdigest()[:24]


def _processor() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return b""
    return b"\n".join(next((line for line in lines if line.startswith(key)), b"") for key in (b"model name", b"flags"))


def _compile(compiler: str, scratch: Path, path: Path) -> None:
    """Into `scratch`, then moved: a second process that compiles meanwhile does no harm."""
    objects = [scratch / f"{name}.o" for name in SOURCES]
    for source, compiled in zip(SOURCES, objects, strict=True):
        _run(compiler, *FLAGS, "-c", str(HERE / source), "-o", str(compiled))
    _run(compiler, "-shared", *map(str, objects), "-o", str(scratch / path.name), "-lm")
    (scratch / path.name).replace(path)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise NoKernels(f"{command[0]} takes more than {LIMIT_S} s") from error
    if done.returncode != 0:
        raise NoKernels(f"{command[0]}: {(done.stderr.splitlines() or ['failed'])[0][:200]}")


if __name__ == "__main__":
    try:
        print(library())
    except NoKernels as error:
        raise SystemExit(f"splitmesh: the kernels cannot be compiled: {error}") from error
