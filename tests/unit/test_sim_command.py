"""`loadgen simulate` around the simulator: what it hands over, what it writes and shows, and how light it starts."""

import csv
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from loadgen.__main__ import run
from loadgen.measure.gates import INVALID
from loadgen.record import Outcome, Record, Run
from loadgen.sim import chunk_size, command
from loadgen.sim.cluster import Cluster
from loadgen.sim.command import simulate_command
from loadgen.sim.outcome import COLUMNS, MachineUse, RoleChange, SimRun, simulation_result
from loadgen.traces.trace import Trace
from shared.errors import ConfigError
from shared.wire.terms import Role

ROOT = Path(__file__).parents[2]
CLUSTER = """
model: bloom-176b
machines: [{type: dgx-h100, count: 2, role: prompt}, {type: dgx-a100, count: 1, role: token}]
"""


def made_up(trace: Trace, *, ttft_s: float = 0.5, gap_s: float = 0.05) -> SimRun:
    """Every request waits and decodes alike on machines p0 and t0; the last one is refused."""
    records = []
    for index, request in enumerate(trace.requests):
        event_s = [request.at_s + ttft_s + step * gap_s for step in range(request.output_tokens)]
        records.append(
            Record(
                index=index,
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
                due_s=request.at_s,
                sent_s=request.at_s,
                event_s=event_s,
                event_tokens=[1] * len(event_s),
                done_s=event_s[-1],
                outcome=Outcome.COMPLETED,
                status=200,
                usage_prompt_tokens=request.prompt_tokens,
                usage_output_tokens=len(event_s),
            )
        )
    last = trace.requests[-1]
    records[-1] = Record(
        index=len(records) - 1, prompt_tokens=last.prompt_tokens, output_tokens=last.output_tokens, due_s=last.at_s,
        sent_s=last.at_s, done_s=last.at_s, outcome=Outcome.REJECTED, error="too busy", status=429,
    )  # fmt: skip
    found = Run(
        target="simulated", model="bloom-176b", trace=trace.name, schedule_sha256=trace.sha256, scheduled=len(records),
        records=records, window_s=(0.0, 100.0), notes=list(trace.notes),
    )  # fmt: skip
    return SimRun(
        run=found,
        placements=[("p0", "t0")] * (len(records) - 1) + [("", "")],
        role_changes=[RoleChange(at_s=7.0, worker="t0", was="prompt", role="token", reason="decodes outgrew prompts")],
        machines=machines_used(),
    )


def machines_used() -> list[MachineUse]:
    return [
        use("p0", Role.PROMPT, prefill_s=60.0, pool_s={Role.PROMPT: 100.0}),
        use("p1", Role.PROMPT, prefill_s=20.0, mixed_s=10.0, pool_s={Role.PROMPT: 50.0, Role.MIXED: 50.0}),
        use("t0", Role.TOKEN, decode_s=95.0, pool_s={Role.TOKEN: 100.0}),
    ]


def use(
    name: str, home: Role, *, pool_s: dict[Role, float], prefill_s: float = 0, decode_s: float = 0, mixed_s: float = 0
) -> MachineUse:
    return MachineUse(
        name=name, type="dgx-a100" if home is Role.TOKEN else "dgx-h100", home=home, busy_prefill_s=prefill_s,
        busy_decode_s=decode_s, busy_mixed_s=mixed_s, pool_s=pool_s, energy_wh=100.0, cost_usd=0.5,
    )  # fmt: skip


class FakeWorld:
    """Stands for loadgen.sim.world.simulate. `ttft_s`: by chunk size."""

    def __init__(self, ttft_s: dict[int | None, float] | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.ttft_s = ttft_s or {}

    def __call__(
        self,
        trace: Trace,
        cluster: Cluster,
        *,
        on_progress: Callable[[int, int], None],
        chunk_tokens: int | None = None,
    ) -> SimRun:
        self.calls.append({"trace": trace, "cluster": cluster, "chunk_tokens": chunk_tokens})
        for done in range(len(trace.requests) + 1):
            on_progress(done, len(trace.requests))
        return made_up(trace, ttft_s=self.ttft_s.get(chunk_tokens, 0.5))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> FakeWorld:
    fake = FakeWorld()
    monkeypatch.setattr(command, "simulate", fake)
    monkeypatch.setattr(chunk_size, "simulate", fake)
    return fake


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    return path


def shown(*arguments: object, exit_code: int = 0, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    assert simulate_command([str(argument) for argument in arguments], console) == exit_code
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_trace_is_scaled_and_the_world_gets_what_was_asked(world: FakeWorld, cluster: Path) -> None:
    shown(
        "--trace",
        "azure-conv",
        "--cluster",
        cluster,
        "--limit",
        40,
        "--rate-scale",
        2,
        "--length-scale",
        0.5,
        "--seed",
        3,
    )
    shown("--trace", "azure-conv", "--cluster", cluster, "--limit", 40, "--seed", 3)
    scaled, plain = (call["trace"] for call in world.calls)
    assert len(scaled.requests) == 40 and scaled.span_s == pytest.approx(plain.span_s / 2)
    assert scaled.requests[0].prompt_tokens == pytest.approx(plain.requests[0].prompt_tokens / 2, abs=1)
    assert [call["chunk_tokens"] for call in world.calls] == [None] * 2
    assert world.calls[0]["cluster"] == Cluster.parse(CLUSTER)


def test_records_have_a_line_a_request(world: FakeWorld, cluster: Path, tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    shown("--trace", "azure-code", "--cluster", cluster, "--limit", 30, "--records", path)
    header, *_ = path.read_text().splitlines()
    assert header == COLUMNS == "arrival_s,prompt_tokens,output_tokens,ttft_s,tbt_s,e2e_s,prompt_worker,token_worker"
    lines = list(csv.DictReader(path.read_text().splitlines()))
    requests = world.calls[0]["trace"].requests
    assert len(lines) == 30
    for line, request in zip(lines[:-1], requests[:-1], strict=True):
        assert float(line["arrival_s"]) == pytest.approx(request.at_s, abs=1e-6)
        assert (int(line["prompt_tokens"]), int(line["output_tokens"])) == (
            request.prompt_tokens,
            request.output_tokens,
        )
        assert float(line["ttft_s"]) == pytest.approx(0.5, abs=1e-6)
        assert float(line["e2e_s"]) == pytest.approx(0.5 + 0.05 * (request.output_tokens - 1), abs=2e-6)
        assert (line["prompt_worker"], line["token_worker"]) == ("p0", "t0")
        if request.output_tokens > 1:
            assert float(line["tbt_s"]) == pytest.approx(0.05, abs=1e-6)
    refused = lines[-1]
    assert [refused[key] for key in ("ttft_s", "tbt_s", "e2e_s", "prompt_worker", "token_worker")] == [""] * 5


def test_one_token_has_no_time_between_tokens(world: FakeWorld, cluster: Path, tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    shown("--trace", "poisson", "--num-prompts", 3, "--random-output-len", 1, "--cluster", cluster, "--records", path)
    first, *_ = csv.DictReader(path.read_text().splitlines())
    assert (first["ttft_s"], first["tbt_s"], first["e2e_s"]) == ("0.500000", "", "0.500000")


def test_the_result_is_that_of_a_replay_and_more(world: FakeWorld, cluster: Path, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    shown("--trace", "azure-code", "--cluster", cluster, "--limit", 30, "--json", path, "--slo", "splitwise,ttft=1")
    found = orjson.loads(path.read_bytes())
    assert found["valid"] and found["invalid_reasons"] == []
    assert found["requests"] == {"scheduled": 30, "completed": 29, "failed": 0, "rejected": 1}
    assert found["ttft_s"]["p50"] == pytest.approx(0.5) and found["tpot_s"]["p50"] == pytest.approx(0.05)
    assert found["attainment_each"]["ttft"] == pytest.approx(29 / 30)
    assert set(found["splitwise"]) == {"ttft", "tbt", "e2e", "met"} and found["confidence"] is None
    simulation = found["simulation"]
    assert (simulation["policy"], simulation["cost_model"]) == ("moving", "batch-aware")
    assert simulation["machines"] == {"dgx-h100": 2, "dgx-a100": 1}
    assert (simulation["cost_usd"], simulation["energy_wh"]) == (1.5, 300.0)
    assert simulation["role_changes"] == [
        {"at_s": 7.0, "worker": "t0", "was": "prompt", "role": "token", "reason": "decodes outgrew prompts"}
    ]
    assert simulation["requests_per_cpu_s"] > 0


def test_utilisation_of_each_pool() -> None:
    simulated = SimRun(
        run=Run(target="t", model="m", trace="t", schedule_sha256="", scheduled=0, records=[], window_s=(0.0, 1.0)),
        placements=[],
        role_changes=[],
        machines=machines_used(),
    )
    found = simulation_result(simulated, Cluster.parse(CLUSTER), slo=None, cpu_s=0.0)["simulation"]
    prompt, token, mixed = (found["pools"][name] for name in ("prompt", "token", "mixed"))
    assert (prompt["machines"], token["machines"], mixed["machines"]) == (2, 1, 0)
    assert prompt["mean_observed"] == pytest.approx(1.5) and mixed["mean_observed"] == pytest.approx(0.5)
    assert (prompt["busy_share"], prompt["prefill_share"], prompt["mixed_share"]) == (0.45, 0.4, 0.05)
    assert (token["busy_share"], token["decode_share"]) == (0.95, 0.95)
    assert mixed["busy_share"] is None and found["requests_per_cpu_s"] is None


def test_what_the_terminal_shows(world: FakeWorld, cluster: Path) -> None:
    text = shown("--trace", "azure-code", "--cluster", cluster, "--limit", 30, "--slo", "splitwise")
    assert "azure-code: 30 requests over" in text and "to 3 machines" in text
    for words in ("Serving Benchmark Result", "Splitwise SLO", "Mean TTFT (ms):", "Successful requests:"):
        assert words in text
    rows = {
        line.split()[0]: line.split() for line in text.splitlines() if line.startswith(("prompt", "token", "mixed"))
    }
    assert rows["prompt"] == ["prompt", "2", "1.5", "45", "%", "40", "%", "0", "%", "5", "%"]
    assert rows["mixed"] == ["mixed", "0", "0.5", "-", "-", "-", "-"]
    assert "Policy moving, cost model batch-aware, 2 dgx-h100, 1 dgx-a100" in text
    assert "7.0 s: t0 from prompt to token, decodes outgrew prompts" in text
    assert "Cost $1.50, energy 0.30 kWh" in text
    assert "\x1b" not in text
    assert "\x1b" in shown("--trace", "azure-code", "--cluster", cluster, "--limit", 30, terminal=True)


def test_the_published_cost_model_is_named_for_what_it_is(world: FakeWorld, cluster: Path) -> None:
    cluster.write_text(CLUSTER + "cost_model: splitwise-sim\n")
    text = " ".join(shown("--trace", "azure-code", "--cluster", cluster, "--limit", 30).split())
    assert "Note: cost model splitwise-sim" in text and "decodes hardly depend on the batch" in text


def test_chunked_prefill_gets_the_best_chunk_of_a_sweep(world: FakeWorld, cluster: Path, tmp_path: Path) -> None:
    """Which is tried on the beginning of the trace only."""
    cluster.write_text(CLUSTER + "policy: chunked\n")
    world.ttft_s = {256: 0.9, 512: 0.7, 1024: 0.6, 2048: 0.8}
    path = tmp_path / "result.json"
    shown("--trace", "azure-code", "--cluster", cluster, "--limit", 2500, "--json", path)
    tried, whole = world.calls[:-1], world.calls[-1]
    assert sorted(call["chunk_tokens"] for call in tried) == [256, 512, 1024, 2048]
    assert {len(call["trace"].requests) for call in tried} == {2000}
    assert (whole["chunk_tokens"], len(whole["trace"].requests)) == (1024, 2500)
    (note,) = (note for note in orjson.loads(path.read_bytes())["notes"] if "chunks of" in note)
    assert note.startswith("chunks of 1024 tokens") and "first 2,000 requests" in note and "2048: " in note


def test_a_result_that_must_not_be_trusted(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(trace: Trace, *_: Any, **__: Any) -> SimRun:
        found = made_up(trace)
        found.run.records[0].event_tokens[0] += 1
        return found

    monkeypatch.setattr(command, "simulate", late)
    assert "INVALID RUN" in shown("--trace", "azure-code", "--cluster", cluster, "--limit", 5, exit_code=INVALID)


def test_a_page_is_written(world: FakeWorld, cluster: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    shown("--trace", "azure-code", "--cluster", cluster, "--limit", 30, "--html", path)
    assert "Simulation of azure-code" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--trace", "azure-code"], "--cluster"),
        (["--trace", "azure-code", "--cluster", "none.yaml"], "cannot read none.yaml"),
        (["--trace", "azure-cod", "--cluster", "CLUSTER"], "did you mean azure-code"),
        (["--trace", "azure-code", "--cluster", "CLUSTER", "--slo", "speed=1"], "unknown key 'speed'"),
        (["--trace", "azure-code", "--cluster", "CLUSTER", "--json", "/no/such/place.json"], "cannot write"),
    ],
)
def test_mistakes_are_told_before_anything_is_simulated(
    world: FakeWorld, cluster: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(cluster) if argument == "CLUSTER" else argument for argument in arguments]
    with pytest.raises(ConfigError, match=says):
        simulate_command(given, Console(file=io.StringIO()))
    assert run(["simulate", *given]) == 2
    assert says in capsys.readouterr().err
    assert world.calls == []


def test_it_starts_without_what_it_does_not_need() -> None:
    heavy = ("aiohttp", "plotly", "torch", "redis", "transformers", "scipy")
    code = f"import sys, loadgen.sim.command; print([name for name in {heavy} if name in sys.modules])"
    started = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert started.stdout.strip() == "[]"
