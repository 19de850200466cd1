"""Prompts of an exact token count, and the bodies of requests whose answers have a forced length.

A prompt is a sequence of symbols, one token each: token ids where a server takes them, else common words. The same seed
gives the same symbols; equal blocks give equal ones, so what a trace shares is really shared; everything else is drawn
anew for every request, so that no cache helps by accident.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from loadgen.client.server import Form, Server
from loadgen.traces.trace import Request

Symbols = NDArray[np.int32]

# One token each, with the space before, in about every vocabulary in use; the probe counts them before they are used.
_COMMON = (
    "the of and to in is that for was with as on be at by this had not are but from or have an they which one you were"
    " all her she there would their we him been has when who will no more if out so up said what its about than into"
    " them can only other time new some could these two may first then do any like my now over such our man me even"
    " most made after also did many before must through years where much your way well down should"
)
WORDS = tuple(" " + word for word in _COMMON.split())

_OWN, _BLOCK, _ANSWER = 0, 1, 2  # streams of random numbers


class Prompts:
    """Symbols and bodies of one run's requests against one server."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._seed = seed
        self._blocks: dict[tuple[int, int], Symbols] = {}

    def symbols(self, index: int, request: Request, before: Symbols | None = None) -> Symbols:
        """`before`: prompt and answer that this prompt carries on. At least one symbol is the request's own, unless its
        blocks cover all of it."""
        count = max(1, request.prompt_tokens - self._server.overhead_tokens)
        if before is not None:
            head = before[: count - 1]
        elif request.blocks:
            head = np.concatenate([self._block(block, request.block_tokens) for block in request.blocks])[:count]
        else:
            head = np.empty(0, dtype=np.int32)
        return np.concatenate([head, self._draw(_OWN, index, count - len(head))])

    def answer(self, index: int, request: Request, token_ids: list[int]) -> Symbols:
        """What a later prompt carries of this answer: its ids where the server gave them, else symbols for them."""
        if self._server.form is Form.IDS and token_ids:
            return np.array(token_ids, dtype=np.int32)
        return self._draw(_ANSWER, index, request.output_tokens)

    def body(self, symbols: Symbols, output_tokens: int) -> bytes:
        return orjson.dumps(
            request_body(self._server, self._prompt(symbols), output_tokens), option=orjson.OPT_SERIALIZE_NUMPY
        )

    def _prompt(self, symbols: Symbols) -> Any:
        return symbols if self._server.form is Form.IDS else "".join(WORDS[i] for i in symbols)

    def _block(self, block: int, tokens: int) -> Symbols:
        key = (block, tokens)
        if key not in self._blocks:
            self._blocks[key] = self._draw(_BLOCK, block, tokens)
        return self._blocks[key]

    def _draw(self, stream: int, number: int, count: int) -> Symbols:
        random = np.random.Generator(np.random.PCG64([self._seed, stream, number]))
        return random.integers(*self._server.symbols, size=count, dtype=np.int32)


def request_body(server: Server, prompt: Any, output_tokens: int) -> Mapping[str, Any]:
    """Greedy, streamed, with usage; the answer gets exactly so many tokens from a server that knows the extras."""
    forced: dict[str, Any] = {"ignore_eos": True, "min_tokens": output_tokens, "return_token_ids": True}
    given = {"messages": [{"role": "user", "content": prompt}]} if server.chat else {"prompt": prompt}
    return {
        "model": server.model,
        **given,
        "max_tokens": output_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: forced[name] for name in server.extras},
        **server.extra_body,
    }
