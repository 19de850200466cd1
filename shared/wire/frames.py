"""Length-prefixed frames on a byte stream: 4 bytes big-endian size, then that many bytes."""

import struct
from collections.abc import Iterator

from shared.errors import BadFrame

_SIZE = struct.Struct(">I")


def framed(body: bytes) -> bytes:
    return _SIZE.pack(len(body)) + body


class Splitter:
    """Cuts a stream back into bodies. `limit_bytes` may be raised once the other end has proved who it is."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that are complete now; raises BadFrame when a size exceeds the limit."""
        self._pending += data
        start = 0
        try:
            while len(self._pending) >= start + _SIZE.size:
                (size,) = _SIZE.unpack_from(self._pending, start)
                if size > self.limit_bytes:
                    raise BadFrame(f"frame of {size} bytes exceeds the limit of {self.limit_bytes}")
                begin, end = start + _SIZE.size, start + _SIZE.size + size
                if len(self._pending) < end:
                    return
                start = end
                yield bytes(self._pending[begin:end])
        finally:
            del self._pending[:start]
