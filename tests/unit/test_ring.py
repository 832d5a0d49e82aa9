"""The ring: rows from a moving head, gathered and scattered by handle, never lost."""

from __future__ import annotations

import random

import pytest
import torch

from cache.ring import Ring, RingField


def ring(capacity: int = 3) -> Ring:
    return Ring(capacity, {"x": RingField(shape=(2,)), "n": RingField(shape=(4, 2), dtype=torch.float64)}, CPU)


CPU = torch.device("cpu")


def test_rows_come_from_a_moving_head() -> None:
    r = ring()
    assert [r.acquire(), r.acquire(), r.acquire(), r.acquire()] == [0, 1, 2, None]
    r.release(0)
    r.release(1)
    assert r.acquire() == 0  # after 2 comes 0
    r.release(0)
    assert r.acquire() == 1  # the head has moved past 0 though it is free
    assert r.held_rows == (1, 2)
    assert r.free_rows == 1


def test_a_row_cannot_be_released_twice() -> None:
    r = ring()
    row = r.acquire()
    assert row is not None
    r.release(row)
    with pytest.raises(AssertionError, match="not held"):
        r.release(row)


def test_free_and_held_rows_add_up_whatever_happens() -> None:
    r, choose = ring(5), random.Random(1)
    for _ in range(500):
        if choose.random() < 0.5:
            r.acquire()
        elif r.held_rows:
            r.release(choose.choice(r.held_rows))
        r.check_integrity()


def test_storage_is_written_and_read_by_handle_in_place() -> None:
    r = ring()
    storage = r.tensor("x").data_ptr()
    r.scatter("x", torch.tensor([2, 0]), torch.tensor([[5.0, 6.0], [1.0, 2.0]]))
    assert r.gather("x", torch.tensor([0, 1, 2, 0])).tolist() == [[1, 2], [0, 0], [5, 6], [1, 2]]
    out = torch.empty(1, 2)
    assert r.gather("x", torch.tensor([2]), out=out) is out
    assert out.tolist() == [[5, 6]]
    assert r.tensor("x").data_ptr() == storage


def test_cells_are_a_view_of_row_times_inner_index() -> None:
    r = ring()
    r.tensor("n")[1, 3] = 7.0
    assert r.cells("n")[1 * 4 + 3].tolist() == [7.0, 7.0]
    assert r.cells("n").shape == (12, 2)
