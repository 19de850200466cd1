"""A board in memory that the workers of one machine share: for every core, who computes on it now.

    a core's own worker    starts a step → its number; has nothing to compute → idle
    a neighbour            sees idle → its own number; sees another number than that → it leaves the core

There are no locks: two who write at once may share a core until both have looked again, which is one layer. A worker
that died on its own core leaves it taken, one that died on a lent core leaves its number there: both only keep others
from borrowing, until the worker is back or the core's own worker computes.
"""

import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from shared.errors import ConfigError

IDLE, UNLENT = 0, 0xFFFF  # unlent: nobody's to lend, or of a worker that has not started yet
ENTRY_BYTES = 2


class BoardFile:
    """The memory behind a board, for as long as this process lives; nothing of it is in a file system."""

    def __init__(self, cores: Iterable[int]) -> None:
        """For cores up to the highest of these."""
        self._file = os.memfd_create("splitmesh-cores")
        os.write(self._file, UNLENT.to_bytes(ENTRY_BYTES, sys.byteorder) * (max(cores) + 1))
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"

    def close(self) -> None:
        """Who has opened the board may go on using it."""
        os.close(self._file)


class CoreBoard:
    """One worker's hands on the board. Its number is its first core, plus one: no two workers own the same core."""

    def __init__(self, path: str, own: tuple[int, ...]) -> None:
        """Own cores are taken from now on. Raises ConfigError if there is no board for them."""
        try:
            with Path(path).open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), 0)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--core-board {path}: {error}", param="core_board") from error
        self._users = memoryview(self._map).cast("H")
        if max(own) >= len(self._users):
            self.close()
            raise ConfigError(f"--core-board {path}: it has no core {max(own)}", param="core_board")
        self._own, self._me = own, own[0] + 1
        self._free(range(len(self._users)))  # what a former life of this worker has left
        self._seen = b""
        self._borrowed: tuple[int, ...] = ()
        self.claim_own()

    def claim_own(self) -> None:
        for core in self._own:
            if self._users[core] != self._me:
                self._users[core] = self._me

    def claim(self) -> tuple[int, ...]:
        """Take the own cores, whoever uses them, and the idle ones of others; the latter, ascending, as of now."""
        if self._map[:] != self._seen:
            self.claim_own()
            for core, user in enumerate(self._users):
                if user == IDLE:
                    self._users[core] = self._me
            self._seen = self._map[:]  # what others write from here on is seen the next time
            users = memoryview(self._seen).cast("H")
            self._borrowed = tuple(c for c, user in enumerate(users) if user == self._me and c not in self._own)
        return self._borrowed

    def rest(self) -> None:
        """Own cores become idle, borrowed ones go back."""
        self._free((*self._own, *self._borrowed))
        self._seen, self._borrowed = b"", ()

    def close(self) -> None:
        self._users.release()
        self._map.close()

    def _free(self, cores: Iterable[int]) -> None:
        for core in cores:
            if self._users[core] == self._me:
                self._users[core] = IDLE
