"""A deterministic engine without torch: its next token is a hash of what the KV pages hold for the whole sequence.

Every position writes bytes that depend on its token, its position and the layer, and a step reads all of them back from
the pages, so a KV cache that arrived incomplete, changed or in another order changes the text.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shared.engine.noise import noise_key
from shared.engine.port import Draw, ModelFacts, OnLayer, Row

LAYERS, KV_HEADS, HEAD_DIM = 4, 2, 4
_TOKEN_BYTES = KV_HEADS * HEAD_DIM  # of K, and again of V
EOS = 256  # tokens below are bytes
VOCAB_SIZE = 257
_EOS_IN = 512  # one draw in so many ends the text
_FIRST_PRINTABLE, _PRINTABLES = 32, 95
GREEDY = Draw(temperature=0.0, top_k=0, top_p=1.0, seed=0, choice=0, position=0)

Bytes = NDArray[np.uint8]


class FakeEngine:
    """An Engine. `before_step` runs first in each step: tests slow it down or make it fail."""

    def __init__(
        self, *, name: str = "fake", max_model_len: int = 8192, block_size: int = 16, kv_blocks: int = 4096,
        before_step: Callable[[Sequence[Row]], None] | None = None,
    ) -> None:  # fmt: skip
        self._facts = ModelFacts(
            name=name,
            layers=LAYERS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            dtype="uint8",
            kv_bytes_per_token=2 * _TOKEN_BYTES,
            vocab_size=VOCAB_SIZE,
            max_model_len=min(max_model_len, kv_blocks * block_size),
            eos_token_ids=(EOS,),
            block_size=block_size,
            kv_blocks=kv_blocks,
        )
        self._before_step = before_step
        self._pages: Bytes = np.zeros((LAYERS, 2, kv_blocks * block_size, _TOKEN_BYTES), dtype=np.uint8)

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def step(self, rows: Sequence[Row], on_layer: OnLayer | None = None) -> list[int | None]:
        if self._before_step is not None:
            self._before_step(rows)
        slots = [self._slots(row.blocks, row.start, row.start + len(row.token_ids)) for row in rows]
        for layer in range(LAYERS):
            for row, where in zip(rows, slots, strict=True):
                self._pages[layer][:, where] = kv_of(row.token_ids, row.start, layer)
            if on_layer is not None:
                on_layer(layer)
        return [None if row.draw is None else choose(self._read(row), row.draw) for row in rows]

    def use_threads(self, count: int) -> None:
        """It computes in the thread that calls it."""

    def export_kv(self, layer: int, blocks: Sequence[int], start: int, end: int) -> memoryview:
        return memoryview(self._pages[layer][:, self._slots(blocks, start, end)].reshape(-1))

    def import_kv(self, layer: int, blocks: Sequence[int], start: int, end: int, data: memoryview) -> None:
        if data.nbytes != (expected_bytes := 2 * (end - start) * _TOKEN_BYTES):
            raise ValueError(f"KV of positions {start} to {end} has {expected_bytes} bytes, got {data.nbytes}")
        kv = np.frombuffer(data, dtype=np.uint8).reshape(2, end - start, _TOKEN_BYTES)
        self._pages[layer][:, self._slots(blocks, start, end)] = kv

    def receive_buffer(self, size_bytes: int) -> memoryview:
        return memoryview(bytearray(size_bytes))

    def close(self) -> None:
        """Nothing is held but memory."""

    @staticmethod
    def expected(token_ids: Sequence[int], count: int, draw: Draw = GREEDY) -> list[int]:
        """The `count` tokens that must follow `token_ids` on any FakeEngine, EOS not heeded; `draw` is of the first."""
        sequence, produced = list(token_ids), []
        for position in range(draw.position, draw.position + count):
            states = np.stack([kv_of(sequence, 0, layer) for layer in range(LAYERS)])
            produced.append(choose(states, at(draw, position)))
            sequence.append(produced[-1])
        return produced

    def _read(self, row: Row) -> Bytes:
        read: Bytes = self._pages[:, :, self._slots(row.blocks, 0, row.start + len(row.token_ids))]
        return read

    def _slots(self, blocks: Sequence[int], start: int, end: int) -> NDArray[np.int64]:
        size = self._facts.block_size
        positions = np.arange(start, end)
        return np.asarray(blocks, dtype=np.int64)[positions // size] * size + positions % size


def at(draw: Draw, position: int) -> Draw:
    """The same draw for another output token."""
    return Draw(
        temperature=draw.temperature, top_k=draw.top_k, top_p=draw.top_p, seed=draw.seed, choice=draw.choice,
        position=position, banned=draw.banned,
    )  # fmt: skip


def kv_of(token_ids: Sequence[int], start: int, layer: int) -> Bytes:
    """K and V [2, tokens, bytes] that these tokens leave in a layer when they lie at positions start, start + 1, ..."""
    tokens = np.asarray(token_ids, dtype=np.uint64)
    positions = np.arange(start, start + len(tokens), dtype=np.uint64)
    mixed = (tokens << np.uint64(32) | positions) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(layer)
    halves = [_scrambled(mixed), _scrambled(~mixed)]
    return np.stack(halves).view(np.uint8).reshape(2, len(tokens), _TOKEN_BYTES)


def choose(kv: Bytes, draw: Draw) -> int:
    """A printable byte or, rarely, EOS: a function of the KV and, unless greedy, of (seed, choice, position)."""
    greedy = draw.temperature <= 0 or draw.top_k == 1
    state = xxhash.xxh64_intdigest(kv.tobytes(), seed=0 if greedy else noise_key(draw))
    banned = set(draw.banned)
    if state % _EOS_IN == 0 and EOS not in banned:
        return EOS
    first = state // _EOS_IN
    for step in range(_PRINTABLES):
        if (token := _FIRST_PRINTABLE + (first + step) % _PRINTABLES) not in banned:
            return token
    raise ValueError("every token that the fake engine can produce is banned")


def _scrambled(values: NDArray[Any]) -> NDArray[Any]:
    values = (values ^ (values >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    scrambled: NDArray[Any] = values ^ (values >> np.uint64(32))
    return scrambled
