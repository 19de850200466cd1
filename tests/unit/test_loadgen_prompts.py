"""Prompts have exactly the tokens asked for; what is shared is equal, everything else is not."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.client.prompts import WORDS, Prompts
from loadgen.client.server import CHAT, COMPLETIONS, Form, Server
from loadgen.traces.trace import Request

IDS = Server(base_url="http://s", endpoint=COMPLETIONS, model="m", form=Form.IDS, symbols=(1000, 20000))
TEXT = Server(
    base_url="http://s", endpoint=CHAT, model="m", form=Form.TEXT, symbols=(0, len(WORDS)), overhead_tokens=9,
    extras=("ignore_eos",), extra_body={"temperature": 0.5},
)  # fmt: skip


def request(tokens: int, *, blocks: tuple[int, ...] = (), carries: bool = False) -> Request:
    after = 0 if carries else None
    return Request(
        at_s=0.0, prompt_tokens=tokens, output_tokens=5, blocks=blocks, block_tokens=16 if blocks else 0, after=after,
        carries=carries,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 400), blocks=st.lists(st.integers(0, 5), max_size=8), seed=st.integers(0, 9))
def test_a_prompt_has_its_length_and_begins_with_its_blocks(tokens: int, blocks: list[int], seed: int) -> None:
    prompts = Prompts(IDS, seed)
    symbols = prompts.symbols(3, request(tokens, blocks=tuple(blocks)))
    assert len(symbols) == tokens
    whole = prompts.symbols(4, request(16 * len(blocks) + 1, blocks=tuple(blocks)))
    shared = min(tokens, 16 * len(blocks))
    assert symbols[:shared].tolist() == whole[:shared].tolist()


def test_two_requests_share_their_blocks_and_nothing_else() -> None:
    prompts = Prompts(IDS, 1)
    first, second = (prompts.symbols(n, request(64, blocks=(7, 8))).tolist() for n in (0, 1))
    assert first[:32] == second[:32]
    assert sum(a == b for a, b in zip(first[32:], second[32:], strict=True)) <= 1
    assert first[:16] != first[16:32]


def test_the_seed_decides() -> None:
    assert Prompts(IDS, 1).symbols(0, request(50)).tolist() == Prompts(IDS, 1).symbols(0, request(50)).tolist()
    assert Prompts(IDS, 1).symbols(0, request(50)).tolist() != Prompts(IDS, 2).symbols(0, request(50)).tolist()


def test_a_carried_prompt_goes_on_from_prompt_and_answer() -> None:
    prompts = Prompts(IDS, 1)
    before = prompts.symbols(0, request(20))
    answer = prompts.answer(0, request(20), [1, 2, 3])
    assert answer.tolist() == [1, 2, 3]
    carried = prompts.symbols(1, request(30, carries=True), np.concatenate([before, answer]))
    assert carried[:23].tolist() == [*before.tolist(), 1, 2, 3]
    assert len(carried) == 30
    assert len(prompts.symbols(1, request(10, carries=True), before)) == 10


def test_an_answer_without_ids_is_stood_in_for() -> None:
    assert len(Prompts(IDS, 1).answer(0, request(20), [])) == 5
    assert len(Prompts(TEXT, 1).answer(0, request(20), [1, 2, 3])) == 5


def test_the_body_forces_the_length_as_far_as_the_server_lets_it() -> None:
    prompts = Prompts(TEXT, 1)
    body = json.loads(prompts.body(prompts.symbols(0, request(20)), 5))
    assert (body["max_tokens"], body["stream"], body["temperature"]) == (5, True, 0.5)
    assert body["ignore_eos"] is True and "min_tokens" not in body and "return_token_ids" not in body
    words = body["messages"][0]["content"].split()
    assert len(words) == 20 - 9 and all(" " + word in WORDS for word in words)


def test_token_ids_stay_in_their_range() -> None:
    body = json.loads(Prompts(IDS, 1).body(Prompts(IDS, 1).symbols(0, request(5000)), 5))
    assert len(body["prompt"]) == 5000
    assert min(body["prompt"]) >= 1000 and max(body["prompt"]) < 20000


@pytest.mark.parametrize("tokens", [1, 5, 9, 10])
def test_a_prompt_shorter_than_what_the_server_adds_has_one_word(tokens: int) -> None:
    assert len(Prompts(TEXT, 1).symbols(0, request(tokens))) == 1
