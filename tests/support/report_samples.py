"""Runs as a server under load could have made them, for tests of reports."""

import random
from typing import Any

from loadgen.measure.ratio import ratios
from loadgen.measure.result import result
from loadgen.measure.slo import Slo
from loadgen.measure.splitwise import IdleSpeed
from loadgen.record import ClientProcess, Outcome, QueueSample, Record, Run
from loadgen.report.groups import Entry

SLO = Slo.parse("ttft=0.6,tbt=0.06,e2e=15")
IDLE = IdleSpeed(ttft_s=((128, 0.03), (4096, 0.5)), tbt_s=0.022)


def sample_run(
    *, requests: int = 300, seed: int = 1, gap_s: float = 0.03, target: str = "splitmesh", rate_rps: float = 5.0
) -> Run:
    """Poisson arrivals, a prompt stage that serves one after the other, gaps that grow with what is running. One
    request in forty fails, one in sixty is rejected."""
    rng, schedule = random.Random(seed), random.Random(42)
    due_s, free_s = 0.0, 0.0
    records: list[Record] = []
    ends_s: list[float] = []
    for index in range(requests):
        due_s += schedule.expovariate(rate_rps)
        prompt, output = int(min(6000, schedule.lognormvariate(6.6, 0.9))) + 16, schedule.randint(8, 220)
        free_s = max(free_s, due_s) + prompt * gap_s / 250 * rng.uniform(0.9, 1.1)
        running = sum(end_s > due_s for end_s in ends_s[-200:])
        record = Record(index=index, prompt_tokens=prompt, output_tokens=output, due_s=due_s, status=200)
        record.sent_s = due_s + rng.expovariate(5000)
        record.request_id = f"req-{index}"
        if index % 60 == 31:
            record.outcome, record.status, record.error = Outcome.REJECTED, 503, "503: no room for 1 more <request>"
        else:
            _answer(record, rng, free_s + 0.02, gap_s * (1 + running / 60))
        ends_s.append(record.done_s or due_s)
        records.append(record)
    last_s = max(ends_s)
    return Run(
        target=target,
        model="smollm2-135m-instruct",
        trace="azure-conv (synthetic)",
        schedule_sha256="5f" * 32,
        scheduled=requests,
        records=records,
        window_s=(0.1 * due_s, due_s),
        clients=[ClientProcess(requests=requests, cpu_share=0.23)],
        queues=[_queue(records, float(at_s)) for at_s in range(0, int(last_s), 2)],
        notes=["rate scaled by 0.9", "prompts are seeded text: no prefix is shared"],
        started="2025-06-01T12:00:00Z",
    )


def _answer(record: Record, rng: random.Random, first_s: float, gap_s: float) -> None:
    count = record.output_tokens if record.index % 40 != 17 else 3
    at_s = first_s
    for number in range(count):
        record.event_s.append(at_s)
        record.event_tokens.append(1)
        slow = 3.0 if number == 0 or rng.random() < 0.01 else 1.0
        at_s += gap_s * slow * rng.uniform(0.7, 1.3)
    if count < record.output_tokens:
        record.error = "connection lost: </script><script>alert('text of a server')</script>"
        return
    record.done_s = record.event_s[-1] + 0.001
    record.outcome, record.finish = Outcome.COMPLETED, "length"
    record.usage_prompt_tokens, record.usage_output_tokens = record.prompt_tokens, count


def _queue(records: list[Record], at_s: float) -> QueueSample:
    running = sum(bool(r.event_s) and r.event_s[0] <= at_s < (r.done_s or 0) for r in records)
    waiting = sum(bool(r.event_s) and r.due_s <= at_s < r.event_s[0] for r in records)
    return QueueSample(at_s=at_s, waiting=waiting, running=running)


def sample_entry(run: Run, *, splitwise: bool = False) -> Entry:
    made: dict[str, Any] = result(run, slo=SLO, idle=IDLE if splitwise else None)
    return Entry(target=run.target, result=made, run=run)


def sample_comparison(runs: int = 3, requests: int = 300) -> tuple[list[Entry], dict[str, Any]]:
    """Two targets under the same schedules, the second slower between tokens."""
    a, b = "splitmesh", "one-pool baseline"
    of_a = [sample_run(target=a, requests=requests, seed=seed) for seed in range(runs)]
    of_b = [sample_run(target=b, requests=requests, seed=seed + 9, gap_s=0.036) for seed in range(runs)]
    entries = [sample_entry(run) for run in of_a + of_b]
    targets = {name: [dict(entry.result) for entry in entries if entry.target == name] for name in (a, b)}
    comparison: dict[str, Any] = {
        "targets": targets,
        "ratios": {f"{b}/{a}": ratios(of_a, of_b, slo=SLO, seed=1)},
        "baseline": a,
        "schedule_sha256": of_a[0].schedule_sha256,
        "notes": ["targets ran in turns: a, b, b, a, a, b"],
        "answer": [f"{b} takes 1.2 times as long between tokens as {a}."],
    }
    return entries, comparison
