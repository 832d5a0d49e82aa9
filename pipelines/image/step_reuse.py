"""Owns caching across the steps of a render: what is kept of each slot on the device, and the denoiser that computes,
runs shallow or reuses each group of a batch as pipelines/image/step_plan.py has planned.

A `Denoiser` in, a `Denoiser` out: the engine calls it in place of the network's own. Everything that differs between
ticks of the same group sizes comes from two small tables, so a tick can be captured. Independent of streams.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from cache.features.steps.affine import apply_affine
from cache.features.steps.contract import relative_l1, weighted
from pipelines.core.errors import ModelError

from .loading.networks import UNetDenoiser
from .model import Condition, Denoiser, ImageModel, ScheduleConfig
from .shallow_unet import BranchedDenoiser, obstacle
from .step_caches import Quantity, Signal, StepCache
from .step_plan import ReusePlan, StepPlanner, TableRows
from .tick_batch import TickBatch


class StepReuse:
    """One engine's step cache: its plan of each tick, and the history of every ring row.

    output: [2 capacity depth, F, C, h, w], outputs in the form `StepCache.quantity`. deep: the same of deep features,
    channels last. signal: [2 capacity, F, ...], what the gates' distances are measured from: see `Signal`.
    """

    def __init__(
        self,
        cache: StepCache,
        model: ImageModel,
        denoiser: Denoiser,
        *,
        capacity: int,
        frames: int,
        latent_shape: tuple[int, int, int],
        dtype: torch.dtype,
    ) -> None:
        """capacity: of the ring. frames: of a slot. dtype: of latents. Raises ModelError if the cache cannot be used
        with this model or the way it is run."""
        profile = model.load_profile() if cache.needs_profile else None
        if cache.needs_profile and profile is None:
            raise ModelError(
                f"The step cache {cache.name} needs a step profile, and {model.name} has none.",
                "Make one: python -m bench.step_caches --calibrate, or choose deepcache or taylorseer.",
            )
        self.cache, self.planner = cache, StepPlanner(cache, profile, latent_shape[0])
        self.network = _branched(cache, denoiser, model.name) if cache.branch else None
        self._denoiser, self._frames, self._schedule = denoiser, frames, model.schedule
        places, device = 2 * capacity * cache.extrapolation.depth, model.device
        self.output = torch.zeros((places if cache.output else 0, frames, *latent_shape), dtype=dtype, device=device)
        self.deep = torch.zeros(0, device=device)
        if self.network is not None:
            channels, height, width = self.network.network.deep_shape(*latent_shape[1:])
            shape = (places, frames, height, width, channels)
            self.deep = torch.zeros(shape, dtype=model.dtype, device=device)
        self.signal = torch.zeros(0, device=device)
        if cache.measures is Signal.LATENTS:
            self.signal = torch.zeros((2 * capacity, frames, *latent_shape), dtype=dtype, device=device)
        elif cache.measures is Signal.TOP:
            assert self.network is not None, cache.name
            top = self.network.network.top_shape(*latent_shape[1:])
            self.signal = torch.zeros((2 * capacity, frames, *top), dtype=model.dtype, device=device)
        self._measured: dict[int, tuple[LaneReuse, int]] = {}  # by ring row: where its last distance is

    def plan(self, batch: TickBatch, lane: LaneReuse, *, epoch: object, wait: Callable[[int], None]) -> ReusePlan:
        """Plan a tick of a lane. epoch: see `StepPlanner.plan`. wait: for the last tick that used a ring row."""

        def measured(row: int) -> float:
            wait(row)
            before, column = self._measured[row]
            return float(before.distances[column])

        plan = self.planner.plan(batch, epoch, measured)
        if self.cache.measures is not None:
            cells = [column[TableRows.CELL] for column in plan.ints]
            self._measured |= {cell // 2: (lane, index) for index, cell in enumerate(cells) if cell % 2 == 0}
        return plan

    def lane(self, ints: torch.Tensor, floats: torch.Tensor) -> LaneReuse:
        """Return the denoiser of one lane, which reads these tables."""
        return LaneReuse(self, self._denoiser, self._schedule, self._frames, ints, floats)


def _branched(cache: StepCache, denoiser: Denoiser, model: str) -> BranchedDenoiser:
    if not isinstance(denoiser, UNetDenoiser):
        raise ModelError(
            f"The step cache {cache.name} runs a part of the network, which this backend has only whole.",
            "Choose the backend eager or cuda-graph, or a cache of whole outputs: taylorseer.",
        )
    if (reason := obstacle(denoiser.unet)) is not None:
        raise ModelError(f"The step cache {cache.name} cannot cut {model}: {reason}.", "Choose taylorseer.")
    try:
        return BranchedDenoiser(denoiser, cache.branch)
    except ValueError as error:
        raise ModelError(f"The step cache {cache.name} cannot cut {model}: {error}.", "Choose taylorseer.") from error


class LaneReuse:
    """A `Denoiser` for one lane. `use` gives it the plan of the tick before it is called.

    distances: [2 capacity], by entry of the last batch, what was measured; on the host, valid once its tick has ended.
    """

    def __init__(
        self,
        shared: StepReuse,
        denoiser: Denoiser,
        schedule: ScheduleConfig,
        frames: int,
        ints: torch.Tensor,
        floats: torch.Tensor,
    ) -> None:
        self._shared, self._denoiser, self._frames = shared, denoiser, frames
        self._ints, self._floats, self._rows = ints, floats, shared.planner.rows
        abar = torch.from_numpy(schedule.alphas_cumprod)
        work = shared.output.dtype
        self._a = abar.sqrt().to(device=ints.device, dtype=work)
        self._b = (1 - abar).sqrt().to(device=ints.device, dtype=work)
        pinned = ints.device.type == "cuda"
        self.distances = torch.zeros(ints.shape[1], pin_memory=pinned)
        self._plan: ReusePlan | None = None

    def use(self, plan: ReusePlan) -> None:
        """Take the plan of the tick that is about to run."""
        self._plan = plan

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        """See `Denoiser`; latents [N F, C, h, w], N the entries of the plan."""
        plan = self._plan
        assert plan is not None, "`use` comes first"
        entries = len(plan.ints)
        if self._shared.cache.measures is Signal.LATENTS:
            now = self._framed(latents)
            self._measure(now.index_select(0, self._ints[TableRows.ENTRY, :entries]), slice(entries), anchor=True)
        runs: list[tuple[Callable[[_Group], torch.Tensor], int]] = [
            (self._full, plan.full),
            (self._shallow, plan.shallow),
            (self._reuse, plan.reused),
        ]
        whole = plan.in_order and max(count for _, count in runs) == entries
        x0, first = torch.empty_like(latents), 0
        for run, count in runs:
            if not count:
                continue
            columns = slice(first, first + count)
            first += count
            if whole:
                return run(_Group(latents, timestep, condition, columns))
            picked = self._picked(self._ints[TableRows.ENTRY, columns])
            group = _Group(latents[picked], timestep[picked], condition.of_rows(picked), columns)
            x0.index_copy_(0, picked, run(group))
        return x0

    def _framed(self, flat: torch.Tensor) -> torch.Tensor:
        """[N F, ...] -> [N, F, ...]."""
        return flat.reshape(-1, self._frames, *flat.shape[1:])

    def _picked(self, entries: torch.Tensor) -> torch.Tensor:
        """Return the rows of a flat batch that belong to these entries: [count F]."""
        if self._frames == 1:
            return entries
        frames = torch.arange(self._frames, device=entries.device)
        return (entries[:, None] * self._frames + frames).flatten()

    def _full(self, group: _Group) -> torch.Tensor:
        shared = self._shared
        if shared.network is None:
            x0 = self._denoiser(group.latents, group.timestep, group.condition)
        else:
            x0, deep, top = shared.network.full(group.latents, group.timestep, group.condition)
            places = self._ints[TableRows.WRITE_DEEP, group.columns]
            kept = self._framed(deep.permute(0, 2, 3, 1))
            shared.deep.index_copy_(0, places, kept.to(shared.deep.dtype))
            if shared.cache.measures is Signal.TOP:
                self._measure(self._framed(top), group.columns, anchor=True)
        self._keep(group, x0)
        return x0

    def _shallow(self, group: _Group) -> torch.Tensor:
        shared, depth = self._shared, self._rows.depth
        assert shared.network is not None
        deep = self._history(shared.deep, self._rows.read_deep, depth, group.columns).flatten(0, 1)
        x0, top = shared.network.shallow(group.latents, group.timestep, group.condition, deep.permute(0, 3, 1, 2))
        if shared.cache.measures is Signal.TOP:
            self._measure(self._framed(top), group.columns, anchor=False)
        self._keep(group, x0)
        return x0

    def _reuse(self, group: _Group) -> torch.Tensor:
        rows, columns = self._rows, group.columns
        cached = self._history(self._shared.output, rows.READ_OUTPUT, 0, columns)
        factor, offset = (
            self._floats[start : start + rows.channels, columns].T.to(cached.dtype)
            for start in (rows.factor, rows.offset)
        )
        frames = self._frames
        corrected = apply_affine(
            cached.flatten(0, 1), factor.repeat_interleave(frames, 0), offset.repeat_interleave(frames, 0)
        )
        return self._clean(group, corrected)

    def _history(self, history: torch.Tensor, read: int, weight: int, columns: slice) -> torch.Tensor:
        """Return [count, F, ...], what the history says about the group. read, weight: first rows in the tables."""
        depth = self._rows.depth
        if depth == 1:
            return history.index_select(0, self._ints[read, columns])
        places = self._ints[read : read + depth, columns].T
        found = history.index_select(0, places.flatten()).view(*places.shape, *history.shape[1:])
        return weighted(found, self._floats[weight : weight + depth, columns].T)

    def _keep(self, group: _Group, x0: torch.Tensor) -> None:
        """Write an output into the history, where it is kept."""
        if not self._shared.cache.output:
            return
        kept = self._framed(self._cached(group, x0))
        self._shared.output.index_copy_(0, self._ints[TableRows.WRITE_OUTPUT, group.columns], kept)

    def _levels(self, group: _Group) -> tuple[torch.Tensor, torch.Tensor]:
        a = self._a.index_select(0, group.timestep).view(-1, 1, 1, 1)
        return a, self._b.index_select(0, group.timestep).view(-1, 1, 1, 1)

    def _cached(self, group: _Group, x0: torch.Tensor) -> torch.Tensor:
        """Return an output in the form in which it is cached."""
        a, b = self._levels(group)
        return to_quantity(self._shared.cache.quantity, group.latents, x0, a, b)

    def _clean(self, group: _Group, cached: torch.Tensor) -> torch.Tensor:
        a, b = self._levels(group)
        return from_quantity(self._shared.cache.quantity, group.latents, cached, a, b)

    def _measure(self, now: torch.Tensor, columns: slice, *, anchor: bool) -> None:
        """Send the distances of a signal [N, F, ...] of these columns to the host. anchor: later ones are measured from
        this one."""
        cells, signal = self._ints[TableRows.CELL, columns], self._shared.signal
        self.distances[columns].copy_(relative_l1(now, signal.index_select(0, cells)), non_blocking=True)
        if anchor:
            signal.index_copy_(0, cells, now.to(signal.dtype))


class _Group:
    """The entries of one group. columns: theirs in the tables."""

    __slots__ = ("columns", "condition", "latents", "timestep")

    def __init__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition, columns: slice) -> None:
        self.latents, self.timestep, self.condition, self.columns = latents, timestep, condition, columns


def to_quantity(
    quantity: Quantity, latents: torch.Tensor, x0: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """Return x0 as the quantity that is cached: eps = (x - a x0) / b, v = (a x - x0) / b (x0 = a x - b v)."""
    if quantity is Quantity.CLEAN:
        return x0
    if quantity is Quantity.NOISE:
        return (latents - a * x0) / b
    return (a * latents - x0) / b


def from_quantity(
    quantity: Quantity, latents: torch.Tensor, cached: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """The inverse of `to_quantity`."""
    if quantity is Quantity.CLEAN:
        return cached
    if quantity is Quantity.NOISE:
        return (latents - b * cached) / a
    return a * latents - b * cached
