"""Journals: what deciders were told and answered survives in a file, and comes out the same when it is taken again."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from structlog.testing import capture_logs

from services.local.replay import replay
from shared.clock import ManualClock
from shared.errors import BadFrame, ConfigError
from shared.ids import EntryId, ServiceId, WorkerId
from shared.policy.membership import GRACE_S, Membership
from shared.policy.pooling import Pooling
from shared.policy.replay import Call, Opening, Record, Replay
from shared.policy.routing import Limits, Placement, place
from shared.policy.view import View
from shared.runtime.journal import FLUSH_S, Journal, Note, journal, not_noted, read
from shared.wire.codec import encode, pack
from shared.wire.frames import framed
from shared.wire.messages import StreamMessage
from shared.wire.terms import Role, Sampling, State
from tests.support.recorder import noting
from tests.support.samples import placed, report, submitted

ROUTER = Opening(service="router", service_id=ServiceId("router-0.a1"), limits=Limits(ttft_target_s=0.5))
MANAGER = Opening(service="pool_manager", service_id=ServiceId("pool-manager-0.b2"))
HOMES = (Role.PROMPT, Role.PROMPT, Role.TOKEN, Role.TOKEN)
SECRET = tuple(b"nobody may read this")


def route(note: Note, random: Random, requests: int) -> None:
    """Placements of a router by irregular reports; some are read back from the stream, some cannot be made."""
    view, now, entries = View(salt=ROUTER.service_id), 100.0, 0

    def apply(message: StreamMessage) -> None:
        nonlocal entries
        entries += 1
        view.apply(message, EntryId(f"{entries}-0"), now - 0.001)
        note(Call.APPLY, now - 0.001, message, subject=f"{entries}-0")

    for number in range(requests):
        now += random.expovariate(5.0)
        for worker, home in random.sample(list(enumerate(HOMES)), random.randint(0, 4)):
            queue = random.choice((0, 0, 300, 9000))
            load = {"queue_tokens": queue, "demand_blocks": random.randint(0, 90), "covers": EntryId(f"{entries}-0")}
            apply(report(f"w{worker}", home, kv_blocks_total=100, **load))
        request = submitted(f"r{number}", random.randint(1, 400), max_tokens=random.choice((1, 16, 600)))
        choice = place(view, request, now, ROUTER.limits)
        note(Call.PLACE, now, request, answer=choice)
        if isinstance(choice, Placement):
            out = choice.placed(request)
            view.foresee(out)
            note(Call.FORESEE, now, out)
            if random.random() < 0.2:
                view.retract(out)
                note(Call.RETRACT, now, out)
            else:
                apply(out)


def place_on_idle(note: Note) -> None:
    view = View(salt=ROUTER.service_id)
    for worker, home in enumerate(HOMES):
        message, entry_id = report(f"w{worker}", home), EntryId(f"1-{worker}")
        view.apply(message, entry_id, 1.0)
        note(Call.APPLY, 1.0, message, subject=entry_id)
    note(Call.PLACE, 1.0, submitted(), answer=place(view, submitted(), 1.0, ROUTER.limits))


def manage(note: Note, seconds: int) -> int:
    """Decisions of a pool manager about more prompts than its prompt pool can do, until a worker dies; the moves."""
    view = View()
    membership, pooling = Membership(view), Pooling(view)
    moves = 0

    def apply(message: StreamMessage, now: float, entry_id: str) -> None:
        view.apply(message, EntryId(entry_id), now)
        pooling.apply(message, EntryId(entry_id), now)
        note(Call.APPLY, now, message, subject=entry_id)

    for second in range(1, seconds + 1):
        now = second + 0.123456789
        for worker, home in enumerate(HOMES):
            state = State.LOST if worker == 0 and second > 8 else State.READY
            covers = EntryId(f"{second}-0")
            apply(report(f"w{worker}", home, queue_s=3.0, state=state, covers=covers), now, f"{second}-{worker}")
        for number in range(9):
            apply(placed(f"p{second}-{number}", "w1", "w2", prompt_tokens=200 + number), now, f"{second}-{9 + number}")
        decided = pooling.decide(now)
        note(Call.DECIDE, now, answer=decided)
        gone = membership.gone(now)
        note(Call.GONE, now, answer=gone)
        for worker_id in gone:
            membership.swept(worker_id)
            note(Call.SWEPT, now, subject=worker_id)
        moves += len(decided)
    return moves


def noted(act: Callable[[Note], object]) -> list[Record]:
    records: list[Record] = []
    act(noting(records))
    return records


def differences(opening: Opening, records: list[Record]) -> list[int]:
    taken = Replay(opening)
    return [difference.number for record in records if (difference := taken.take(record)) is not None]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 40))
def test_a_router_decides_the_same_again(seed: int, requests: int) -> None:
    records = noted(lambda note: route(note, Random(seed), requests))
    assert sum(record.call is Call.PLACE for record in records) == requests
    assert differences(ROUTER, records) == []


def test_a_pool_manager_decides_the_same_again() -> None:
    records = noted(lambda note: manage(note, int(GRACE_S) + 12))
    assert any(record.call is Call.DECIDE and "RoleMove" in record.answer for record in records)
    assert [record.subject for record in records if record.call is Call.SWEPT] == ["w0"]
    assert differences(MANAGER, records) == []


def test_other_limits_and_another_identity_decide_otherwise() -> None:
    records = noted(lambda note: route(note, Random(1), 60))
    assert differences(replace(ROUTER, limits=Limits(borrow=False)), records)
    others = [replace(ROUTER, service_id=ServiceId(f"router-{number**5}")) for number in range(20)]
    assert any(differences(other, noted(place_on_idle)) for other in others), "each has its own order among equals"


def test_whatever_is_altered_is_noticed_where_it_matters() -> None:
    records = noted(lambda note: route(note, Random(2), 40))
    first = next(n for n, record in enumerate(records) if record.call is Call.PLACE and "Placed" in record.answer)
    for altered in (
        replace(records[first], answer=records[first].answer.replace("prompt_tokens=", "prompt_tokens=1")),
        replace(records[first], prompt_tokens=records[first].prompt_tokens + 1),
    ):
        assert first + 1 in differences(ROUTER, [*records[:first], altered, *records[first + 1 :]])
    with pytest.raises(BadFrame, match="a router does not place WorkerReport"):
        differences(ROUTER, [replace(records[first], message=encode(report("w0")))])
    without = [record for record in records if record.call is not Call.RETRACT]
    assert differences(ROUTER, without)


def test_a_decider_that_fails_only_now_is_a_difference() -> None:
    (record,) = noted(lambda note: note(Call.APPLY, 1.0, placed("r", "w0", "w1"), subject="no id"))
    (difference,) = [Replay(ROUTER).take(record)]
    assert difference is not None and difference.recomputed.startswith("raises ValueError")


def test_calls_that_a_service_does_not_make_are_refused() -> None:
    records = noted(lambda note: note(Call.DECIDE, 1.0, answer=[]))
    with pytest.raises(BadFrame, match="a router does not decide"):
        differences(ROUTER, records)
    with pytest.raises(BadFrame, match="'gateway' has no deciders"):
        Replay(replace(ROUTER, service="gateway"))


def test_what_was_typed_is_not_recorded() -> None:
    sampling = Sampling(max_tokens=5, stop_token_ids=SECRET)
    request = submitted(token_ids=SECRET, sampling=sampling)
    (record,) = noted(lambda note: note(Call.PLACE, 1.0, request, answer="no worker"))
    assert bytes(SECRET) not in pack(record) and record.prompt_tokens == len(SECRET)


# ---- the file -------------------------------------------------------------------------------------------------------


def written(directory: Path, act: Callable[[Note], object], opening: Opening = ROUTER) -> Path:
    with journal(str(directory), opening, ManualClock()) as note:
        act(note)
    return directory / f"{opening.service_id}.journal"


def test_a_file_holds_what_was_noted(tmp_path: Path) -> None:
    expected = noted(lambda note: route(note, Random(3), 30))
    path = written(tmp_path / "new" / "directory", lambda note: route(note, Random(3), 30))
    assert list(read(path)) == [ROUTER, *expected]


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.999])
def test_a_killed_process_leaves_all_but_its_last_record(tmp_path: Path, kept: float) -> None:
    path = written(tmp_path, lambda note: route(note, Random(4), 30))
    whole, everything = path.read_bytes(), list(read(path))
    path.write_bytes(whole[: int(kept * len(whole))])
    *entries, unfinished_bytes = read(path)
    assert entries == everything[: len(entries)]
    whole_bytes = sum(len(framed(pack(entry))) for entry in entries)
    assert unfinished_bytes == int(kept * len(whole)) - whole_bytes > 0
    assert len(framed(pack(everything[len(entries)]))) > unfinished_bytes


def test_what_is_noted_is_in_the_file_soon(tmp_path: Path) -> None:
    clock, path = ManualClock(), tmp_path / "a.journal"
    one = Journal(path, path.open("xb", buffering=0), MANAGER, clock)
    assert list(read(path)) == [MANAGER], "whose it is, at once"
    one.note(Call.GONE, 1.0, answer=[])
    assert list(read(path)) == [MANAGER]
    clock.advance(FLUSH_S)
    one.note(Call.SWEPT, 2.0, subject=WorkerId("w"))
    assert [entry.call for entry in read(path) if isinstance(entry, Record)] == [Call.GONE, Call.SWEPT]
    one.close()


def test_a_full_journal_ends_with_one_line(tmp_path: Path) -> None:
    path, limit = tmp_path / "a.journal", 1000
    with capture_logs() as lines:
        one = Journal(path, path.open("xb", buffering=0), MANAGER, ManualClock(), limit)
        for second in range(1000):
            one.note(Call.GONE, float(second), answer=[])
        one.close()
    assert [line["event"] for line in lines] == ["the journal is full, nothing more is written to it"]
    assert 0.9 * limit < path.stat().st_size <= limit
    assert differences(MANAGER, [entry for entry in read(path) if isinstance(entry, Record)]) == []


def test_a_full_disk_ends_the_journal_and_not_the_service() -> None:
    full = Path("/dev/full")
    with capture_logs() as lines:
        one = Journal(full, full.open("wb", buffering=0), MANAGER, ManualClock())
        for second in range(3):
            one.note(Call.GONE, float(second), answer=[])
        one.close()
    assert [(line["event"], line["reason"]) for line in lines] == [
        ("the journal ends, it cannot be written", "No space left on device")
    ]


def test_no_directory_no_journal(tmp_path: Path) -> None:
    with journal(None, ROUTER, ManualClock()) as note:
        assert note is not_noted
        note(Call.GONE, 1.0, answer=[])
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"--journal .*file/x: Not a directory"),
        journal(str(tmp_path / "file" / "x"), ROUTER, ManualClock()),
    ):
        pass


# ---- splitmesh replay -----------------------------------------------------------------------------------------------


def said_of(*paths: Path) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    exit_code = replay([*map(str, paths)], console)
    assert isinstance(console.file, io.StringIO)
    return exit_code, console.file.getvalue()


def test_replay_tells_of_each_journal(tmp_path: Path) -> None:
    router = written(tmp_path, lambda note: route(note, Random(5), 20))
    manager = written(tmp_path, lambda note: manage(note, 12), MANAGER)
    exit_code, said = said_of(router, manager)
    assert exit_code == 0
    assert f"{router.name}: " in said and ", 20 decisions taken again, no difference" in said
    assert f"{manager.name}: " in said and ", 24 decisions taken again, no difference" in said
    manager.write_bytes(manager.read_bytes()[:-5])
    exit_code, said = said_of(manager)
    assert exit_code == 0 and "it ends within a record" in said


def test_replay_shows_the_first_differences_and_fails(tmp_path: Path) -> None:
    path = written(tmp_path, lambda note: route(note, Random(6), 30))
    _, *records = read(path)
    path.write_bytes(
        b"".join(framed(pack(entry)) for entry in (replace(ROUTER, limits=Limits(borrow=False)), *records))
    )
    exit_code, said = said_of(path)
    assert exit_code == 1
    assert 1 <= said.count("recorded: (Placed(") == said.count("again:    (Placed(") <= 5


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file"),
        (b"", "does not begin with an Opening"),
        (b"no journal, but text of some length", "no journal of this version of splitmesh: frame of"),
        (framed(b"x"), "unknown version or tag"),
        (framed(pack(ROUTER)) * 2, "a second Opening"),
    ],
)
def test_what_is_no_journal_is_one_line(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "a.journal"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        said_of(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
