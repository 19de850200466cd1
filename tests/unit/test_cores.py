"""Cores: who uses which, and what the engine thread borrows and gives back."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from shared.engine.fake import GREEDY
from shared.engine.port import Row
from shared.errors import ConfigError
from shared.policy.cost_fit import CostFitter
from shared.runtime.core_board import UNLENT, BoardFile, CoreBoard
from shared.worker.cores import Cores
from shared.worker.engine_thread import EngineThread, StepAborted
from shared.worker.worker import Worker
from tests.support.gates import GatedEngine
from tests.support.mesh import LocalMesh

OpenBoard = Callable[..., CoreBoard]
PROMPT = [Row(token_ids=[1, 2, 3], start=0, blocks=[0], draw=GREEDY)]

# ---- the board ------------------------------------------------------------------------------------------------------


@pytest.fixture
def file() -> Iterator[BoardFile]:
    board = BoardFile(range(6))
    yield board
    with suppress(OSError):
        board.close()


@pytest.fixture
def on_board(file: BoardFile) -> Iterator[OpenBoard]:
    opened = []

    def open_board(*own: int) -> CoreBoard:
        opened.append(CoreBoard(file.path, own))
        return opened[-1]

    yield open_board
    for board in opened:
        board.close()


def test_nothing_is_lent_before_its_owner_has_nothing_to_compute(on_board: OpenBoard) -> None:
    a, b = on_board(0), on_board(1)
    assert a.claim() == b.claim() == ()
    b.rest()
    assert a.claim() == (1,), "of the others nobody has said that they are idle"


def test_the_owner_takes_its_core_back(on_board: OpenBoard) -> None:
    a, b = on_board(0), on_board(1, 2)
    b.rest()
    assert a.claim() == (1, 2)
    assert b.claim() == ()
    assert a.claim() == ()
    a.rest()
    assert b.claim() == (0,)
    assert b.claim() == (0,), "until a computes again"
    assert a.claim() == ()
    assert b.claim() == ()


def test_whoever_has_nothing_to_compute_gives_back_what_it_borrowed(on_board: OpenBoard) -> None:
    a, b, c = on_board(0), on_board(1), on_board(2)
    c.rest()
    assert (a.claim(), b.claim()) == ((2,), ())
    a.rest()
    assert b.claim() == (0, 2)
    b.rest()
    assert a.claim() == (1, 2), "the core of another borrower that rests, too"


def test_two_borrowers_never_share_a_core(on_board: OpenBoard) -> None:
    a, b, owner = on_board(0), on_board(1), on_board(2, 3, 4, 5)
    for _ in range(3):
        owner.rest()
        assert (a.claim(), b.claim()) == ((2, 3, 4, 5), ())
        owner.claim_own()
        assert (b.claim(), a.claim()) == ((), ())


def test_who_loses_a_race_for_a_core_sees_it_the_next_time(on_board: OpenBoard) -> None:
    a, b, owner = on_board(0), on_board(1), on_board(2)
    owner.rest()
    assert a.claim() == (2,)
    a._users[2] = 1 + 1  # as if b had seen it idle, too, and written last
    assert (a.claim(), b.claim()) == ((), (2,))
    b.rest()
    owner.claim()
    owner._users[2] = 0 + 1  # as if a had seen it idle just before its owner wrote
    assert a.claim() == (2,)
    assert (owner.claim(), a.claim()) == ((1,), ()), "the owner looks between layers, too"


def test_a_worker_that_died_keeps_no_core_from_the_others(on_board: OpenBoard) -> None:
    a, b, c = on_board(0), on_board(1), on_board(2)
    b.rest()
    assert a.claim() == (1,)
    again = on_board(0)  # it died, and was started again
    assert c.claim() == (1,), "its claim has gone with it"
    c.rest()
    again.rest()
    assert b.claim() == (0, 2)
    dead = on_board(2)
    dead.rest()
    assert b.claim() == (0, 2), "while it loads its model again, its borrower stays"
    assert dead.claim() == ()
    assert b.claim() == (0,)


def test_the_board_outlives_its_file_but_is_not_found_any_more(file: BoardFile, on_board: OpenBoard) -> None:
    a, b = on_board(0), on_board(1)
    file.close()
    b.rest()
    assert a.claim() == (1,)
    with pytest.raises(ConfigError, match=r"^--core-board /proc/"):
        CoreBoard(file.path, (0,))


def test_a_core_that_is_not_on_the_board_is_refused(file: BoardFile) -> None:
    with pytest.raises(ConfigError, match="it has no core 6"):
        CoreBoard(file.path, (6,))


def test_a_board_begins_with_nothing_to_lend(on_board: OpenBoard) -> None:
    assert list(on_board(3)._users) == [UNLENT] * 3 + [4] + [UNLENT] * 2


# ---- in the engine thread -------------------------------------------------------------------------------------------


class Recording(GatedEngine):
    """Notes with how many threads it is told to compute, and from which layer on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = 0
        self.told: list[tuple[int, int]] = []

    def use_threads(self, count: int) -> None:
        self.told.append((self.layer, count))


class Placed:
    def __init__(self) -> None:
        self.places: list[list[set[int]]] = []

    def __call__(self, places: Sequence[frozenset[int]]) -> None:
        self.places.append([set(place) for place in places])


async def step(thread: EngineThread) -> None:
    engine = thread.engine
    assert isinstance(engine, Recording)

    def wanted() -> bool:  # asked between layers, before cores are
        engine.layer += 1
        return True

    engine.layer = 0
    await thread.step(PROMPT, on_layer=None, wanted=wanted)


async def stopped_at(engine: Recording) -> None:
    assert await asyncio.to_thread(engine.reached.wait, 5.0)


async def test_a_step_takes_idle_cores_and_loses_them_at_the_next_layer(on_board: OpenBoard) -> None:
    engine, placed, neighbour = Recording(), Placed(), on_board(1)
    thread = EngineThread(engine, Cores((0,), 1, on_board(0), placed))
    await step(thread)
    assert (engine.told, thread.reinforced) == ([(0, 1)], 1.0)
    neighbour.rest()
    engine.stop(2)
    running = asyncio.ensure_future(step(thread))
    await stopped_at(engine)
    assert engine.told[1:] == [(0, 2)]
    neighbour.claim_own()
    engine.release()
    await running
    assert engine.told[2:] == [(3, 1)], "the layer after that in which the neighbour began"
    assert placed.places == [[{0}], [{0}, {1}], [{0}]]
    assert thread.reinforced == 2.0, "a part of the step is enough"
    await step(thread)
    assert len(engine.told) == 3 and thread.reinforced == 1.0
    thread.close()


async def test_cores_that_become_idle_within_a_step_are_taken(on_board: OpenBoard) -> None:
    engine, neighbour = Recording(), on_board(1)
    engine.stop(1)
    thread = EngineThread(engine, Cores((0,), 1, on_board(0), Placed()))
    running = asyncio.ensure_future(step(thread))
    await stopped_at(engine)
    neighbour.rest()
    engine.release()
    await running
    assert engine.told == [(0, 1), (2, 2)] and thread.reinforced == 2.0
    assert neighbour.claim() == (), "between two steps nothing is idle"
    thread.rest()
    assert neighbour.claim() == (0,)
    thread.close()


async def test_who_closes_leaves_its_cores_to_the_others(on_board: OpenBoard, file: BoardFile) -> None:
    thread, neighbour = EngineThread(Recording(), Cores((0,), 1, CoreBoard(file.path, (0,)), Placed())), on_board(1)
    assert neighbour.claim() == ()
    thread.close()
    assert neighbour.claim() == (0,)


async def test_without_a_board_own_cores_are_all(on_board: OpenBoard) -> None:
    engine, placed = Recording(), Placed()
    thread = EngineThread(engine, Cores((2, 3), 2, None, placed))
    await step(thread)
    thread.rest()
    await step(thread)
    assert (engine.told, placed.places, thread.cores) == ([(0, 2)], [[{2}, {3}]], "2-3")
    thread.close()


async def test_before_it_serves_a_worker_borrows_nothing(on_board: OpenBoard) -> None:
    engine, neighbour = Recording(), on_board(1)
    neighbour.rest()
    thread = EngineThread(engine, Cores((0,), 1, on_board(0), Placed()))
    assert await thread.on_own_cores(lambda engine: engine.facts.layers) == engine.facts.layers
    assert engine.told == [(0, 1)]
    thread.close()


async def test_a_step_that_nobody_wants_ends_all_the_same(on_board: OpenBoard) -> None:
    thread = EngineThread(Recording(), Cores((0,), 1, on_board(0), Placed()))
    with pytest.raises(StepAborted):
        await thread.step(PROMPT, on_layer=None, wanted=lambda: False)
    thread.close()


@pytest.mark.parametrize(
    ("own", "threads", "places"),
    [
        ((0,), 1, [{0}, {4}]),
        ((0, 1), 2, [{0, 1, 4}, {1}, {4}]),
        ((0, 1), 1, [{0, 1}, {4}]),
        ((0,), 3, [{0, 4}, {0}, {0}, {4}]),
    ],
)
def test_each_thread_has_a_core_where_there_is_one_for_each(
    on_board: OpenBoard, own: tuple[int, ...], threads: int, places: list[set[int]]
) -> None:
    placed, neighbour, told = Placed(), on_board(4), list[int]()
    neighbour.rest()
    Cores(own, threads, on_board(*own), placed).adjust(told.append)
    assert placed.places == [places]
    assert told == [threads + 1], "threads that were asked for stay as many"


async def test_in_a_mesh_the_idle_worker_lends_and_costs_stay_those_of_own_cores(on_board: OpenBoard) -> None:
    boards, placed = {"prompt-0": on_board(0), "token-0": on_board(1)}, Placed()
    observed: list[float] = []

    class Fitter(CostFitter):
        def observe(self, *work: Any, **more: Any) -> None:
            observed.append(work[5])

    def tie(worker: Worker) -> None:
        if (name := worker.options.worker_id) == "prompt-0":
            worker.fitter = Fitter()
        own, place = ((0,), placed) if name == "prompt-0" else ((1,), Placed())
        worker.engine_thread._cores = Cores(own, 1, boards[name], place)

    async with LocalMesh(on_worker=tie) as mesh:
        await (await mesh.submit([1, 2, 3])).end()
        assert placed.places == [[{0}, {1}]]
        assert observed == [2.0]
