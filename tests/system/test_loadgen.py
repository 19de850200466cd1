"""The load generator as its user runs it: real processes, the live mesh with an engine that takes a model's time."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.fake_openai import FakeOpenAI, Script
from tests.support.running import ROOT, RunningMesh

SERVER = f"{sys.executable} -m tests.support.fake_openai --port {{port}}"

pytestmark = pytest.mark.system

TRACES = ROOT.parent / "shared" / "traces"
FILES = {
    "azure-conv": TRACES / "AzureLLMInferenceTrace_conv.csv",
    "azure-code": TRACES / "AzureLLMInferenceTrace_code.csv",
    "mooncake": TRACES / "mooncake_synthetic.jsonl",
}
STATS = ("mean", "p50", "p90", "p99", "max")
LATENCIES = ("ttft_s", "itl_s", "tpot_s", "second_token_s", "max_gap_s", "e2e_s")


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with RunningMesh("--engine", "paced", "--paced-model", "prefill_ms=2,0.05,0 decode_ms=4,0,0.2") as running:
        yield running


def loadgen(*arguments: str, timeout_s: float = 100.0) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "loadgen", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
    )


def replayed(mesh: RunningMesh, directory: Path, *arguments: str) -> dict[str, Any]:
    """The result of a run that may be invalid for one reason only: this machine was busy with something else."""
    found = directory / "result.json"
    ran = loadgen("replay", "--base-url", mesh.url, "--json", str(found), *arguments)
    assert ran.returncode in (0, 3), ran.stdout + ran.stderr
    result: dict[str, Any] = json.loads(found.read_text())
    assert (ran.returncode == 0) == result["valid"]
    late = ("send lag", "of a core")
    assert all(any(word in reason for word in late) for reason in result["invalid_reasons"]), result["invalid_reasons"]
    return result


@pytest.mark.parametrize("name", ["azure-conv", "azure-code"])
def test_a_generated_trace_is_replayed_and_reported(mesh: RunningMesh, tmp_path: Path, name: str) -> None:
    records, page = tmp_path / "records.jsonl", tmp_path / "page.html"
    result = replayed(
        mesh, tmp_path, "--trace", name, "--limit", "60", "--rate-scale", "4", "--length-scale", "0.1", "--seed", "3",
        "--slo", "ttft=3,tbt=0.15", "--records", str(records), "--html", str(page),
    )  # fmt: skip
    assert result["requests"] == {"scheduled": 60, "completed": 60, "failed": 0, "rejected": 0}
    for latency in LATENCIES:
        assert all(result[latency][stat] is not None for stat in STATS), latency
    assert result["slo"] == "ttft=3,tbt=0.15" and 0 < result["attainment"] <= 1
    assert result["goodput_rps"] == pytest.approx(result["attainment"] * 60 / result["duration_s"])
    assert len(result["schedule_sha256"]) == 64
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert len(lines) == 60
    tokens = sum(line["usage_output_tokens"] for line in lines)
    assert result["output_tokens_per_s"] == pytest.approx(tokens / result["duration_s"])
    assert page.stat().st_size > 1_000_000
    mesh.settle()


@pytest.mark.parametrize("name", FILES)
def test_a_recorded_trace_is_replayed(mesh: RunningMesh, tmp_path: Path, name: str) -> None:
    if not FILES[name].is_file():
        pytest.skip(f"the trace {FILES[name].name} is not ours to ship: python -m loadgen trace fetch gets it")
    lengths, rate = ("0.005", "2") if name == "mooncake" else ("0.1", "4")
    result = replayed(
        mesh, tmp_path, "--trace", str(FILES[name]), "--limit", "40", "--length-scale", lengths, "--rate-scale", rate
    )  # fmt: skip
    assert result["requests"] == {"scheduled": 40, "completed": 40, "failed": 0, "rejected": 0}
    assert any("rate x" in note for note in result["notes"]) and any("lengths x" in note for note in result["notes"])


def test_the_same_seed_is_the_same_schedule(mesh: RunningMesh, tmp_path: Path) -> None:
    arguments = ("--trace", "azure-conv", "--limit", "5", "--length-scale", "0.02", "--rate-scale", "20", "--seed")
    first, again, other = (replayed(mesh, tmp_path, *arguments, seed)["schedule_sha256"] for seed in ("1", "1", "2"))
    assert first == again != other


def test_users_sessions_and_shared_prompts(mesh: RunningMesh, tmp_path: Path) -> None:
    lengths = ("--random-input-len", "40", "--random-output-len", "6")
    closed = replayed(mesh, tmp_path, "--trace", "closed", "--max-concurrency", "4", "--num-prompts", "24", *lengths)
    assert closed["requests"]["completed"] == 24
    sessions = replayed(
        mesh, tmp_path, "--trace", "sessions", "--num-prompts", "12", "--turns", "3", "--think-time", "0.05",
        "--request-rate", "10", *lengths,
    )  # fmt: skip
    assert sessions["requests"]["completed"] == 12
    shared = replayed(
        mesh, tmp_path, "--trace", "shared-prefix", "--num-prompts", "12", "--request-rate", "20",
        "--shared-prefix-len", "64", "--random-input-len", "100", "--random-output-len", "4",
    )  # fmt: skip
    assert shared["requests"]["completed"] == 12


def test_the_chat_endpoint_says_when_prompts_have_no_exact_length(mesh: RunningMesh) -> None:
    """The mesh serves bytes here: words are no single tokens, so the counts cannot be those asked for."""
    ran = loadgen(
        "replay", "--base-url", mesh.url + "/v1", "--trace", "poisson", "--num-prompts", "3",
        "--endpoint", "/v1/chat/completions",
    )  # fmt: skip
    assert ran.returncode == 3, ran.stderr
    said = " ".join(ran.stdout.split())
    assert "prompts have no exact length" in said and "prompt tokens asked for" in said


def test_a_server_that_only_fails_has_a_result_all_the_same(tmp_path: Path) -> None:
    found = tmp_path / "result.json"
    with FakeOpenAI(lambda number: Script(status=500)) as fake:
        load = ("--trace", "poisson", "--num-prompts", "5", "--request-rate", "50", "--json", str(found))
        ran = loadgen("replay", "--base-url", fake.url, *load)
    assert ran.returncode == 3, ran.stderr
    assert json.loads(found.read_text())["requests"] == {"scheduled": 5, "completed": 0, "failed": 5, "rejected": 0}


def test_splitwise_slow_downs_and_goodput(mesh: RunningMesh, tmp_path: Path) -> None:
    arguments = ("--trace", "poisson", "--random-input-len", "60", "--random-output-len", "6", "--request-rate", "20")
    result = replayed(mesh, tmp_path, *arguments, "--num-prompts", "40", "--slo", "splitwise")
    assert {"ttft", "tbt", "e2e", "met"} <= set(result["splitwise"])
    found = replayed(mesh, tmp_path, *arguments, "--num-prompts", "20", "--slo", "ttft=0.05", "--find-goodput")
    if found["valid"]:
        search = found["goodput_search"]
        assert set(search["best"]) == {"0.9", "0.99"} and len(search["tries"]) >= 2


def test_an_invalid_run_has_its_exit_code_and_is_loud() -> None:
    with FakeOpenAI(lambda number: Script(usage_off_by=1)) as fake:
        ran = loadgen(
            "replay", "--base-url", fake.url, "--trace", "poisson", "--num-prompts", "5", "--request-rate", "50"
        )
    assert ran.returncode == 3
    assert "INVALID" in ran.stdout and "differ in 5 of 5" in " ".join(ran.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("replay", "--trace", "poisson"), "--base-url"),
        (("replay", "--base-url", "http://127.0.0.1:9", "--trace", "poisson"), "is it running?"),
        (("replay", "--base-url", "127.0.0.1:9", "--trace", "poisson"), "expected http://HOST:PORT"),
        (("replay", "--base-url", "http://127.0.0.1:9", "--trace", "azure-con"), "azure-conv"),
        (("replay", "--base-url", "http://127.0.0.1:9", "--trace", "poisson", "--slo", "tft=3"), "ttft"),
        (("replay", "--base-url", "http://127.0.0.1:9", "--trace", "poisson", "--find-goodput"), "--slo"),
        (("replay", "--base-url", "http://127.0.0.1:9", "--trace", "poisson", "--extra-body", "[1]"), "JSON object"),
        (("replay", "--base-url", "http://127.0.0.1:9", "--trace", "poisson", "--deadline", "0"), "--deadline"),
        (("compare", "a=http://127.0.0.1:9"), "two targets"),
        (("compare", "a=http://127.0.0.1:9", "b=serve it"), "{port}"),
        (("compare", "a=no-such-program {port}", "b=http://127.0.0.1:9"), "no-such-program"),
        (("compare", "a=http://127.0.0.1:9", "a=http://127.0.0.1:8"), "two targets are named a"),
        (("compare", "--self", "colocated=http://127.0.0.1:9"), "two targets are named colocated"),
        (("compare", "--self", "a=http://127.0.0.1:9"), "is it running?"),
        (("reply",), "replay"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    ran = loadgen(*arguments)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert words in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr


def test_ctrl_c_ends_a_replay_with_what_it_has(mesh: RunningMesh, tmp_path: Path) -> None:
    found = tmp_path / "result.json"
    arguments = ("--trace", "poisson", "--request-rate", "20", "--num-prompts", "2000", "--random-output-len", "4")
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "replay", "--base-url", mesh.url, "--json", str(found), *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "sent" in line:
            break
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 3, output
    result = json.loads(found.read_text())
    assert any("interrupted" in reason for reason in result["invalid_reasons"])
    assert 0 < result["requests"]["completed"] < 2000 == result["requests"]["scheduled"]
    mesh.settle()


def test_commands_are_started_compared_and_stopped(tmp_path: Path) -> None:
    """Two servers, the second far slower."""
    found = tmp_path / "result.json"
    ran = loadgen(
        "compare", f"quick={SERVER} --ttft-ms 10 --gap-ms 5", f"slow={SERVER} --ttft-ms 30 --gap-ms 50",
        "--trace", "poisson", "--request-rate", "10", "--num-prompts", "20", "--random-input-len", "30",
        "--random-output-len", "8", "--repeats", "2", "--slo", "ttft=1", "--json", str(found),
    )  # fmt: skip
    assert ran.returncode in (0, 3), ran.stdout + ran.stderr
    comparison = json.loads(found.read_text())
    assert {name: len(runs) for name, runs in comparison["targets"].items()} == {"quick": 2, "slow": 2}
    assert len({run["schedule_sha256"] for runs in comparison["targets"].values() for run in runs}) == 1
    tpot = comparison["ratios"]["slow/quick"]["tpot_s.p50"]
    assert tpot["significant"] and tpot["ratio"] > 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_comparison_that_is_ended_leaves_no_server_behind(number: signal.Signals) -> None:
    load = ("--trace", "poisson", "--request-rate", "5", "--num-prompts", "500", "--random-output-len", "4")
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "compare", f"a={SERVER}", f"b={SERVER}", *load],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "sent" in line:
            break
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if number is signal.SIGINT else 128 + number), output
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_the_question_of_the_mesh_itself_is_answered(tmp_path: Path) -> None:
    found, page = tmp_path / "result.json", tmp_path / "page.html"
    engine = "--engine paced --paced-model 'prefill_ms=2,0.1,0 decode_ms=5,0,0.2'"
    ran = loadgen(
        "compare", "--self", f"fake={SERVER}", "--quick", "--limit", "20", "--mesh-options", engine,
        "--json", str(found), "--html", str(page),
    )  # fmt: skip
    assert ran.returncode in (0, 3), ran.stdout + ran.stderr
    comparison = json.loads(found.read_text())
    assert list(comparison["targets"]) == ["colocated", "disaggregated", "fake"]
    assert set(comparison["ratios"]) == {"disaggregated/colocated", "disaggregated/fake"}
    assert any(line.startswith("And rather than fake?") for line in comparison["answer"])
    assert comparison["answer"][0].startswith("Is disaggregation worth it for azure-conv on this machine?")
    assert page.stat().st_size > 1_000_000
