"""The fake engine as an oracle, and the paced engine's time."""

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from shared.clock import ManualClock
from shared.engine.choose import open_engine
from shared.engine.fake import EOS, GREEDY, LAYERS, FakeEngine
from shared.engine.paced import DEFAULT, PacedEngine, parse, step_s
from shared.engine.port import Draw, Row
from shared.errors import ConfigError
from shared.wire.costs import Costs

WARM = Draw(temperature=1.0, top_k=0, top_p=1.0, seed=5, choice=1, position=0)


def produced(engine: FakeEngine, prompt: list[int], count: int, draw: Draw) -> list[int]:
    blocks = [9, 3, 5, 1, 12, 11, 2, 4]
    text: list[int] = []
    for position in range(count):
        sequence, start = [*prompt, *text], len(prompt) + len(text) - 1 if text else 0
        row = Row(token_ids=sequence[start:], start=start, blocks=blocks, draw=replace(draw, position=position))
        text += [token for token in engine.step([row]) if token is not None]
    return text


@pytest.mark.parametrize("draw", [GREEDY, WARM])
def test_expected_is_what_the_engine_produces(draw: Draw) -> None:
    prompt = list(b"What is the capital of France?")
    text = produced(FakeEngine(), prompt, 40, draw)
    assert FakeEngine.expected(prompt, 40, draw) == text
    resumed = replace(draw, position=15)
    assert FakeEngine.expected(prompt + text[:15], 25, resumed) == text[15:]


def test_text_is_printable_and_ends_now_and_then() -> None:
    tokens = [FakeEngine.expected([i], 1)[0] for i in range(6000)]
    assert 2 <= tokens.count(EOS) <= 40
    assert re.fullmatch(rb"[ -~]+", bytes(token for token in tokens if token != EOS))
    banned = replace(GREEDY, banned=(EOS,))
    assert EOS not in [FakeEngine.expected([i], 1, banned)[0] for i in range(6000)]


def test_tests_may_step_in() -> None:
    seen: list[int] = []

    def fail(rows: Sequence[Row]) -> None:
        seen.append(len(rows))
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        FakeEngine(before_step=fail).step([Row(token_ids=[1], start=0, blocks=[0], draw=GREEDY)])
    assert seen == [1]


def test_paced_steps_take_what_the_model_says_with_layers_spread_over_them() -> None:
    clock, layers_at_s = ManualClock(), []
    costs = parse("prefill_ms=10,2,0.5 decode_ms=4,0.1,3")
    engine = PacedEngine(costs, clock=clock, sleep=clock.advance)
    engine.step(
        [Row(token_ids=[1] * 20, start=0, blocks=[0, 1], draw=GREEDY)], lambda _: layers_at_s.append(clock.now())
    )
    prompt_s = (10 + 2 * 20 + 0.5 * 20**2) / 1000
    assert clock.now() == pytest.approx(prompt_s)
    assert layers_at_s == pytest.approx([prompt_s * layer / LAYERS for layer in range(LAYERS)])

    before_s = clock.now()
    decodes = [Row(token_ids=[1], start=start, blocks=[0, 1], draw=GREEDY) for start in (9, 19)]
    engine.step(decodes)
    assert clock.now() - before_s == pytest.approx((4 + 0.1 * 30 + 3 * 2) / 1000)


def test_a_paced_step_of_both_phases_pays_the_fixed_part_once() -> None:
    costs = Costs((10, 2, 0.5), (4, 0.1, 3))
    piece = Row(token_ids=[1] * 8, start=8, blocks=[], draw=None)
    decode = Row(token_ids=[1], start=9, blocks=[], draw=GREEDY)
    assert step_s(costs, [piece, decode]) == pytest.approx((10 + 2 * 8 + 0.5 * (16**2 - 8**2) + 0.1 * 10 + 3) / 1000)
    assert step_s(costs, [Row(token_ids=[1], start=0, blocks=[], draw=GREEDY)]) == pytest.approx(costs.prefill_s(1))


def test_chunks_cost_together_what_the_prompt_costs() -> None:
    costs = Costs((0, 2, 0.5), (0, 0, 0))
    chunks = [Row(token_ids=[1] * 8, start=start, blocks=[], draw=None) for start in (0, 8)]
    whole = Row(token_ids=[1] * 16, start=0, blocks=[], draw=None)
    assert sum(step_s(costs, [chunk]) for chunk in chunks) == pytest.approx(step_s(costs, [whole]))


def test_costs_are_parsed_or_refused() -> None:
    assert parse(None) == DEFAULT == parse("")
    assert parse("decode_ms=1,2,3") == Costs(DEFAULT.prefill_ms, (1, 2, 3))
    for wrong in (
        "decode_ms=1,2",
        "decode_ms=1,2,x",
        "speed=1,2,3",
        "decode_ms=1,-2,3",
        "decode_ms=nan,1,3",
        "decode_ms=1,nan,3",
        "decode_ms=inf,0,0",
    ):
        with pytest.raises(ConfigError, match="prefill_ms=a,b,c"):
            parse(wrong)


def test_engines_are_opened_by_name_and_without_torch() -> None:
    fake = open_engine("fake", None, max_model_len=100, kv_bytes=1 << 16)
    assert (fake.facts.kv_blocks, fake.facts.max_model_len) == (64, 100)
    assert open_engine("paced", None, paced_model="decode_ms=0,0,0").facts.name == "paced"
    with pytest.raises(ConfigError, match="needs a model"):
        open_engine("hf", None)
    with pytest.raises(ConfigError, match="unknown engine"):
        open_engine("vllm", None)
    script = (
        "import sys; from shared.engine.choose import open_engine;"
        "open_engine('paced', None); open_engine('fake', None);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
