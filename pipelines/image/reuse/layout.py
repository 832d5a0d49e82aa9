"""Owns how the entries of a batch are divided into passes when some of them are not computed as a whole.

Decided on the host; what a pass needs of each entry goes to the device in one table. Independent of networks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from cache.features.frames import Action
from cache.features.windows import Size, Window


class ReuseRow(IntEnum):
    """Rows of the table; its columns are whole entries, then stored ones, then windows in the order of their passes."""

    COLUMN = 0  # of the batch
    LINE = 1
    TOP = 2  # first row and column of a window, in latents
    LEFT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotWork:
    """What is done with a slot in all its steps. first_line: its line at step 0; the line of its negative prompt
    follows it where branches is 2, and so on for each step."""

    action: Action
    windows: tuple[Window, ...] = ()
    first_line: int = 0
    branches: int = 1

    def line(self, step: int, *, negative: bool) -> int:
        """Return its line at a step."""
        return self.first_line + step * self.branches + negative


FULL_WORK = SlotWork(action=Action.FULL)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryWork:
    """One entry of a batch: a slot at its step, or the evaluation of its negative prompt."""

    action: Action
    line: int
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassLayout:
    """How many entries are computed as a whole, how many are computed so and kept, and then in rounds, one after the
    other, how many windows of each size (in cells) are computed. Entries that share a line are in different rounds."""

    full: int
    store: int
    rounds: tuple[tuple[tuple[Size, int], ...], ...]

    @property
    def entries(self) -> int:
        """Columns of the table."""
        return self.full + self.store + sum(count for sizes in self.rounds for _, count in sizes)


TableColumn: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPlan:
    """The layout of a batch, and the columns of its table."""

    layout: PassLayout
    columns: Sequence[TableColumn]


def plan_passes(entries: Sequence[EntryWork], cell: int) -> PassPlan | None:
    """Divide a batch; None if all entries are computed as a whole and none is kept. cell: latents per cell."""
    if all(entry.action is Action.FULL for entry in entries):
        return None
    full = [(column, 0, 0, 0) for column, entry in enumerate(entries) if entry.action is Action.FULL]
    store = [(column, entry.line, 0, 0) for column, entry in enumerate(entries) if entry.action is Action.STORE]
    sizes: list[defaultdict[Size, list[TableColumn]]] = []
    used: defaultdict[int, int] = defaultdict(int)  # rounds of each line
    for column, entry in enumerate(entries):
        if entry.action is not Action.WINDOWS:
            continue
        turn = used[entry.line]
        used[entry.line] += 1
        if turn == len(sizes):
            sizes.append(defaultdict(list))
        for window in entry.windows:
            sizes[turn][window.size].append((column, entry.line, window.row * cell, window.column * cell))
    rounds = [sorted(by_size.items()) for by_size in sizes]
    layout = PassLayout(
        full=len(full),
        store=len(store),
        rounds=tuple(tuple((size, len(columns)) for size, columns in by_size) for by_size in rounds),
    )
    windows = [column for by_size in rounds for _, columns in by_size for column in columns]
    return PassPlan(layout=layout, columns=(*full, *store, *windows))
