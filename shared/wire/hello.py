"""The mutual hello of two processes that share the mesh secret; until it is done, no frame of the other end counts.

    dialer   → listener   hello
    listener → dialer     hello, proof
    dialer   → listener   proof

A proof is HMAC-SHA256 over the prover's part and both hellos: both nonces, both addresses, both incarnations. So an old
proof, a reflected one, and one made for another listener or another purpose are all worth nothing.
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass

from shared.errors import BadFrame
from shared.ids import Address

MAGIC = b"splitmesh"
VERSION = 1
NONCE_BYTES = 32
INCARNATION_BYTES = 16
MAX_HELLO_BYTES = 512
_HEAD = struct.Struct(f">{len(MAGIC)}sB4s{INCARNATION_BYTES}s{NONCE_BYTES}s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """`purpose` keeps the protocols of a mesh apart ("link", "bulk"); `incarnation` names one life of a process."""

    purpose: str
    address: Address
    incarnation: bytes
    nonce: bytes

    def pack(self) -> bytes:
        return _HEAD.pack(MAGIC, VERSION, self.purpose.encode(), self.incarnation, self.nonce) + self.address.encode()


def parse(frame: bytes, *, purpose: str) -> Hello:
    """Raises BadFrame for anything but a hello of this version and purpose."""
    if not _HEAD.size < len(frame) <= MAX_HELLO_BYTES:
        raise BadFrame("no hello")
    magic, version, named, incarnation, nonce = _HEAD.unpack_from(frame)
    if magic != MAGIC or version != VERSION or named != purpose.encode():
        raise BadFrame("hello of another protocol or version")
    try:
        address = Address(frame[_HEAD.size :].decode())
    except UnicodeDecodeError as error:
        raise BadFrame("hello with an unreadable address") from error
    return Hello(purpose=purpose, address=address, incarnation=incarnation, nonce=nonce)


class Handshake:
    """One end of one hello, fed with frames. `dialled` is the address that the dialer called, None for the listener."""

    def __init__(self, *, secret: bytes, own: Hello, dialled: Address | None = None) -> None:
        self._secret = secret
        self._own = own
        self._dialled = dialled
        self.peer: Hello | None = None
        self.done = False

    def opening(self) -> list[bytes]:
        """Frames to send before anything was heard."""
        return [] if self._dialled is None else [self._own.pack()]

    def take(self, frame: bytes) -> list[bytes]:
        """The frames to answer with. Raises BadFrame when the other end must not be trusted."""
        if self.peer is None:
            self.peer = parse(frame, purpose=self._own.purpose)
            if self._dialled is None:
                return [self._own.pack(), self._proof(by_dialer=False)]
            if self.peer.address != self._dialled:
                raise BadFrame(f"dialled {self._dialled}, but it calls itself {self.peer.address}")
            return []
        if not hmac.compare_digest(frame, self._proof(by_dialer=self._dialled is None)):
            raise BadFrame("wrong proof: another mesh secret?")
        self.done = True
        return [] if self._dialled is None else [self._proof(by_dialer=True)]

    def _proof(self, *, by_dialer: bool) -> bytes:
        assert self.peer is not None
        dialer, listener = (self.peer, self._own) if self._dialled is None else (self._own, self.peer)
        parts = (b"dialer" if by_dialer else b"listener", dialer.pack(), listener.pack())
        text = b"".join(struct.pack(">I", len(part)) + part for part in parts)
        return hmac.digest(self._secret, text, hashlib.sha256)
