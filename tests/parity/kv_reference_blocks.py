"""Plain references of the policies that keep blocks of frames: packed (pooled middle blocks) and dual (earlier shots).

They work on a history that is never evicted; nothing is shared with the cache.
"""

from __future__ import annotations

import torch

from tests.parity.kv_reference import GRID, HEADS, TOKENS, Rule, Tokens, frame_tokens, turn


class PackedRule(Rule):
    """[sink | pooled blocks | recent]; block j of the past is the mean over boxes of its frames."""

    def __init__(
        self, sink: int, blocks: int, block: int, recent: int, pooling: tuple[int, int, int], pool: int, top_k: bool
    ) -> None:
        super().__init__()
        self.sink, self.blocks, self.block, self.recent = sink, blocks, block, recent
        self.pooling, self.pool, self.top_k = pooling, pool, top_k
        self.aged = 0
        self.mid: list[int] = []

    def begin(self, frames: int) -> None:
        while self.frames - self.sink - self.aged * self.block > self.recent:
            self.aged += 1

    @property
    def _first_recent(self) -> int:
        return max(self.sink, 0) + self.aged * self.block

    @property
    def _attended_blocks(self) -> int:
        return min(self.aged, self.blocks)

    def chunk_at(self) -> float:
        recent = max(self.frames - self._first_recent, 0)
        return float(min(self.sink, self.frames) + self._attended_blocks * self.block + recent)

    def _pooled(self, block: int, position: float) -> Tokens:
        first = self.sink + block * self.block
        frames, rows, columns = self.pooling
        parts: dict[str, list[torch.Tensor]] = {"k": [], "v": []}
        spatial: list[tuple[float, float, float]] = []
        for t in range(self.block // frames):
            for y in range(GRID[0] // rows):
                for x in range(GRID[1] // columns):
                    box = [
                        (first + t * frames + a, (y * rows + b) * GRID[1] + x * columns + c)
                        for a in range(frames)
                        for b in range(rows)
                        for c in range(columns)
                    ]
                    parts["k"].append(torch.stack([self.history.keys[f][i] for f, i in box]).mean(dim=0))
                    parts["v"].append(torch.stack([self.history.values[f][i] for f, i in box]).mean(dim=0))
                    middle = t * frames + (frames - 1) / 2, y * rows + (rows - 1) / 2, x * columns + (columns - 1) / 2
                    spatial.append((position + middle[0], middle[1], middle[2]))
        every = torch.ones(len(spatial), HEADS, dtype=torch.float64)
        t_, y_, x_ = (torch.tensor(axis).double()[:, None] * every for axis in zip(*spatial, strict=True))
        return Tokens(torch.stack(parts["k"]), torch.stack(parts["v"]), t_, y_, x_, torch.zeros_like(every))

    def past(self, queries: torch.Tensor | None) -> list[Tokens]:
        if not self.top_k:
            self.mid = list(range(self.aged))[-self.blocks :]
        elif queries is not None:
            self.mid = self._choose(queries)
        out = [self.history.frame(f, float(f)) for f in range(min(self.sink, self.frames))]
        out += [self._pooled(b, float(self.sink + i * self.block)) for i, b in enumerate(self.mid)]
        here = len(out) - len(self.mid) + len(self.mid) * self.block
        recent = range(self._first_recent, self.frames)
        return out + [self.history.frame(f, float(here + i)) for i, f in enumerate(recent)]

    def _choose(self, queries: torch.Tensor) -> list[int]:
        waiting = list(range(self.aged))[-self.pool :]
        count = queries.shape[0] // TOKENS
        chunk = frame_tokens(queries[:TOKENS], queries[:TOKENS], 0.0)
        t = torch.cat([chunk.t + self.chunk_at() + i for i in range(count)])
        turned = turn(queries, t, chunk.y.repeat(count, 1), chunk.x.repeat(count, 1), torch.zeros_like(t)).double()
        end = self.sink + self._attended_blocks * self.block
        scores = []
        for i, block in enumerate(waiting):
            keys = self._pooled(block, float(end - (len(waiting) - i) * self.block)).rotated().double()
            per_head = torch.einsum("nhd,mhd->h", turned, keys)
            scores.append(float(per_head[: HEADS // 2].mean()))
        best = sorted(range(len(waiting)), key=lambda i: -scores[i])[: self.blocks]
        return [waiting[i] for i in sorted(best)]


class DualRule(Rule):
    """[context | frames of this shot], distinguished by phases. `cut` begins a shot."""

    def __init__(self, context: int, local: int, theta: float) -> None:
        super().__init__()
        self.context, self.local, self.theta = context, local, theta
        self.shot, self.first = 0, 0
        self.coming = 0

    def cut(self) -> None:
        """Begin a shot: the next frames are its context."""
        self.shot, self.first = self.shot + 1, self.frames

    def begin(self, frames: int) -> None:
        self.coming = frames

    @property
    def _since(self) -> int:
        return self.frames - self.first

    def context_flags(self) -> list[int]:
        """By the paper: floor(context / shots) frames for each earlier shot, the remainder for the most recent."""
        shots = max(self.shot, 1)
        share = self.context // shots
        flags = [s for s in range(shots) for _ in range(share)]
        return flags + [shots - 1] * (self.context - len(flags))

    def _kept_local(self) -> list[int]:
        room = self.local - self.coming
        return list(range(self.first + self.context, self.frames))[-room:] if room else []

    def chunk_at(self) -> float:
        if self._since < self.context:
            return float(self._since)
        return float(self.context + len(self._kept_local()))

    def phase(self, frame: int) -> float:
        flags = self.context_flags()
        if self._since < self.context:
            return flags[self._since + frame] * self.theta
        return (max(flags) + 1) * self.theta

    def past(self, queries: torch.Tensor | None) -> list[Tokens]:
        flags = self.context_flags()
        done = min(self._since, self.context)
        out = [self.history.frame(self.first + i, float(i), flags[i] * self.theta) for i in range(done)]
        if done < self.context:
            return out
        shot = (max(flags) + 1) * self.theta
        return out + [self.history.frame(f, float(self.context + i), shot) for i, f in enumerate(self._kept_local())]
