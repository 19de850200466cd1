"""Journals of real processes: their decisions, taken again, come out the same, and one that was altered is noticed."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from services.local.__main__ import run
from shared.policy.replay import Call, Record
from shared.runtime.journal import read
from shared.wire.codec import pack
from shared.wire.frames import framed
from shared.wire.reports import RoleChanged
from tests.support.client import assert_all_right, load
from tests.support.running import RunningMesh

pytestmark = pytest.mark.system

OPTIONS = (
    "--engine", "paced", "--paced-model", "prefill_ms=5,0.1,0 decode_ms=10,0,0.2", "--prompt-workers", "2",
    "--token-workers", "2", "--routers", "2",
)  # fmt: skip
TOKENS = 20
FIRST, LATER = 120, 20
TYPED = b"lorem ipsum"  # in every prompt of the load


def test_journals_of_a_mesh_replay_to_the_same_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "journals"
    with RunningMesh(*OPTIONS, "--journal", str(directory)) as mesh:
        asyncio.run(load_while_roles_change(mesh))
        mesh.wait_for(lambda: len(placements(directory)) == FIRST, 5, "the journals to have it all")
        mesh.signal("router-1", 9)
        mesh.wait_for(lambda: len(list(directory.iterdir())) == 4, 10, "the journal of the next router-1")
        assert_all_right(asyncio.run(load(mesh.url, LATER, max_tokens=TOKENS)), TOKENS)
    journals = sorted(directory.iterdir())
    assert said_by_replay(capsys, *journals, exit_code=0).count("no difference") == 4
    everything_is_in(directory)
    an_altered_answer_is_noticed(next(path for path in journals if Call.PLACE in calls(path)), capsys)


async def load_while_roles_change(mesh: RunningMesh) -> None:
    answers = asyncio.ensure_future(load(mesh.url, FIRST, max_tokens=TOKENS, spread_s=2.0))
    for role in ("prompt", "token"):
        await asyncio.sleep(0.5)
        assert await asyncio.to_thread(run, ["role", "token-0", role, "--url", mesh.url]) == 0
    assert_all_right(await answers, TOKENS)


def said_by_replay(capsys: pytest.CaptureFixture[str], *journals: Path, exit_code: int) -> str:
    capsys.readouterr()
    assert run(["replay", *map(str, journals)]) == exit_code
    return capsys.readouterr().out


def everything_is_in(directory: Path) -> None:
    """Also of the router that was killed: it was at rest then. But nothing that was typed."""
    placed = placements(directory)
    assert len(placed) == FIRST + LATER
    assert all(record.answer.startswith("(Placed(") for record in placed)
    (manager,) = directory.glob("pool-manager-0.*.journal")
    assert {Call.APPLY, Call.DECIDE, Call.GONE} <= calls(manager)
    assert manager.read_bytes().count(RoleChanged.__name__.encode()) >= 2
    assert not any(TYPED in path.read_bytes() for path in directory.iterdir())


def an_altered_answer_is_noticed(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opening, *rest = [entry for entry in read(journal) if not isinstance(entry, int)]
    number, record = next((n, r) for n, r in enumerate(rest, 1) if isinstance(r, Record) and r.call is Call.PLACE)
    rest[number - 1] = replace(record, answer=record.answer.replace("token_worker='", "token_worker='other-"))
    altered = journal.with_name("altered.journal")
    altered.write_bytes(b"".join(framed(pack(entry)) for entry in (opening, *rest)))
    said = said_by_replay(capsys, altered, exit_code=1)
    assert "1 differ" in said and f"record {number}, place" in said and "token_worker='other-" in said


def placements(directory: Path) -> list[Record]:
    return [record for path in directory.iterdir() for record in records(path) if record.call is Call.PLACE]


def records(journal: Path) -> list[Record]:
    return [entry for entry in read(journal) if isinstance(entry, Record)]


def calls(journal: Path) -> set[Call]:
    return {record.call for record in records(journal)}
