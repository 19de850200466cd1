"""The simulated cluster: every token once, the same whether decode steps are coalesced or not, and the figures that the
published simulator gives for its own example."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.record import Outcome
from loadgen.sim.cluster import Cluster
from loadgen.sim.outcome import SimRun
from loadgen.sim.world import simulate
from loadgen.traces.trace import Request, Trace
from shared.policy.batching import Batcher

POLICIES = ("moving", "fixed", "colocated", "chunked")
CUSTOM = {
    "type": "custom", "prefill_ms": [10.0, 0.1, 1e-6], "decode_ms": [20.0, 0.0005, 0.3], "kv_tokens": 8000,
    "kv_bytes_per_token": 100_000, "layers": 10,
}  # fmt: skip
AMPLE = CUSTOM | {"kv_tokens": 400_000, "count": 2}


def trace(*requests: tuple[float, int, int]) -> Trace:
    listed = (Request(at_s=at, prompt_tokens=prompt, output_tokens=output) for at, prompt, output in requests)
    return Trace(name="made", requests=tuple(listed))


def small(policy: str, prompts: int = 2, tokens: int = 2, **fields: Any) -> Cluster:
    machines = [CUSTOM | {"count": prompts, "role": "prompt"}, CUSTOM | {"count": tokens, "role": "token"}]
    return Cluster.parse({"model": "own", "machines": machines, "policy": policy, **fields})


def run(cluster: Cluster, load: Trace) -> SimRun:
    return simulate(load, cluster, chunk_tokens=512 if cluster.policy == "chunked" else None)


def poisson(rate: float, count: int, seed: int) -> Trace:
    draw = np.random.default_rng(seed)
    at = np.cumsum(draw.exponential(1 / rate, count))
    prompts, outputs = draw.integers(1, 3000, count), draw.integers(1, 120, count)
    return trace(*((float(a), int(p), int(o)) for a, p, o in zip(at, prompts, outputs, strict=True)))


LOADS = st.lists(st.tuples(st.floats(0, 3), st.integers(1, 3000), st.integers(1, 60)), min_size=1, max_size=25).map(
    lambda rows: trace(*sorted(rows))
)


@settings(max_examples=25, deadline=None)
@given(load=LOADS, policy=st.sampled_from(POLICIES), kv_tokens=st.sampled_from([3200, 8000]))
def test_every_request_gets_all_its_tokens_in_order(load: Trace, policy: str, kv_tokens: int) -> None:
    machine = CUSTOM | {"kv_tokens": kv_tokens}
    both = [machine | {"role": "prompt", "count": 2}, machine | {"role": "token"}]
    simulated = run(Cluster.parse({"model": "own", "machines": both, "policy": policy}), load)
    for record, request in zip(simulated.run.records, load.requests, strict=True):
        assert record.outcome is Outcome.COMPLETED
        assert len(record.event_s) == request.output_tokens
        assert all(a < b for a, b in zip([request.at_s, *record.event_s], record.event_s, strict=False))
    assert all(prompt and token for prompt, token in simulated.placements)


@pytest.mark.parametrize("policy", POLICIES)
def test_coalescing_decode_steps_changes_nothing(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load, cluster = poisson(8.0, 150, seed=3), small(policy)
    quick = run(cluster, load)
    monkeypatch.setattr(Batcher, "decode_steps", lambda self, batch: 1)
    step_by_step = run(cluster, load)
    for one, other in zip(quick.run.records, step_by_step.run.records, strict=True):
        assert one.event_s == pytest.approx(other.event_s, abs=1e-6)
    assert quick.placements == step_by_step.placements


def test_equal_runs_are_equal() -> None:
    load = poisson(10.0, 200, seed=1)
    first, again = run(small("moving"), load), run(small("moving"), load)
    assert [r.event_s for r in first.run.records] == [r.event_s for r in again.run.records]
    assert first.role_changes == again.role_changes


def test_a_lone_request_takes_what_the_costs_say() -> None:
    simulated = run(small("fixed"), trace((0.0, 1000, 11)))
    record = simulated.run.records[0]
    prefill_s = (10 + 100 + 1) / 1000
    assert record.event_s[0] == pytest.approx(prefill_s)
    layer_s = 1000 * 100_000 / (10e9 / 8) / 10
    assert record.event_s[1] - record.event_s[0] == pytest.approx(layer_s + (20 + 0.0005 * 1001 + 0.3) / 1000)
    assert simulated.placements == [("custom-0", "custom-2")]


def test_a_slow_link_is_shared() -> None:
    """Two transfers to one token machine take as long as their bytes need together."""
    slow = {"link_gbps": 0.8}  # 0.1 GB/s: a second for each prompt of 1,000 tokens
    simulated = run(small("fixed", 2, 1, **slow), trace((0.0, 1000, 2), (0.0, 1000, 2)))
    seconds = sorted(record.event_s[1] for record in simulated.run.records)
    assert seconds[0] == pytest.approx(1.0, abs=0.05) and seconds[1] == pytest.approx(2.0, abs=0.05)


def test_users_ask_again_when_they_were_answered() -> None:
    first = Request(at_s=0.0, prompt_tokens=100, output_tokens=10)
    again = Request(at_s=0.0, prompt_tokens=100, output_tokens=10, after=0, think_s=2.0)
    simulated = run(small("moving"), Trace(name="users", requests=(first, again)))
    before, after = simulated.run.records
    assert before.done_s is not None and after.due_s == pytest.approx(before.done_s + 2.0)


def test_roles_follow_the_load_and_nothing_is_lost() -> None:
    prompts = [(i * 0.05, 1500, 3) for i in range(400)]
    answers = [(20 + i * 0.05, 50, 150) for i in range(400)]
    moving = run(small("moving", 4, 4), trace(*prompts, *answers))
    assert {change.role for change in moving.role_changes} == {"prompt", "token"}
    assert all(change.reason for change in moving.role_changes)
    assert all(record.outcome is Outcome.COMPLETED for record in moving.run.records)
    assert not run(small("fixed", 4, 4), trace(*prompts)).role_changes


@pytest.mark.parametrize("seed", range(4))
def test_no_prompt_waits_longer_than_three_times_the_queue_it_met(seed: int) -> None:
    """Splitwise's simulator let one wait for 41.9 s. The queue it met: prompts of its machine that came before it and
    whose first token came after its arrival; and its own."""
    load = poisson(14.0, 400, seed)
    machines = [AMPLE | {"role": "prompt"}, AMPLE | {"role": "token"}]
    simulated = run(Cluster.parse({"model": "own", "machines": machines}), load)
    costs = Cluster.parse({"model": "own", "machines": [CUSTOM | {"role": "prompt"}]}).machines[0].fit.costs
    records, where = simulated.run.records, [prompt for prompt, _ in simulated.placements]
    for index, record in enumerate(records):
        met_s = sum(
            costs.prefill_s(other.prompt_tokens)
            for number, other in enumerate(records[: index + 1])
            if where[number] == where[index] and other.event_s[0] > record.due_s
        )
        # a prompt of a token machine also waits for steps that its decodes take, at most half of the time
        lent = 1.0 if where[index] in ("custom-0", "custom-1") else 2.0
        step_s = 4 * costs.decode_s(1024, 1)
        assert record.event_s[0] - record.due_s <= 3 * lent * met_s + step_s, (index, record.due_s)


def test_nobody_is_refused_without_promises_and_some_with_them() -> None:
    load = poisson(60.0, 300, seed=5)
    assert all(r.outcome is Outcome.COMPLETED for r in run(small("moving"), load).run.records)
    machines = [AMPLE | {"role": "prompt"}, AMPLE | {"role": "token"}]
    promises = {"admission": True, "ttft_target_s": 1.0}
    strict = run(Cluster.parse({"model": "own", "machines": machines, **promises}), load)
    ends = [r.outcome for r in strict.run.records]
    assert Outcome.REJECTED in ends and Outcome.FAILED not in ends
    ttft_s = [r.event_s[0] - r.due_s for r in strict.run.records if r.outcome is Outcome.COMPLETED]
    assert np.percentile(ttft_s, 90) <= 1.0


# The example in the README of the simulator that was published with Splitwise: three prompts, BLOOM-176B.
EXAMPLE = trace((0.0, 4096, 32), (5.0, 2048, 8), (10.0, 2048, 16))
TTFT_S = (0.649598, 0.251964, 0.251964)


@pytest.mark.parametrize(
    ("policy", "machines", "e2e_s"),
    [
        ("colocated", [{"type": "dgx-h100"}], (1.744743, 0.499255, 0.781873)),
        (
            "moving",
            [{"type": "dgx-h100", "role": "prompt"}, {"type": "dgx-a100", "role": "token"}],
            (2.199226, 0.622873, 1.003018),
        ),
    ],
)
def test_the_published_example(policy: str, machines: list[dict[str, str]], e2e_s: tuple[float, ...]) -> None:
    spec = {"model": "bloom-176b", "machines": machines, "policy": policy, "cost_model": "splitwise-sim"}
    records = simulate(EXAMPLE, Cluster.parse(spec)).run.records
    assert [r.event_s[0] - r.due_s for r in records] == pytest.approx(TTFT_S, rel=0.02)
    assert [r.event_s[-1] - r.due_s for r in records] == pytest.approx(e2e_s, rel=0.02)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_answer_ends_where_the_memory_of_its_machine_does(policy: str) -> None:
    machine = CUSTOM | {"kv_tokens": 800}
    both = [machine | {"role": "prompt"}, machine | {"role": "token"}]
    load = trace((0.0, 700, 200), (0.1, 100, 50), (0.2, 900, 5))
    records = run(Cluster.parse({"model": "own", "machines": both, "policy": policy}), load).run.records
    assert [len(record.event_s) for record in records] == [100, 50, 0]
    assert [record.outcome for record in records] == [Outcome.COMPLETED, Outcome.COMPLETED, Outcome.FAILED]
