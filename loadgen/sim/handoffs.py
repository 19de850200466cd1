"""Every KV hand-off of a simulated cluster, with the rules of the live one (shared.policy.handoff) and no messages.

A token machine gives KV room in the order of the first prefill steps, as memory allows; KV moves while the prompt is
computed; a prompt without room for GRANT_WAIT_S after its prefill decodes where it lies.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping

from loadgen.sim.agenda import Agenda
from loadgen.sim.cluster import Cluster
from loadgen.sim.job import Job
from loadgen.sim.link import Link, arrival_s
from loadgen.sim.machine import Machine
from shared.ids import WorkerId
from shared.policy.handoff import GRANT_WAIT_S


class HandOffs:
    """`ended(job)`: its answer was one token. `stayed(job, machine)`: it decodes on its prompt machine after all."""

    def __init__(
        self, agenda: Agenda, cluster: Cluster, links: Mapping[WorkerId, Link], *, ended: Callable[[Job], None],
        stayed: Callable[[Job, Machine], None],
    ) -> None:  # fmt: skip
        self._agenda, self._cluster, self._links = agenda, cluster, links
        self._ended, self._stayed = ended, stayed
        self._ends: dict[int, tuple[Machine, Machine]] = {}  # prompt and token machine of each job
        self._waiting: defaultdict[WorkerId, deque[Job]] = defaultdict(deque)  # for room, by token machine

    def placed(self, job: Job, source: Machine, target: Machine) -> None:
        self._ends[job.index] = (source, target)

    def over(self, job: Job, machine: Machine) -> None:
        """It ended there: there may be room for others."""
        del self._ends[job.index]
        self._grant(machine)

    def prefill_begins(self, machine: Machine, job: Job) -> None:
        """The moment at which a live prompt worker sends Reserve."""
        _, target = self._ends[job.index]
        if target is machine:
            machine.load.granted(job)
        else:
            self._waiting[target.name].append(job)
            self._grant(target)

    def prefilled(self, machine: Machine, job: Job) -> None:
        _, target = self._ends[job.index]
        if not job.left:
            machine.release(job)
            self._withdraw(job)
            self._ended(job)
            self.over(job, machine)
        elif target is machine:
            machine.batcher.admit(job)
        elif job.granted_s is not None:
            self._transfer(job)
        else:
            machine.waits_elsewhere += 1
            self._grant(machine)
            self._agenda.at(self._agenda.now + GRANT_WAIT_S, self._give_up, job)

    def _grant(self, target: Machine) -> None:
        waiting = self._waiting[target.name]
        while waiting and target.grants(waiting[0]):
            job = waiting.popleft()
            target.load.granted(job)
            if job.prefilled_s is not None:
                self._ends[job.index][0].waits_elsewhere -= 1
                self._transfer(job)

    def _transfer(self, job: Job) -> None:
        source, target = self._ends[job.index]
        assert job.started_s is not None and job.prefilled_s is not None and job.granted_s is not None
        size_bytes = job.prompt_tokens * self._cluster.kv_bytes_per_token
        link = self._links[source.name]
        if self._cluster.serialized:
            arrived_s = self._agenda.now + size_bytes / link.bytes_per_s
        else:
            arrived_s = arrival_s(
                link, self._links[target.name], size_bytes, ready_s=max(job.started_s, job.granted_s),
                computed_s=job.prefilled_s, pieces=self._cluster.layers,
            )  # fmt: skip
        self._agenda.at(arrived_s, self._arrived, job)

    def _arrived(self, job: Job) -> None:
        source, target = self._ends[job.index]
        source.release(job)
        self._grant(source)
        source.look_up()
        target.take_decode(job)

    def _give_up(self, job: Job) -> None:
        if job.granted_s is not None or job.index not in self._ends:
            return
        source, _ = self._ends[job.index]
        source.waits_elsewhere -= 1
        self._withdraw(job)
        self._ends[job.index] = (source, source)
        source.load.decode_placed(job)
        source.load.granted(job)
        self._stayed(job, source)
        source.take_decode(job)

    def _withdraw(self, job: Job) -> None:
        """Nothing of it will come to the token machine."""
        source, target = self._ends[job.index]
        if job.granted_s is None:
            self._waiting[target.name].remove(job)
        elif source is not target:
            target.load.blocks.release(job.key)
        target.load.decode_left(job)
        self._grant(target)
        target.look_up()
