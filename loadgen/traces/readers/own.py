"""Our own format: one request a line, its fields those of loadgen.traces.trace.Request. Time and lengths are always
there, the rest where it is not the default. Reading what was written gives equal requests.
"""

import dataclasses
from pathlib import Path
from typing import Any

import orjson

from loadgen.traces.readers.lines import Line, json_lines
from loadgen.traces.trace import Request, Trace
from shared.errors import ConfigError

_FIELDS = {field.name: field.default for field in dataclasses.fields(Request)}


def read(path: Path, *, limit: int | None = None) -> Trace:
    requests: list[Request] = []
    for line in json_lines(path):
        requests.append(_request(line, requests))
        if len(requests) == limit:
            break
    if not requests:
        raise ConfigError(f"{path}: no request in it")
    return Trace(name=path.stem, requests=tuple(requests))


def write(trace: Trace, path: Path) -> None:
    try:
        with path.open("wb") as file:
            for request in trace.requests:
                file.write(orjson.dumps(_fields(request)) + b"\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def _fields(request: Request) -> dict[str, Any]:
    values = {name: getattr(request, name) for name in _FIELDS}
    return {name: value for name, value in values.items() if value != _FIELDS[name]}


def _request(line: Line, before: list[Request]) -> Request:
    unknown = sorted(line.fields.keys() - _FIELDS.keys())
    if unknown:
        line.complain(f"unknown field {unknown[0]!r}; known are {', '.join(_FIELDS)}")
    carries = line.fields.get("carries", False)
    if not isinstance(carries, bool):
        line.complain(f"carries is {carries!r}, not true or false")
    request = Request(
        at_s=line.number_of("at_s"),
        prompt_tokens=line.whole("prompt_tokens", least=1),
        output_tokens=line.whole("output_tokens", least=1),
        blocks=line.whole_list("blocks"),
        block_tokens=line.whole("block_tokens", least=0, default=0),
        after=None if line.fields.get("after") is None else line.whole("after", least=0),
        think_s=line.number_of("think_s", default=0.0),
        carries=carries,
    )
    if before and request.at_s < before[-1].at_s:
        line.complain(f"at_s is {request.at_s}, before the {before[-1].at_s} of the request above")
    if request.after is not None and request.after >= len(before):
        line.complain(f"after is {request.after}, but {len(before)} requests come before")
    if request.carries and request.after is None:
        line.complain("carries without after")
    if request.blocks and not request.block_tokens:
        line.complain("blocks without block_tokens")
    return request
