"""The KV that arrives is bit-identical to the KV that left, for every layer, over every transport and engine."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from shared.engine.fake import FakeEngine
from shared.engine.hf import HfEngine
from shared.engine.port import Engine, ModelFacts, OnLayer, Row
from shared.kv import layout
from shared.transport.port import Transport
from shared.transport.tcp import TcpTransport
from shared.transport.ucx import UcxTransport
from tests.support.mesh import LocalMesh

PROMPT = [(13 * i) % 250 for i in range(77)]


class Recording:
    """An engine that remembers, per layer and token range, what was read from its pages and what lies in them after an
    import, and how many rows of a step had no token drawn: pieces that do not end their prompt."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.left: dict[tuple[int, int, int], bytes] = {}
        self.arrived: dict[tuple[int, int, int], bytes] = {}
        self.pieces = 0

    @property
    def facts(self) -> ModelFacts:
        return self._engine.facts

    def step(self, rows: Sequence[Row], on_layer: OnLayer | None = None) -> list[int | None]:
        self.pieces += sum(row.draw is None for row in rows)
        return self._engine.step(rows, on_layer)

    def export_kv(self, layer: int, blocks: Sequence[int], start: int, end: int) -> memoryview:
        data = self._engine.export_kv(layer, blocks, start, end)
        self.left[layer, start, end] = bytes(data)
        return data

    def import_kv(self, layer: int, blocks: Sequence[int], start: int, end: int, data: memoryview) -> None:
        self._engine.import_kv(layer, blocks, start, end, data)
        self.arrived[layer, start, end] = bytes(self._engine.export_kv(layer, blocks, start, end))

    def receive_buffer(self, size_bytes: int) -> memoryview:
        return self._engine.receive_buffer(size_bytes)

    def close(self) -> None:
        self._engine.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=299,
    )  # fmt: skip
    path: Path = tmp_path_factory.mktemp("models") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def engine_of(kind: str, model: Path) -> Callable[[], Recording]:
    if kind == "fake":
        return lambda: Recording(FakeEngine())
    return lambda: Recording(
        HfEngine(
            name="bytes",
            path=model,
            device="cpu",
            dtype=kind,
            threads=1,
            max_model_len=None,
            kv_bytes=4 << 20,
            block_size=16,
        )
    )


def transport_of(kind: str) -> Callable[[], Awaitable[Transport]] | None:
    async def tcp() -> Transport:
        return await TcpTransport.open(bind="127.0.0.1", advertise=None, secret=b"s")

    async def ucx() -> Transport:
        return await UcxTransport.open(bind="127.0.0.1", advertise=None, secret=b"s")

    return {"memory": None, "tcp": tcp, "ucx": ucx}[kind]


@pytest.mark.parametrize("push_threshold", [0, 1000], ids=["layerwise", "serialized"])
@pytest.mark.parametrize("transport", ["memory", "tcp", "ucx"])
@pytest.mark.parametrize("kind", ["fake", "float32", "bfloat16"])
async def test_every_layer_arrives_bit_for_bit(kind: str, transport: str, push_threshold: int, model: Path) -> None:
    mesh = LocalMesh(
        make_engine=engine_of(kind, model), open_transport=transport_of(transport), push_threshold=push_threshold
    )
    async with mesh:
        stream = await (await mesh.submit(PROMPT)).end()
        await mesh.settle()
        assert len(stream.text) == 8 and stream.handed_off is not None
        prompt, token = (mesh.worker(name).engine_thread.engine for name in ("prompt-0", "token-0"))
        assert isinstance(prompt, Recording) and isinstance(token, Recording) and prompt.pieces == 0
        assert sorted(prompt.left) == [(layer, 0, len(PROMPT)) for layer in range(prompt.facts.layers)]
        assert token.arrived == prompt.left
        assert len(set(prompt.left.values())) == prompt.facts.layers, "every layer holds something of its own"


@pytest.mark.parametrize("push_threshold", [0, 1000], ids=["layerwise", "serialized"])
@pytest.mark.parametrize("kind", ["fake", "float32", "bfloat16"])
async def test_a_prompt_computed_in_pieces_arrives_bit_for_bit_and_continues_as_whole(
    kind: str, push_threshold: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token ranges of 32 and pieces of 20 tokens, so that borders of both fall everywhere."""
    monkeypatch.setattr(layout, "SLICE_TOKENS", 32)
    make = engine_of(kind, model)
    texts = []
    for tokens in (20, 2048):
        async with LocalMesh(make_engine=make, push_threshold=push_threshold, max_num_batched_tokens=tokens) as mesh:
            stream = await (await mesh.submit(PROMPT)).end()
            await mesh.settle()
            assert stream.handed_off is not None and stream.handed_off.resent_slices == 0
            prompt, token = (mesh.worker(name).engine_thread.engine for name in ("prompt-0", "token-0"))
            assert isinstance(prompt, Recording) and isinstance(token, Recording)
            assert prompt.pieces == (3 if tokens == 20 else 0)
            ranges = [(0, 77)] if push_threshold else [(0, 32), (32, 64), (64, 77)]
            assert sorted(prompt.left) == [(la, *r) for la in range(prompt.facts.layers) for r in ranges]
            assert token.arrived == prompt.left
            texts.append(stream.text)
    assert kind == "bfloat16" or texts[0] == texts[1], "greedy text does not depend on the pieces"
