"""The plain reference of compression by importance and redundancy: every formula spelled out over the whole history.

All pairs of keys are compared; nothing is shared with the cache.
"""

from __future__ import annotations

import torch

from tests.parity.kv_reference import GRID, HEAD_DIM, HEADS, TOKENS, Rule, Tokens, frame_tokens, turn


def plain_importance(queries: torch.Tensor, keys: torch.Tensor, pool: int) -> torch.Tensor:
    """Rotated queries [N, D] and keys [n, D] of one head -> [n] float64."""
    rows = [[float(q @ k) / HEAD_DIM**0.5 for k in keys.double()] for q in queries.double()]
    mean = torch.stack([torch.tensor(row, dtype=torch.float64).softmax(0) for row in rows]).mean(0)
    reach = pool // 2
    return torch.stack([mean[max(j - reach, 0) : j + reach + 1].max() for j in range(len(mean))])


def plain_redundancy(keys: torch.Tensor) -> torch.Tensor:
    """Unrotated keys [n, D] of one head -> [n] float64, from all n x n cosines."""
    unit = keys.double() / keys.double().norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    others = [(float(cosines[j].sum()) - 1) / len(keys) for j in range(len(keys))]
    return torch.tensor(others, dtype=torch.float64).softmax(0)


class R1Rule(Rule):
    """[sink | each head's chosen tokens | recent]."""

    def __init__(self, window: int, sink: int, recent: int, weight: float, pool: int) -> None:
        super().__init__()
        self.window, self.sink, self.recent, self.weight, self.pool = window, sink, recent, weight, pool
        self.chosen: list[list[int]] = [[] for _ in range(HEADS)]
        """Tokens of the whole history."""
        self.rest: list[int] = []
        """Frames."""
        self.known = 0
        self.room = 0
        """Frames' worth of tokens to choose; 0: none now."""

    def begin(self, frames: int) -> None:
        self.rest += range(max(self.known, self.sink), self.frames)
        self.known = self.frames
        sinks = min(self.sink, self.frames)
        held = sinks + len(self.chosen[0]) // TOKENS + len(self.rest)
        full = held + frames > self.window
        self.room = self.window - sinks - frames - self.recent if full else 0
        self.here = float(self.window - frames if full else held)

    def chunk_at(self) -> float:
        return self.here

    def past(self, queries: torch.Tensor | None) -> list[Tokens]:
        if queries is not None and self.room:
            self._compress(queries)
        sinks = min(self.sink, self.frames)
        out = [self.history.frame(f, float(f)) for f in range(sinks)]
        count = len(self.chosen[0])
        if count:
            out.append(self._tokens(self.chosen, [sinks + i // TOKENS for i in range(count)]))
        first = sinks + count // TOKENS
        return out + [self.history.frame(f, float(first + i)) for i, f in enumerate(self.rest)]

    def _tokens(self, tokens: list[list[int]], positions: list[int]) -> Tokens:
        keys, values = self.history.flat()
        index, heads = torch.tensor(tokens).T, torch.arange(HEADS)
        place = index % TOKENS
        t = torch.tensor(positions).double()[:, None].expand(-1, HEADS)
        y, x = (place // GRID[1]).double(), (place % GRID[1]).double()
        return Tokens(keys[index, heads], values[index, heads], t, y, x, torch.zeros_like(t))

    def _compress(self, queries: torch.Tensor) -> None:
        older, self.rest = self.rest[: -self.recent], self.rest[-self.recent :]
        candidates = [own + [f * TOKENS + i for f in older for i in range(TOKENS)] for own in self.chosen]
        shift = len(candidates[0]) // TOKENS - self.room
        tokens = self._tokens(candidates, [self.sink + i // TOKENS - shift for i in range(len(candidates[0]))])
        rotated, turned = tokens.rotated(), self._turned(queries)
        for head in range(HEADS):
            important = plain_importance(turned[:, head], rotated[:, head], self.pool)
            scores = self.weight * important - (1 - self.weight) * plain_redundancy(tokens.keys[:, head])
            best = scores.argsort(descending=True)[: self.room * TOKENS].sort().values
            self.chosen[head] = [candidates[head][int(i)] for i in best]

    def _turned(self, queries: torch.Tensor) -> torch.Tensor:
        frames = [frame_tokens(q, q, self.here + i) for i, q in enumerate(queries.split(TOKENS))]
        return torch.cat([turn(f.keys, f.t, f.y, f.x, f.phase) for f in frames])
