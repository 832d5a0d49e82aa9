"""Locks that end with their process, names that sort by creation, and takes whose disk or start fails."""

from __future__ import annotations

import datetime as dt
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from app.disk import names
from app.disk.locks import HeldLock, is_held
from app.disk.names import stamp_after
from app.takes.store import TakeStore, is_running
from app.takes.writer import LOCK_NAME, LOG_NAME, TakeWriter
from pipelines.core.errors import OutputError

NOON = dt.datetime(2026, 5, 4, 12, 0, 0, tzinfo=dt.UTC)


def soon(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.005)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full for every file beyond `size` bytes."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_lock_is_held_until_it_is_released_and_its_file_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    lock = HeldLock(path)
    assert is_held(path)
    with pytest.raises(BlockingIOError):
        HeldLock(path, patience_s=0.01)
    assert is_held(path)
    lock.release()
    lock.release()
    assert not path.exists()
    HeldLock(path).release()


def test_a_killed_process_holds_nothing_though_its_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        f"from pathlib import Path; from app.disk.locks import HeldLock\nh = HeldLock(Path({str(path)!r})); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        soon(lambda: is_held(path))
        process.kill()
        process.wait()
    assert path.exists()
    assert not is_held(path)
    lock = HeldLock(path)
    assert is_held(path)
    lock.release()


def test_looking_at_a_lock_never_disturbs_who_takes_it(tmp_path: Path) -> None:
    path, going = tmp_path / "lock", True

    def look() -> None:
        while going:
            is_held(path)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(200):
            HeldLock(path).release()
    finally:
        going = False
        for looker in lookers:
            looker.join()


@pytest.mark.parametrize(
    ("newest", "stamp"),
    [
        (None, "20260504-120000"),
        ("20260504-115959-ab", "20260504-120000"),
        ("20260504-120000-ab", "20260504-120001"),  # of the same second
        ("20270101-000000-ab", "20270101-000001"),  # the clock has been set back
        ("20261231-235959-ab.mp4", "20270101-000000"),
        ("20269999-000000-ab", "20260504-120000"),  # no date: not one of ours
        ("99991231-235959-ab", "20260504-120000"),
    ],
)
def test_a_stamp_is_later_than_the_newest(newest: str | None, stamp: str) -> None:
    assert stamp_after(newest, NOON) == stamp


def test_after_the_clock_was_set_back_the_oldest_take_still_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(dt.datetime):
        hour_ = 12

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
            return NOON.replace(hour=cls.hour_)

    monkeypatch.setattr(names.dt, "datetime", Clock)
    store = TakeStore(tmp_path, limit_bytes=10_000, min_room_bytes=4000)
    made = []
    for hour in (12, 3, 1):
        Clock.hour_ = hour
        made.append(store.create())
        TakeWriter(made[-1]).close()
        (made[-1] / "inputs-0001.bin").write_bytes(b"-" * 3500)
    assert sorted(made) == made
    assert [take.folder for take in store.takes()] == made[1:]


@pytest.mark.parametrize("size", [0, 40, 20_000], ids=["nothing fits", "half of the header", "some inputs"])
def test_a_full_disk_ends_a_take_with_a_notice_and_leaves_whole_lines_and_no_lock(tmp_path: Path, size: int) -> None:
    folder, told = tmp_path / "take", list[str]()
    random = np.random.default_rng(0)
    with files_of_at_most(size):
        writer = TakeWriter(folder, on_trouble=told.append)
        for seq in range(40):
            writer.add_input(seq, seq, random.integers(0, 255, (32, 32, 3), dtype=np.uint8), None)
        soon(lambda: bool(told))
        writer.close()
    assert told == [
        "The take has ended: take cannot be written (File too large). Free some space, then start another one."
    ]
    assert not (folder / LOCK_NAME).exists()
    text = (folder / LOG_NAME).read_text(encoding="utf-8")
    assert text == "" or text.endswith("}\n")


def test_an_unexpected_error_ends_a_take_with_a_notice_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, died = list[str](), list[object]()
    monkeypatch.setattr(threading, "excepthook", died.append)
    writer = TakeWriter(tmp_path / "take", may_grow=lambda: bool(1 // 0), on_trouble=told.append)
    soon(lambda: bool(told))
    writer.close()
    assert "unexpected error" in told[0]
    assert len(died) == 1
    assert not is_running(tmp_path / "take")


def test_a_take_that_cannot_begin_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "take"
    opened = os.open

    def full(path: str, *arguments: int, **named: int) -> int:
        if str(path).endswith(LOG_NAME):
            raise OSError(28, "No space left on device")
        return opened(path, *arguments, **named)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OutputError, match="No space left on device"):
        TakeWriter(folder)
    assert not folder.exists()


def test_what_an_interrupted_start_has_left_is_deleted_and_a_running_start_is_not(tmp_path: Path) -> None:
    store = TakeStore(tmp_path, limit_bytes=10_000, min_room_bytes=4000)
    empty, unlocked, locked = (tmp_path / f"20260101-00000{i}-0000000{i}" for i in range(3))
    for folder in (empty, unlocked, locked):
        folder.mkdir()
    (unlocked / LOCK_NAME).touch()
    lock = HeldLock(locked / LOCK_NAME)
    TakeWriter(store.create()).close()
    assert not empty.exists()
    assert not unlocked.exists()
    assert locked.exists()
    lock.release()


def test_takes_may_be_deleted_by_others_while_they_are_looked_at(tmp_path: Path) -> None:
    store, going, wrong = TakeStore(tmp_path), True, list[Exception]()

    def look() -> None:
        while going:
            try:
                store.takes()
                store.may_grow()
            except Exception as error:  # noqa: BLE001  # whatever it is, it is wrong
                wrong.append(error)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for number in range(100):
            folder = tmp_path / f"20260101-{number:06d}-{number:08x}"
            TakeWriter(folder).close()
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        going = False
        looker.join()
    assert not wrong
