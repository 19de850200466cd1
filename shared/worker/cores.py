"""On which cores the engine of a worker computes: its own, and those that a neighbour has nothing to compute on.

Each compute thread has a core to itself where it can: left to the kernel, two of them may share one for seconds while
another core idles.
"""

from collections.abc import Callable, Sequence

from shared.runtime.core_board import CoreBoard

UseThreads = Callable[[int], None]
Place = Callable[[Sequence[frozenset[int]]], None]


class Cores:
    """`adjust` is for the engine thread; the others for the event loop, while no step runs.

    own: ascending, at least one. threads: as many compute on own cores. place: see shared.engine.openmp.
    """

    def __init__(self, own: tuple[int, ...], threads: int, board: CoreBoard | None, place: Place) -> None:
        self.own, self._threads, self._board, self._place = own, threads, board, place
        self._in_use: tuple[int, ...] | None = None  # lent cores for which everything is set

    def adjust(self, use_threads: UseThreads, *, lent: bool = True) -> float:
        """Before a step, and between two layers: compute on own cores and, if `lent`, on those that can be borrowed.
        Returns with how many times the own threads."""
        borrowed = self._board.claim() if self._board is not None and lent else ()
        if borrowed != self._in_use:
            self._place(self._places(borrowed))
            use_threads(self._threads + len(borrowed))
            self._in_use = borrowed
        return 1.0 + len(borrowed) / self._threads

    def rest(self) -> None:
        """There is nothing to compute: neighbours may have the cores."""
        if self._board is not None:
            self._board.rest()

    def close(self) -> None:
        if self._board is not None:
            self._board.rest()
            self._board.close()
            self._board = None

    def _places(self, borrowed: tuple[int, ...]) -> list[frozenset[int]]:
        own = frozenset(self.own)
        exact = [frozenset({core}) for core in self.own] if self._threads == len(own) else [own] * self._threads
        places = exact + [frozenset({core}) for core in borrowed]
        if len(places) > 2:
            # A library may shrink its team for one operation and make new threads for the next; these begin where
            # the engine thread may be. (Down to one, and up to two again, keeps the second.)
            places[0] = own.union(borrowed)
        return places
