"""The front's end of a take: a thread of its own that appends lines and inputs to a folder.

Callers never block: items go into a queue bounded in bytes. If the disk or the CPU cannot keep up, the take ends with a
message and the session continues. Independent of sessions and workers.
"""

from __future__ import annotations

import atexit
import datetime as dt
import errno
import io
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from app.disk.locks import HeldLock
from app.disk.private import open_private, private_folder
from pipelines.core.errors import OutputError
from pipelines.core.types import Picture

from .inputs import InputArchive, fingerprint
from .records import TAKE_SCHEMA, HandedOut, Line, TakeEnded, TakeRecord, to_line

LOG_NAME = "take.jsonl"
LOCK_NAME = "running.lock"
_QUEUE_BYTES = 192 * 2**20
_LINE_COST = 512  # bytes that a queued record counts as
_FLUSH_S = 0.5
QUOTA_STEP_BYTES = 4 * 2**20
"""A take asks again whether it may grow before it writes more than this."""
_CLOSE_S = 10.0
_BEGINNINGS = 100


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Input:
    seq: int
    captured_ns: int
    image: Picture
    received: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Undecoded:
    captured_ns: int
    received: bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Frame:
    seq: int
    source_seq: int | None
    image: Picture


_Item = _Input | _Undecoded | _Frame | TakeRecord


class TakeWriter:
    """Writes one take into `folder`, which is created. Raises OutputError if it cannot be.

    may_grow: called about every half second, and before each further QUOTA_STEP_BYTES of inputs; False ends the take.
    on_trouble: called once, on the writer's thread, with a message, if the take ends by itself.
    """

    def __init__(
        self,
        folder: Path,
        *,
        session: str = "",
        may_grow: Callable[[], bool] = lambda: True,
        on_trouble: Callable[[str], None] = lambda text: None,
        queue_bytes: int = _QUEUE_BYTES,
    ) -> None:
        self.folder = folder
        self._may_grow, self._on_trouble, self._queue_bytes = may_grow, on_trouble, queue_bytes
        self._changed = threading.Condition()
        self._queue: deque[tuple[_Item, int]] = deque()
        self._waiting_bytes = 0
        self._reason: str | None = None  # why the take ends; None: it continues
        self._trouble = False
        self._lock, self._log = _begin(folder)
        self._log_bytes = 0
        self._inputs = InputArchive(folder)
        self._lines: list[str] = [_header(session)]
        self._flush_at_s = 0.0
        self._unasked_bytes = 0  # of inputs since `may_grow` was asked
        self._thread = threading.Thread(target=self._run, name="take-writer", daemon=True)
        atexit.register(self.close)  # before daemon threads are stopped
        self._thread.start()

    # ---- from any thread; these never block ----

    def add_input(self, seq: int, captured_ns: int, image: Picture, received: bytes | None) -> None:
        """Add an offered input. image: [H, W, 3] uint8 as the stream sees it."""
        cost = image.nbytes + (len(received) if received is not None else 0)
        self._put(_Input(seq=seq, captured_ns=captured_ns, image=image, received=received), cost)

    def add_undecoded(self, captured_ns: int, received: bytes) -> None:
        """Add an input that was dropped before it was decoded."""
        self._put(_Undecoded(captured_ns=captured_ns, received=received), len(received) + _LINE_COST)

    def add_frame(self, seq: int, source_seq: int | None, image: Picture) -> None:
        """Add a delivered frame."""
        self._put(_Frame(seq=seq, source_seq=source_seq, image=image), image.nbytes)

    def add_records(self, records: Sequence[TakeRecord]) -> None:
        """Add records from the worker."""
        for record in records:
            self._put(record, _LINE_COST)

    def finish(self, reason: str = "") -> None:
        """End the take once the queue is written; does not block. The first call's reason counts."""
        with self._changed:
            if self._reason is None:
                self._reason = reason
            self._changed.notify()

    # ---- may block ----

    def close(self) -> None:
        """`finish`, and wait until everything is written."""
        self.finish()
        self._thread.join(_CLOSE_S)
        atexit.unregister(self.close)

    @property
    def ended(self) -> bool:
        """Whether nothing is accepted any more."""
        return self._reason is not None

    def _put(self, item: _Item, cost: int) -> None:
        with self._changed:
            if self._reason is not None:
                return
            if self._waiting_bytes + cost > self._queue_bytes:
                self._give_up("The take has ended: this machine could not write it fast enough.")
                return
            self._queue.append((item, cost))
            self._waiting_bytes += cost
            self._changed.notify()

    def _give_up(self, text: str) -> None:
        self._reason, self._trouble = text, True
        self._changed.notify()

    # ---- the writer's thread ----

    def _run(self) -> None:
        try:
            self._write_all()
        except OSError as error:
            self._broken(str(error.strerror or error), "Free some space, then start another one.")
        except BaseException:  # whatever ended it: the user is told, and the thread shows it
            self._broken("an unexpected error", "See the server's log.")
            raise
        finally:
            self._close_files()
            if self._trouble:
                self._on_trouble(self._reason or "")

    def _write_all(self) -> None:
        while self._step():
            pass
        self._lines.append(json.dumps(to_line(TakeEnded(reason=self._reason or ""))))
        self._flush()

    def _broken(self, why: str, remedy: str) -> None:
        with self._changed:
            self._give_up(f"The take has ended: {self.folder.name} cannot be written ({why}). {remedy}")
            self._queue.clear()

    def _step(self) -> bool:
        """Write one item, or flush. False: everything is written and the take ends."""
        with self._changed:
            if not self._queue and self._reason is None:
                self._changed.wait(max(0.0, self._flush_at_s - time.monotonic()) if self._lines else None)
            item, cost = self._queue.popleft() if self._queue else (None, 0)
            if item is None and self._reason is not None:
                return False
            hurry = self._waiting_bytes > self._queue_bytes // 4
        if isinstance(item, _Input | _Undecoded) and not self._granted(cost):
            self._over_quota()
            return True
        if item is not None:
            self._lines.append(json.dumps(to_line(self._line_of(item, hurry=hurry)), separators=(",", ":")))
            with self._changed:
                self._waiting_bytes -= cost
        if time.monotonic() >= self._flush_at_s:
            self._flush()
        return True

    def _line_of(self, item: _Item, *, hurry: bool) -> Line:
        match item:
            case _Input():
                return self._inputs.add(item.seq, item.captured_ns, item.image, item.received, hurry=hurry)
            case _Undecoded():
                return self._inputs.add_undecoded(item.captured_ns, item.received)
            case _Frame():
                return HandedOut(seq=item.seq, source_seq=item.source_seq, sha256=fingerprint(item.image))
        return item

    def _flush(self) -> None:
        """Inputs are written when they are added: a line never refers to missing data."""
        self._append("".join(line + "\n" for line in self._lines).encode())
        self._lines.clear()
        self._flush_at_s = time.monotonic() + _FLUSH_S
        if not self._granted(QUOTA_STEP_BYTES) and self._reason is None:
            self._over_quota()

    def _granted(self, more: int) -> bool:
        """Whether `more` bytes may be written: asked only when they exceed what was granted last."""
        self._unasked_bytes += more
        if self._unasked_bytes < QUOTA_STEP_BYTES:
            return True
        self._unasked_bytes = 0
        return self._may_grow()

    def _over_quota(self) -> None:
        """End the take where it is: what waits in the queue would exceed the quota."""
        with self._changed:
            self._give_up("The take has ended: the quota for takes is used up. Delete some, or allow more.")
            self._queue.clear()

    def _append(self, text: bytes) -> None:
        """Add whole lines to the log; a line that does not fit on the disk is cut off again. Raises OSError."""
        left = memoryview(text)
        try:
            while left:
                left = left[self._log.write(left) :]
        except OSError:
            with suppress(OSError):
                self._log.truncate(self._log_bytes)
            raise
        self._log_bytes += len(text)

    def _close_files(self) -> None:
        """Never raises: nothing is buffered in the files, and every step is taken whatever became of the others."""
        self._inputs.close()
        with suppress(OSError):
            self._log.close()
        self._lock.release()


def _begin(folder: Path) -> tuple[HeldLock, io.FileIO]:
    """Lock and log of a new take in `folder`. Raises OutputError and leaves no empty folder.

    The lock comes first: a folder without a log or a holder is what an interrupted start has left, and may be deleted.
    """
    lock: HeldLock | None = None
    try:
        lock = _locked_folder(folder)
        return lock, open_private(folder / LOG_NAME)
    except OSError as error:
        if lock is not None:
            lock.release()
        with suppress(OSError):
            folder.rmdir()  # only if it is empty
        raise OutputError(
            f"A take cannot be written to {folder.name}: {error.strerror}.",
            "Is the disk full, or the data folder read-only?",
        ) from error


def _locked_folder(folder: Path) -> HeldLock:
    """Make the folder and lock it; again if it was taken for an interrupted start and deleted. Raises OSError."""
    for _ in range(_BEGINNINGS):
        private_folder(folder.parent)
        with suppress(FileNotFoundError):
            private_folder(folder)
            return HeldLock(folder / LOCK_NAME)
    raise FileNotFoundError(errno.ENOENT, "its folder is deleted again and again", str(folder))


def _header(session: str) -> str:
    created = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return json.dumps(
        {"kind": "take", "schema": TAKE_SCHEMA, "zoetrope": version("zoetrope"), "created": created, "session": session}
    )
