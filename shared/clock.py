"""The clock port: monotonic seconds. The wire carries durations, never points in time."""

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds on this process's monotonic clock; only differences mean anything."""
        ...


class SystemClock:
    def now(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that tests and the simulator move by hand."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds
