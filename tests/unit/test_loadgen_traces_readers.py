"""Trace files of every format, small and made by hand, and what is said of those that cannot be read."""

from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.traces import steps
from loadgen.traces.draws import generator
from loadgen.traces.load import detect, load
from loadgen.traces.readers import own
from loadgen.traces.trace import Request, Trace
from loadgen.traces.wanted import Wanted
from shared.errors import ConfigError
from tests.support.traces import traces

AZURE_2023 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:04.0319601,3180,0\r\n"
    "2023-11-16 18:17:04.0319601,3180,8\r\n"
    "2023-11-16 18:18:00,110,27"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.009930+00:00,2162,5\n"
    "2024-05-10 00:00:00.017335+00:00,2399,6\n"
    "2024-05-10 00:00:01+00:00,76,15\n"
)
BURSTGPT = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,a,1.5,ChatGPT,472,18,490,Conversation log\n"
    "45.25,b,0,GPT-4,1087,0,1087,API log\n"
    "118.5,c,2,ChatGPT,417,276,693,Conversation log\n"
)
MOONCAKE = (
    '{"timestamp": 27482, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]}\n'
    '{"timestamp": 30535, "input_length": 600, "output_length": 26, "hash_ids": [46, 49]}\n'
)


def made(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(text, newline="")
    return str(path)


def rows(trace: Trace) -> list[tuple[float, int, int]]:
    return [(r.at_s, r.prompt_tokens, r.output_tokens) for r in trace.requests]


def test_azure_2023_counts_from_the_first_request_to_100_ns(tmp_path: Path) -> None:
    trace = load(made(tmp_path, "a.csv", AZURE_2023))
    assert rows(trace) == [(0.0, 4808, 10), (0.0520001, 3180, 8), (56.02004, 110, 27)]
    assert trace.notes == ("rows without prompt or answer tokens, skipped: 1",)
    assert trace.name == "a"


def test_azure_2024_has_times_with_a_zone(tmp_path: Path) -> None:
    trace = load(made(tmp_path, "a.csv", AZURE_2024))
    assert rows(trace) == [(0.0, 2162, 5), (0.007405, 2399, 6), (0.99007, 76, 15)]
    assert trace.notes == ()


def test_azure_columns_are_found_by_name_and_rows_sorted(tmp_path: Path) -> None:
    text = (
        "\ufeffNumImages,generatedtokens,TIMESTAMP,ContextTokens\n"
        "2,7,2024-10-15 00:00:02,20\n\n"
        "0,5,2024-10-15 00:00:01Z,10\n"
    )
    trace = load(made(tmp_path, "a.csv", text))
    assert rows(trace) == [(0.0, 10, 5), (1.0, 20, 7)]
    assert trace.notes == ("rows were not in the order of time: sorted",)


def test_azure_stops_reading_at_the_limit(tmp_path: Path) -> None:
    """What lies far behind the wanted rows is not even looked at; skipped rows do not count as wanted."""
    whole = AZURE_2023 + "\r\n" + "2023-11-16 18:19:00,1,1\n" * 2000 + "rubbish\n"
    trace = load(made(tmp_path, "a.csv", whole), limit=3)
    assert rows(trace)[2] == (56.02004, 110, 27)
    assert trace.notes == ("rows without prompt or answer tokens, skipped: 1", "at most the first 3 requests")
    with pytest.raises(ConfigError, match="line 2006: TIMESTAMP is 'rubbish"):
        load(made(tmp_path, "a.csv", whole))


def test_burstgpt_skips_failures_and_needs_only_three_columns(tmp_path: Path) -> None:
    trace = load(made(tmp_path, "b.csv", BURSTGPT))
    assert rows(trace) == [(0.0, 472, 18), (113.5, 417, 276)]
    assert trace.notes == ("rows without prompt or answer tokens, skipped: 1",)
    without_sessions = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4,2,3,5,API log\n"
    assert rows(load(made(tmp_path, "b.csv", without_sessions))) == [(0.0, 2, 3)]


def test_mooncake_hashes_are_blocks_of_512_tokens(tmp_path: Path) -> None:
    trace = load(made(tmp_path, "m.jsonl", MOONCAKE))
    first, second = trace.requests
    assert first == Request(at_s=0.0, prompt_tokens=1100, output_tokens=52, blocks=(46, 47, 48), block_tokens=512)
    assert (second.at_s, second.blocks) == (3.053, (46, 49))
    assert trace.notes == ()


def mooncake_lines(times_ms: list[int]) -> str:
    return "".join(
        f'{{"timestamp": {time_ms}, "input_length": {number + 1}, "output_length": 1, "hash_ids": []}}\n'
        for number, time_ms in enumerate(times_ms)
    )


def test_mooncake_times_in_steps_are_spread_over_the_step(tmp_path: Path) -> None:
    """3 s steps with the odd 5,999 ms of the published file, and an empty step."""
    file = made(tmp_path, "m.jsonl", mooncake_lines([0] * 40 + [3000] * 30 + [5999] * 30 + [12000] * 20))
    trace = load(file, seed=4)
    trace.check()
    at_s = np.array([r.at_s for r in trace.requests])
    assert [r.prompt_tokens for r in trace.requests] == list(range(1, 121)), "the file's order is kept"
    for first, last, start_s, end_s in ((0, 40, 0, 3), (40, 70, 3, 5.999), (70, 100, 5.999, 8.999), (100, 120, 12, 15)):
        inside = at_s[first:last]
        assert start_s <= inside.min() and inside.max() <= end_s
        assert inside.max() - inside.min() > 2, "over all of the step"
    assert trace.notes == ("times are in steps of 3 s: requests spread evenly at random over each, seed 4",)
    assert load(file, seed=4).sha256 == trace.sha256 != load(file, seed=5).sha256


def test_mooncake_times_that_are_fine_are_left_alone(tmp_path: Path) -> None:
    """A millisecond's two requests, or instants far apart without several requests at each, are no artefact."""
    for times_ms in ([0, 0, 40, 95, 95, 380, 1200], [0, 3000, 6000, 9000], [0, 0, 100, 100, 200, 200], [7, 7, 7]):
        trace = load(made(tmp_path, "m.jsonl", mooncake_lines(times_ms)))
        assert [r.at_s * 1000 for r in trace.requests] == pytest.approx([ms - times_ms[0] for ms in times_ms])
        assert trace.notes == ()


def test_steps_are_seen_through_a_few_odd_gaps_but_not_through_many() -> None:
    even = np.repeat(np.arange(0, 300, 3.0), 4)
    assert steps.found(even) == 3.0
    assert steps.found(np.sort(np.append(even, [10.0]))) == 3.0
    crooked = np.repeat(np.cumsum(generator(1).random(100) + 1.0), 4)
    assert steps.found(crooked) is None


def test_mooncake_sees_the_steps_even_when_few_requests_are_wanted(tmp_path: Path) -> None:
    file = made(tmp_path, "m.jsonl", mooncake_lines([0] * 10 + [3000] * 10 + [6000] * 10))
    trace = load(file, limit=4)
    assert len(trace.requests) == 4 and len({r.at_s for r in trace.requests}) == 4


SHAREGPT = [
    {"id": "none", "conversations": [{"from": "human", "value": "unanswered"}]},
    {
        "id": "two",
        "conversations": [
            {"from": "gpt", "value": "a greeting that nobody asked for"},
            {"from": "system", "value": "x" * 8},
            {"from": "human", "value": "x" * 12},
            {"from": "gpt", "value": "x" * 41},
            {"from": "human", "value": "x" * 4},
            {"from": "gpt", "value": "x" * 3},
            {"from": "gpt", "value": "x" * 5},
            {"from": "human", "value": "bye"},
        ],
    },
    {"id": "one", "conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "x" * 400}]},
]


def test_sharegpt_chats_are_chains_whose_prompts_grow(tmp_path: Path) -> None:
    file = made(tmp_path, "chats.json", orjson.dumps(SHAREGPT).decode())
    trace = load(file, seed=1, options=Wanted(rate_rps=0.5, think_s=2.0))
    trace.check()
    first, second, third = trace.requests
    assert (first.prompt_tokens, first.output_tokens, first.after) == (5, 11, None)
    assert (second.prompt_tokens, second.output_tokens, second.after, second.carries) == (17, 2, 0, True)
    assert second.think_s > 0 and second.at_s == first.at_s
    assert (third.prompt_tokens, third.output_tokens, third.after) == (1, 100, None)
    assert third.at_s == 4.0, "two chats at 0.5 a second"
    assert trace.notes[0] == "lengths are estimates: 4 characters a token"
    assert trace.notes[-1] == "conversations without a question and its answer, skipped: 1"
    assert len(load(file, options=Wanted(turns=1)).requests) == 2
    assert {r.think_s for r in load(file, options=Wanted(think_s=0.0)).requests} == {0.0}


@given(traces())
def test_what_is_written_in_our_own_format_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, trace: Trace
) -> None:
    path = tmp_path_factory.mktemp("own") / "t.jsonl"
    own.write(trace, path)
    again = load(str(path))
    assert again.requests == trace.requests
    assert again.sha256 == trace.sha256


@given(st.integers(1, 4))
def test_our_own_format_is_cut_at_the_limit(tmp_path_factory: pytest.TempPathFactory, count: int) -> None:
    path = tmp_path_factory.mktemp("own") / "t.jsonl"
    path.write_text('{"at_s": 1, "prompt_tokens": 2, "output_tokens": 3}\n' * 4 + "rubbish\n")
    assert len(load(str(path), limit=count).requests) == count


def test_the_format_is_found_by_the_first_line(tmp_path: Path) -> None:
    chats = orjson.dumps(SHAREGPT, option=orjson.OPT_INDENT_2).decode()
    own_line = '{"at_s": 0, "prompt_tokens": 1, "output_tokens": 1}'
    cases = {
        "azure": AZURE_2023, "burstgpt": BURSTGPT, "mooncake": MOONCAKE, "sharegpt": chats, "jsonl": own_line,
    }  # fmt: skip
    for name, text in cases.items():
        assert detect(Path(made(tmp_path, "file", text))) == name
    with pytest.raises(ConfigError, match=r"cannot tell the format of .*file; give --format, one of azure, mooncake"):
        detect(Path(made(tmp_path, "file", "time,tokens\n1,2\n")))


HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1,1\n"
OWN = '{"at_s": 1, "prompt_tokens": 1, "output_tokens": 1'
BROKEN = [
    ("azure", HEADER + "2023-11-16 18:17:04,x,1\n", "line 3: ContextTokens is 'x', not a whole number of at least 0"),
    ("azure", HEADER + "\n2023-11-16 18:17:04,1,-1\n", "line 4: GeneratedTokens is '-1', not a whole number"),
    ("azure", HEADER + "2023-11-16 18:17:04,1\n", "line 3: GeneratedTokens is missing, there are 2 fields"),
    ("azure", HEADER + "2023-13-16 18:17:04,1,1\n", "line 3: TIMESTAMP is '2023-13-16 18:17:04', not a time such as"),
    ("azure", HEADER + "2023-11-16 18:17:04+02:00,1,1\n", r"line 3: TIMESTAMP is '2023-11-16 18:17:04\+02:00', not a"),
    ("azure", HEADER + ",1,1\n", "line 3: TIMESTAMP is '', not a time"),
    ("azure", "TIMESTAMP,ContextTokens\n", "line 1: the header has no GeneratedTokens"),
    ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no row has both a prompt and an answer"),
    ("burstgpt", "Timestamp,Request tokens,Response tokens\nnan,1,1\n", "line 2: Timestamp is 'nan', not a number of"),
    ("burstgpt", "Timestamp,Request tokens,Response tokens\n1,1,\n", "line 2: Response tokens is '', not a whole"),
    ("mooncake", MOONCAKE + "{]\n", "line 3: not JSON"),
    ("mooncake", MOONCAKE + '{"timestamp": 1}\n', "line 3: input_length is missing"),
    ("mooncake", '{"timestamp": -1, "input_length": 1, "output_length": 1}', "line 1: timestamp is -1, not a number"),
    ("mooncake", '{"timestamp": 1, "input_length": 1.5, "output_length": 1}', "input_length is 1.5, not a whole"),
    ("mooncake", '{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": ["a"]}', "hash_ids is .*, not a"),
    ("sharegpt", "[1", "not JSON"),
    ("sharegpt", "{}", "not a list of conversations"),
    ("sharegpt", "[{}]", "conversation 0: conversations is missing or no list"),
    ("sharegpt", '[{"conversations": [{"from": "cat", "value": ""}]}]', "conversation 0: from is 'cat', none of human"),
    ("sharegpt", '[{"conversations": [{"from": "human"}]}]', "conversation 0: a message without the text of value"),
    ("sharegpt", "[]", "no conversation has a question with an answer"),
    ("jsonl", OWN + ', "wait": 1}', "line 1: unknown field 'wait'; known are at_s, prompt_tokens"),
    ("jsonl", OWN + "}\n" + OWN.replace("1", "0", 1) + "}", "line 2: at_s is 0.0, before the 1.0 of the request above"),
    ("jsonl", OWN + ', "after": 0}', "line 1: after is 0, but 0 requests come before"),
    ("jsonl", OWN + ', "carries": true}', "line 1: carries without after"),
    ("jsonl", OWN + ', "carries": 1}', "line 1: carries is 1, not true or false"),
    ("jsonl", OWN + ', "blocks": [1]}', "line 1: blocks without block_tokens"),
    (
        "jsonl",
        OWN.replace('tokens": 1', 'tokens": 0', 1) + "}",
        "line 1: prompt_tokens is 0, not a whole number of at l",
    ),
    ("jsonl", "", "no request in it"),
]


@pytest.mark.parametrize(("kind", "text", "complaint"), BROKEN)
def test_a_row_that_cannot_be_read_is_named_in_one_line(tmp_path: Path, kind: str, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        load(made(tmp_path, "broken", text), format=kind)
    assert "\n" not in str(caught.value)
    assert "broken" in str(caught.value)


def test_names_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"named 'azure-cov'; did you mean azure-conv or azure-code.* names are azure-c"
    ):
        load("azure-cov")
    with pytest.raises(ConfigError, match="trace fetch azure-conv-2024"):
        load("azure-conv-2024")
    with pytest.raises(ConfigError, match="is a directory; give a trace file"):
        load(str(tmp_path))
    with pytest.raises(ConfigError, match="no file and no trace is named 'poisson'"):
        load("poisson", format="jsonl")


def test_options_that_a_trace_has_no_use_for_are_refused(tmp_path: Path) -> None:
    file = made(tmp_path, "a.csv", AZURE_2023)
    with pytest.raises(ConfigError, match="a file of format azure takes no --request-rate; --rate-scale changes its"):
        load(file, options=Wanted(rate_rps=2.0))
    with pytest.raises(ConfigError, match="azure-code takes no --random-input-len; --length-scale changes its lengths"):
        load("azure-code", options=Wanted(prompt_tokens=2))
    assert len(load(file, options=Wanted(requests=2)).requests) == 2
