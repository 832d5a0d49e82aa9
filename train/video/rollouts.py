"""Owns the student's own streams while it is trained: many at once, each with its cache, its age and its prompt.

A stream lives for up to minutes: every iteration adds one chunk to each, so that the student is trained on what it
makes of its own past at any age (Huang et al. 2025, Self-Forcing, trains on rollouts from the beginning; here they go
on). Nothing waits for the host: who begins anew is decided on the device. Knows no loss and no optimiser.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.conditioning.actions import ACTION_NAMES
from pipelines.video.wan.text_cache import PlainText
from pipelines.video.wan.transformer import CausalWanTransformer
from train.clips.actions import FULL_DEFLECTION, MAX, REACH, turned_back

from .bank import ClipBank, draw_windows
from .forcing import clean_of, make_view, noised

MAX_CHUNKS = 100
"""Of a stream's life: 75 seconds."""
SHORT_CHUNKS, SHORT_SHARE = 16, 0.8
"""Most streams end early: only a beginning shows whether the prompt alone is followed, and without these one chunk of
50 would be one."""
FORCED_SHARE = 0.3
"""Share of the streams that begin with a real clip's latents."""
SWITCH_SHARE = 0.03
"""Share of the chunks before which the prompt changes."""
ACTION_CHANGE, NO_ACTION = 0.15, 0.5
"""Share of the latents before which the actions change, and of the changes to none at all."""

Encode = Callable[[Tensor], Tensor]


class PoolView:
    """The cached past of all streams, as one pass of the transformer sees it (pipelines.video.wan.blocks.KeyValueView).

    keys, values: [layers, B, past tokens, heads, D], without rotation; record: whether passes leave theirs in `fresh`.
    The past's first `sink` latents stay once a stream fills it.
    """

    observes = False

    def __init__(
        self, transformer: CausalWanTransformer, batch: int, grid: tuple[int, int], *, past: int, chunk: int, sink: int
    ) -> None:
        self._transformer = transformer
        tokens = grid[0] * grid[1]
        self._sink = sink * tokens
        heads, width, device = transformer.heads, transformer.head_dim, transformer.device
        self._past = make_view(transformer, list(range(past)), grid).query_rotation
        self.query_rotation = make_view(transformer, list(range(past, past + chunk)), grid).query_rotation
        self._new = chunk * tokens
        shape = (transformer.layers, batch, past * tokens, heads, width)
        self.keys, self.values = (torch.zeros(shape, dtype=transformer.dtype, device=device) for _ in range(2))
        self._rotated = torch.zeros_like(self.keys)
        fresh = (transformer.layers, batch, self._new, heads, width)
        self._fresh = [torch.zeros(fresh, dtype=transformer.dtype, device=device) for _ in range(2)]
        self.record = False

    def observe(self, layer: int, queries: Tensor) -> None:
        """Nothing is scored."""

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The past and this pass's own, rotated."""
        if self.record:
            for kept, given in zip(self._fresh, (keys, values), strict=True):
                kept[layer].copy_(given)
        rotated = self._transformer.rotary.rotate(keys, *self.query_rotation)
        return torch.cat([self._rotated[layer], rotated], 1), torch.cat([self.values[layer], values], 1)

    def advance(self, full: Tensor) -> None:
        """What the last pass left becomes the newest of the past; the oldest goes, of streams that are `full` (bool
        [B]) the oldest after the sink.
        """
        rows = full[None, :, None, None, None]
        for kept, fresh in zip((self.keys, self.values), self._fresh, strict=True):
            kept.copy_(torch.cat([_shifted(kept, self._new, self._sink, rows, dim=2), fresh], 2))
        for layer in range(self.keys.shape[0]):
            self._rotated[layer].copy_(self._transformer.rotary.rotate(self.keys[layer], *self._past))


def _shifted(kept: Tensor, by: int, sink: int, full: Tensor, *, dim: int) -> Tensor:
    """`kept` without `by` of its places along dim: the first ones, or where `full` says so those after the sink."""
    size = kept.shape[dim]
    front = torch.where(full, kept.narrow(dim, 0, sink), kept.narrow(dim, by, sink))
    return torch.cat([front, kept.narrow(dim, by + sink, size - by - sink)], dim)


class Pool:
    """`batch` streams. latents: [B, C, past + chunk, h, w], the newest chunk last; age: [B] latents before it. Of a
    stream longer than the past the first `sink` latents stay in their places.

    ids, states: the prompts as tokens and as text states; actions: [B, past + chunk, 5].
    """

    def __init__(
        self,
        transformer: CausalWanTransformer,
        bank: ClipBank,
        encode: Encode,
        batch: int,
        *,
        grid: tuple[int, int],
        past: int,
        chunk: int,
        sink: int,
        levels: Tensor,
    ) -> None:
        self._transformer, self._bank, self._encode = transformer, bank, encode
        self.past, self.chunk, self.sink, self.levels = past, chunk, sink, levels
        device, dtype = transformer.device, transformer.dtype
        self._tokens = grid[0] * grid[1]
        self.view = PoolView(transformer, batch, grid, past=past, chunk=chunk, sink=sink)
        windows = draw_windows(bank, batch, past, begin_share=1.0)
        shape = (batch, windows.latents.shape[1], past + chunk, *windows.latents.shape[3:])
        self.latents = torch.zeros(shape, device=device)
        self.states = encode(windows.ids).to(dtype)
        self.actions = torch.zeros(batch, past + chunk, len(ACTION_NAMES), device=device)
        self._moved = torch.zeros(batch, len(ACTION_NAMES), device=device)
        self._reach = torch.tensor(REACH, device=device)
        self.age = torch.zeros(batch, dtype=torch.int64, device=device)
        self._limit = torch.zeros_like(self.age)  # all begin at the first iteration
        self._truth = torch.zeros(batch, shape[1], past, *shape[3:], device=device)
        self._true_actions = torch.zeros(batch, past, len(ACTION_NAMES), device=device)
        self._forced = torch.zeros(batch, dtype=torch.bool, device=device)
        self.x = torch.zeros(batch, shape[1], chunk, *shape[3:], device=device)
        self.x0 = torch.zeros_like(self.x)
        self.level = torch.ones(batch, chunk, device=device)
        self._spread()

    def _spread(self) -> None:
        """At first streams end at different times, so that all ages are there at any moment."""
        self._first_limit = self.chunk * torch.randint_like(self.age, 1, MAX_CHUNKS + 1)

    @property
    def there(self) -> Tensor:
        """bool [B, past + chunk]: which of the window's latents there are."""
        index = torch.arange(self.past + self.chunk, device=self.age.device)
        return index >= self.past - self.age.clamp(max=self.past)[:, None]

    @torch.no_grad()
    def begin(self) -> None:
        """Make room for a chunk: streams at their end begin anew, prompts and actions change here and there."""
        windows = draw_windows(self._bank, self.age.shape[0], self.past, begin_share=1.0)
        states = self._encode(windows.ids).to(self.states.dtype)
        over = self.age >= self._limit
        first = self._limit == 0
        changed = over | (torch.rand_like(self.age, dtype=torch.float32) < SWITCH_SHARE)
        short = torch.rand_like(self.age, dtype=torch.float32) < SHORT_SHARE
        life = torch.where(
            short,
            torch.randint_like(self.age, 4, SHORT_CHUNKS + 1),
            torch.randint_like(self.age, SHORT_CHUNKS, MAX_CHUNKS + 1),
        )
        life = self.chunk * life
        self._limit.copy_(torch.where(over, torch.where(first, self._first_limit, life), self._limit))
        self.age.copy_(torch.where(over, torch.zeros_like(self.age), self.age))
        self.states.copy_(_where(changed, states, self.states))
        self._truth.copy_(_where(over, windows.latents, self._truth))
        self._true_actions.copy_(_where(over, windows.actions, self._true_actions))
        forced = torch.rand_like(self.age, dtype=torch.float32) < FORCED_SHARE
        self._forced.copy_(torch.where(over, forced, self._forced))
        self.latents[:, :, : self.past] = self._moved_on(self.latents, 2)
        self._act(over)
        self.x.normal_()

    def _act(self, over: Tensor) -> None:
        """The new chunk's actions: those of the last one, or others, which turn back at the clips' reach; while a
        stream is forced, the clip's.
        """
        self._moved.masked_fill_(over[:, None], 0)
        now = self.actions[:, -1].masked_fill(over[:, None], 0)
        drawn: list[Tensor] = []
        for _ in range(self.chunk):
            now = torch.where(torch.rand_like(now[:, :1]) < ACTION_CHANGE, self._command(now), now)
            now = turned_back(now, self._moved + sum(drawn, torch.zeros_like(now)), self._reach)
            drawn.append(now)
        true = self._of_truth(self._true_actions[:, :, :, None], 1)[..., 0]
        actions = _where(self.is_forced, true, torch.stack(drawn, 1))
        self.actions[:, : self.past] = self._moved_on(self.actions, 1)
        self.actions[:, self.past :] = actions
        self._moved.add_(actions.sum(1)).clamp_(-self._reach, self._reach)

    def _command(self, like: Tensor) -> Tensor:
        """New actions [B, 5]: on some axes, half of them at full deflection or beyond it."""
        axes = torch.rand_like(like) < 0.3
        minimum = torch.where(torch.rand_like(like) < FULL_DEFLECTION, 1.0, 0.0)
        size = minimum + (MAX - minimum) * torch.rand_like(like)
        sign = torch.where(torch.rand_like(like) < 0.5, -1.0, 1.0)
        return axes * sign * size * (torch.rand_like(like[:, :1]) >= NO_ACTION)

    def _moved_on(self, window: Tensor, dim: int) -> Tensor:
        """The past of the next chunk, out of the window of the last one."""
        full = (self.age > self.past).view(-1, *[1] * (window.dim() - 1))
        return _shifted(window, self.chunk, self.sink, full, dim=dim)

    @property
    def is_forced(self) -> Tensor:
        """bool [B]: the new chunk will be the clip's own."""
        return self._forced & (self.age < self.past)

    def _of_truth(self, truth: Tensor, dim: int) -> Tensor:
        """The chunk of a stream's real clip at its age."""
        start = self.age.clamp(max=self.past - self.chunk)
        index = start[:, None] + torch.arange(self.chunk, device=self.age.device)
        shape = [1] * truth.dim()
        shape[0], shape[dim] = index.shape
        size = list(truth.shape)
        size[dim] = self.chunk
        return truth.gather(dim, index.view(shape).expand(size))

    @property
    def mask(self) -> Tensor:
        """bool [B, 1, new tokens, all tokens]: what the new chunk sees."""
        seen = self.there.repeat_interleave(self._tokens, 1)[:, None, None, :]
        return seen.expand(-1, -1, self.chunk * self._tokens, -1)

    def velocity(self, transformer: CausalWanTransformer, x: Tensor, level: Tensor) -> Tensor:
        """Of the new chunk x [B, C, chunk, h, w] at noise levels [B, chunk], differentiable."""
        dtype = transformer.dtype
        velocity: Tensor = transformer(
            x.to(dtype), 1000 * level, PlainText(transformer, self.states), self.view, mask=self.mask,
            actions=self.actions[:, self.past :].to(dtype),
        )  # fmt: skip
        return velocity

    @torch.no_grad()
    def denoise(self) -> None:
        """x0 of the new chunk at `x` and `level`."""
        self.x0.copy_(clean_of(self.x, self.velocity(self._transformer, self.x, self.level), self.level))

    @torch.no_grad()
    def renoise(self) -> None:
        """x from x0 at `level`, with fresh noise."""
        self.x.copy_(noised(self.x0, torch.randn_like(self.x0), self.level))

    @torch.no_grad()
    def finish(self) -> None:
        """x0 is the new chunk (the clip's own where that is forced): its keys and values join the past."""
        chunk = _where(self.is_forced, self._of_truth(self._truth, 2), self.x0)
        self.latents[:, :, self.past :] = chunk
        self.x.copy_(chunk)
        self.level.zero_()
        self.view.record = True
        self.velocity(self._transformer, self.x, self.level)
        self.view.record = False
        self.view.advance(self.age >= self.past)
        self.age.add_(self.chunk)


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """By bool [B] over tensors [B, ...]."""
    return torch.where(rows.view(-1, *[1] * (yes.dim() - 1)), yes, no)
