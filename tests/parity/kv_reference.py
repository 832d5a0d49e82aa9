"""Plain references of the key/value policies: attention over a history that is never evicted.

Nothing is shared with the cache: lists hold unrotated keys and values of all frames since the beginning, each
rule names the tokens that a chunk attends to and their positions, and rotation is a complex product in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

HEADS, HEAD_DIM, GRID = 2, 16, (2, 3)
TOKENS = GRID[0] * GRID[1]


@dataclass
class Tokens:
    """keys, values [M, H, D]; t, y, x [M, H]; phase [M, H] in radians."""

    keys: torch.Tensor
    values: torch.Tensor
    t: torch.Tensor
    y: torch.Tensor
    x: torch.Tensor
    phase: torch.Tensor

    @staticmethod
    def join(parts: Sequence[Tokens]) -> Tokens:
        names = ("keys", "values", "t", "y", "x", "phase")
        return Tokens(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def rotated(self) -> torch.Tensor:
        return turn(self.keys, self.t, self.y, self.x, self.phase)


def turn(
    x: torch.Tensor, t: torch.Tensor, row: torch.Tensor, column: torch.Tensor, phase: torch.Tensor
) -> torch.Tensor:
    """Rotate [M, H, D] by positions [M, H]: 4, 2 and 2 complex pairs of time, row and column for D = 16."""
    angles = torch.cat(
        [
            t.double()[..., None] * 10000.0 ** (-torch.arange(4).double() / 4) + phase.double()[..., None],
            row.double()[..., None] * 10000.0 ** (-torch.arange(2).double() / 2),
            column.double()[..., None] * 10000.0 ** (-torch.arange(2).double() / 2),
        ],
        dim=-1,
    )
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2).to(x.dtype)


@dataclass
class History:
    """All frames of one layer since the beginning: keys and values [TOKENS, H, D] each."""

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """[frames * TOKENS, H, D]."""
        self.keys += list(keys.split(TOKENS))
        self.values += list(values.split(TOKENS))

    def frame(self, index: int, position: float, phase: float = 0.0) -> Tokens:
        return frame_tokens(self.keys[index], self.values[index], position, phase)

    def flat(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all tokens: token i is number i % TOKENS of frame i // TOKENS."""
        return torch.cat(self.keys), torch.cat(self.values)


def frame_tokens(keys: torch.Tensor, values: torch.Tensor, position: float, phase: float = 0.0) -> Tokens:
    """Return one frame's tokens at a position."""
    write = torch.arange(TOKENS)
    every = torch.ones(TOKENS, HEADS, dtype=torch.float64)
    y, x = write // GRID[1], write % GRID[1]
    return Tokens(keys, values, every * position, y[:, None] * every, x[:, None] * every, every * phase)


def attend(
    history: History, queries: torch.Tensor, past: Sequence[Tokens], chunk: Sequence[Tokens]
) -> tuple[torch.Tensor, torch.Tensor]:
    """queries [N, H, D], unrotated, at the chunk's position -> (output [N, H, D], weights [H, N, M])."""
    attended, here = Tokens.join([*past, *chunk]), Tokens.join(chunk)
    turned = turn(queries, here.t, here.y, here.x, here.phase)
    weights = torch.einsum("nhd,mhd->hnm", turned, attended.rotated()) * HEAD_DIM**-0.5
    weights = weights.softmax(dim=-1)
    return torch.einsum("hnm,mhd->nhd", weights, attended.values), weights


class Rule:
    """One layer of one row. `begin`, then `past` (and `chunk_positions`) for each pass, then `saw` after the first."""

    phase_step = 0.0

    def __init__(self) -> None:
        self.history = History()

    @property
    def frames(self) -> int:
        return len(self.history.keys)

    def begin(self, frames: int) -> None:
        """Begin a chunk of `frames` frames."""

    def past(self, queries: torch.Tensor | None) -> list[Tokens]:
        """Return what the chunk attends to besides itself. queries: unrotated, in the first pass only."""
        raise NotImplementedError

    def chunk_at(self) -> float:
        """Return the position of its first frame."""
        raise NotImplementedError

    def phase(self, frame: int) -> float:
        """Return the phase of the chunk's frame."""
        return 0.0

    def saw(self, weights: torch.Tensor) -> None:
        """weights [H, N, M] of the first pass, M as in `past` and then the chunk."""


class SinkRule(Rule):
    """Attends to frames below `sink` and the latest that fit."""

    def __init__(self, window: int, sink: int = 0, positions: str = "slot") -> None:
        super().__init__()
        self.window, self.sink, self.positions = window, sink, positions
        self.kept: list[int] = []

    def begin(self, frames: int) -> None:
        sinks = list(range(min(self.sink, self.frames)))
        room = self.window - len(sinks) - frames
        recent = [f for f in range(self.frames) if f >= len(sinks) and f >= self.frames - room]
        self.kept = sinks + recent

    def at(self) -> list[float]:
        if self.positions == "absolute":
            return [float(f) for f in self.kept]
        if self.positions == "slot":
            return [float(i) for i in range(len(self.kept))]
        first = self.frames - len(self.kept)
        return [float(first + i) for i in range(len(self.kept))]

    def past(self, queries: torch.Tensor | None) -> list[Tokens]:
        return [self.history.frame(f, p) for f, p in zip(self.kept, self.at(), strict=True)]

    def chunk_at(self) -> float:
        return float(len(self.kept)) if self.positions == "slot" else float(self.frames)


class AdaptiveRule(SinkRule):
    """The sink's contents follow the newest frame."""

    def __init__(self, window: int, sink: int, threshold: float) -> None:
        super().__init__(window, sink)
        self.threshold = threshold
        self.held: list[int] = []
        self.replacements = 0

    def begin(self, frames: int) -> None:
        super().begin(frames)
        self.held = [*self.held, *range(len(self.held), min(self.sink, self.frames))]
        if self.frames + frames <= self.window:
            return
        newest = self.frames - 1
        scores = [self._similarity(f, newest) for f in self.held]
        worst = min(range(len(scores)), key=scores.__getitem__)
        if scores[worst] < self.threshold:
            self.held[worst] = newest
            self.replacements += 1

    def _similarity(self, a: int, b: int) -> float:
        total = 0.0
        for frames in (self.history.keys, self.history.values):
            left, right = (frames[f].mean(dim=0).flatten().double() for f in (a, b))
            total += float(left @ right / (left.norm() * right.norm()))
        return total / 2

    def past(self, queries: torch.Tensor | None) -> list[Tokens]:
        frames = self.held + self.kept[len(self.held) :]
        return [self.history.frame(f, float(i)) for i, f in enumerate(frames)]


class ParticipativeRule(Rule):
    """[sink | chosen tokens | recent]; chosen by (sum of queries) . key."""

    def __init__(self, window: int, sink: int, budget: int, recent: int) -> None:
        super().__init__()
        self.window, self.sink, self.budget, self.recent = window, sink, budget, recent
        self.chosen: list[int] = []
        """Tokens of the whole history."""
        self.rest: list[int] = []
        """Frames."""
        self.known = 0
        self.compresses = False

    def begin(self, frames: int) -> None:
        self.rest += range(max(self.known, self.sink), self.frames)
        self.known = self.frames
        stands = min(self.sink, self.frames) + len(self.chosen) // TOKENS + len(self.rest)
        self.compresses = stands + frames > self.window
        self.first_of_chunk = float(stands)
        if self.compresses:
            self.first_of_chunk = float(self.budget)

    def chunk_at(self) -> float:
        return self.first_of_chunk

    def past(self, queries: torch.Tensor | None) -> list[Tokens]:
        if queries is not None and self.compresses:
            self._compress(queries)
        out = [self.history.frame(f, float(f)) for f in range(min(self.sink, self.frames))]
        here = len(out)
        if self.chosen:
            out.append(self._tokens(self.chosen, [here + i // TOKENS for i in range(len(self.chosen))]))
            here += len(self.chosen) // TOKENS
        return out + [self.history.frame(f, float(here + i)) for i, f in enumerate(self.rest)]

    def _tokens(self, tokens: list[int], positions: list[int]) -> Tokens:
        keys, values = self.history.flat()
        every = torch.ones(len(tokens), HEADS, dtype=torch.float64)
        write = torch.tensor([i % TOKENS for i in tokens])[:, None]
        t = torch.tensor(positions)[:, None] * every
        return Tokens(
            keys[tokens], values[tokens], t, write // GRID[1] * every, write % GRID[1] * every, torch.zeros_like(every)
        )

    def _compress(self, queries: torch.Tensor) -> None:
        older, recent = self.rest[: len(self.rest) - self.recent], self.rest[len(self.rest) - self.recent :]
        middle = self.budget - self.sink - self.recent
        chosen_frames = len(self.chosen) // TOKENS
        candidates = list(self.chosen) + [f * TOKENS + i for f in older for i in range(TOKENS)]
        # As they stood, brought along so that the recent frames are where they will be.
        shift = chosen_frames + len(older) - middle
        positions = [self.sink + i // TOKENS - shift for i in range(len(candidates))]
        keys = self._tokens(candidates, positions).rotated()
        chunk = frame_tokens(queries[:TOKENS], queries[:TOKENS], 0.0)
        count = queries.shape[0] // TOKENS
        t = torch.cat([chunk.t + self.first_of_chunk + i for i in range(count)])
        turned = turn(queries, t, chunk.y.repeat(count, 1), chunk.x.repeat(count, 1), torch.zeros_like(t))
        scores = torch.einsum("mhd,nhd->m", keys.double(), turned.double())
        best = scores.argsort(descending=True)[: middle * TOKENS].sort().values
        self.chosen = [candidates[int(i)] for i in best]
        self.rest = recent


class HeavyRule(Rule):
    """Each head keeps the tokens that received the most attention."""

    def __init__(self, heavy: int, recent: int) -> None:
        super().__init__()
        self.heavy, self.recent = heavy, recent
        self.chosen: list[list[int]] = [[] for _ in range(HEADS)]
        self.rest: list[int] = []
        self.known = 0
        self.received = torch.zeros(0, HEADS, dtype=torch.float64)

    def begin(self, frames: int) -> None:
        self.rest += range(self.known, self.frames)
        self.known = self.frames
        if len(self.chosen[0]) // TOKENS + len(self.rest) <= self.heavy + self.recent:
            return
        older, self.rest = self.rest[: -self.recent], self.rest[-self.recent :]
        for head in range(HEADS):
            candidates = self.chosen[head] + [f * TOKENS + i for f in older for i in range(TOKENS)]
            scores = self.received[candidates, head]
            best = scores.argsort(descending=True)[: self.heavy * TOKENS].sort().values
            self.chosen[head] = [candidates[int(i)] for i in best]

    def chunk_at(self) -> float:
        return float(len(self.chosen[0]) // TOKENS + len(self.rest))

    def past(self, queries: torch.Tensor | None) -> list[Tokens]:
        keys, values = self.history.flat() if self.frames else (torch.zeros(0), torch.zeros(0))
        out, count = [], len(self.chosen[0])
        if count:
            index = torch.tensor(self.chosen).T
            heads = torch.arange(HEADS)
            write = (index % TOKENS).double()
            t = (torch.arange(count) // TOKENS).double()[:, None].expand(-1, HEADS)
            y, x = torch.div(write, GRID[1], rounding_mode="floor"), write % GRID[1]
            out.append(Tokens(keys[index, heads], values[index, heads], t, y, x, torch.zeros_like(t)))
        return out + [self.history.frame(f, float(count // TOKENS + i)) for i, f in enumerate(self.rest)]

    def saw(self, weights: torch.Tensor) -> None:
        chunk = weights.shape[1]
        self.received = torch.cat([self.received, torch.zeros(chunk, HEADS, dtype=torch.float64)])
        recent = [f * TOKENS + i for f in self.rest for i in range(TOKENS)]
        mine = [self.frames * TOKENS + i for i in range(chunk)]
        for head in range(HEADS):
            tokens = self.chosen[head] + recent + mine
            self.received[tokens, head] += weights[head].sum(dim=0).double()
