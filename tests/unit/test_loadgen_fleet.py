"""Whole replays against a server whose delays and faults are known: what is measured is what happened."""

from typing import Any

import pytest

from loadgen.client.fleet import Progress, Settings, processes_needed, replay, split
from loadgen.client.process import Usage
from loadgen.client.saturation import Saturation
from loadgen.client.server import COMPLETIONS, Form, Server
from loadgen.measure.result import result
from loadgen.measure.slo import Slo
from loadgen.record import Outcome, Record, Run
from loadgen.traces.trace import Request, Trace
from shared.errors import ConfigError
from tests.support.fake_openai import MODEL, FakeOpenAI, Script

SLO = Slo.parse("ttft=0.1,max_gap=0.1")


def server_at(url: str) -> Server:
    return Server(
        base_url=url, endpoint=COMPLETIONS, model=MODEL, form=Form.IDS, symbols=(1000, 20000),
        extras=("ignore_eos", "min_tokens", "return_token_ids"),
    )  # fmt: skip


def steady(count: int, *, every_s: float = 0.02, output_tokens: int = 8) -> Trace:
    requests = (Request(at_s=n * every_s, prompt_tokens=20 + n, output_tokens=output_tokens) for n in range(count))
    return Trace(name="steady", requests=tuple(requests))


def replayed(fake: FakeOpenAI, trace: Trace, **settings: Any) -> tuple[Run, dict[str, Any]]:
    run = replay(server_at(fake.url), trace, Settings(**settings))
    return run, result(run, slo=SLO)  # type: ignore[return-value]


def as_the_server_saw_it(run: Run, fake: FakeOpenAI) -> Run:
    """The run with the server's stamps in place of the client's. Requests came in the order of the schedule; what lies
    between due and arrival is the client's to measure, so the first record anchors one clock on the other."""
    first = min(range(len(run.records)), key=lambda n: run.records[n].due_s)
    offset_s = min(w.arrived_s - r.due_s for w, r in zip(fake.written, run.records, strict=True))
    assert first == 0
    records = [
        Record(
            index=r.index, prompt_tokens=r.prompt_tokens, output_tokens=r.output_tokens, due_s=r.due_s, sent_s=r.sent_s,
            event_s=[at_s - offset_s for at_s in w.event_s], event_tokens=r.event_tokens,
            done_s=None if w.ended_s is None else w.ended_s - offset_s, outcome=r.outcome,
            usage_prompt_tokens=r.usage_prompt_tokens, usage_output_tokens=r.usage_output_tokens,
        )
        for r, w in zip(run.records, fake.written, strict=True)
    ]  # fmt: skip
    return Run(
        target=run.target, model=run.model, trace=run.trace, schedule_sha256=run.schedule_sha256,
        scheduled=run.scheduled, records=records, window_s=run.window_s, clients=run.clients,
    )  # fmt: skip


def distrusted(measured: dict[str, Any]) -> list[str]:
    """Reasons against the run, but for a late client: the machine may be busy with something else."""
    return [reason for reason in measured["invalid_reasons"] if "send lag" not in reason]


def off_by(measured: dict[str, Any], truth: dict[str, Any]) -> list[str]:
    """What is not within 1 ms or 1 % of the truth. A hiccup of the machine moves no median, and means but little; only
    the largest gaps are hiccups themselves."""
    wrong = []
    for name in ("ttft_s", "itl_s", "tpot_s", "second_token_s", "max_gap_s", "e2e_s"):
        for stat in ("p50",) if name == "max_gap_s" else ("mean", "p50"):
            mine, real = measured[name][stat], truth[name][stat]
            if abs(mine - real) > max(1e-3, 0.01 * real):
                wrong.append(f"{name}.{stat}: measured {mine}, the server wrote {real}")
    for name in ("output_tokens_per_s", "requests_per_s", "attainment", "goodput_rps"):
        if abs(measured[name] - truth[name]) > 0.01 * truth[name]:
            wrong.append(f"{name}: measured {measured[name]}, the server wrote {truth[name]}")
    return wrong


CONSTANT = Script(ttft_s=0.05, gap_s=0.02)
STALLED = Script(ttft_s=0.02, gap_s=0.01, stall_at=3, stall_s=0.15)
LATE_FIRST = Script(ttft_s=0.3, gap_s=0.01)
BUNDLED = Script(ttft_s=0.05, gap_s=0.03, tokens_per_event=2)


@pytest.mark.parametrize(
    "script", [CONSTANT, STALLED, LATE_FIRST, BUNDLED], ids=["constant", "stall", "late", "bundled"]
)
def test_every_measure_is_true_to_a_millisecond_or_a_percent(script: Script) -> None:
    """Compared with the server's own stamps. The machine may hiccup: one quiet try of three is enough."""
    for _ in range(3):
        with FakeOpenAI(lambda number: script if number % 4 else CONSTANT) as fake:
            run, measured = replayed(fake, steady(60))
            truth: Any = result(as_the_server_saw_it(run, fake), slo=SLO)
        assert measured["requests"] == {"scheduled": 60, "completed": 60, "failed": 0, "rejected": 0}
        if not (wrong := off_by(measured, truth)):
            return
    pytest.fail("; ".join(wrong))


def test_delays_come_out_as_they_were_scripted() -> None:
    with FakeOpenAI(lambda number: STALLED) as fake:
        _, measured = replayed(fake, steady(40))
    assert measured["ttft_s"]["p50"] == pytest.approx(0.02, abs=0.01)
    assert measured["itl_s"]["p50"] == pytest.approx(0.01, abs=0.005)
    assert measured["max_gap_s"]["p50"] == pytest.approx(0.16, abs=0.01)
    assert measured["attainment"] == 0.0 and measured["attainment_each"]["max_gap"] == 0.0
    assert measured["attainment_each"]["ttft"] > 0.9


def test_a_slow_server_is_charged_from_the_schedule_on() -> None:
    """Open loop: while one answer hangs the others are still sent when they are due, and their waits are seen."""
    with FakeOpenAI(lambda number: Script(ttft_s=0.5 if number < 5 else 0.0)) as fake:
        run, _ = replayed(fake, steady(20))
        arrivals = [w.arrived_s - fake.written[0].arrived_s for w in fake.written]
    assert arrivals[19] == pytest.approx(19 * 0.02, abs=0.1)
    assert all(r.sent_s is not None and r.sent_s >= r.due_s for r in run.records)


def test_faults_are_counted_and_named() -> None:
    scripts = {
        0: Script(status=429), 1: Script(status=500), 2: Script(drop_at=3), 3: Script(error_at=2),
        4: Script(garbage_at=1), 5: Script(hang_at=4),
    }  # fmt: skip
    with FakeOpenAI(lambda number: scripts.get(number, Script())) as fake:
        run, measured = replayed(fake, steady(12, every_s=0.05), deadline_s=1.0)
    assert measured["requests"] == {"scheduled": 12, "completed": 6, "failed": 5, "rejected": 1}
    assert distrusted(measured) == []
    assert measured["attainment"] == pytest.approx(0.5)
    said = " | ".join(measured["errors"])
    for words in ("HTTP 429", "HTTP 500", "in the stream: scripted error", "cannot be read", "deadline of 1 s"):
        assert words in said
    assert [r.tokens for r in run.records[2:6]] == [3, 2, 1, 4]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (Script(usage_off_by=1), "output tokens received and reported by the server differ in 5 of 5"),
        (Script(prompt_off_by=2), "prompt tokens"),
        (Script(stop_early_at=3), "output tokens asked for"),
        (Script(status=500), "completed"),
    ],
)
def test_a_run_that_cannot_be_trusted_says_so(script: Script, reason: str) -> None:
    with FakeOpenAI(lambda number: script) as fake:
        _, measured = replayed(fake, steady(5))
    assert not measured["valid"]
    assert any(reason in line for line in distrusted(measured)), measured["invalid_reasons"]


def test_no_usage_is_a_note_and_no_reason() -> None:
    with FakeOpenAI(lambda number: Script(usage=False)) as fake:
        _, measured = replayed(fake, steady(5))
    assert distrusted(measured) == []
    assert any("usage" in note for note in measured["notes"])


def test_users_wait_for_their_answers() -> None:
    """Two users, three requests each: the next is due when the one before has ended and the user has thought."""
    requests = [Request(at_s=0.0, prompt_tokens=9, output_tokens=4) for _ in range(2)]
    for number in range(2, 6):
        requests.append(Request(at_s=0.0, prompt_tokens=9, output_tokens=4, after=number - 2, think_s=0.1))
    with FakeOpenAI(lambda number: Script(ttft_s=0.05, gap_s=0.01)) as fake:
        run, measured = replayed(fake, Trace(name="users", requests=tuple(requests)))
    assert distrusted(measured) == []
    for number in range(2, 6):
        before, record = run.records[number - 2], run.records[number]
        assert before.done_s is not None
        assert record.due_s == pytest.approx(before.done_s + 0.1)


def test_a_session_carries_on_what_was_said() -> None:
    requests = (
        Request(at_s=0.0, prompt_tokens=10, output_tokens=4),
        Request(at_s=0.0, prompt_tokens=20, output_tokens=4, after=0, carries=True),
    )
    with FakeOpenAI() as fake:
        replayed(fake, Trace(name="session", requests=requests))
        first, second = (w.body["prompt"] for w in fake.written)
    assert second[:14] == [*first, 7, 7, 7, 7]
    assert len(second) == 20


def test_users_go_on_after_a_failure() -> None:
    requests = (
        Request(at_s=0.0, prompt_tokens=10, output_tokens=4),
        Request(at_s=0.0, prompt_tokens=20, output_tokens=4, after=0, carries=True),
    )
    with FakeOpenAI(lambda number: Script(drop_at=2) if number == 0 else Script()) as fake:
        run, _ = replayed(fake, Trace(name="session", requests=requests))
    assert [r.outcome for r in run.records] == [Outcome.FAILED, Outcome.COMPLETED]


def test_several_processes_make_one_run() -> None:
    with FakeOpenAI(lambda number: CONSTANT) as fake:
        run, measured = replayed(fake, steady(30), processes=2)
    assert [r.index for r in run.records] == list(range(30))
    assert [c.requests for c in run.clients] == [15, 15]
    assert distrusted(measured) == []
    arrived = sorted(w.arrived_s for w in fake.written)
    assert arrived[-1] - arrived[0] == pytest.approx(29 * 0.02, abs=0.1)


def test_the_drain_ends() -> None:
    with FakeOpenAI(lambda number: Script(hang_at=1)) as fake:
        run, measured = replayed(fake, steady(3), drain_s=0.3)
    assert measured["requests"]["failed"] == 3
    assert all("drain of 0.3 s" in (r.error or "") for r in run.records)


def test_a_warm_up_is_cut_off() -> None:
    with FakeOpenAI() as fake:
        run, _ = replayed(fake, steady(20), warmup_s=0.2)
    assert run.window_s == pytest.approx((0.2, 0.38))


def test_a_warm_up_that_swallows_everything_is_refused() -> None:
    with FakeOpenAI() as fake, pytest.raises(ConfigError, match="--warmup 2"):
        replayed(fake, steady(20), warmup_s=2.0)


def test_a_ramp_ends_at_saturation_and_counts_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two processes, which stop at moments of their own."""
    monkeypatch.setattr("loadgen.client.saturation.SPAN_S", 2.0)
    monkeypatch.setattr("loadgen.client.saturation.EVERY_S", 0.2)
    with FakeOpenAI(lambda number: Script(ttft_s=0.02 * number)) as fake:
        run, measured = replayed(fake, steady(1000, every_s=0.02), processes=2, stop_when_saturated=True)
    assert 0 < run.scheduled < 1000
    assert [r.index for r in run.records] == list(range(run.scheduled))
    assert distrusted(measured) == [] and any("saturation" in note for note in measured["notes"])


def test_one_slow_stretch_is_no_saturation() -> None:
    saturation = Saturation()
    ttft_s = [0.1] * 400
    assert not any(saturation.reached(at_s, 5, ttft_s[: 10 * at_s]) for at_s in range(1, 40))
    ttft_s += [0.5] * 400
    assert not any(saturation.reached(at_s, 5, ttft_s[: 10 * at_s]) for at_s in range(41, 80)), "slower, not fuller"


def test_the_busiest_seconds_of_a_client_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two busy seconds in a minute of waiting are not forgotten."""
    usage, cpu_s = Usage(), 0.0
    for tick in range(120):
        cpu_s += 0.45 if 10 <= tick < 14 else 0.0
        monkeypatch.setattr("loadgen.client.process.cpu_s", lambda used=cpu_s: used)
        usage.note(tick * 0.5)
    assert usage.largest_share() == pytest.approx(0.9)


def test_the_queues_of_the_server_are_seen() -> None:
    with FakeOpenAI(lambda number: Script(ttft_s=0.2, gap_s=0.1)) as fake:
        run, _ = replayed(fake, steady(30, every_s=0.1))
    assert run.queues and max(sample.running for sample in run.queues) > 0


def test_progress_ends_with_everything() -> None:
    seen: list[tuple[int, int]] = []

    def look(progress: Progress) -> None:
        seen.append((progress.count("sent"), progress.count("done")))

    with FakeOpenAI() as fake:
        replay(server_at(fake.url), steady(10), Settings(), look)
    assert seen[-1] == (10, 10)


def test_requests_of_one_user_stay_together() -> None:
    requests = [Request(at_s=0.0, prompt_tokens=1, output_tokens=1) for _ in range(3)]
    requests += [Request(at_s=0.0, prompt_tokens=1, output_tokens=1, after=n) for n in (0, 1, 2, 3)]
    shares = split(Trace(name="users", requests=tuple(requests)), 2)
    assert [[number for number, _ in share] for share in shares] == [[0, 2, 3, 5, 6], [1, 4]]


def test_more_tokens_need_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert processes_needed(steady(100)) == 1
    assert processes_needed(steady(1000, every_s=0.001, output_tokens=25)) == 3
    assert processes_needed(steady(1000, every_s=0.001, output_tokens=2500)) == 7
    users = [Request(at_s=0.0, prompt_tokens=9, output_tokens=99_999, after=n - 1 if n else None) for n in range(9)]
    assert processes_needed(Trace(name="users", requests=tuple(users))) == 1
