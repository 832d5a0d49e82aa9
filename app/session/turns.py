"""Turns on the threads that all sessions share: whoever has used them least is next, so that a session with large
pictures, or with many clients, delays its own work and not its neighbours'.

Owns the accounts of time and the order of what waits. Independent of what is done, and of asyncio.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[[], Any]]
_HALF_LIFE_S = 1.0  # of time used
_SLACK_S = 0.25
_FORGOTTEN_S = 0.001


@dataclass(slots=True)
class _Account:
    """What one user of the threads has used lately, and what waits for it."""

    used_s: float = 0.0
    at_s: float = 0.0
    running: int = 0
    waiting: deque[_Job] = field(default_factory=deque)

    def lately_s(self, now_s: float) -> float:
        """Seconds used; each counts half after `_HALF_LIFE_S`."""
        return self.used_s * float(0.5 ** ((now_s - self.at_s) / _HALF_LIFE_S))

    def charge(self, seconds: float, now_s: float) -> None:
        """Add to it."""
        self.used_s, self.at_s = self.lately_s(now_s) + seconds, now_s


class Turns:
    """Gives out the threads of an executor. Thread-safe.

    The last free thread is kept for those who have used little: a job cannot be interrupted, so one that has used
    `_SLACK_S` more than the least of all recent users waits until another thread is free.
    """

    def __init__(self, executor: Executor, threads: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """threads: of the executor, at least 1, used by nobody else."""
        self._executor, self._threads, self._clock = executor, threads, clock
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = {}
        self._running = 0

    def of(self, user: str) -> Executor:
        """The threads as that user gets them: an executor whose jobs wait for the user's turn."""
        return _Lane(self, user)

    def submit(self, user: str, call: Callable[[], T]) -> Future[T]:
        """Run `call` when it is the user's turn; its calls begin in order."""
        future: Future[T] = Future()
        with self._lock:
            self._accounts.setdefault(user, _Account()).waiting.append((future, call))
        self._begin()
        return future

    def _begin(self) -> None:
        """Begin what may begin now."""
        while (begun := self._next()) is not None:
            account, (future, call) = begun
            try:
                inner = self._executor.submit(self._run, account, future, call)
            except RuntimeError:  # it was shut down
                future.cancel()
                with self._lock:
                    self._running -= 1
                    account.running -= 1
            else:
                inner.add_done_callback(partial(_cancel_with, future))

    def _next(self) -> tuple[_Account, _Job] | None:
        with self._lock:
            free = self._threads - self._running
            if not free:
                return None
            now_s = self._clock()
            used = {user: account.lately_s(now_s) for user, account in self._accounts.items()}
            waiting = [user for user, account in self._accounts.items() if account.waiting]
            if not waiting:
                self._forget(used)
                return None
            user = min(waiting, key=lambda user: used[user])
            if free == 1 < self._threads and used[user] > min(used.values()) + _SLACK_S:
                return None
            account = self._accounts[user]
            account.running += 1
            self._running += 1
            return account, account.waiting.popleft()

    def _forget(self, used: dict[str, float]) -> None:
        for user, seconds in used.items():
            account = self._accounts[user]
            if seconds < _FORGOTTEN_S and not account.running and not account.waiting:
                del self._accounts[user]

    def _run(self, account: _Account, future: Future[T], call: Callable[[], T]) -> None:
        began_s = self._clock()
        try:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001  # belongs to whoever waits for it
                    future.set_exception(error)
        finally:
            with self._lock:
                now_s = self._clock()
                account.charge(now_s - began_s, now_s)
                account.running -= 1
                self._running -= 1
            self._begin()


def _cancel_with(future: Future[Any], inner: Future[Any]) -> None:
    """The executor was shut down before it began what `future` stands for."""
    if inner.cancelled():
        future.cancel()


class _Lane(Executor):
    """One user's way to the threads. Shutting it down does nothing: they belong to all."""

    def __init__(self, turns: Turns, user: str) -> None:
        self._turns, self._user = turns, user

    def submit(self, fn: Callable[..., T], /, *arguments: Any, **named: Any) -> Future[T]:
        """As Executor.submit."""
        return self._turns.submit(self._user, lambda: fn(*arguments, **named))
