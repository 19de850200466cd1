"""Who is first, among many whose scores change all the time."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

Score = tuple[float, float]
STALE_KEPT = 64


class Ranked(Protocol):
    """`version` grows with every change of its score; `tie` decides between equal scores."""

    version: int

    @property
    def tie(self) -> tuple[int, str]: ...


Item = TypeVar("Item", bound=Ranked)


class Ranking(Generic[Item]):
    """A heap whose outdated entries are dropped when they come up: a change costs O(log n), and so does the first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, float, tuple[int, str], int, int, Item]] = []
        self._number = 0  # of entries: items are never compared
        self._rebuild_at = STALE_KEPT

    def put(self, score: Score, item: Item) -> None:
        """`item` as of its present version; entries of older versions do not count any more."""
        self._number += 1
        heappush(self._heap, (*score, item.tie, self._number, item.version, item))
        if len(self._heap) > self._rebuild_at:
            self._heap = [entry for entry in self._heap if entry[4] == entry[5].version]
            heapify(self._heap)
            self._rebuild_at = STALE_KEPT + 4 * len(self._heap)

    def first(self, fits: Callable[[Item], bool]) -> Item | None:
        """The item of the smallest score that fits; O(log n) for each one that does not."""
        heap = self._heap
        passed = []
        found = None
        while heap:
            entry = heap[0]
            if entry[4] != entry[5].version:
                heappop(heap)
            elif fits(entry[5]):
                found = entry[5]
                break
            else:
                passed.append(heappop(heap))
        for entry in passed:
            heappush(heap, entry)
        return found
