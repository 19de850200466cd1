"""The life of a request under any interleaving of frames, losses and retries."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway import events as ev
from services.gateway.events import Command, Deliver, End, Submit
from shared.ids import Address
from shared.link.port import Lost, Received
from shared.wire.terms import Finish
from tests.support.sessions import OUTPUT, P, R, T, chunk, failed, handed_off, new, opened, placed, run


class Client:
    """Checks each command as the HTTP handler and the router would see it."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.ends = 0
        self.left = False
        self.borders: dict[int, int] = {}  # attempt → tokens received before it

    def absorb(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Submit(message=message):
                    assert message.emitted == len(self.seen)
                    assert message.token_ids == (1, 2, 3, *self.seen)
                    self.borders[message.attempt] = len(self.seen)
                case Deliver(token_ids=token_ids, finish=finish):
                    assert not self.ends and not self.left
                    self.seen.extend(token_ids)
                    self.ends += finish is not None
                case End():
                    assert not self.ends and not self.left
                    self.ends += 1
                case _:
                    pass
        assert tuple(self.seen) == OUTPUT[: len(self.seen)]


def any_chunk(data: st.DataObject, peer: Address, attempt: int, border: int, total: int) -> Received:
    start = data.draw(st.integers(min(border, total - 1), total - 1))
    count = data.draw(st.integers(1, total - start))
    finish = Finish.LENGTH if start + count == total else None
    return chunk(start, count, peer=peer, attempt=attempt, finish=finish)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_position_once_in_order_and_one_end(data: st.DataObject) -> None:
    """Two workers per attempt speak in any order, repeat themselves and die; time passes; the client may leave."""
    sessions, client, total, now = new(), Client(), data.draw(st.integers(1, 12), label="tokens"), 0.0
    client.absorb(run(sessions, opened(max_tokens=total)))
    for _ in range(data.draw(st.integers(0, 40), label="steps")):
        attempt = data.draw(st.sampled_from(sorted(client.borders)))
        peer = data.draw(st.sampled_from([P, T]))
        kind = data.draw(
            st.sampled_from(["chunk"] * 8 + ["placed", "placed", "lost", "failed", "wake", "off", "leave"])
        )
        event: ev.Event = ev.Woke()
        match kind:
            case "chunk":
                event = any_chunk(data, peer, attempt, client.borders[attempt], total)
            case "placed":
                event = placed(attempt)
            case "lost":
                event = Lost(peer=peer, reason="x")
            case "failed":
                event = failed(peer, retryable=True, attempt=attempt)
            case "off":
                event = handed_off(attempt)
            case "leave" if data.draw(st.integers(0, 5)) == 0:
                event = ev.ClientLeft(request_id=R)
            case _:
                now += data.draw(st.sampled_from([0.1, 1.0, 9.0]))
        client.absorb(run(sessions, event, now=now))
        client.left = client.left or isinstance(event, ev.ClientLeft)
    client.absorb(run(sessions, ev.Woke(), now=now + 100))
    assert client.left or client.ends == 1
    assert len(sessions) == 0
