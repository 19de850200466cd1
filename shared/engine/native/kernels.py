"""The compiled kernels, over tensors on the CPU. Shapes are checked nowhere below: who calls, knows them.

`Kernels.find` loads them once a process, with torch's OpenMP, so that there is one pool of threads.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int, c_long, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor

from shared.engine.native.build import NoKernels, library
from shared.engine.openmp import library_path

_STRIP, _TILE, _LANES = 64, 6, 16  # as in attention.c and numbers.h
_NO_WINDOW = 1 << 40


class _Step(Structure):
    _fields_ = (
        *((name, c_long) for name in ("count", "heads", "kv_heads", "head_dim", "block_size", "longest")),
        *((name, c_void_p) for name in ("first_tokens", "starts", "tables", "table_starts", "scratch")),
        ("scratch_words", c_long),
    )


class _Rotation(Structure):
    _fields_ = (
        ("query_norm", c_void_p), ("key_norm", c_void_p), ("eps", c_float),
        *((name, c_void_p) for name in ("cosines", "sines", "positions", "slots")),
        *((name, c_long) for name in ("tokens", "heads", "kv_heads", "head_dim")),
    )  # fmt: skip


class Kernels:
    """Made by `find`."""

    def __init__(self, library: Any, dtype: torch.dtype) -> None:
        self._library = library
        self.dtype = dtype
        self._half = int(dtype == torch.bfloat16)

    @staticmethod
    def find(dtype: torch.dtype, *, head_dim: int) -> "Kernels | None":
        """None where they cannot be had: no C compiler, or numbers that they do not compute with."""
        library = _loaded()
        computes = dtype == torch.float32 or (dtype == torch.bfloat16 and library and library.multiplies_pairs())
        return Kernels(library, dtype) if library and computes and head_dim % _LANES == 0 else None

    def attention(
        self, step: "AttentionStep", query: Tensor, keys: Tensor, values: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """query [tokens, heads, head_dim], each token's heads contiguous → [tokens, heads, head_dim]; keys, values: one
        layer's pages, the new tokens' included."""
        out = torch.empty(query.shape, dtype=self.dtype)
        self._library.attention(
            step.pointer(), out.data_ptr(), query.data_ptr(), query.stride(0), keys.data_ptr(), values.data_ptr(),
            window or _NO_WINDOW, scale, self._half,
        )  # fmt: skip
        return out

    def add_norm(self, x: Tensor, add: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """x [rows, width] += add, in place; its RMS norm."""
        out = torch.empty_like(x)
        self._library.add_norm(
            out.data_ptr(), x.data_ptr(), None if add is None else add.data_ptr(), weight.data_ptr(), *x.shape, eps,
            self._half,
        )  # fmt: skip
        return out

    def gate(self, x: Tensor) -> Tensor:
        """[rows, 2 width] → silu of the first half times the second; width is a multiple of 16."""
        rows, width = x.shape[0], x.shape[1] // 2
        out = torch.empty(rows, width, dtype=self.dtype)
        self._library.gate(out.data_ptr(), x.data_ptr(), rows, width, self._half)
        return out

    def rotate(self, rotation: "Rotation", qkv: Tensor, keys: Tensor, values: Tensor) -> None:
        """qkv [tokens, (heads + 2 kv_heads) * head_dim]: queries and keys get positions, KV goes to pages."""
        self._library.rotate(rotation.pointer, qkv.data_ptr(), keys.data_ptr(), values.data_ptr(), self._half)


class FewRows:
    """Few rows times weights of 16, 8 or 4 bits; see few_rows.c for how weights and factors lie. Made by `find`."""

    GROUP, OUTPUTS = 32, 16  # inputs and outputs are multiples of these

    def __init__(self, library: Any) -> None:
        self._multiply = library.multiply

    @staticmethod
    def find(bits: int, *, inputs: int, outputs: int) -> "FewRows | None":
        """For weights of so many bits, in a layer of this size. None where they cannot be had."""
        if inputs % FewRows.GROUP or outputs % FewRows.OUTPUTS:
            return None
        library = _loaded()
        can = library and library.multiplies_bytes() and (bits < 16 or library.multiplies_pairs())
        return FewRows(library) if can else None

    def multiply(self, x: Tensor, weights: Tensor, factors: Tensor | None, outputs: int, bits: int) -> Tensor:
        """x [rows, width], contiguous, bfloat16 or (not with 16 bits) float32 → [rows, outputs]."""
        rows, width = x.shape
        out = torch.empty(rows, outputs, dtype=x.dtype)
        scratch = torch.empty(0 if bits == 16 else rows * (width + width // self.GROUP * 8), dtype=torch.uint8)
        pointers = (out.data_ptr(), x.data_ptr(), weights.data_ptr(), None if factors is None else factors.data_ptr())
        half = int(x.dtype == torch.bfloat16)
        self._multiply(*pointers, scratch.data_ptr(), rows, width, outputs, bits, half)
        return out


class AttentionStep:
    """What attention needs to know of a step, the same in every layer. Row i has tokens [first_tokens[i],
    first_tokens[i + 1]) of the packed step, which stand at positions from starts[i] on, and lies in tables[i]."""

    def __init__(
        self, *, first_tokens: Sequence[int], starts: Sequence[int], tables: Sequence[Sequence[int]], heads: int,
        kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self._first = np.asarray(first_tokens, dtype=np.int64)
        self._starts = np.asarray(starts, dtype=np.int64)
        self._tables = np.concatenate([np.asarray(table, dtype=np.int64) for table in tables])
        self._table_starts = np.cumsum([0, *map(len, tables)], dtype=np.int64)
        longest = int((self._starts + np.diff(self._first)).max())
        padded = -(-longest // _STRIP) * _STRIP
        pieces = padded * (2 * head_dim * dtype.itemsize // 4 + _TILE)  # attention.c
        decodes = heads * (padded + head_dim) + 2 * (padded + _STRIP)  # decode.c; positions take two words each
        self._scratch_words = max(pieces, decodes)
        self._scratch = np.empty(0, dtype=np.int32)
        arrays = (self._first, self._starts, self._tables, self._table_starts)
        self._step = _Step(
            len(tables),
            heads,
            kv_heads,
            head_dim,
            block_size,
            longest,
            *(array.ctypes.data for array in arrays),
            0,
            self._scratch_words,
        )

    def pointer(self) -> Any:
        """With scratch memory for as many threads as compute now."""
        needed = torch.get_num_threads() * self._scratch_words
        if len(self._scratch) < needed:
            self._scratch = np.empty(needed, dtype=np.int32)
            self._step.scratch = self._scratch.ctypes.data
        return ctypes.byref(self._step)


class Rotation:
    """Rotary positions and, for models that have them, norms of queries and keys; `norms` are these two weights.
    cosines, sines: float32 [positions, head_dim / 2]; positions, slots: int64 [tokens]."""

    def __init__(
        self, *, cosines: Tensor, sines: Tensor, positions: Tensor, slots: Tensor, heads: int, kv_heads: int,
        head_dim: int, norms: tuple[Tensor, Tensor] | None, eps: float,
    ) -> None:  # fmt: skip
        self._held = (cosines, sines, positions, slots, norms)
        query_norm, key_norm = (norm.data_ptr() for norm in norms) if norms else (None, None)
        arrays = (tensor.data_ptr() for tensor in (cosines, sines, positions, slots))
        self.pointer = ctypes.byref(
            _Rotation(query_norm, key_norm, eps, *arrays, len(positions), heads, kv_heads, head_dim)
        )


@cache
def _loaded() -> Any:
    try:
        opened = _load(library())
    except (NoKernels, OSError) as error:
        structlog.get_logger().warning("kernels missing", reason=str(error), what="torch computes instead, slower")
        return None
    number, pointer = c_long, c_void_p
    opened.attention.argtypes = (POINTER(_Step), *[pointer] * 2, number, *[pointer] * 2, number, c_float, c_int)
    opened.add_norm.argtypes = (*[pointer] * 4, number, number, c_float, c_int)
    opened.gate.argtypes = (pointer, pointer, number, number, c_int)
    opened.rotate.argtypes = (POINTER(_Rotation), *[pointer] * 3, c_int)
    if opened.multiplies_bytes():
        opened.multiply.argtypes = (*[pointer] * 5, number, number, number, c_int, c_int)
        opened.multiply.restype = None
    for function in (opened.attention, opened.add_norm, opened.gate, opened.rotate):
        function.restype = None
    return opened


def _load(path: Path) -> ctypes.CDLL:
    """Its OpenMP symbols are left open: those of the library that torch brought into this process fill them."""
    openmp = library_path()
    if openmp is None:
        raise NoKernels("torch computes without OpenMP here")
    ctypes.CDLL(str(openmp), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(path))
