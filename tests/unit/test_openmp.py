"""Threads of an OpenMP team run where they are placed."""

import os
import threading
from pathlib import Path

import pytest

from shared.engine.openmp import find_team
from shared.runtime.core_sets import usable_cores


def test_the_threads_of_a_team_run_where_they_are_placed() -> None:
    torch = pytest.importorskip("torch")
    core, everywhere = usable_cores()[-1], os.sched_getaffinity(0)
    seen: list[list[set[int]]] = []

    def compute() -> None:
        team = find_team()
        assert team is not None
        torch.set_num_threads(2)
        before = _threads()
        for places in ([{core}, everywhere], [everywhere, everywhere], [{core}], [everywhere, {core}]):
            team.place([frozenset(place) for place in places])
            torch.ones(300, 300) @ torch.ones(300, 300)
            helpers = sorted(_threads() - before)
            seen.append([os.sched_getaffinity(thread) for thread in (0, *helpers)])

    count = torch.get_num_threads()
    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    torch.set_num_threads(count)
    assert [places[0] for places in seen] == [{core}, everywhere, {core}, everywhere]
    assert [places[1:] for places in seen] == [[everywhere], [everywhere], [everywhere], [{core}]]
    assert os.sched_getaffinity(0) == everywhere, "nobody else is moved"


def _threads() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}
