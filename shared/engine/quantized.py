"""Linear layers with weights of 8 or 4 bits.

Few rows, as in decode steps, are bound by reading the weights: a kernel multiplies by the small form. Many rows are
bound by arithmetic: the same weights are widened, a piece at a time, and multiplied as usual. Our kernel rounds
activations to 8 bits, 32 of them sharing a scale; torch's, where ours cannot be had, is quick in bfloat16 only (in
float32 10 to 100 times slower), so other activations are rounded to that on the way in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as multiply

from shared.engine.native.kernels import FewRows

GROUP = 32  # inputs that share one scale and one offset in 4 bits
_MANY = 48  # rows from which widening is faster
_MANY_INT8, _MANY_INT4 = 24, 64  # the same with torch's kernels
_PIECE = 2 << 20  # weights widened at a time: a piece stays in the cache
_QUANTIZED_AT_ONCE = 1 << 18  # weights
_TINY = 1e-12  # scale of weights that are all the same


class Scratch:
    """Memory for widened weights, taken once: fresh pages for every product would cost more than the product.

    What `take` gave last in a dtype is overwritten by the next. One engine has one, because it runs one step at a time.
    """

    def __init__(self) -> None:
        self._of: dict[torch.dtype, Tensor] = {}

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        size = rows * columns
        if dtype not in self._of or self._of[dtype].numel() < size:
            self._of[dtype] = torch.empty(size, dtype=dtype)
        return self._of[dtype][:size].view(rows, columns)


class Int8Linear(nn.Module):
    """x [..., in] @ weight.T + bias, where weight = q * scale, q from -127 to 127, one scale per output channel."""

    def __init__(self, linear: nn.Linear, scratch: Scratch) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias, self._scratch = linear.bias, scratch
        parts = [_int8(part) for part in _parts(linear.weight.detach())]
        self._weight = torch.cat([weight for weight, _ in parts])  # int8 [out, in]
        self._scales = torch.cat([scales for _, scales in parts])  # [out]
        self._few = FewRows.find(8, inputs=self.in_features, outputs=self.out_features)
        if self._few is not None:
            self._tiles = _tiled((self._weight.short() + 128).to(torch.uint8)).contiguous()

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        return linear.in_features % 16 == 0  # torch's kernel reads past the end of anything else, and says nothing

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).contiguous()
        if self._few is not None and len(rows) < _MANY:
            out = self._few.multiply(rows, self._tiles, self._scales, self.out_features, 8)
        elif self._few is None and len(rows) < _MANY_INT8:
            out = torch._weight_int8pack_mm(rows.to(torch.bfloat16), self._weight, self._scales).to(x.dtype)
        else:
            out = self._widened(rows)
        return _finished(out, self.bias, x)

    def _widened(self, x: Tensor) -> Tensor:
        """The scales go to the result: 8 bits are exact in bfloat16."""
        out, scales = x.new_empty(len(x), self.out_features), self._scales.to(x.dtype)
        pieces = _pieces(_PIECE, self.in_features)
        for start in range(0, self.out_features, pieces):
            end = min(start + pieces, self.out_features)
            wide = self._scratch.take(end - start, self.in_features, x.dtype).copy_(self._weight[start:end])
            torch.mul(multiply(x, wide), scales[start:end], out=out[:, start:end])
        return out


class Int4Linear(nn.Module):
    """x [..., in] @ weight.T + bias, where 32 neighbouring inputs of an output channel share a scale and an offset:
    weight = (q - 8) * scale + offset, q from 0 to 15."""

    def __init__(self, linear: nn.Linear, scratch: Scratch) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias, self._scratch = linear.bias, scratch
        parts = [_int4(part) for part in _parts(linear.weight.detach())]
        q = torch.cat([part[0] for part in parts])  # uint8 [out, in]
        scales = torch.cat([part[1] for part in parts])  # [out, groups, 2]: scale and offset
        self._scales = scales.transpose(0, 1).contiguous()  # [groups, out, 2]
        self._few = FewRows.find(4, inputs=self.in_features, outputs=self.out_features)
        if self._few is not None:
            low, high = _tiled(q).chunk(2, dim=2)
            self._packed = (low | high << 4).contiguous()
            self._factors = scales.view(-1, FewRows.OUTPUTS, *scales.shape[1:]).permute(0, 2, 3, 1).contiguous()
        else:
            self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.int(), 1)
        # For many rows, in a layout that widens quickly: one byte has an input of each half. [in / 2, out]
        low, high = q.t().chunk(2)
        self._halves = (low | high << 4).contiguous()

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        return linear.in_features % GROUP == 0 and linear.out_features % 16 == 0  # the latter is the kernel's limit

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).contiguous()
        out: Tensor
        if self._few is not None and len(rows) < _MANY:
            out = self._few.multiply(rows, self._packed, self._factors, self.out_features, 4)
        elif self._few is None and len(rows) < _MANY_INT4:
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(
                rows.to(torch.bfloat16), self._packed, GROUP, self._scales
            ).to(x.dtype)
        else:
            out = self._widened(rows)
        return _finished(out, self.bias, x)

    def _widened(self, x: Tensor) -> Tensor:
        out = x.new_empty(len(x), self.out_features)
        pieces = _pieces(_PIECE, self.in_features)
        for start in range(0, self.out_features, pieces):
            end = min(start + pieces, self.out_features)
            torch.mm(x, self._wide(start, end, x.dtype), out=out[:, start:end])
        return out

    def _wide(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """Weights [in, end - start] of these outputs."""
        half, count = self.in_features // 2, end - start
        packed, small = self._halves[:, start:end], self._scratch.take(half, count, torch.uint8)
        wide = self._scratch.take(self.in_features, count, dtype)
        wide[:half].copy_(torch.bitwise_and(packed, 15, out=small).view(torch.int8).sub_(8))
        wide[half:].copy_(torch.bitwise_right_shift(packed, 4, out=small).view(torch.int8).sub_(8))
        scale, offset = self._scales[:, start:end].to(dtype).permute(2, 0, 1).contiguous()[:, :, None]
        grouped = wide.view(-1, GROUP, count)
        torch.addcmul(offset, grouped, scale, out=grouped)
        return wide


def _tiled(q: Tensor) -> Tensor:
    """[out, in] as [16 outputs each, groups, 4 inputs each, output, input]."""
    group, outputs = FewRows.GROUP, FewRows.OUTPUTS
    return q.view(len(q) // outputs, outputs, q.shape[1] // group, group // 4, 4).permute(0, 2, 3, 1, 4)


def _finished(out: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], out.shape[-1])


def _pieces(size: int, width: int) -> int:
    """Rows of `width` that `size` has room for, 16 at least."""
    return max(16, size // width)


def _parts(weight: Tensor) -> Sequence[Tensor]:
    """A few outputs each: what quantizing needs in between stays small."""
    return torch.split(weight, _pieces(_QUANTIZED_AT_ONCE, weight.shape[1]))


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """q int8 [out, in]; scale, bfloat16 [out]: weight is about q * scale."""
    scale = (weight.float().abs().amax(1) / 127).clamp_min_(_TINY).to(torch.bfloat16)
    q = (weight / scale[:, None].float()).round_().clamp_(-127, 127)
    return q.to(torch.int8), scale


def _int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """q uint8 [out, in]; scale and offset, bfloat16 [out, groups, 2]: weight is about (q - 8) * scale + offset.

    The ends of the range are kept: that gives back what GGUF's Q4_1 had stored, but for rounding, and a smaller range
    with a smaller error of the weights made a worse perplexity.
    """
    groups = weight.float().view(len(weight), -1, GROUP)
    least, most = groups.aminmax(dim=2)
    scale = ((most - least) / 15).clamp_min_(_TINY)
    q = ((groups - least[..., None]) / scale[..., None]).round_().clamp_(0, 15)
    scale = scale.to(torch.bfloat16)
    offset = (
        least + most
    ) / 2 + scale.float() / 2  # the middle, 7.5, stays in place whatever rounding did to the scale
    return q.to(torch.uint8).view(weight.shape), torch.stack([scale, offset.to(torch.bfloat16)], 2)
