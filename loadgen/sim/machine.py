"""One simulated worker: the live worker's Batcher over a clock that jumps from step to step.

A run of decode steps in which nothing changes is one event; what arrives meanwhile ends the run at the next step, which
is when a live worker would look up too. Blocks are only counted.
"""

import math
from collections.abc import Callable

from loadgen.sim.agenda import Agenda
from loadgen.sim.job import Job
from loadgen.sim.load import Load
from loadgen.sim.speeds import Speed
from shared.ids import Attempt, WorkerId
from shared.policy.batching import Batch, Batcher

Told = Callable[["Machine", Job], None]


class CountedBlocks:
    """A BlockAllocator that counts blocks instead of naming them."""

    def __init__(self, total: int, block_size: int) -> None:
        self.total = self.free_blocks = total
        self.block_size = block_size
        self._held: dict[Attempt, int] = {}

    @property
    def used_blocks(self) -> int:
        return self.total - self.free_blocks

    def held(self, owner: Attempt) -> int:
        return self._held.get(owner, 0)

    def reach(self, owner: Attempt, tokens: int) -> bool:
        held = self._held.get(owner, 0)
        missing = -(-tokens // self.block_size) - held
        if missing > self.free_blocks:
            return False
        if missing > 0:
            self._held[owner] = held + missing
            self.free_blocks -= missing
        return True

    def release(self, owner: Attempt) -> int:
        held = self._held.pop(owner, 0)
        self.free_blocks += held
        return held


class Run:
    """Decode steps under way: `steps` from `began_s`; the first takes first_s, each further one growth_s more."""

    __slots__ = ("batch", "began_s", "first_s", "growth_s", "steps")

    def __init__(self, batch: Batch[Job], began_s: float, first_s: float, growth_s: float, steps: int) -> None:
        self.batch, self.began_s, self.steps = batch, began_s, steps
        self.first_s, self.growth_s = first_s, growth_s

    def end_s(self, steps: int) -> float:
        return self.began_s + steps * self.first_s + self.growth_s * steps * (steps - 1) / 2

    def steps_by(self, now: float) -> int:
        """Steps that are over or under way."""
        gone_s, first_s, half = now - self.began_s, self.first_s, self.growth_s / 2
        if half <= 0.0:
            steps = gone_s / first_s
        else:
            slope = first_s - half
            steps = (math.sqrt(slope * slope + 4 * half * gone_s) - slope) / (2 * half)
        return max(1, min(self.steps, math.ceil(steps - 1e-9)))


class Machine:
    """`prefill_begins`, `prefilled` and `finished` tell the world what happened to a job here."""

    def __init__(
        self,
        *,
        name: WorkerId,
        speed: Speed,
        batcher: Batcher[Job],
        load: Load,
        agenda: Agenda,
        prefill_begins: Told,
        prefilled: Told,
        finished: Told,
    ) -> None:
        self.name = name
        self.batcher = batcher
        self.load = load
        self._speed = speed
        self._agenda = agenda
        self._prefill_begins, self._prefilled, self._finished = prefill_begins, prefilled, finished
        self._busy = False
        self._run: Run | None = None
        self.waits_elsewhere = 0  # prompts computed here whose KV has not been granted room yet
        self.busy_s = {"prefill": 0.0, "decode": 0.0, "mixed": 0.0}

    def take_prompt(self, job: Job) -> None:
        self.batcher.enqueue(job)
        self.look_up()

    def take_decode(self, job: Job) -> None:
        self.batcher.admit(job)
        self.look_up()

    def grants(self, job: Job) -> bool:
        """Whether there is room for its KV, counting what those that were let in before are expected to need still.
        An older prompt that waits here for memory goes first, unless KV of this machine waits for room elsewhere: so of
        two machines neither waits for the other."""
        if self.batcher.short_of_blocks or not (self.waits_elsewhere or self.batcher.yields_to(job.rank)):
            return False
        used = self.load.blocks.used_blocks
        return not used or max(used, self.load.granted_blocks) + job.demand_blocks <= self.load.blocks.total

    def look_up(self) -> None:
        """Something has changed: at once if idle, else when the step under way is over."""
        if not self._busy:
            self._step()
        elif (run := self._run) is not None and (steps := run.steps_by(self._agenda.now)) < run.steps:
            run.steps = steps
            self._agenda.at(run.end_s(steps), self._run_done, (run, steps))

    def _step(self, _: object = None) -> None:
        batch = self.batcher.next_batch()
        self._busy = batch is not None
        if batch is None:
            return
        if batch.pieces:
            self._compute(batch)
        else:
            self._decode(batch)

    # ---- a step with prompts ----------------------------------------------------------------------------------------

    def _compute(self, batch: Batch[Job]) -> None:
        now = self._agenda.now
        tokens = squares = 0
        for piece in batch.pieces:
            job, end = piece.sequence, piece.end
            tokens += end - job.computed
            squares += end * end - job.computed * job.computed
            if job.started_s is None:
                job.started_s = now
                self._prefill_begins(self, job)
        context = sum([job.length for job in batch.decodes])
        step_s = self._speed.step_s(tokens, squares, context, len(batch.decodes))
        self.busy_s["mixed" if batch.decodes else "prefill"] += step_s
        self._agenda.at(now + step_s, self._computed, batch)

    def _computed(self, batch: Batch[Job]) -> None:
        now = self._agenda.now
        for job in batch.decodes:
            self._sampled(job, now)
        for piece in batch.pieces:
            job = piece.sequence
            if job.prefilled_s is None:
                self.load.computed(job, piece.end - job.computed)
            job.computed = piece.end
            if job.computed < job.length:
                self.batcher.enqueue(job)
                continue
            job.event_s.append(now)
            job.length += 1
            job.left -= 1
            if job.prefilled_s is None:
                job.prefilled_s = now
                self._prefilled(self, job)
            elif job.left:
                self.batcher.admit(job)
            else:
                self._end(job)
        self._step()

    def _sampled(self, job: Job, now: float) -> None:
        job.event_s.append(now)
        job.computed += 1
        job.length += 1
        job.left -= 1
        if not job.left:
            self._end(job)

    # ---- a run of decode steps --------------------------------------------------------------------------------------

    def _decode(self, batch: Batch[Job]) -> None:
        jobs, now = batch.decodes, self._agenda.now
        context, size = sum([job.length for job in jobs]), len(jobs)
        steps = min(self.batcher.decode_steps(batch), min([job.left for job in jobs]))
        run = Run(batch, now, self._speed.decode_s(context, size), self._speed.decode_growth_s(size), steps)
        self._run = run
        self._agenda.at(run.end_s(steps), self._run_done, (run, steps))

    def _run_done(self, ended: tuple[Run, int]) -> None:
        run, steps = ended
        if run is not self._run or steps != run.steps:
            return  # it was cut short
        self._run = None
        self.busy_s["decode"] += self._agenda.now - run.began_s
        self.batcher.grow(run.batch, steps)
        times = [run.end_s(step) for step in range(1, steps + 1)]
        ended_jobs = []
        for job in run.batch.decodes:
            job.event_s += times
            job.computed += steps
            job.length += steps
            job.left -= steps
            if not job.left:
                ended_jobs.append(job)
        for job in ended_jobs:
            self._end(job)
        self._step()

    def _end(self, job: Job) -> None:
        self.release(job)
        self._finished(self, job)

    def release(self, job: Job) -> None:
        """The job is not here any more, or its KV is not needed here."""
        self.batcher.remove(job.key)
        self.load.blocks.release(job.key)
