"""What every engine must hold: tokens depend on the sequence and its draw alone, however it is cut, batched, moved."""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shared.engine.fake import FakeEngine
from shared.engine.paced import PacedEngine
from shared.engine.port import Draw, Engine, Row
from shared.wire.costs import Costs

os.environ["HF_HUB_OFFLINE"] = "1"

GREEDY = Draw(temperature=0.0, top_k=0, top_p=1.0, seed=0, choice=0, position=0)
WARM = Draw(temperature=1.0, top_k=20, top_p=0.95, seed=7, choice=0, position=0)
BLOCK = 4
PROMPTS = [[5], [9, 8, 7, 6, 5], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3], list(range(40))]


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "tiny"
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, max_position_embeddings=256, initializer_range=0.5, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def _open(kind: str, tiny_llama: Path) -> Engine:
    if kind == "fake":
        return FakeEngine(block_size=BLOCK, kv_blocks=128, max_model_len=256)
    if kind == "paced":
        costs = Costs((0, 0.001, 0), (0.01, 0, 0))
        return PacedEngine(costs, block_size=BLOCK, kv_blocks=128, max_model_len=256)
    from shared.engine.hf import HfEngine

    dtype = "bfloat16" if kind == "hf-bfloat16" else "float32"
    return HfEngine(
        name="tiny", path=tiny_llama, device="cpu", dtype=dtype, threads=1, kv_bytes=1 << 20, block_size=BLOCK
    )


@pytest.fixture(scope="module", params=["fake", "paced", "hf"])
def engines(request: pytest.FixtureRequest, tiny_llama: Path) -> Iterator[tuple[Engine, Engine]]:
    pair = _open(request.param, tiny_llama), _open(request.param, tiny_llama)
    yield pair
    for engine in pair:
        engine.close()


@pytest.fixture
def engine(engines: tuple[Engine, Engine]) -> Engine:
    return engines[0]


def blocks_for(place: int) -> list[int]:
    """16 blocks for the sequence at a place, in an order that is not ascending; no two places share one."""
    return [place * 16 + (i * 7 + place) % 16 for i in range(16)]


def generate(
    engine: Engine, prompts: Sequence[list[int]], count: int, draw: Draw = GREEDY, *, chunk: int = 999
) -> list[list[int]]:
    """`count` tokens after each prompt, all prompts together, prefilled in chunks."""
    tables = [blocks_for(i) for i in range(len(prompts))]
    texts: list[list[int]] = [[] for _ in prompts]
    done = [0] * len(prompts)
    while any(len(text) < count for text in texts):
        rows, whose = [], []
        for i, prompt in enumerate(prompts):
            sequence = prompt + texts[i]
            if len(texts[i]) == count:
                continue
            new = sequence[done[i] : done[i] + chunk]
            last = done[i] + len(new) == len(sequence)
            drawn = replace(draw, position=len(texts[i])) if last else None
            rows.append(Row(token_ids=new, start=done[i], blocks=tables[i], draw=drawn))
            done[i] += len(new)
            whose.append(i)
        for i, row, token in zip(whose, rows, engine.step(rows), strict=True):
            assert (token is None) == (row.draw is None)
            if token is not None:
                texts[i].append(token)
    return texts


@pytest.mark.parametrize("draw", [GREEDY, WARM, replace(WARM, top_k=0, top_p=1.0)], ids=["greedy", "top-k-p", "plain"])
def test_tokens_do_not_depend_on_batch_or_chunks(engine: Engine, draw: Draw) -> None:
    alone = [generate(engine, [prompt], 8, draw)[0] for prompt in PROMPTS]
    assert generate(engine, PROMPTS, 8, draw) == alone
    assert generate(engine, PROMPTS[::-1], 8, draw) == alone[::-1]
    assert generate(engine, PROMPTS, 8, draw, chunk=3) == alone
    assert len({tuple(text) for text in alone}) > 1


def test_a_sequence_continues_elsewhere_on_exported_kv(engines: tuple[Engine, Engine]) -> None:
    here, there = engines
    prompt = PROMPTS[3]
    expected = generate(here, [prompt], 8, WARM)[0]
    first = here.step([Row(token_ids=prompt, start=0, blocks=blocks_for(2), draw=WARM)])
    generate(there, PROMPTS, 4)  # other sequences have used the target blocks before
    for layer in reversed(range(here.facts.layers)):
        for start, end in ((30, 40), (0, 30)):
            kv = here.export_kv(layer, blocks_for(2), start, end)
            assert kv.nbytes == (end - start) * here.facts.kv_bytes_per_token
            buffer = there.receive_buffer(kv.nbytes)
            buffer[:] = kv
            there.import_kv(layer, blocks_for(1), start, end, buffer)
            assert there.export_kv(layer, blocks_for(1), start, end) == kv
    text = [token for token in first if token is not None]
    while len(text) < 8:
        row = Row(
            token_ids=text[-1:], start=len(prompt) + len(text) - 1, blocks=blocks_for(1),
            draw=replace(WARM, position=len(text)),
        )  # fmt: skip
        text += [token for token in there.step([row]) if token is not None]
    assert text == expected


def test_every_byte_of_kv_counts(engines: tuple[Engine, Engine]) -> None:
    """A KV cache that lost a position is noticed in the text: what the contract tests rely on."""
    here, _ = engines
    prompt = PROMPTS[2]
    expected = generate(here, [prompt], 12)[0]
    here.step([Row(token_ids=prompt, start=0, blocks=blocks_for(0), draw=None)])
    for layer in range(here.facts.layers):
        lost = bytes(here.facts.kv_bytes_per_token * 6)
        here.import_kv(layer, blocks_for(0), 4, 10, memoryview(lost))
    text: list[int] = []
    for position in range(12):
        sequence = [*prompt, *text]
        start = len(sequence) - 1
        row = Row(
            token_ids=sequence[start:], start=start, blocks=blocks_for(0), draw=replace(GREEDY, position=position)
        )
        text += [token for token in here.step([row]) if token is not None]
    assert text != expected


def test_export_is_a_copy(engine: Engine) -> None:
    engine.step([Row(token_ids=PROMPTS[2], start=0, blocks=blocks_for(0), draw=None)])
    kv = engine.export_kv(0, blocks_for(0), 0, 16)
    before = bytes(kv)
    engine.step([Row(token_ids=PROMPTS[2][::-1], start=0, blocks=blocks_for(0), draw=None)])
    assert bytes(kv) == before
    assert bytes(engine.export_kv(0, blocks_for(0), 0, 16)) != before
    assert engine.export_kv(0, blocks_for(0), 5, 5).nbytes == 0


def test_import_refuses_another_size(engine: Engine) -> None:
    kv = engine.export_kv(0, blocks_for(0), 0, 5)
    with pytest.raises(ValueError, match="positions 0 to 4"):
        engine.import_kv(0, blocks_for(0), 0, 4, kv)


def test_import_takes_bytes_that_cannot_be_written(engine: Engine) -> None:
    engine.step([Row(token_ids=PROMPTS[2], start=0, blocks=blocks_for(0), draw=None)])
    kv = bytes(engine.export_kv(1, blocks_for(0), 3, 9))
    engine.import_kv(1, blocks_for(1), 3, 9, memoryview(kv))
    assert bytes(engine.export_kv(1, blocks_for(1), 3, 9)) == kv


def test_layers_are_told_once_in_order_when_their_kv_lies_in_the_pages(engine: Engine) -> None:
    rows = [Row(token_ids=p, start=0, blocks=blocks_for(i), draw=GREEDY) for i, p in enumerate(PROMPTS)]
    pushed: list[tuple[int, bytes]] = []
    engine.step(rows, lambda layer: pushed.append((layer, bytes(engine.export_kv(layer, blocks_for(3), 0, 40)))))
    assert [layer for layer, _ in pushed] == list(range(engine.facts.layers))
    for layer, kv in pushed:
        assert kv == bytes(engine.export_kv(layer, blocks_for(3), 0, 40))
    decode = Row(token_ids=[1], start=40, blocks=blocks_for(3), draw=GREEDY)
    layers: list[int] = []
    engine.step([decode], layers.append)
    assert layers == list(range(engine.facts.layers))


def test_kv_moves_on_another_thread_while_a_step_runs(engine: Engine) -> None:
    engine.step([Row(token_ids=PROMPTS[3], start=0, blocks=blocks_for(3), draw=None)])
    kept = [bytes(engine.export_kv(layer, blocks_for(3), 0, 40)) for layer in range(engine.facts.layers)]
    expected = generate(engine, PROMPTS[:3], 8)
    texts: list[list[list[int]]] = []
    stepping = threading.Thread(target=lambda: texts.extend(generate(engine, PROMPTS[:3], 8) for _ in range(3)))
    stepping.start()
    while stepping.is_alive():
        for layer, kv in enumerate(kept):
            engine.import_kv(layer, blocks_for(4), 0, 40, memoryview(kv))
            assert bytes(engine.export_kv(layer, blocks_for(4), 0, 40)) == kv
            assert bytes(engine.export_kv(layer, blocks_for(3), 0, 40)) == kv
    stepping.join()
    assert texts == [expected] * 3


def test_where_the_blocks_lie_does_not_matter(engine: Engine) -> None:
    tokens = set()
    for blocks in (list(range(20, 31)), list(range(31, 20, -1)), [40, 2, 33, 17, 90, 55, 4, 61, 7, 8, 100, 11, 12]):
        engine.step([Row(token_ids=PROMPTS[3], start=0, blocks=blocks, draw=None)])
        tokens.add(engine.step([Row(token_ids=[77], start=40, blocks=blocks, draw=GREEDY)])[0])
    assert len(tokens) == 1


def test_decoding_beside_a_prompt_changes_nothing(engine: Engine) -> None:
    expected = generate(engine, PROMPTS[2:3], 2)[0]
    first = engine.step([Row(token_ids=PROMPTS[2], start=0, blocks=blocks_for(0), draw=GREEDY)])[0]
    assert first == expected[0]
    draw = replace(GREEDY, position=1)
    tokens = engine.step(
        [
            Row(token_ids=PROMPTS[3], start=0, blocks=blocks_for(1), draw=None),
            Row(token_ids=[first], start=len(PROMPTS[2]), blocks=blocks_for(0), draw=draw),
            Row(token_ids=PROMPTS[1], start=0, blocks=blocks_for(2), draw=GREEDY),
        ]
    )
    assert tokens == [None, expected[1], generate(engine, PROMPTS[1:2], 1)[0][0]]


def test_banned_tokens_are_never_chosen(engine: Engine) -> None:
    for draw in (GREEDY, WARM, replace(WARM, top_k=0, top_p=1.0, temperature=5.0)):
        banned: list[int] = []
        for _ in range(10):
            row = Row(token_ids=PROMPTS[1], start=0, blocks=blocks_for(0), draw=replace(draw, banned=tuple(banned)))
            token = engine.step([row])[0]
            assert token is not None and token not in banned
            banned.append(token)


def test_a_draw_is_decided_by_seed_choice_and_position(engine: Engine) -> None:
    def drawn(draw: Draw) -> list[int | None]:
        rows = [Row(token_ids=PROMPTS[1], start=0, blocks=blocks_for(i), draw=draw) for i in range(3)]
        return engine.step(rows)

    hot = replace(WARM, temperature=3.0, top_k=0, top_p=1.0)
    assert len(set(drawn(hot))) == 1
    assert drawn(hot) == drawn(hot)
    for changed in ("seed", "choice", "position"):
        seen = {drawn(replace(hot, **{changed: value}))[0] for value in range(8)}  # type: ignore[arg-type]
        assert len(seen) > 1, changed
    assert drawn(replace(hot, top_k=1)) == drawn(GREEDY)


def test_no_rows_is_no_work(engine: Engine) -> None:
    assert engine.step([]) == []


def test_facts_are_those_of_the_pages(engine: Engine) -> None:
    facts = engine.facts
    assert facts.block_size == BLOCK
    assert facts.kv_blocks >= 112
    assert facts.max_model_len == 256
    assert engine.export_kv(facts.layers - 1, [facts.kv_blocks - 1], 0, 1).nbytes == facts.kv_bytes_per_token


def test_bfloat16_kv_travels_bit_for_bit(tiny_llama: Path) -> None:
    engine = _open("hf-bfloat16", tiny_llama)
    engine.step([Row(token_ids=PROMPTS[3], start=0, blocks=blocks_for(3), draw=None)])
    kv = engine.export_kv(2, blocks_for(3), 0, 40)
    assert kv.nbytes == 40 * engine.facts.kv_bytes_per_token == 40 * 2 * 2 * 8 * 2
    engine.import_kv(2, blocks_for(1), 0, 40, kv)
    assert engine.export_kv(2, blocks_for(1), 0, 40) == kv
    engine.close()
