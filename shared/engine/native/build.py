"""Compile the kernels for this processor, once: `python -m shared.engine.native.build` does so ahead of time.

With `--portable` it compiles them for several processors, into the package itself, for images that have no compiler.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from shared.cache import default_cache

HERE = Path(__file__).parent
SOURCES = ("attention.c", "decode.c", "layer.c", "few_rows.c")
HEADERS = ("attention.h", "numbers.h")
# Not -ffast-math: the exponential counts on exact rounding. OpenMP's own library is not linked: it is torch's.
FLAGS = ("-O3", "-fopenmp", "-fno-strict-aliasing", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
NATIVE = ("-march=native",)
LIMIT_S = 120
PORTABLE = HERE / "portable"
_V4 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
# What to compile for, the best first: (name, flags, what /proc/cpuinfo must list).
LEVELS: dict[str, tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]] = {
    "x86_64": (
        ("bfloat16", ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"), (*_V4, "avx512_vnni", "avx512_bf16")),
        ("bytes", ("-march=x86-64-v4", "-mavx512vnni"), (*_V4, "avx512_vnni")),
        ("wide", ("-march=x86-64-v4",), _V4),
        ("narrow", ("-march=x86-64-v3",), ("avx2", "fma", "bmi2", "f16c")),
    ),
    "aarch64": (("any", (), ()),),
}


class NoKernels(Exception):
    """They cannot be compiled here; the message says why in one line."""


def library() -> Path:
    """The compiled library: for this very processor, from the cache if it is there, or a portable one. Raises
    NoKernels."""
    try:
        return _own()
    except NoKernels:
        found = _portable()
        if found is None:
            raise
        return found


def _compiler() -> str:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoKernels("no C compiler")
    return compiler


def _portable() -> Path | None:
    listed = set(_processor().decode(errors="replace").split())
    for name, _, needed in LEVELS.get(platform.machine(), ()):
        if listed.issuperset(needed) and (path := PORTABLE / f"{name}.so").is_file():
            return path
    return None


def build_portable() -> list[Path]:
    """Into the package's own directory. Raises NoKernels."""
    PORTABLE.mkdir(exist_ok=True)
    made = []
    for name, flags, _ in LEVELS.get(platform.machine(), ()):
        made.append(PORTABLE / f"{name}.so")
        with tempfile.TemporaryDirectory(dir=PORTABLE) as scratch:
            _compile(_compiler(), flags, Path(scratch), made[-1])
    return made


def _own() -> Path:
    compiler, folder = _compiler(), default_cache() / "kernels"
    path = folder / f"{_key(compiler)}.so"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                _compile(compiler, NATIVE, Path(scratch), path)
        except OSError as error:
            raise NoKernels(f"{compiler}: {error.strerror or error}") from error
    return path


def _key(compiler: str) -> str:
    """Changes with the sources, the flags, the compiler and the processor."""
    parts = [(HERE / name).read_bytes() for name in (*SOURCES, *HEADERS)]
    return hashlib.sha256(
        b"\0".join([*parts, " ".join((compiler, *FLAGS, *NATIVE)).encode(), _processor()])
    ).hexdigest()[:24]


def _processor() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return b""
    return b"\n".join(next((line for line in lines if line.startswith(key)), b"") for key in (b"model name", b"flags"))


def _compile(compiler: str, processor: tuple[str, ...], scratch: Path, path: Path) -> None:
    """Into `scratch`, then moved: a second process that compiles meanwhile does no harm."""
    objects = [scratch / f"{name}.o" for name in SOURCES]
    for source, compiled in zip(SOURCES, objects, strict=True):
        _run(compiler, *FLAGS, *processor, "-c", str(HERE / source), "-o", str(compiled))
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
        print(*build_portable() if sys.argv[1:] == ["--portable"] else [library()], sep="\n")
    except NoKernels as error:
        raise SystemExit(f"splitmesh: the kernels cannot be compiled: {error}") from error
