"""Owns which entries of a pass read and write which lines of a bank, decided on the device without a wait.

A *line* is a stream at one step index, for its prompt or for its negative prompt: successive frames of the stream at
that step share it. Each entry names the epoch in which its slot was admitted. A line of another epoch is empty to it,
and it never writes to one of a later epoch: so nothing has to be cleared when an epoch ends. Independent of networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

NO_LINE = -1
"""The first line of an entry that uses no bank."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassLines:
    """What N entries do with their lines in one pass, all on the device.

    line: [N] int64; that of entries without one is spare and read by nobody. filled: [N] bool, whether the entry may
    read it. writes: [N] bool, one entry at most for each line. due: [N] bool, those that refresh it in this pass.
    count: [N] int64, frames that the line has seen in this epoch. strength: [N] float32.
    """

    line: torch.Tensor
    filled: torch.Tensor
    writes: torch.Tensor
    due: torch.Tensor
    count: torch.Tensor
    epoch: torch.Tensor
    strength: torch.Tensor


class LineStates:
    """The epoch of every line and the frames that it has seen in it. One line more than `lines` is spare."""

    def __init__(self, lines: int, interval: int, device: torch.device) -> None:
        """interval: frames from refresh to refresh, >= 1."""
        assert lines >= 1, lines
        assert interval >= 1, interval
        self.lines, self._interval = lines, interval
        self.epochs = torch.full((lines + 1,), -1, dtype=torch.int64, device=device)
        self.counts = torch.zeros((lines + 1,), dtype=torch.int64, device=device)

    def begin(self, columns: torch.Tensor, step: torch.Tensor, negative: torch.Tensor) -> PassLines:
        """Decide for the entries of a pass.

        columns: [N, 3] float32: first line of the entry's stream or `NO_LINE`, epoch >= 0, strength. step: [N] int64.
        negative: [N] int64, 1 where the negative prompt is evaluated. Line = first line + 2 step + negative; slots of a
        stream whose bank was turned off meanwhile may name lines that there are no more.
        """
        first, epoch, strength = columns[:, 0].long(), columns[:, 1].long(), columns[:, 2]
        line = first + 2 * step + negative
        used = (first > NO_LINE) & (line < self.lines)
        line = torch.where(used, line, self.lines)
        stored = self.epochs.index_select(0, line)
        filled = used & (stored == epoch)
        count = torch.where(filled, self.counts.index_select(0, line), 0)
        writes = used & (epoch >= stored) & ~_overruled(line, epoch)
        due = writes & (count % self._interval == 0)
        return PassLines(line=line, filled=filled, writes=writes, due=due, count=count, epoch=epoch, strength=strength)

    def end(self, entries: PassLines) -> None:
        """Note that a pass is done."""
        target = self.targets(entries, entries.writes)
        self.epochs.index_copy_(0, target, entries.epoch)
        self.counts.index_copy_(0, target, entries.count + 1)

    def targets(self, entries: PassLines, chosen: torch.Tensor) -> torch.Tensor:
        """Return the lines of the chosen entries, and the spare one for the others: [N] int64."""
        return torch.where(chosen, entries.line, self.lines)

    def refreshes(self, entries: PassLines) -> torch.Tensor:
        """Return how often the line of each entry has been refreshed in its epoch: [N] int64."""
        return entries.count // self._interval

    def take_over(self, other: LineStates) -> None:
        """Copy the lines of a smaller one."""
        self.epochs[: other.lines].copy_(other.epochs[: other.lines])
        self.counts[: other.lines].copy_(other.counts[: other.lines])


def _overruled(line: torch.Tensor, epoch: torch.Tensor) -> torch.Tensor:
    """Return for which entries another one with the same line is of a later epoch, or later in the batch."""
    same = line[:, None] == line[None, :]
    place = torch.arange(len(line), device=line.device)
    newer = epoch[None, :] > epoch[:, None]
    later = (epoch[None, :] == epoch[:, None]) & (place[None, :] > place[:, None])
    return (same & (newer | later)).any(dim=1)
