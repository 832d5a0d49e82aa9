"""Shared frame buffers: written frames are read, stale ones never, and the owner unlinks."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.worker import shared_frames
from app.worker.shared_frames import FrameBuffers, InputMailbox, OutputPool, SharedMemoryError, session_buffers
from pipelines.core.types import Frame


def frame(seq: int, **changes: object) -> Frame:
    made = Frame(image=np.full((2, 3, 3), seq, np.uint8), pts=seq * 5, time_base=Fraction(1, 30), seq=seq)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def buffers() -> Iterator[FrameBuffers]:
    made = FrameBuffers.create(count=3, width=3, height=2)
    yield made
    made.close()


def test_a_frame_arrives_whole_in_the_other_mapping(buffers: FrameBuffers) -> None:
    buffers.write(1, 7, frame(9, source_seq=4, captured_ns=123))
    other = FrameBuffers.attach(buffers.spec)
    got = other.read(1, 7)
    assert got is not None
    assert (got.seq, got.source_seq, got.captured_ns, got.pts, got.time_base) == (9, 4, 123, 45, Fraction(1, 30))
    assert np.array_equal(got.image, frame(9).image)
    del got
    other.close()


def test_none_survives(buffers: FrameBuffers) -> None:
    buffers.write(0, 1, frame(0))
    got = buffers.read(0, 1)
    assert got is not None
    assert (got.source_seq, got.captured_ns) == (None, None)


def test_a_stale_generation_is_never_read(buffers: FrameBuffers) -> None:
    assert buffers.read(0, 0) is None
    buffers.write(0, 1, frame(1))
    buffers.write(0, 2, frame(2))
    assert buffers.read(0, 1) is None
    assert buffers.read(0, 3) is None
    got = buffers.read(0, 2)
    assert got is not None
    assert got.seq == 2


def test_a_copy_does_not_change_when_the_buffer_does(buffers: FrameBuffers) -> None:
    buffers.write(0, 1, frame(1))
    got = buffers.read(0, 1)
    buffers.write(0, 2, frame(2))
    assert got is not None
    assert (got.image == 1).all()


def test_the_mailbox_keeps_the_newest() -> None:
    mailbox = InputMailbox.create(width=3, height=2)
    reader = InputMailbox(FrameBuffers.attach(mailbox.buffers.spec))
    assert reader.take(0) is None
    for seq in range(10):
        mailbox.post(frame(seq))
    taken = reader.take(0)
    assert taken is not None
    generation, newest = taken
    assert (generation, newest.seq) == (10, 9)
    assert reader.take(generation) is None
    reader.buffers.close()
    mailbox.buffers.close()


def test_the_pool_lends_each_buffer_once_and_ignores_old_releases(buffers: FrameBuffers) -> None:
    pool = OutputPool(buffers)
    assert [pool.put(frame(i)) for i in range(4)] == [(0, 1), (1, 2), (2, 3), None]
    pool.release(1, 1)  # not what buffer 1 holds
    assert pool.put(frame(4)) is None
    pool.release(1, 2)
    pool.release(1, 2)
    assert pool.put(frame(5)) == (1, 4)
    assert pool.put(frame(6)) is None


def test_the_owner_unlinks() -> None:
    made = FrameBuffers.create(count=1, width=3, height=2)
    made.close()
    made.close()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name=made.spec.name)


def room_for(blocks: int) -> Callable[[int, int, int], None]:
    """`posix_fallocate` of a /dev/shm that has room for so many blocks of memory."""
    left, taken = blocks, os.posix_fallocate

    def fallocate(descriptor: int, offset: int, size: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken(descriptor, offset, size)

    return fallocate


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps shared memory in a file system of limited size")
def test_the_pages_are_taken_when_memory_is_made() -> None:
    made = FrameBuffers.create(count=3, width=640, height=480)
    try:
        assert Path(f"/dev/shm/{made.spec.name}").stat().st_blocks * 512 >= 3 * 640 * 480 * 3
    finally:
        made.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps shared memory in a file system of limited size")
@pytest.mark.parametrize("blocks", [0, 1], ids=["no mailbox", "no outputs"])
def test_memory_that_is_not_there_is_refused_and_nothing_is_left(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list[str]()

    def noted(**wanted: Any) -> SharedMemory:
        memory = SharedMemory(**wanted)
        names.append(memory.name)
        return memory

    monkeypatch.setattr(shared_frames, "SharedMemory", noted)
    monkeypatch.setattr(os, "posix_fallocate", room_for(blocks))
    with pytest.raises(SharedMemoryError, match=r"shared memory for another session: \d+ MiB more.*--shm-size"):
        session_buffers(width=1024, height=512, outputs=6)
    assert len(names) == blocks + 1
    assert not any(Path("/dev/shm", name).exists() for name in names)
