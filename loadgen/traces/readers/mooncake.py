"""Mooncake traces: timestamp in milliseconds, input_length, output_length, hash_ids of blocks of 512 tokens.

A block's id stands for it and all before it, so equal ids are a shared beginning. The conversation trace tells time in
steps of 3 seconds: replayed as it is, ten requests would come at once and then none; so requests of one step are spread
over it (see loadgen.traces.steps).
"""

from pathlib import Path

import numpy as np

from loadgen.traces import steps
from loadgen.traces.draws import generator
from loadgen.traces.readers.lines import Line, json_lines
from loadgen.traces.trace import Request, Trace
from shared.errors import ConfigError

BLOCK_TOKENS = 512
ENOUGH_ROWS = 2_000  # to see the steps of time, however few requests are wanted


def read(path: Path, *, seed: int, limit: int | None = None) -> Trace:
    times_ms, requests, skipped = _rows(path, limit)
    if not requests:
        raise ConfigError(f"{path}: no request has both a prompt and an answer")
    notes = [f"rows without prompt or answer tokens, skipped: {skipped:,}"] if skipped else []
    order = np.argsort(times_ms, kind="stable")
    if (order[1:] < order[:-1]).any():
        notes.append("rows were not in the order of time: sorted")
    at_s = (np.array(times_ms)[order] - min(times_ms)) / 1000.0
    step_s = steps.found(at_s)
    if step_s is not None:
        at_s = steps.spread(at_s, step_s, generator(seed))
        notes.append(f"times are in steps of {step_s:g} s: requests spread evenly at random over each, seed {seed}")
    placed = tuple(
        Request(
            at_s=float(time_s),
            prompt_tokens=requests[number].prompt_tokens,
            output_tokens=requests[number].output_tokens,
            blocks=requests[number].blocks,
            block_tokens=requests[number].block_tokens,
        )
        for time_s, number in zip(at_s, order, strict=True)
    )
    return Trace(name=path.stem, requests=placed[:limit], notes=tuple(notes))


def _rows(path: Path, limit: int | None) -> tuple[list[float], list[Request], int]:
    """Times, requests that have none yet, and how many lines hold no whole request."""
    times_ms: list[float] = []
    requests: list[Request] = []
    skipped = 0
    for line in json_lines(path):
        request = _request(line)
        if request is None:
            skipped += 1
            continue
        times_ms.append(line.number_of("timestamp"))
        requests.append(request)
        if limit is not None and len(requests) >= max(limit, ENOUGH_ROWS):
            break
    return times_ms, requests, skipped


def _request(line: Line) -> Request | None:
    prompt_tokens = line.whole("input_length", least=0)
    output_tokens = line.whole("output_length", least=0)
    blocks = line.whole_list("hash_ids")
    if not prompt_tokens or not output_tokens:
        return None
    return Request(
        at_s=0.0,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        blocks=blocks,
        block_tokens=BLOCK_TOKENS if blocks else 0,
    )
