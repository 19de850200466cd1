"""The engine over transformers: decoder-only models with a standard KV cache, on attention over our pages."""

from collections.abc import Sequence
from pathlib import Path

import structlog
import torch
from transformers import PreTrainedModel

from shared.engine.loading import kv_budget_bytes, load, one_line_memory_errors
from shared.engine.packed import PackedStep
from shared.engine.pages import KvPages
from shared.engine.port import ModelFacts, OnLayer, Row
from shared.engine.prepare import prepare
from shared.engine.probe import probe
from shared.engine.sampling import choose
from shared.errors import ConfigError


class HfEngine:
    """An Engine."""

    def __init__(
        self, *, name: str, path: Path, device: str = "auto", dtype: str = "auto", threads: int | None = None,
        max_model_len: int | None = None, kv_bytes: int | None = None, block_size: int = 16, native: bool = True,
        quantize: str | None = None,
    ) -> None:  # fmt: skip
        """Load, try, pack and allocate; seconds. `native`: with our kernels, where they can be had. `quantize`: int8 or
        int4 weights. Raises Rejected (a model that cannot be served) or ConfigError."""
        model = load(name, path, device=device, dtype=dtype, threads=threads)
        shape = probe(name, model)
        longest = _longest(model, max_model_len)
        with one_line_memory_errors(f"model {name}"):
            prepared = prepare(name, model, shape, native=native, positions=longest, quantize=quantize, path=path)
        self._forward, self._device = prepared.forward, model.device
        kv_bytes_per_token = 2 * shape.kv_heads * shape.head_dim * model.dtype.itemsize
        block_bytes = shape.layers * block_size * kv_bytes_per_token
        budget_bytes = kv_budget_bytes(kv_bytes, model.device)
        blocks = budget_bytes // block_bytes
        self._facts = ModelFacts(
            name=name,
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            dtype=str(model.dtype).removeprefix("torch."),
            kv_bytes_per_token=kv_bytes_per_token,
            vocab_size=model.config.get_text_config().vocab_size,
            max_model_len=_fitting(longest, asked=max_model_len, room=blocks * block_size, block_bytes=block_bytes),
            eos_token_ids=_eos(model),
            block_size=block_size,
            kv_blocks=blocks,
        )
        with one_line_memory_errors(f"{budget_bytes >> 20} MiB of KV cache"):
            self._pages = KvPages(
                layers=shape.layers, blocks=blocks, block_size=block_size, kv_heads=shape.kv_heads,
                head_dim=shape.head_dim, dtype=model.dtype, device=model.device, kernels=prepared.kernels,
            )  # fmt: skip

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def step(self, rows: Sequence[Row], on_layer: OnLayer | None = None) -> list[int | None]:
        if not rows:
            return []
        draws = [row.draw for row in rows if row.draw is not None]
        with torch.inference_mode(), one_line_memory_errors(f"a step of {sum(len(r.token_ids) for r in rows)} tokens"):
            logits = self._forward(PackedStep(rows, self._pages, on_layer))
            chosen = iter(choose(logits, draws) if draws else [])
        return [None if row.draw is None else next(chosen) for row in rows]

    def use_threads(self, count: int) -> None:
        torch.set_num_threads(count)

    def export_kv(self, layer: int, blocks: Sequence[int], start: int, end: int) -> memoryview:
        return self._pages.export(layer, blocks, start, end)

    def import_kv(self, layer: int, blocks: Sequence[int], start: int, end: int, data: memoryview) -> None:
        self._pages.import_(layer, blocks, start, end, data)

    def receive_buffer(self, size_bytes: int) -> memoryview:
        on_cuda = self._device.type == "cuda"
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=on_cuda).numpy().data

    def close(self) -> None:
        del self._forward, self._pages


def _longest(model: PreTrainedModel, asked: int | None) -> int:
    """Tokens that the model's positions allow, or fewer as asked."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and asked is not None and asked > limit:
        raise ConfigError(f"--max-model-len {asked} is more than the model's {limit}", param="max_model_len")
    longest = asked or limit
    if longest is None:
        raise ConfigError("the model tells no longest length: give --max-model-len", param="max_model_len")
    return longest


def _fitting(longest: int, *, asked: int | None, room: int, block_bytes: int) -> int:
    if room >= longest:
        return longest
    if asked is not None or room == 0:
        raise ConfigError(
            f"the KV cache of this worker holds {room} tokens, one request may have {longest}: "
            f"raise --kv-memory ({block_bytes >> 10} KiB per block) or lower --max-model-len",
            param="kv_memory",
        )
    structlog.get_logger().warning(
        "max_model_len lowered", tokens=room, of_model=longest, why="the KV cache has no more room"
    )
    return room


def _eos(model: PreTrainedModel) -> tuple[int, ...]:
    configured: int | list[int] | None = model.generation_config.eos_token_id
    if configured is None:
        return ()
    return tuple(configured) if isinstance(configured, list) else (configured,)
