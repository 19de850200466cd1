"""What every broker adapter agrees on: which frames a stream may hold."""

from shared.errors import BadFrame
from shared.wire.codec import decode
from shared.wire.messages import StreamMessage


def read_frame(frame: bytes) -> StreamMessage:
    """Raises BadFrame for bytes that are no message, and for messages that belong on a link."""
    message = decode(frame)
    if not isinstance(message, StreamMessage):
        raise BadFrame(f"{type(message).__name__} does not belong in a stream")
    return message
