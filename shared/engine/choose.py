"""Open the engine that the settings name; only the one that is opened imports what it needs."""

from pathlib import Path
from typing import Protocol

from shared.engine.port import Engine
from shared.errors import ConfigError

_FAKE_BLOCK_BYTES_PER_TOKEN = 64
_FAKE_KV_BYTES = 4 << 20
_FAKE_MODEL_LEN = 8192


class WeightFiles(Protocol):
    """What shared.models.catalogue resolves."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path: ...


def computes_on_cores(kind: str, device: str) -> bool:
    """Whether the engine that `open_engine` opens for these takes processor cores while it computes."""
    if kind != "hf" or device != "auto":
        return kind == "hf" and device == "cpu"
    import torch

    return not torch.cuda.is_available()


def open_engine(
    kind: str, files: WeightFiles | None, *, device: str = "auto", dtype: str = "auto", threads: int | None = None,
    max_model_len: int | None = None, kv_bytes: int | None = None, block_size: int = 16, paced_model: str | None = None,
    quantize: str | None = None,
) -> Engine:  # fmt: skip
    """`kind` is hf (needs `files`), fake or paced. `kv_bytes` is for this worker alone. May take seconds. `quantize`:
    int8 or int4 weights, of hf on a CPU; engines without weights ignore it.

    Raises Rejected for a model that cannot be served, ConfigError for settings that cannot hold on this machine.
    """
    if kind == "hf":
        if files is None:
            raise ConfigError("the hf engine needs a model", param="model")
        try:
            from shared.engine.hf import HfEngine
        except ModuleNotFoundError as error:
            raise ConfigError(f"the hf engine needs {error.name}: install splitmesh[worker]") from error
        if quantize is not None and not computes_on_cores(kind, device):
            raise ConfigError(f"--quantize {quantize} is for --device cpu only", param="quantize")
        return HfEngine(
            name=files.name, path=files.path, device=device, dtype=dtype, threads=threads, max_model_len=max_model_len,
            kv_bytes=kv_bytes, block_size=block_size, quantize=quantize,
        )  # fmt: skip
    kv_blocks = (kv_bytes or _FAKE_KV_BYTES) // (_FAKE_BLOCK_BYTES_PER_TOKEN * block_size)
    name = files.name if files else kind
    if kind == "fake":
        from shared.engine.fake import FakeEngine

        return FakeEngine(
            name=name, max_model_len=max_model_len or _FAKE_MODEL_LEN, block_size=block_size, kv_blocks=kv_blocks
        )
    if kind == "paced":
        from shared.engine.paced import PacedEngine, parse

        return PacedEngine(
            parse(paced_model), name=name, max_model_len=max_model_len or _FAKE_MODEL_LEN,
            block_size=block_size, kv_blocks=kv_blocks,
        )  # fmt: skip
    raise ConfigError(f"unknown engine {kind!r}: hf, fake or paced", param="engine")
