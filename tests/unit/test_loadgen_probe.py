"""What the probe finds out of servers that differ."""

import pytest

from loadgen.client.probe import probe, wait_until_served
from loadgen.client.process import open_session
from loadgen.client.server import CHAT, COMPLETIONS, Form, Server
from shared.clock import SystemClock
from shared.errors import ConfigError
from tests.support.fake_openai import MODEL, FakeOpenAI, Script


async def found(fake: FakeOpenAI, *, endpoint: str = COMPLETIONS, model: str | None = None) -> Server:
    async with open_session() as session:
        return await probe(
            session, fake.url, endpoint=endpoint, model=model, clock=SystemClock(), headers={}, extra_body={}
        )


async def test_a_server_that_can_everything_is_asked_the_best_way() -> None:
    with FakeOpenAI(max_model_len=4096) as fake:
        server = await found(fake)
    assert (server.form, server.symbols, server.model, server.max_model_len) == (Form.IDS, (1000, 20000), MODEL, 4096)
    assert server.extras == ("ignore_eos", "min_tokens", "return_token_ids")
    assert (server.overhead_tokens, server.remarks) == (0, ())


async def test_without_token_ids_prompts_are_words() -> None:
    with FakeOpenAI(accepts_ids=False, overhead_tokens=1) as fake:
        server = await found(fake)
    assert (server.form, server.overhead_tokens) == (Form.TEXT, 1)


async def test_a_chat_has_the_overhead_of_its_template() -> None:
    with FakeOpenAI(overhead_tokens=31) as fake:
        server = await found(fake, endpoint=CHAT)
    assert (server.form, server.overhead_tokens) == (Form.TEXT, 31)


async def test_what_is_refused_is_left_out_and_said() -> None:
    with FakeOpenAI(lambda number: Script(token_ids=False), refuses=("return_token_ids", "min_tokens")) as fake:
        server = await found(fake)
    assert server.extras == ("ignore_eos",)
    assert any("min_tokens" in remark for remark in server.remarks)
    assert any("no token ids" in remark for remark in server.remarks)


async def test_a_server_without_a_list_of_models_is_served_by_name() -> None:
    with FakeOpenAI(has_models=False) as fake:
        assert (await found(fake, model="mine")).model == "mine"
        assert (await found(fake)).model == "default"


async def test_a_server_that_counts_only_whole_answers_is_asked_for_one() -> None:
    with FakeOpenAI(lambda number: Script(usage=False), accepts_ids=False, overhead_tokens=3) as fake:
        assert (await found(fake)).overhead_tokens == 3


async def test_a_server_that_never_counts_is_believed() -> None:
    with FakeOpenAI(lambda number: Script(usage=False), counts_whole=False, overhead_tokens=3) as fake:
        assert (await found(fake)).overhead_tokens == 0


async def test_odd_counts_are_a_remark_and_left_to_the_gates() -> None:
    with FakeOpenAI(accepts_ids=False, tokens_per_word=2) as fake:
        server = await found(fake)
    assert server.overhead_tokens == 0
    assert any("48 and 96 tokens for 24 and 48 common words" in remark for remark in server.remarks)
    with FakeOpenAI(lambda number: Script(prompt_off_by=-3)) as fake:
        assert (await found(fake)).overhead_tokens == 0


@pytest.mark.parametrize(
    "script", [Script(drop_at=1), Script(error_at=0), Script(garbage_at=2), Script(stop_early_at=1)]
)
async def test_a_server_that_fails_in_mid_answer_is_still_asked_the_best_way(script: Script) -> None:
    with FakeOpenAI(lambda number: script) as fake:
        server = await found(fake)
    assert (server.form, server.extras) == (Form.IDS, ("ignore_eos", "min_tokens", "return_token_ids"))


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_server_that_only_fails_is_measured_as_it_is(status: int) -> None:
    with FakeOpenAI(lambda number: Script(status=status)) as fake:
        server = await found(fake)
    assert server.form is Form.IDS and len(server.extras) == 3
    assert any(f"HTTP {status}: scripted" in remark for remark in server.remarks)


async def test_a_server_that_refuses_everything_or_everyone_is_refused() -> None:
    with FakeOpenAI(lambda number: Script(status=422)) as fake, pytest.raises(ConfigError, match="every way of asking"):
        await found(fake)
    with FakeOpenAI(lambda number: Script(status=401)) as fake, pytest.raises(ConfigError, match="HTTP 401"):
        await found(fake)


async def test_a_server_that_only_takes_posts_is_there() -> None:
    with FakeOpenAI(has_models=False) as fake:
        async with open_session() as session:
            await wait_until_served(session, fake.url, patience_s=0.0, clock=SystemClock(), check=lambda: None)


async def test_waiting_for_a_process_that_ended_is_over_at_once() -> None:
    def ended() -> None:
        raise ConfigError("it ended with code 1")

    async with open_session() as session:
        with pytest.raises(ConfigError, match="ended with code 1"):
            await wait_until_served(session, "http://127.0.0.1:9", patience_s=60.0, clock=SystemClock(), check=ended)


async def test_nobody_there_is_one_line() -> None:
    async with open_session() as session:
        with pytest.raises(ConfigError, match=r"no server answers at http://127\.0\.0\.1:9: .*is it running"):
            await wait_until_served(
                session, "http://127.0.0.1:9", patience_s=0.0, clock=SystemClock(), check=lambda: None
            )
