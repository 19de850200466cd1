"""Our kernels against plain torch: every shape, in both kinds of numbers, with one thread and with two."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shared.engine.native import build, kernels
from shared.engine.native.build import NoKernels
from shared.engine.native.kernels import AttentionStep, Kernels, Rotation

DTYPES = [torch.float32, torch.bfloat16]
# (tokens before, tokens of this step) of each sequence
SEQUENCES = [(0, 1), (0, 7), (5, 1), (300, 1), (17, 33), (0, 200), (64, 64), (127, 1), (63, 2)]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def kernels_for(dtype: torch.dtype) -> Kernels:
    if dtype == torch.bfloat16 and "avx512_bf16" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX512_BF16, and the kernels do not emulate bfloat16")
    found = Kernels.find(dtype, head_dim=64)
    assert found is not None, "the kernels are not compiled, or not loaded"
    return found


def plain(query: Tensor, key: Tensor, value: Tensor, start: int, window: int | None) -> Tensor:
    """[tokens, heads, head_dim] over [context, kv_heads, head_dim], in float32."""
    group = query.shape[1] // key.shape[1]
    key, value = (states.float().repeat_interleave(group, 1) for states in (key, value))
    scores = torch.einsum("thd,khd->htk", query.float(), key) * query.shape[2] ** -0.5
    queries = torch.arange(start, start + len(query))[:, None]
    keys = torch.arange(len(key))
    seen = (keys <= queries) & (keys > queries - (window or 1 << 40))
    return torch.einsum("htk,khd->thd", scores.masked_fill(~seen, float("-inf")).softmax(-1), value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 20, 130])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (8, 8, 128), (4, 1, 80), (14, 2, 32)])
@pytest.mark.parametrize("block_size", [4, 16])
def test_attention_over_shuffled_pages(
    dtype: torch.dtype, window: int | None, heads: int, kv_heads: int, head_dim: int, block_size: int, threads: int
) -> None:
    found, generator = kernels_for(dtype), torch.Generator().manual_seed(0)
    counts = [-(-(before + now) // block_size) for before, now in SEQUENCES]
    shape = (sum(counts) + 3, block_size, kv_heads, head_dim)
    keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    tables = torch.randperm(shape[0], generator=generator)[: sum(counts)].split(counts)
    first_tokens = [0, *torch.tensor([now for _, now in SEQUENCES]).cumsum(0).tolist()]
    query = torch.randn((first_tokens[-1], heads, head_dim), generator=generator).to(dtype)
    step = AttentionStep(
        first_tokens=first_tokens, starts=[before for before, _ in SEQUENCES], tables=[t.tolist() for t in tables],
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, dtype=dtype,
    )  # fmt: skip
    out = found.attention(step, query, keys, values, scale=head_dim**-0.5, window=window)
    for (before, now), table, first in zip(SEQUENCES, tables, first_tokens, strict=False):
        key, value = (pages[table].flatten(0, 1)[: before + now] for pages in (keys, values))
        expected = plain(query[first : first + now], key, value, before, window)
        tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
        torch.testing.assert_close(out[first : first + now].float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 40])
def test_norms_and_gates(dtype: torch.dtype, rows: int, threads: int) -> None:
    found, tolerance = kernels_for(dtype), 2e-2 if dtype == torch.bfloat16 else 1e-5
    x, add = (torch.randn(rows, 72).to(dtype) for _ in range(2))
    weight = torch.randn(72).to(dtype)
    total = x + add
    expected = torch.nn.functional.rms_norm(total.float(), (72,), weight.float(), 1e-5)
    out = found.add_norm(x, add, weight, 1e-5)
    torch.testing.assert_close(x, total)
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found.add_norm(total.clone(), None, weight, 1e-5), out)
    wide = (torch.randn(rows, 96) * 30).to(dtype)
    gated = torch.nn.functional.silu(wide[:, :48].float()) * wide[:, 48:].float()
    torch.testing.assert_close(found.gate(wide).float(), gated, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normed", [True, False])
def test_positions_are_rotated_in_and_the_pages_written(dtype: torch.dtype, normed: bool, threads: int) -> None:
    found, tolerance, heads, kv_heads, d = kernels_for(dtype), 2e-2 if dtype == torch.bfloat16 else 1e-5, 4, 2, 32
    positions, slots = torch.tensor([7, 8, 0, 30] * 5), torch.randperm(64)[:20]
    angles = torch.arange(40)[:, None] / 10000 ** (torch.arange(d // 2) / (d // 2))
    qkv = torch.randn(20, (heads + 2 * kv_heads) * d).to(dtype)
    norms = (torch.rand(d).to(dtype), torch.rand(d).to(dtype)) if normed else None
    keys, values = (torch.zeros(16, 4, kv_heads, d, dtype=dtype) for _ in range(2))
    query, key, value = qkv.float().unflatten(1, (-1, d)).split([heads, kv_heads, kv_heads], 1)
    if norms:
        query, key = (torch.nn.functional.rms_norm(x, (d,), n.float(), 1e-6) for x, n in zip((query, key), norms))  # noqa: B905
    cosine, sine = (f(angles[positions])[:, None].repeat(1, 1, 2) for f in (torch.cos, torch.sin))
    query, key = (x * cosine + torch.cat([-x[..., d // 2 :], x[..., : d // 2]], -1) * sine for x in (query, key))
    rotation = Rotation(
        cosines=angles.cos(), sines=angles.sin(), positions=positions, slots=slots, heads=heads, kv_heads=kv_heads,
        head_dim=d, norms=norms, eps=1e-6,
    )  # fmt: skip
    found.rotate(rotation, qkv, keys, values)
    rotated = qkv.float().unflatten(1, (-1, d))
    torch.testing.assert_close(rotated[:, :heads], query, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(keys.flatten(0, 1)[slots].float(), key, atol=tolerance, rtol=tolerance)
    assert torch.equal(values.flatten(0, 1)[slots].float(), value)
    untouched = sorted(set(range(64)) - set(slots.tolist()))
    assert not keys.flatten(0, 1)[untouched].any()


def test_heads_that_are_no_whole_vectors_are_left_to_torch() -> None:
    assert Kernels.find(torch.float32, head_dim=24) is None
    assert Kernels.find(torch.float16, head_dim=64) is None


def test_they_are_compiled_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITMESH_CACHE", str(tmp_path))
    path = build.library()
    written = path.stat().st_mtime_ns
    assert build.library() == path and path.stat().st_mtime_ns == written
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "nothing else is left"


@pytest.mark.parametrize(("compiler", "reason"), [("/nowhere/cc", "No such file"), ("false", "failed")])
def test_without_a_compiler_that_works_torch_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, reason: str
) -> None:
    monkeypatch.setenv("SPLITMESH_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(NoKernels, match=reason):
        build.library()
    kernels._loaded.cache_clear()
    try:
        assert Kernels.find(torch.float32, head_dim=64) is None
    finally:
        kernels._loaded.cache_clear()


def test_an_image_without_a_compiler_has_portable_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PORTABLE", tmp_path / "portable")
    made = build.build_portable()
    monkeypatch.setenv("CC", "/nowhere/cc")
    monkeypatch.setenv("SPLITMESH_CACHE", str(tmp_path / "cache"))
    assert build.library() in made
    kernels._loaded.cache_clear()
    try:
        if "avx512_bf16" in Path("/proc/cpuinfo").read_text():
            assert build.library().name == "bfloat16.so", "the best that this processor can have"
            assert Kernels.find(torch.bfloat16, head_dim=64) is not None
        assert Kernels.find(torch.float32, head_dim=64) is not None
    finally:
        kernels._loaded.cache_clear()
    monkeypatch.setattr(build, "_processor", lambda: b"flags : fpu sse2")
    with pytest.raises(NoKernels, match="No such file"):
        build.library()
