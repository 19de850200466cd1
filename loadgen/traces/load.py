"""A trace by its name or file, and the one way from command-line options to the trace that is sent."""

import argparse
import dataclasses
import difflib
from pathlib import Path

from loadgen.traces import presets, scale, synth
from loadgen.traces.catalogue import SOURCES
from loadgen.traces.readers import azure, burstgpt, mooncake, own, sharegpt
from loadgen.traces.trace import Trace
from loadgen.traces.wanted import FORMATS, OPTIONS, Wanted, wanted
from shared.errors import ConfigError

NAMES = (*synth.NAMES, *presets.PRESETS)
FIRST_BYTES = 65_536
_COUNT_ONLY = frozenset({"requests"})


def from_arguments(
    namespace: argparse.Namespace, *, name: str | None = None, length_scale: float | None = None
) -> Trace:
    """Loads and scales as the options of loadgen.traces.wanted.add_arguments say, or as the caller knows better."""
    trace = load(
        name or namespace.trace,
        format=namespace.format,
        seed=namespace.seed,
        options=wanted(namespace),
        limit=namespace.limit,
    )
    trace = scale.scale_rate(trace, 1.0 if namespace.rate_scale is None else namespace.rate_scale)
    return scale.scale_lengths(trace, length_scale or namespace.length_scale or 1.0)


def load(
    name_or_file: str,
    *,
    format: str | None = None,  # noqa: A002
    seed: int = 0,
    options: Wanted | None = None,
    limit: int | None = None,
) -> Trace:
    """A built-in name wins over a file, unless a format is given. Raises ConfigError for what is neither, for a file
    that cannot be read as the format says, and for options that such a trace has no use for."""
    options = options or Wanted()
    if format is None and name_or_file in NAMES:
        trace = _built_in(name_or_file, seed, options)
        return trace if limit is None else scale.limit(trace, limit)
    path = Path(name_or_file)
    if not path.is_file():
        raise ConfigError(_unknown(name_or_file, path))
    return _read(path, format or detect(path), seed, options, limit)


def detect(path: Path) -> str:
    """The format of a file by its first line. Raises ConfigError when it is none of ours."""
    try:
        with path.open("rb") as file:
            first = file.read(FIRST_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0].lower()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    marks = {
        "azure": (b"timestamp", b"contexttokens", b"generatedtokens"),
        "burstgpt": (b"timestamp", b"request tokens", b"response tokens"),
        "mooncake": (b"{", b'"timestamp"', b'"input_length"'),
        "jsonl": (b"{", b'"at_s"'),
    }
    for name, needed in marks.items():
        if all(mark in first for mark in needed):
            return name
    if first.startswith(b"["):
        return "sharegpt"
    raise ConfigError(f"cannot tell the format of {path}; give --format, one of {', '.join(FORMATS)}")


def _built_in(name: str, seed: int, options: Wanted) -> Trace:
    if name in presets.PRESETS:
        return presets.generate(name, seed=seed, wanted=options)
    _refuse(name, options, _COUNT_ONLY)
    return synth.generate(name, seed=seed, requests=options.requests)


def _read(path: Path, kind: str, seed: int, options: Wanted, limit: int | None) -> Trace:
    _refuse(f"a file of format {kind}", options, sharegpt.TAKES if kind == "sharegpt" else _COUNT_ONLY)
    limit = min((count for count in (limit, options.requests) if count is not None), default=None)
    match kind:
        case "azure":
            trace = azure.read(path, limit=limit)
        case "burstgpt":
            trace = burstgpt.read(path, limit=limit)
        case "mooncake":
            trace = mooncake.read(path, seed=seed, limit=limit)
        case "sharegpt":
            trace = sharegpt.read(path, seed=seed, wanted=options, limit=limit)
        case "jsonl":
            trace = own.read(path, limit=limit)
        case _:
            raise ConfigError(f"unknown format {kind!r}; known are {', '.join(FORMATS)}")
    if len(trace.requests) == limit:
        trace = dataclasses.replace(trace, notes=(*trace.notes, f"at most the first {limit:,} requests"))
    return trace


def _refuse(what: str, options: Wanted, takes: frozenset[str]) -> None:
    for field in OPTIONS:
        if field in options.given() - takes:
            hint = "; --rate-scale changes its rate" if field == "rate_rps" else ""
            hint = "; --length-scale changes its lengths" if field in ("prompt_tokens", "output_tokens") else hint
            raise ConfigError(f"{what} takes no {OPTIONS[field][0]}{hint}")


def _unknown(name: str, path: Path) -> str:
    if path.is_dir():
        return f"{name} is a directory; give a trace file"
    if name in SOURCES:
        return f"{name} is not on this machine: python -m loadgen trace fetch {name}, then give the file's path"
    close = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(close)}? " if close else ""
    return f"no file and no trace is named {name!r}; {guess}names are {', '.join(NAMES)}"
