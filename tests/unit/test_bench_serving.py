"""The bench of servers: its figures, what it reads from servers, and the command itself against a scripted server."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadgen.record import Outcome, Record
from shared.errors import ConfigError
from tests.bench.serving import figures, tables
from tests.bench.serving.figures import Plan, Taken
from tests.bench.serving.targets import Contestant, of_mesh, of_metrics, of_props, standing

ROOT = Path(__file__).parents[2]
FAKE = f"{sys.executable} -m tests.support.fake_openai --port {{port}} --ttft-ms 5 --gap-ms 3"


def record(*events: float, asked: int | None = None, ended: bool = True, **more: Any) -> Record:
    """Sent at 0, a token at each of the moments."""
    fields: dict[str, Any] = {
        "index": 0, "prompt_tokens": 32, "output_tokens": len(events) if asked is None else asked, "due_s": 0.0,
        "sent_s": 0.0, "event_s": list(events), "event_tokens": [1] * len(events), "error": None,
    }  # fmt: skip
    if ended:
        fields |= {"outcome": Outcome.COMPLETED, "done_s": max(events, default=0.0)}
    return Record(**fields | more)


# ---- figures ----


def test_a_request_is_right_when_it_got_exactly_its_tokens() -> None:
    assert figures.fault(record(1.0, 2.0)) is None
    assert figures.fault(record(1.0, 2.0, usage_output_tokens=2, usage_prompt_tokens=32)) is None
    assert figures.fault(record(1.0, 2.0, asked=3, usage_output_tokens=3)) is None  # one event brought two
    assert figures.fault(record(1.0, ended=False)) is None  # we stopped it


@pytest.mark.parametrize(
    "wrong, why",
    [
        (record(1.0, asked=3), "1 tokens instead of 3 by the events, without usage"),
        (record(1.0, 2.0, usage_output_tokens=1), "1 tokens instead of 2"),
        (record(1.0, usage_output_tokens=1, usage_prompt_tokens=33), "its prompt had 33 tokens instead of 32"),
        (record(ended=False, asked=1, error="HTTP 500: no"), "HTTP 500: no"),
    ],
)
def test_a_fault_is_told(wrong: Record, why: str) -> None:
    assert figures.fault(wrong) == why


def test_the_rate_counts_the_tokens_that_the_server_counted() -> None:
    assert figures.rate(record(1.0, 1.5, 2.0)) == pytest.approx(2.0)
    assert figures.rate(record(1.0, 1.5, 2.0, asked=5, usage_output_tokens=5)) == pytest.approx(4.0)
    assert figures.rate(record(1.0)) is None


def test_gaps_touch_their_window_and_are_whole() -> None:
    stream = record(0.0, 1.0, 3.0, 9.0, 9.5)
    assert figures.gaps_over(stream, (2.0, 4.0), 99.0) == [2.0, 6.0]
    assert figures.gaps_over(stream, (9.6, 12.0), 99.0) == []


def test_a_stall_that_we_ended_is_a_gap() -> None:
    stalled = record(0.0, 1.0, ended=False)
    assert figures.gaps_over(stalled, (0.5, 4.0), 20.0) == [1.0, 19.0]


def test_percentiles_interpolate_and_leave_out_what_is_not_known() -> None:
    assert figures.percentile([1.0, None, 2.0, 4.0], 50) == 2.0
    assert figures.percentile([0.0, 10.0], 99) == pytest.approx(9.9)
    assert figures.percentile([None], 50) is None


def test_the_figures_of_single_requests() -> None:
    taken = Taken(groups={"prompt 32": [record(0.1), record(0.3), record(0.2)], "lone": [record(1.0, 1.1, 1.3)]})
    found = figures.of_alone(taken, Plan(prompts=(32,)))["alone"]
    assert found["TTFT 32 ms"] == pytest.approx(200)
    assert found["decode tok/s"] == pytest.approx(2 / 0.3)
    assert found["TBT P50 ms"] == pytest.approx(150)


def test_the_figures_of_a_crowd() -> None:
    taken = Taken(groups={"crowd 2": [record(1.0, 2.0), record(1.0, 3.0, sent_s=0.5)]})
    found = figures.of_streams(taken, Plan(crowds=((2, 2),)))["2 streams, 2 requests"]
    assert found["output tok/s"] == pytest.approx(4 / 3)
    assert found["TTFT P50 ms"] == pytest.approx(750)


def test_the_figures_of_disturbed_streams() -> None:
    stream = record(*[n / 10 for n in range(21)], *[2.0 + n for n in range(1, 4)])
    taken = Taken(
        groups={"streams": [stream], "prompts": [record(2.5, sent_s=2.0)]},
        windows={"quiet": (0.0, 1.0), "disturbed": (2.0, 5.0)},
    )
    plan = Plan()
    found = figures.of_interference(taken, plan)
    assert found[plan.quiet_title]["decode tok/s"] == pytest.approx(10)
    assert found[plan.disturbed_title]["TBT max ms"] == pytest.approx(1000)
    assert found[plan.disturbed_title]["P99 / P99 alone"] == pytest.approx(10, rel=0.01)
    assert found[plan.disturbed_title]["TTFT of the prompts P50 ms"] == pytest.approx(500)


def test_without_an_answer_there_are_no_figures_and_no_crash() -> None:
    refused = record(ended=False, asked=1, error="HTTP 500: no")
    taken = Taken(
        groups={"crowd 4": [refused], "streams": [refused], "prompts": [refused], "lone": [refused]},
        windows={"quiet": (0.0, 1.0), "disturbed": (2.0, 3.0)},
    )
    for part in figures.PARTS.values():
        for row in part(taken, Plan()).values():
            assert all(value is None or math.isfinite(value) for value in row.values())
    assert len(figures.faults(taken)) == 4


def test_events_with_several_tokens_are_noticed() -> None:
    two_each = record(1.0, 2.0, asked=4, usage_output_tokens=4)
    assert figures.tokens_per_event([Taken(groups={"lone": [two_each, two_each]})]) == 2.0
    assert figures.tokens_per_event([Taken()]) is None


def test_medians_are_over_the_rounds_that_know() -> None:
    rounds: list[figures.Figures] = [{"a ms": 1.0, "b ms": None}, {"a ms": 5.0}, {"a ms": 2.0, "b ms": 7.0}]
    assert figures.medians(rounds) == {"a ms": 2.0, "b ms": 7.0}


def test_the_best_is_the_highest_rate_and_the_lowest_of_the_rest() -> None:
    rows: dict[str, figures.Figures] = {
        "a": {"x tok/s": 3.0, "y ms": 3.0, figures.KV: 1.0}, "b": {"x tok/s": 2.0, "y ms": 2.0}, "c": {"y ms": None},
    }  # fmt: skip
    assert [figures.best(heading, rows) for heading in ("x tok/s", "y ms", figures.KV)] == ["a", "b", None]


def test_a_ratio_has_a_direction() -> None:
    assert figures.verdict(2.0, "x tok/s") == "better"
    assert figures.verdict(2.0, "y ms") == "worse"
    assert figures.verdict(0.5, "y ms") == "better"
    assert figures.verdict(1.005, "y ms") == "same"
    assert figures.verdict(2.0, figures.KV) == ""


def test_a_table_compares_each_mesh_with_the_best_peer() -> None:
    found: dict[str, figures.Figures] = {"mesh": {"TTFT ms": 50.0}, "a": {"TTFT ms": 100.0}, "b": {"TTFT ms": 200.0}}
    table = tables.drawn("alone", found, {"mesh"}, {"b": 2})
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["a", "b", "mesh", "mesh / best peer"]
    assert columns[1][:3] == ["100*", "200", "50.0"]
    assert "0.50x better" in str(columns[1][3])
    assert columns[2][:3] == ["0", "[red]2[/]", "0"]


# ---- what servers tell, and how they are named ----


def test_the_kv_cache_is_read_where_servers_tell_of_it() -> None:
    assert of_props({"default_generation_settings": {"n_ctx": 2048}, "total_slots": 16}) == 32_768
    assert of_props({"error": "no"}) is None
    line = 'vllm:cache_config_info{block_size="16",cache_dtype="auto",num_gpu_blocks="5461"} 1.0'
    assert of_metrics(f"# HELP x\n{line}\n") == 16 * 5461
    assert of_metrics('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0') is None
    assert of_metrics("") is None


def test_a_mesh_tells_of_its_workers() -> None:
    worker = {"id": "token-0.abc", "pid": os.getpid(), "kv_blocks_total": 10, "block_size": 16}
    told = of_mesh({"workers": [worker]})
    assert told.kv_tokens == 160
    assert told.workers_mb["token-0"] > 1
    assert of_mesh(None).kv_tokens is None


def test_a_mesh_takes_no_options_from_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITMESH_ENGINE", "fake")
    command = Contestant.mesh("mesh=--threads '1'").target.command
    assert command[:3] == ("env", "-u", "SPLITMESH_ENGINE")
    assert command[-4:] == ("--port", "{port}", "--threads", "1")


@pytest.mark.parametrize("text", ["name", "name=", "name=command without a port", "name=http://127.0.0.1:1"])
def test_a_peer_is_a_command_with_a_port(text: str) -> None:
    with pytest.raises(ConfigError):
        Contestant.peer(text)


# ---- with a scripted server ----


def test_a_paused_server_stands_still_goes_on_and_leaves_nothing() -> None:
    with standing(Contestant.peer(f"fake=bash -c '{FAKE} & wait'"), start_timeout_s=30) as one:
        family = one.family()
        assert len(family) == 2
        one.pause()
        assert {process.status() for process in family} == {psutil.STATUS_STOPPED}
        one.go_on()
        assert not any(process.status() == psutil.STATUS_STOPPED for process in family)
        assert (one.memory_mb() or 0) > 5
        one.pause()  # is ended all the same
    assert not any(process.is_running() for process in family)


def test_the_command_measures_peers_and_leaves_out_those_that_do_not_start(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    done = bench(
        "--quick", "--no-mesh", "--rounds", "2", "--json", str(found), "--peer", f"fake={FAKE}",
        "--peer", "absent=no-such-server {port}", "--peer", "broken=bash -c 'echo out of cheese; exit 3' {port}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 2 of 2, fake: interference" in done.stdout
    assert "absent: target absent: cannot start no-such-server" in done.stdout
    assert "broken ended with code 3: out of cheese" in done.stdout
    content = json.loads(found.read_text())
    assert set(content["left_out"]) == {"absent", "broken"}
    turns = content["turns"]
    assert [(turn["name"], turn["number"], list(turn["parts"])) for turn in turns] == [
        ("fake", number, ["alone", "streams", "interference"]) for number in (1, 2)
    ]
    assert not any(any(turn["faults"].values()) for turn in turns)
    first, second = (turn["parts"]["streams"]["groups"]["crowd 2"] for turn in turns)
    assert len(first) == len(second) == 3
    assert all(len(one["event_s"]) == one["usage_output_tokens"] == 4 for one in first + second)
    assert content["medians"]["alone"]["fake"]["TTFT 8 ms"] >= 5
    assert content["medians"]["start"]["fake"]["PSS MB"] > 5


def test_nothing_measured_is_an_error() -> None:
    done = bench("--quick", "--no-mesh", "--rounds", "1", "--peer", "absent=no-such-server {port}")
    assert done.returncode == 1
    assert bench("--no-mesh").returncode == 2


def test_whoever_ends_the_bench_ends_its_servers(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.serving", "--no-mesh", "--peer", f"fake={FAKE}"],
            cwd=ROOT, stdout=output, stderr=output,
        )  # fmt: skip
    servers: list[psutil.Process] = []
    try:
        end_s = time.monotonic() + 30
        while "alone" not in log.read_text() and time.monotonic() < end_s:
            time.sleep(0.05)
        servers = psutil.Process(process.pid).children(recursive=True)
        assert servers, log.read_text()
        process.terminate()
        assert process.wait(30) in (0, 1)
    finally:
        left = [server for server in servers if server.is_running()]
        for one in (process, *left):
            one.kill()
        process.wait()
    assert "interrupted" in log.read_text()
    assert not left


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.bench.serving", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
