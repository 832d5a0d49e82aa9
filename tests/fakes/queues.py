"""Queues of a device that exists only in the test: work waits until the host waits for it, and then runs in any order
that the marks allow. A wait that is missing somewhere gives wrong frames."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import torch

from pipelines.core.queues import Queue
from pipelines.core.transfers import Mark

CPU = torch.device("cpu")


class Operation:
    """One entry of a queue. after: it cannot run before that one."""

    def __init__(self, work: Callable[[], object] | None = None, after: Operation | None = None) -> None:
        self.work, self.after, self.done = work, after, False

    @property
    def ready(self) -> bool:
        return self.after is None or self.after.done


class FakeMark(Mark):
    def __init__(self, queues: FakeQueues) -> None:
        super().__init__(CPU)
        self._queues = queues
        self.operation: Operation | None = None  # None: never recorded

    def passed(self) -> bool:
        self._queues.advance()
        return self.operation is None or self.operation.done

    def wait(self) -> None:
        if not self._queues.ignores(self, self._queues.host):
            self._queues.run_until(self.operation)


class FakeQueue:
    def __init__(self, queues: FakeQueues) -> None:
        self._queues = queues
        self.operations: deque[Operation] = deque()

    def run(self, work: Callable[[], object]) -> None:
        self.operations.append(Operation(work))

    def record(self, mark: Mark) -> None:
        assert isinstance(mark, FakeMark)
        mark.operation = Operation(mark.record)
        self.operations.append(mark.operation)

    def wait(self, mark: Mark) -> None:
        assert isinstance(mark, FakeMark)
        if not self._queues.ignores(mark, self):
            self.operations.append(Operation(after=mark.operation))


class HostsQueue(FakeQueue):
    """The caller's own queue: its work is done as it is issued, as early as its waits allow."""

    def run(self, work: Callable[[], object]) -> None:
        work()

    def record(self, mark: Mark) -> None:
        super().record(mark)
        self.operations.pop().done = True

    def wait(self, mark: Mark) -> None:
        assert isinstance(mark, FakeMark)
        if not self._queues.ignores(mark, self):
            self._queues.run_until(mark.operation)


class FakeQueues:
    """See `pipelines.core.queues.Queues`. ignores: waits that are left out, given mark and waiting queue."""

    shared = False

    def __init__(self, seed: int, ignores: Callable[[FakeMark, FakeQueue], bool] = lambda mark, queue: False) -> None:
        self._random = random.Random(seed)
        self._queues: list[FakeQueue] = []
        self.host, self.ignores = HostsQueue(self), ignores
        self.favourite = seed % 3  # 0: any queue; 1: the newest with work that is ready; 2: the oldest

    def queue(self) -> Queue:
        self._queues.append(FakeQueue(self))
        return self._queues[-1]

    def current(self) -> Queue:
        return self.host

    def mark(self) -> Mark:
        return FakeMark(self)

    def settle(self) -> None:
        while self._step():
            pass

    def advance(self) -> None:
        """Let the device do a little."""
        for _ in range(self._random.choice((0, 0, 0, 0, 2, 20))):
            self._step()

    def run_until(self, operation: Operation | None) -> None:
        while operation is not None and not operation.done:
            assert self._step(), "the queues wait for each other"

    def _step(self) -> bool:
        """Run one operation that is ready; False: there is none."""
        ready = [queue for queue in self._queues if queue.operations and queue.operations[0].ready]
        if not ready:
            return False
        queue = (self._random.choice(ready), ready[-1], ready[0])[self.favourite]
        operation = queue.operations.popleft()
        if operation.work is not None:
            with torch.inference_mode():
                operation.work()
        operation.done = True
        return True
