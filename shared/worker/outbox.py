"""Tokens on their way to the gateways: one frame per step and gateway, whatever the number of requests."""

from collections import defaultdict

from shared.ids import Address
from shared.link.port import Links
from shared.policy.sequence import Sequence
from shared.wire.messages import Chunk, StageTimes, Tokens
from shared.wire.terms import Finish


class Outbox:
    def __init__(self, links: Links) -> None:
        self._links = links
        self._chunks: defaultdict[Address, list[Chunk]] = defaultdict(list)

    def add(self, sequence: Sequence, finish: Finish | None, stage: StageTimes | None = None) -> None:
        """Everything of this sequence that the gateway has not been told yet."""
        position, tokens = sequence.unsent()
        sequence.sent += len(tokens)
        request = sequence.request
        self._chunks[request.reply_to].append(
            Chunk(
                request_id=request.request_id,
                attempt=request.attempt,
                position=position,
                token_ids=tokens,
                finish=finish,
                stage=stage,
            )
        )

    def flush(self) -> None:
        for gateway, chunks in self._chunks.items():
            self._links.send(gateway, Tokens(chunks=tuple(chunks)))
        self._chunks.clear()
