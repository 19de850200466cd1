"""The hello, the frames and the addresses that links and transports share."""

import pytest

from shared.errors import BadFrame, ConfigError
from shared.ids import Address
from shared.wire import address as addresses
from shared.wire.frames import Splitter, framed
from shared.wire.hello import Handshake, Hello, parse

LISTENER, DIALER = Address("127.0.0.1:1"), Address("127.0.0.1:2")


def hello(address: Address, *, nonce: int = 1, purpose: str = "link") -> Hello:
    return Hello(purpose=purpose, address=address, incarnation=bytes([nonce]) * 16, nonce=bytes([nonce]) * 32)


def ends(
    *, dial_secret: bytes = b"s", listen_secret: bytes = b"s", **hello_options: str
) -> tuple[Handshake, Handshake]:
    dialer = Handshake(secret=dial_secret, own=hello(DIALER, nonce=2, **hello_options), dialled=LISTENER)
    return dialer, Handshake(secret=listen_secret, own=hello(LISTENER))


def run(dialer: Handshake, listener: Handshake) -> None:
    to_listener = dialer.opening()
    while to_listener:
        answers = [frame for sent in to_listener for frame in listener.take(sent)]
        to_listener = [frame for answer in answers for frame in dialer.take(answer)]


def test_both_ends_learn_who_the_other_is() -> None:
    dialer, listener = ends()
    run(dialer, listener)
    assert dialer.done and listener.done
    assert dialer.peer == hello(LISTENER) and listener.peer == hello(DIALER, nonce=2)


def test_different_secrets_never_end_well() -> None:
    dialer, listener = ends(dial_secret=b"another")
    with pytest.raises(BadFrame, match="proof"):
        run(dialer, listener)
    assert not dialer.done and not listener.done


def test_a_dialer_with_a_wrong_proof_is_refused() -> None:
    dialer, listener = ends()
    listener.take(dialer.opening()[0])
    with pytest.raises(BadFrame, match="proof"):
        listener.take(b"\0" * 32)
    assert not listener.done


def test_the_listeners_own_proof_sent_back_to_it_is_refused() -> None:
    dialer, listener = ends()
    _, proof = listener.take(dialer.opening()[0])
    with pytest.raises(BadFrame, match="proof"):
        listener.take(proof)


def test_a_proof_made_for_another_listener_is_refused() -> None:
    """A process in the middle relays the dialer's hello to a listener that the dialer did not mean."""
    dialer, _ = ends()
    elsewhere = Handshake(secret=b"s", own=hello(Address("127.0.0.1:9")))
    answers = elsewhere.take(dialer.opening()[0])
    with pytest.raises(BadFrame, match="calls itself"):
        dialer.take(answers[0])


def test_another_purpose_or_version_is_refused() -> None:
    dialer, listener = ends(purpose="bulk")
    with pytest.raises(BadFrame, match="protocol or version"):
        run(dialer, listener)


@pytest.mark.parametrize("frame", [b"", b"x" * 10, b"x" * 200, hello(DIALER).pack() * 20, hello(DIALER).pack()[:62]])
def test_what_is_no_hello_is_refused(frame: bytes) -> None:
    with pytest.raises(BadFrame):
        parse(frame, purpose="link")


def test_frames_survive_any_cut() -> None:
    bodies = [b"", b"a", b"b" * 300, b"", b"c" * 7]
    stream = b"".join(framed(body) for body in bodies)
    for step in (1, 2, 3, 5, 64, len(stream)):
        splitter = Splitter(limit_bytes=300)
        got = [body for at in range(0, len(stream), step) for body in splitter.feed(stream[at : at + step])]
        assert got == bodies


def test_a_frame_beyond_the_limit_is_refused_before_it_is_read() -> None:
    splitter = Splitter(limit_bytes=10)
    with pytest.raises(BadFrame):
        list(splitter.feed(framed(b"x" * 11)[:4]))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("h", "h", 0), ("1.2.3.4:5", "1.2.3.4", 5), ("[::1]:5", "::1", 5), ("::1", "::1", 0), ("[::1]", "::1", 0)],
)
def test_addresses_are_read(text: str, host: str, port: int) -> None:
    assert addresses.split(text) == (host, port)


@pytest.mark.parametrize("text", ["h:x", "h:99999", "h:-1", "[::1]:x"])
def test_malformed_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        addresses.split(text)


def test_the_advertised_address_takes_the_port_that_was_bound_unless_it_names_one() -> None:
    assert addresses.reachable(bind="127.0.0.1", advertise=None, port=7) == "127.0.0.1:7"
    assert addresses.reachable(bind="0.0.0.0", advertise="node-1", port=7) == "node-1:7"
    assert addresses.reachable(bind="0.0.0.0:7", advertise="node-1:70", port=7) == "node-1:70"
    assert addresses.reachable(bind="::1", advertise=None, port=7) == "[::1]:7"
    with pytest.raises(ConfigError, match="advertise"):
        addresses.reachable(bind="0.0.0.0", advertise=None, port=7)
