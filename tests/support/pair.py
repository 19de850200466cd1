"""A prompt and a token side of the KV hand-off, joined by a network that a test drives step by step."""

import itertools
from collections import deque
from collections.abc import Callable

from shared.ids import Address, Attempt
from shared.kv.blocks import BlockAllocator
from shared.kv.layout import KvShape, cut
from shared.policy import handoff as h
from shared.policy.demand import AnswerLength
from shared.policy.prompt_side import PromptSide
from shared.policy.token_side import Reserved, TokenSide
from shared.wire.messages import Reserve, Submitted
from shared.wire.terms import PushMode

P, T = Address("prompt:1"), Address("token:1")
SHAPE = KvShape(layers=3, kv_heads=2, kv_bytes_per_token=64)


class Pair:
    """A prompt and a token worker without engines: a slice's bytes are its checksum."""

    def __init__(self, blocks: int = 100) -> None:
        self.now = 0.0
        self.prompt = PromptSide()
        self.allocator = BlockAllocator(blocks, 16)
        self.answers = AnswerLength()
        self.answers.mean_tokens = 1.0
        self.admits = True
        self.growing = 0  # blocks that decodes on the token side are expected to need still
        self.token = TokenSide(
            self.allocator, SHAPE, max_model_len=10_000, fresh_transfer_id=itertools.count(1000), answers=self.answers,
            admits=lambda rank: self.admits, growth=lambda: self.growing,
        )  # fmt: skip
        self.to_token: deque[object] = deque()
        self.to_prompt: deque[object] = deque()
        self.posted: dict[tuple[int, int], Attempt] = {}
        self.sent: dict[tuple[int, int], int] = {}
        self.to_post: deque[h.PostReceives] = deque()
        self.computing: dict[Attempt, deque[Callable[[], None]]] = {}
        self.admitted: list[Attempt] = []
        self.local: list[Attempt] = []
        self.done: list[h.HandOffDone] = []
        self.forgotten: list[h.Forget] = []
        self.flip: set[int] = set()  # slice indices whose next transfer is damaged
        self.closed = False

    # ---- what a test does ----

    def start(self, request: Submitted, mode: PushMode = PushMode.LAYERWISE, *, last: bool = False) -> None:
        slices = cut(mode, request.prompt_tokens, SHAPE)
        event = h.PrefillStarted(
            request=request,
            peer=T,
            transfer_id=100 + len(self.computing),
            mode=mode,
            slices=len(slices),
            size_bytes=sum(s.size_bytes(SHAPE) for s in slices),
            kv_address=b"P",
        )
        self.feed_prompt(event)
        steps = [h.SliceReady(key=request.key, index=i) for i in range(len(slices))]
        ready: list[Callable[[], None]] = [lambda e=e: self.feed_prompt(e) for e in steps]  # type: ignore[misc]
        end = h.FirstToken(key=request.key, token=7, last=last)
        self.computing[request.key] = deque([*ready, lambda: self.feed_prompt(end)])

    def feed_prompt(self, event: object) -> None:
        self._run(self.prompt.handle(event, self.now), self.to_token)  # type: ignore[arg-type]
        self.prompt.check()

    def feed_token(self, event: object) -> None:
        self._run(self.token.handle(event, self.now), self.to_prompt)  # type: ignore[arg-type]
        self.token.check()
        self.allocator.check()

    def moves(self) -> list[Callable[[], None]]:
        """Everything that could happen next."""
        arrivals = [k for k in self.posted if k in self.sent]
        return self.control_moves() + [lambda k=k: self.arrive(k) for k in arrivals]  # type: ignore[misc]

    def control_moves(self) -> list[Callable[[], None]]:
        result: list[Callable[[], None]] = []
        if self.to_token:
            result.append(self.deliver_to_token)
        if self.to_prompt:
            result.append(lambda: self.feed_prompt(self.to_prompt.popleft()))
        if self.to_post:
            result.append(self.post)
        result += [lambda q=q: q.popleft()() for q in self.computing.values() if q]  # type: ignore[misc]
        return result

    def run(self) -> None:
        while moves := self.moves():
            moves[0]()

    def run_without_arrivals(self) -> None:
        """Everything happens, but no slice ever arrives."""
        while moves := self.control_moves():
            moves[0]()

    def deliver_to_token(self) -> None:
        message = self.to_token.popleft()
        self.feed_token(Reserved(peer=P, reserve=message) if isinstance(message, Reserve) else message)

    def post(self) -> None:
        job = self.to_post.popleft()
        if not self.token.expects(job.request.key, job.transfer_id):
            return
        for index in job.indices:
            assert (job.transfer_id, index) not in self.posted, "a tag is used once"
            self.posted[job.transfer_id, index] = job.request.key
        self.feed_token(h.ReceivesPosted(key=job.request.key, transfer_id=job.transfer_id, kv_address=b"T"))

    def arrive(self, tag: tuple[int, int]) -> None:
        key, checksum = self.posted.pop(tag), self.sent.pop(tag)
        if self.token.expects(key, tag[0]):
            self.feed_token(h.SliceArrived(key=key, transfer_id=tag[0], index=tag[1], checksum=checksum))

    # ---- what the commands do ----

    def _run(self, commands: list[h.Command], road: deque[object]) -> None:
        for command in commands:
            match command:
                case h.Send():
                    road.append(command.message)
                case h.Push():
                    self._push(command)
                case h.Fill():
                    for index in command.indices:
                        self._send(command.transfer_id, index, -1)
                case h.PostReceives():
                    self.to_post.append(command)
                case h.CloseEndpoint():
                    self.closed = True
                case h.Admit():
                    self.admitted.append(command.request.key)
                case h.DecodeHere():
                    self.local.append(command.key)
                case h.HandOffDone():
                    self.done.append(command)
                case h.Forget():
                    self.forgotten.append(command)

    def _push(self, push: h.Push) -> None:
        checksum = 500 + push.index
        damaged = push.index in self.flip
        self.flip.discard(push.index)
        self._send(push.transfer_id, push.index, -2 if damaged else checksum)
        self.feed_prompt(
            h.SlicePushed(key=push.request.key, transfer_id=push.transfer_id, index=push.index, checksum=checksum)
        )

    def _send(self, transfer_id: int, index: int, checksum: int) -> None:
        assert (transfer_id, index) not in self.sent, "a tag is used once"
        self.sent[transfer_id, index] = checksum

    def assert_clean(self) -> None:
        assert not len(self.prompt) and not len(self.token)
        assert self.closed or not self.posted, "a posted receive was never filled"
