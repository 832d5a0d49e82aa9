"""Owns the order of ticks that run side by side: tick t runs in lane t % K, and waits for what it shares with others.

Each lane has a queue and an executor of its own; uploads and downloads have queues beside them. Ticks wait for each
other by marks on the device; the host waits only when it is K ticks ahead. Independent of what a tick computes.
docs/engine.md says which part of a tick waits for what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

from pipelines.core.execution import Executor
from pipelines.core.queues import Queue, Queues
from pipelines.core.transfers import Mark

from .pace import Pace

_SETS = 2  # of marks: those of the last tick in a lane are still in use when the next one is issued
_NEVER = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TickMarks:
    """The marks of one tick, in the order of its work. written: by conditioners, into the ring. uploaded: pictures and
    noise. started, encoded: around the part that admits. stepping, stepped: around the denoiser. decoded. finished: the
    pictures are on the host.
    """

    written: Mark
    uploaded: Mark
    started: Mark
    encoded: Mark
    stepping: Mark
    stepped: Mark
    decoded: Mark
    finished: Mark

    @classmethod
    def made(cls, make: Callable[[], Mark]) -> TickMarks:
        """Make all of them."""
        return cls(**{field.name: make() for field in fields(cls)})

    @property
    def timed(self) -> tuple[Mark, ...]:
        """Those between which a tick is timed; see `TickTimings`."""
        return self.started, self.encoded, self.stepping, self.stepped, self.decoded


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lane:
    """index: from 0. queue: runs its ticks. executor: runs their parts; graphs of different lanes share no memory."""

    index: int
    queue: Queue
    executor: Executor


class Lanes:
    """The lanes of one engine, and which tick used each row of its ring last.

    Ticks are numbered without gaps; a tick that failed is run again under its number, after `settle`.
    """

    def __init__(
        self, queues: Queues, make_executor: Callable[[], Executor], *, count: int, rows: int, first_tick: int
    ) -> None:
        """count: how many ticks run side by side, >= 1. rows: of the ring. first_tick: all earlier ones are done."""
        assert count >= 1, count
        self.queues = queues
        self.lanes = tuple(Lane(index=index, queue=queues.queue(), executor=make_executor()) for index in range(count))
        self.uploads, self.downloads = queues.queue(), queues.queue()
        self._marks = [[TickMarks.made(queues.mark) for _ in range(_SETS)] for _ in self.lanes]
        self._last_use = [_NEVER] * rows
        self._first = first_tick
        self._pace = Pace(count)

    @property
    def count(self) -> int:
        """How many ticks run side by side."""
        return len(self.lanes)

    @property
    def graphs(self) -> int:
        """Number of captured CUDA graphs."""
        return sum(lane.executor.graphs for lane in self.lanes)

    def lane(self, tick: int) -> Lane:
        """Return the lane of a tick."""
        return self.lanes[tick % self.count]

    def marks(self, tick: int) -> TickMarks:
        """Return the marks of a tick, valid until the second next one in its lane is issued."""
        return self._marks[tick % self.count][tick // self.count % _SETS]

    def marks_before(self, tick: int) -> TickMarks | None:
        """Return the marks of the tick before in the same lane; None if there is none."""
        return None if tick - self.count < self._first else self.marks(tick - self.count)

    def use(self, rows: Iterable[int], tick: int) -> None:
        """Note that a tick reads or writes these rows."""
        for row in rows:
            self._last_use[row] = tick

    def order(self, queue: Queue, rows: Iterable[int], tick: int) -> None:
        """Let a queue wait for the ticks that used these rows last. tick: the next one to run, or the one that runs."""
        for user in {self._last_use[row] for row in rows}:
            if self._may_run(user, tick) and queue is not self.lane(user).queue:
                queue.wait(self.marks(user).stepped)

    def order_write(self, row: int, tick: int) -> None:
        """Let what the caller writes into a row from now on wait for the last tick that used it. tick: the next one."""
        self.order(self.queues.current(), (row,), tick)

    def wait_for_row(self, row: int, tick: int) -> None:
        """Wait on the host until the tick that used a row last has stepped it. tick: the next one."""
        user = self._last_use[row]
        if self._may_run(user, tick):
            self.marks(user).stepped.wait()

    def begin(self) -> None:
        """Call before a tick is issued: waits if its lane would otherwise fall into step with another."""
        self._pace.before_start()

    def end(self, tick: int) -> None:
        """Call after a tick is issued: waits while more than K are unfinished."""
        before = self.marks_before(tick)
        waits = before is not None and not before.finished.passed()
        if before is not None and waits:
            before.finished.wait()
        self._pace.started(waited=waits)

    def settle(self) -> None:
        """Wait until the device is idle: before what all lanes read is changed, and after a tick that failed."""
        self.queues.settle()

    def invalidate(self) -> None:
        """Drop everything captured."""
        self.settle()
        for lane in self.lanes:
            lane.executor.invalidate()

    def _may_run(self, user: int, tick: int) -> bool:
        """Whether the host does not know that tick `user` has finished: `end` has waited for those before."""
        return user >= max(self._first, tick - self.count)
