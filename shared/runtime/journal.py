"""The journal of one process: every call on its deciders in a file, for `splitmesh replay`.

    DIR/<service id>.journal: frames (shared.wire.frames) of an Opening and then of Records (shared.policy.replay)

A process that is killed loses what came within FLUSH_S before the latest record. The file ends at LIMIT_BYTES, or when
it cannot be written, with one line in the log: the service goes on. Records go into a buffer, and from there into the
page cache of the system, so a directory that hangs (a dead network disk) holds up its process.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

import structlog

from shared.clock import Clock
from shared.errors import ConfigError
from shared.policy.replay import Call, Opening, Record, recorded
from shared.wire.codec import MAX_FRAME_BYTES, pack, unpack
from shared.wire.frames import Splitter, framed
from shared.wire.messages import StreamMessage

log = structlog.get_logger()

FLUSH_S = 0.5
FLUSH_BYTES = 64 << 10
LIMIT_BYTES = 256 << 20
READ_BYTES = 1 << 20

RECORD_TYPES = {cls.__name__: cls for cls in (Opening, Record)}


class Note(Protocol):
    """What deciders were told, and what they answered."""

    def __call__(
        self, call: Call, at: float, message: StreamMessage | None = None, *, subject: str = "", answer: object = None
    ) -> None: ...


def not_noted(*call: object, **named: object) -> None:
    """The Note of a process without a journal."""


@contextmanager
def journal(directory: str | None, opening: Opening, clock: Clock) -> Iterator[Note]:
    """The journal of this process while it lives, in `directory`, if one is given."""
    if directory is None:
        yield not_noted
        return
    path = Path(directory) / f"{opening.service_id}.journal"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb", buffering=0)
    except OSError as error:
        raise ConfigError(f"--journal {directory}: {error.strerror}", param="journal") from error
    written = Journal(path, file, opening, clock)
    log.info("journal", path=str(path))
    try:
        yield written.note
    finally:
        written.close()


class Journal:
    """`limit_bytes` is the most that the file may hold."""

    def __init__(
        self, path: Path, file: BinaryIO, opening: Opening, clock: Clock, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        self._path = path
        self._file: BinaryIO | None = file
        self._clock = clock
        self._left_bytes = limit_bytes
        self._pending = bytearray()
        self._flushed_at = clock.now()
        self._add(framed(pack(opening)))
        self._flush()

    def note(
        self, call: Call, at: float, message: StreamMessage | None = None, *, subject: str = "", answer: object = None
    ) -> None:
        if self._file is None:
            return
        self._add(framed(pack(recorded(call, at, message, subject=subject, answer=answer))))
        if len(self._pending) >= FLUSH_BYTES or self._clock.now() >= self._flushed_at + FLUSH_S:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._end()

    def _add(self, frame: bytes) -> None:
        self._left_bytes -= len(frame)
        if self._left_bytes < 0:
            log.warning("the journal is full, nothing more is written to it", path=str(self._path))
            self.close()
        else:
            self._pending += frame

    def _flush(self) -> None:
        self._flushed_at = self._clock.now()
        while self._file is not None and self._pending:
            try:
                del self._pending[: self._file.write(self._pending)]
            except OSError as error:
                log.warning("the journal ends, it cannot be written", path=str(self._path), reason=error.strerror)
                self._end()

    def _end(self) -> None:
        self._pending.clear()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


def read(path: Path) -> Iterator[Opening | Record | int]:
    """What a journal holds, and last, if its process was killed, the number of bytes of a record that it began.
    Raises BadFrame where it holds anything else."""
    splitter = Splitter(MAX_FRAME_BYTES)
    with path.open("rb") as file:
        left_bytes = 0
        while data := file.read(READ_BYTES):
            left_bytes += len(data)
            for body in splitter.feed(data):
                left_bytes -= len(framed(body))
                yield unpack(body, RECORD_TYPES)
    if left_bytes:
        yield left_bytes
