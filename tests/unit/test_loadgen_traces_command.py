"""`loadgen trace`: what it shows, and what it writes."""

import io
from pathlib import Path

import numpy as np
import orjson
import pytest
from rich.console import Console

from loadgen.trace_command import run
from loadgen.traces.describe import describe
from loadgen.traces.draw import histograms, rate_chart
from loadgen.traces.load import NAMES, load
from loadgen.traces.trace import Request, Trace
from loadgen.traces.wanted import Wanted
from shared.errors import ConfigError


def shown(*arguments: str) -> str:
    console = Console(file=io.StringIO(), width=80)
    assert run(arguments, console) == 0
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_figures_of_a_trace_made_by_hand() -> None:
    """Twenty seconds: two requests each second, but none in the fourth and eight in the tenth."""
    at_s = [second + part for second in range(20) for part in (0.25, 0.75) if second not in (3, 9)]
    at_s = sorted(at_s + [9 + eighth / 10 for eighth in range(8)] + [20.0])
    requests = tuple(
        Request(at_s=at, prompt_tokens=100, output_tokens=n + 1, blocks=(0, 1 if n % 2 else 10 + n), block_tokens=30)
        for n, at in enumerate(at_s)
    )
    found = describe(Trace(name="t", requests=requests, notes=("said",)))
    assert found.requests == 45 and found.span_s == 20.0 and found.mean_rps == 2.25
    assert found.arrivals["peak_1s_rps"] == 8 and found.arrivals["peak_10s_rps"] == 2.4
    assert found.arrivals["empty_1s"] == 0.05
    by_second = [0, *[2] * 18, 8]
    assert found.arrivals["fano_1s"] == pytest.approx(np.var(by_second) / np.mean(by_second))
    assert "peak_60s_rps" not in found.arrivals
    assert found.output_tokens["p50"] == 23 and found.output_tokens["max"] == 45 and found.output_tokens["mean"] == 23
    assert found.total_prompt_tokens == 4500 and found.longest_tokens == 145
    assert found.shared == pytest.approx((44 * 30 + 21 * 30) / 4500), "block 0 44 times again, block 1 21 times"
    assert (found.users, found.carried) == (0, 0)


def test_figures_of_users_and_what_they_carry_on() -> None:
    wanted = Wanted(requests=6, turns=3, prompt_tokens=10, output_tokens=5)
    found = describe(load("sessions", options=wanted))
    assert (found.users, found.longest_chain, found.timed) == (2, 3, 2)
    assert found.carried == (15 + 30) * 2 / ((10 + 25 + 40) * 2)


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_is_shown_fits_80_columns(name: str) -> None:
    text = shown("show", name, "--limit", "2000")
    assert max(len(line) for line in text.splitlines()) <= 80
    for word in ("requests", "span", "tokens", "SHA-256", "prompts", "answers", "note"):
        assert word in text


def test_the_rate_over_time_is_highest_where_most_arrives() -> None:
    at_s = np.concatenate([np.arange(0, 30, 0.5), np.arange(30, 60, 0.1)])
    lines = rate_chart(at_s)
    top, bottom = lines[0], lines[7]
    assert top[11:40].strip() == "" and "█" in top[45:]
    assert set(bottom[11:77]) <= {"█", "▇"}, "never empty"
    assert float(top.split("│")[0]) == pytest.approx(10, rel=0.15)
    assert lines[-1].endswith("60 s")


def test_histograms_have_one_line_for_each_power_of_two() -> None:
    lines = histograms([1024] * 3 + [2048], [1, 1, 3, 1024])
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2–3", "4–7"]
    assert len(lines) == 1 + 12
    assert "75.0%" in lines[-2] and "25.0%" in lines[-2] and "25.0%" in lines[-1]


def test_the_figures_are_written_as_json_too(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    shown("show", "poisson", "--num-prompts", "50", "--request-rate", "5", "--json", str(path))
    written = orjson.loads(path.read_bytes())
    trace = load("poisson", options=Wanted(requests=50, rate_rps=5.0))
    assert written["requests"] == 50 and written["mean_rps"] == pytest.approx(5.0)
    assert written["sha256"] == trace.sha256 and written["notes"] == list(trace.notes)
    assert written["prompt_tokens"]["p50"] == 1024


@pytest.mark.parametrize("name", ["azure-conv", "azure-code", "burst"])
def test_a_generated_trace_goes_through_csv_unchanged(name: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    text = shown("synth", name, "--seed", "5", "--num-prompts", "300", "--out", str(path))
    trace = load(name, seed=5, options=Wanted(requests=300))
    assert trace.sha256 in text.replace("\n", "")
    again = load(str(path))
    assert [r.prompt_tokens for r in again.requests] == [r.prompt_tokens for r in trace.requests]
    start_s = trace.requests[0].at_s  # a file's times count from its first request
    ours = [r.at_s - start_s for r in trace.requests]
    assert [r.at_s for r in again.requests] == pytest.approx(ours, abs=1.1e-7)


def test_what_csv_cannot_hold_goes_into_our_own_format(tmp_path: Path) -> None:
    for name in ("closed", "sessions", "shared-prefix"):
        with pytest.raises(ConfigError, match=r"CSV cannot hold users or shared prompts; .* ends in \.jsonl"):
            shown("synth", name, "--out", str(tmp_path / "t.csv"))
        assert not list(tmp_path.glob("*.csv"))
        shown("synth", name, "--out", str(tmp_path / "t.jsonl"), "--rate-scale", "2", "--length-scale", "0.1")
        again = load(str(tmp_path / "t.jsonl"))
        assert again.requests[0].output_tokens == 13
        assert len(again.requests) == len(load(name).requests)


def test_list_names_everything() -> None:
    text = shown("list")
    for name in (*NAMES, "azure-conv-2024", "mooncake-toolagent", "burstgpt"):
        assert name in text
    assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["paint"], "unknown command 'paint'; known are list, show, synth, fetch"),
        (["show"], "the following arguments are required: FILE|NAME; see python -m loadgen trace show --help"),
        (["show", "poisson", "--rats", "1"], "unrecognized arguments: --rats 1; see"),
        (["show", "poisson", "--json", "/nowhere/x"], "cannot write /nowhere/x: No such file or directory"),
        (["synth", "poisson", "--out", "a.txt"], "--out must end in .csv or .jsonl, not 'a.txt'"),
        (["synth", "poisson", "--out", "/nowhere/a.csv"], "cannot write /nowhere/a.csv: No such file"),
        (["synth", "poisson", "--out", "/nowhere/a.jsonl"], "cannot write /nowhere/a.jsonl: No such file"),
    ],
)
def test_complaints_are_one_line(arguments: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shown(*arguments)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_help_is_printed_when_nothing_is_asked() -> None:
    assert "usage: python -m loadgen trace COMMAND" in shown()
    assert "synth" in shown("--help")
