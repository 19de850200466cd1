"""The engine port: one `step` over packed rows, and the KV pages it reads and writes.

`step` blocks (it runs in the worker's engine thread); the other methods are quick, and may run on the event loop while
a step runs, on blocks that the step does not touch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What others must know of a loaded model. kv_bytes_per_token: K and V of one token in one layer."""

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    kv_bytes_per_token: int
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    block_size: int
    kv_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How one token is chosen. Noise is a pure function of (seed, choice, position, token id); `position` is the
    number of the output token, 0 for the first. `banned` tokens get probability 0 (EOS before min_tokens)."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    choice: int
    position: int
    banned: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence's share of a step: compute `token_ids` at positions start, start+1, ...; earlier KV lies in
    `blocks` already, the new KV is written there. A prompt (or chunk of it) has many tokens, a decode exactly one.
    `draw` None: no token is wanted (a chunk that is not the last)."""

    token_ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    draw: Draw | None


# Called from the engine thread when the KV of layer i of all rows lies in its pages, before that layer's attention.
OnLayer = Callable[[int], None]


class Engine(Protocol):
    @property
    def facts(self) -> ModelFacts: ...

    def step(self, rows: Sequence[Row], on_layer: OnLayer | None = None) -> list[int | None]:
        """Compute all rows together; one sampled token per row (None where `draw` is None)."""
        ...

    def use_threads(self, count: int) -> None:
        """Compute with so many threads from here on. Called in the engine thread, before a step or between layers."""
        ...

    def export_kv(self, layer: int, blocks: Sequence[int], start: int, end: int) -> memoryview:
        """K then V of positions [start, end) of a sequence that lies in `blocks`, as contiguous bytes
        ([2, end-start, kv_heads, head_dim] in the KV dtype). A copy: later writes to the pages do not change it."""
        ...

    def import_kv(self, layer: int, blocks: Sequence[int], start: int, end: int, data: memoryview) -> None:
        """The inverse of export_kv. Raises ValueError if the size is not that of the positions."""
        ...

    def receive_buffer(self, size_bytes: int) -> memoryview:
        """A writable buffer from which `import_kv` is cheap (pinned memory on CUDA)."""
        ...

    def close(self) -> None: ...
