"""What every broker adapter agrees on: which frames a stream may hold, and how many of them it keeps.

Work queues are never trimmed: a trimmed entry is a lost request. Broadcast streams are read by their tail only, so
what an adapter writes there by itself (forwarding, dead-lettering) is trimmed to KEPT_ENTRIES.
"""

from collections.abc import Mapping

from shared.errors import BadFrame
from shared.ids import StreamName
from shared.wire.codec import decode
from shared.wire.messages import StreamMessage
from shared.wire.streams import DEAD_LETTER, PLACEMENTS, REPORTS

KEPT_ENTRIES: Mapping[StreamName, int] = {PLACEMENTS: 10_000, REPORTS: 10_000, DEAD_LETTER: 1_000}


def read_frame(frame: bytes) -> StreamMessage:
    """Raises BadFrame for bytes that are no message, and for messages that belong on a link."""
    message = decode(frame)
    if not isinstance(message, StreamMessage):
        raise BadFrame(f"{type(message).__name__} does not belong in a stream")
    return message
