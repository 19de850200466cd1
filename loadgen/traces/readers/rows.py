"""From columns of a file to a trace of requests that are due at fixed times."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadgen.traces.trace import Request, Trace
from shared.errors import ConfigError

Ints = NDArray[np.int64]


class Rows:
    """Gathers pieces until there are `limit` rows with a prompt and an answer; the others are skipped and counted."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._times: list[Ints] = []
        self._prompts: list[Ints] = []
        self._outputs: list[Ints] = []
        self._kept = 0
        self._skipped = 0

    @property
    def full(self) -> bool:
        return self._limit is not None and self._kept >= self._limit

    def add(self, time_ns: Ints, prompt_tokens: Ints, output_tokens: Ints) -> None:
        good = np.flatnonzero((prompt_tokens > 0) & (output_tokens > 0))
        seen = len(time_ns)
        if self._limit is not None and self._kept + len(good) >= self._limit:
            good = good[: self._limit - self._kept]
            seen = int(good[-1]) + 1 if len(good) else 0
        self._skipped += seen - len(good)
        self._kept += len(good)
        self._times.append(time_ns[good])
        self._prompts.append(prompt_tokens[good])
        self._outputs.append(output_tokens[good])

    def trace(self, path: Path, notes: Iterable[str] = ()) -> Trace:
        """Times count from the first request; the order is that of time."""
        if not self._kept:
            raise ConfigError(f"{path}: no row has both a prompt and an answer")
        said = list(notes)
        if self._skipped:
            said.append(f"rows without prompt or answer tokens, skipped: {self._skipped:,}")
        time_ns = np.concatenate(self._times)
        order = np.argsort(time_ns, kind="stable")
        if (order[1:] < order[:-1]).any():
            said.append("rows were not in the order of time: sorted")
        at_s = ((time_ns[order] - time_ns[order[0]]) / 1e9).tolist()
        prompts = np.concatenate(self._prompts)[order].tolist()
        outputs = np.concatenate(self._outputs)[order].tolist()
        requests = tuple(
            Request(at_s=t, prompt_tokens=p, output_tokens=o) for t, p, o in zip(at_s, prompts, outputs, strict=True)
        )
        return Trace(name=path.stem, requests=requests, notes=tuple(said))
