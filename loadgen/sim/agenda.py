"""Simulated time: what happens when, in the order of (time, number), so that equal runs are equal event by event."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Action = Callable[[Any], None]


class Agenda:
    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Action, Any]] = []
        self._number = 0

    def at(self, when_s: float, action: Action, subject: Any = None) -> None:
        """Call `action(subject)` then; never before now."""
        self._number += 1
        heappush(self._heap, (when_s if when_s > self.now else self.now, self._number, action, subject))

    def run(self) -> None:
        """Until nothing is left to happen."""
        heap = self._heap
        while heap:
            self.now, _, action, subject = heappop(heap)
            action(subject)
