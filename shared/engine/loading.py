"""Load a model's weights for inference on this machine: device, dtype, threads, and errors in one line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from shared.engine import attention
from shared.engine.refusal import refusal, refuse_config
from shared.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
_DEFAULT_KV_BYTES = 2 << 30
_DEFAULT_KV_SHARE = 0.25  # of the memory that is free after loading


def load(name: str, path: Path, *, device: str, dtype: str, threads: int | None) -> PreTrainedModel:
    """The model in evaluation mode with our attention function. Raises Rejected or ConfigError."""
    where = _device(device)
    _use_threads(threads)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    refuse_config(name, _config(name, path))
    with one_line_memory_errors(f"model {name}"):
        model = _weights(name, path, _dtype(dtype, where))
        model.train(False).requires_grad_(False).to(where)
    return model


def kv_budget_bytes(kv_bytes: int | None, device: torch.device) -> int:
    """Memory for the KV cache: as given, if it is there at all, else a quarter of what is free and at most 2 GiB."""
    available_bytes = (
        torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else int(psutil.virtual_memory().available)
    )
    if kv_bytes is None:
        return min(int(available_bytes * _DEFAULT_KV_SHARE), _DEFAULT_KV_BYTES)
    if kv_bytes > available_bytes:
        raise ConfigError(
            f"--kv-memory asks for {kv_bytes >> 20} MiB for this worker, {available_bytes >> 20} MiB are free",
            param="kv_memory",
        )
    return kv_bytes


@contextlib.contextmanager
def one_line_memory_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise ConfigError(f"not enough memory for {what}: use fewer workers or a smaller --kv-memory") from error
        raise


def _config(name: str, path: Path) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise refusal(name, f"its config.json cannot be read ({str(error).splitlines()[0][:200]})") from error
    return config


def _weights(name: str, path: Path, dtype: torch.dtype) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=attention.NAME, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        if error.args == (attention.NAME,):
            raise refusal(name, "its attention cannot be replaced") from error
        raise refusal(name, f"transformers cannot load it ({_sentence(error)})") from error
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise refusal(name, f"its file of weights lacks {missing[0]}")  # transformers would fill in random ones
    return model


def _sentence(error: Exception) -> str:
    """The first sentence of what transformers says; the rest is advice for its own users."""
    return str(error).splitlines()[0].split(". ")[0]


def _device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device", param="device")
    return torch.device(device)


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" or _multiplies_bfloat16() else "float32"
    return DTYPES[dtype]


def _multiplies_bfloat16() -> bool:
    """Without these instructions a CPU emulates bfloat16, slower than float32."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & _BF16_FLAGS)


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # too late once torch has computed in parallel, and then no harm
        torch.set_num_interop_threads(1)
