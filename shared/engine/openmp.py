"""Where the threads of an OpenMP team run: each on cores of its own.

OpenMP places threads only when a process starts. Later, a thread can only be placed by itself; so all of the team run a
few lines of Python once, whenever their places change.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

_LIBRARIES = ("libgomp", "libiomp", "libomp")
_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Team:
    """The threads that compute for the one thread that calls `place`. None is made before it is needed."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._places: tuple[frozenset[int], ...] = ()

    def place(self, places: Sequence[frozenset[int]]) -> None:
        """Thread i of the team, the caller being 0, on the cores `places[i]`; as many threads as there are places."""
        wanted, known = tuple(places), self._places[: len(places)]
        if wanted[1:] != known[1:]:
            self._place_all(wanted)
        elif wanted != known:
            os.sched_setaffinity(0, wanted[0])
        # Who is left over ends with the next region, except that a lone caller runs none: then all of them stay.
        self._places = wanted if len(wanted) > 1 else (*wanted, *self._places[1:])

    def _place_all(self, places: tuple[frozenset[int], ...]) -> None:
        def place_me(_: object) -> None:
            os.sched_setaffinity(0, places[self._library.omp_get_thread_num()])

        self._library.GOMP_parallel(_REGION(place_me), None, len(places), 0)


def find_team() -> Team | None:
    """Of the OpenMP library in this process; None if there is none, or none whose interface is known."""
    path = library_path()
    library = ctypes.CDLL(str(path)) if path else None
    return Team(library) if library is not None and hasattr(library, "GOMP_parallel") else None


def library_path() -> Path | None:
    """Where the OpenMP library lies that torch has brought into this process."""
    paths = (Path(line.split(maxsplit=5)[-1]) for line in Path("/proc/self/maps").read_text().splitlines())
    return next((path for path in paths if path.name.startswith(_LIBRARIES)), None)
