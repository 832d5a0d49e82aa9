"""Owns the arithmetic of a tick: one vectorised formula over the active rows, whatever step each row is at.

Every number that differs between rows comes from two small tables that the host fills before the tick; `run` reads
static buffers only and never waits for the device, so it can be captured in a CUDA graph. Independent of streams and
control names. docs/engine.md lists the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

import torch

from cache.ring import Ring
from pipelines.conditioning.base import Conditioner
from pipelines.conditioning.stream import all_inputs

from .model import Condition, Denoiser

NOTHING: Mapping[str, torch.Tensor] = MappingProxyType({})


class FloatRow(IntEnum):
    """Rows of the float table; its columns are the entries of the batch (slots, then extra rows)."""

    A = 0
    B = 1
    C_SKIP = 2
    C_OUT = 3
    A_NEXT = 4
    W_NOISE = 5
    W_EPS = 6
    INVERSE_B_NEXT = 7
    W_LAST = 8
    GAIN = 9  # g - 1 where guidance acts, else 0
    DELTA = 10
    FULL = 11  # 1: eps_u is the extra row's prediction
    STOCK = 12  # 1: eps_u is delta times the stock noise, which is updated at every step
    STOCK_START = 13  # 1: the stock noise is first set to the extra row's prediction (onetime, first step)
    ENTRY_A = 14  # for slots admitted in this tick: factor of the encoded picture (0: no picture)
    ENTRY_B = 15  # and factor of the entry noise


class IntRow(IntEnum):
    """Rows of the integer table; columns as in `FloatRow`."""

    ROW = 0  # row in the ring
    CELL = 1  # cell of the ring's branched fields: 2 row, + 1 where the negative prompt is evaluated
    TIMESTEP = 2
    STEP = 3  # step index of the slot
    NOISE = 4  # cell of the ring's noise: the noise added to reach the next level
    EXTRA = 5  # batch entry of this slot's negative evaluation (its own entry if there is none)
    ENTRY_ROW = 6  # rows of the slots admitted in this tick
    FINISHED = 7  # columns, in the batch in which they were stepped, of the slots that finish in this tick


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTerms:
    """The coefficients of one step for N rows, shaped to multiply latents [N, F, C, h, w]. Names as in `FloatRow`."""

    a: torch.Tensor
    b: torch.Tensor
    c_skip: torch.Tensor
    c_out: torch.Tensor
    a_next: torch.Tensor
    w_noise: torch.Tensor
    w_eps: torch.Tensor
    inverse_b_next: torch.Tensor
    w_last: torch.Tensor
    gain: torch.Tensor
    delta: torch.Tensor
    full: torch.Tensor
    stock: torch.Tensor
    stock_start: torch.Tensor

    @classmethod
    def of(cls, floats: torch.Tensor, rows: int) -> StepTerms:
        """Take them from the first `rows` columns of the table [len(FloatRow), columns]."""
        shaped = floats[:, :rows].reshape(len(FloatRow), rows, 1, 1, 1, 1)
        return cls(**{name: shaped[FloatRow[name.upper()]] for name in cls.__dataclass_fields__})


def predicted_noise(latents: torch.Tensor, x0: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """eps = (X - a x0) / b."""
    return (latents - a * x0) / b


def guided_noise(
    eps_c: torch.Tensor, eps_extra: torch.Tensor | None, stock: torch.Tensor | None, terms: StepTerms
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (eps, stock), eps = eps_u + g (eps_c - eps_u). eps_extra, stock: None if no row of the batch has one."""
    eps_u = torch.zeros_like(eps_c)
    if eps_extra is not None:
        eps_u = eps_u + terms.full * eps_extra
    if stock is not None:
        if eps_extra is not None:
            stock = torch.where(terms.stock_start > 0, eps_extra, stock)
        eps_u = eps_u + terms.stock * terms.delta * stock
    return eps_c + terms.gain * (eps_c - eps_u), stock


def denoised(latents: torch.Tensor, eps: torch.Tensor, terms: StepTerms) -> torch.Tensor:
    """P(u) = c_out (u - b eps) / a + c_skip u."""
    return terms.c_out * (latents - terms.b * eps) / terms.a + terms.c_skip * latents


def next_latents(
    x_hat: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor, bend: torch.Tensor | None, terms: StepTerms
) -> torch.Tensor:
    """X' = a' x_hat + w_noise n + w_eps eps + bend; with the terms of the last step this is x_hat. bend: see
    `second_order`; None if no row of the batch has one."""
    moved = terms.a_next * x_hat + terms.w_noise * noise + terms.w_eps * eps
    return moved if bend is None else moved + bend


def second_order(x_hat: torch.Tensor, x_last: torch.Tensor, terms: StepTerms) -> torch.Tensor:
    """w_last (x_hat - x_last): what a multistep method adds. x_last is not read where w_last = 0: a row's memory may
    still hold that of another slot."""
    return terms.w_last * torch.where(terms.w_last != 0, x_hat - x_last, 0.0)


def next_stock(
    stock: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor, bend: torch.Tensor | None, terms: StepTerms
) -> torch.Tensor:
    """s' = (w_noise n + w_eps eps + bend) / b' + (a' / b') P(b s): the noise that explains X' as a noising of the
    input.

    For LCM and turbo this is s' = n + (a' / b') P(b s), Kodaira et al. 2023, section 3.2.
    """
    moved = terms.w_noise * noise + terms.w_eps * eps + terms.a_next * denoised(terms.b * stock, eps, terms)
    return terms.inverse_b_next * (moved if bend is None else moved + bend)


class DenoiseBatch:
    """Runs one step of a batch: gather, model, formula, scatter.

    stepped: [capacity, F, C, h, w], the latents of the last batch after its step, by column: another batch may already
    be writing to the ring while they are decoded. The ring has the fields latents, stock, denoised [F, C, h, w] and
    noise [FEW_STEPS, F, C, h, w], of the dtype of the table `floats`, and those of the conditioners.
    """

    def __init__(
        self,
        ring: Ring,
        denoiser: Denoiser,
        floats: torch.Tensor,
        ints: torch.Tensor,
        *,
        conditioners: Sequence[Conditioner],
        columns: Mapping[str, torch.Tensor],
        time_ids: torch.Tensor | None,
        instead: Mapping[str, torch.Tensor] = NOTHING,
    ) -> None:
        """floats: [len(FloatRow), 2 capacity]. ints: [len(IntRow), 2 capacity] int64. columns: [2 capacity, columns]
        float32 by conditioner, of those that have columns. time_ids: [1, 6] float32 or None. instead: see
        `GatheredRows`. All on the device.
        """
        self._ring, self._denoiser = ring, denoiser
        self._floats, self._ints = floats, ints
        self._conditioners, self._time_ids = conditioners, time_ids
        latents = ring.tensor("latents")
        self._frames = latents.shape[1]
        self._latents = torch.empty((2 * ring.capacity, *latents.shape[1:]), dtype=latents.dtype, device=latents.device)
        self.stepped = torch.zeros_like(latents)
        self._rows = GatheredRows(ring, ints, conditioners, columns, instead)

    def run(
        self, rows: int, extra: int, use_stock: bool, use_last: bool = False, denoiser: Denoiser | None = None
    ) -> None:
        """Step the slots in the first `rows` columns; the `extra` columns after them evaluate negative prompts.

        use_stock, use_last: whether any slot uses stock noise, or the denoised latents of its last step. denoiser: in
        place of the engine's own.
        """
        ring, ints = self._ring, self._ints[:, : rows + extra]
        handles = ints[IntRow.ROW, :rows]
        latents = ring.gather("latents", ints[IntRow.ROW], out=self._latents[: rows + extra])
        flat, timesteps = latents.flatten(0, 1), per_frame(ints[IntRow.TIMESTEP], self._frames)
        network = self._denoiser if denoiser is None else denoiser
        x0 = network(flat, timesteps, self.condition(rows + extra, flat, timesteps)).view_as(latents)
        levels = self._floats[:, : rows + extra].reshape(len(FloatRow), rows + extra, 1, 1, 1, 1)
        eps_all = predicted_noise(latents, x0, levels[FloatRow.A], levels[FloatRow.B])
        terms = StepTerms.of(self._floats, rows)
        noise = ring.cells("noise").index_select(0, ints[IntRow.NOISE, :rows])
        eps_extra = eps_all.index_select(0, ints[IntRow.EXTRA, :rows]) if extra else None
        stock = ring.gather("stock", handles) if use_stock else None
        eps, stock = guided_noise(eps_all[:rows], eps_extra, stock, terms)
        x_hat = denoised(latents[:rows], eps, terms)
        bend = second_order(x_hat, ring.gather("denoised", handles), terms) if use_last else None
        if use_last:
            ring.scatter("denoised", handles, x_hat)
        stepped = next_latents(x_hat, eps, noise, bend, terms)
        ring.scatter("latents", handles, stepped)
        self.stepped[:rows].copy_(stepped)
        if stock is not None:
            moved = next_stock(stock, eps, noise, bend, terms)
            ring.scatter("stock", handles, torch.where(terms.stock > 0, moved, stock))

    def condition(self, entries: int, latents: torch.Tensor, timesteps: torch.Tensor) -> Condition:
        """Return the conditions of the first entries of the tables. latents, timesteps: [entries F, ...]."""
        inputs = all_inputs(self._conditioners, BatchView(self._rows, entries, latents, timesteps))
        time_ids = self._time_ids
        return Condition(
            embeds=inputs.pop("embeds"),
            pooled=inputs.pop("pooled", None),
            time_ids=None if time_ids is None else time_ids.expand(entries * self._frames, -1),
            row=per_frame(self._ints[IntRow.ROW, :entries], self._frames),
            step=per_frame(self._ints[IntRow.STEP, :entries], self._frames),
            inputs=inputs,
            negative=per_frame(self._ints[IntRow.CELL, :entries] - 2 * self._ints[IntRow.ROW, :entries], self._frames),
        )


class GatheredRows:
    """The fields and columns of conditioners, gathered for the entries of a batch into static memory."""

    def __init__(
        self,
        ring: Ring,
        ints: torch.Tensor,
        conditioners: Sequence[Conditioner],
        columns: Mapping[str, torch.Tensor],
        instead: Mapping[str, torch.Tensor] = NOTHING,
    ) -> None:
        """instead: cells [2 capacity, ...] to be gathered in place of those of a branched field."""
        self._ring, self._ints, self._columns, self._instead = ring, ints, columns, instead
        self._branched = frozenset(name for conditioner in conditioners for name in conditioner.branched)
        fields = {name for conditioner in conditioners for name in conditioner.fields}
        self._out = {name: self._memory(name) for name in sorted(fields - instead.keys())}
        self._frames = ring.tensor("latents").shape[1]

    def _memory(self, name: str) -> torch.Tensor:
        source = self._ring.tensor(name)
        shape = source.shape[2:] if name in self._branched else source.shape[1:]
        return torch.empty((2 * self._ring.capacity, *shape), dtype=source.dtype, device=source.device)

    def field(self, name: str, entries: int) -> torch.Tensor:
        """Return [entries F, *shape], valid until the same field is gathered again."""
        if name in self._instead:
            chosen = self._instead[name].index_select(0, self._ints[IntRow.CELL, :entries])
            return per_frame(chosen, self._frames)
        out = self._out[name][:entries]
        if name in self._branched:
            torch.index_select(self._ring.cells(name), 0, self._ints[IntRow.CELL, :entries], out=out)
        else:
            self._ring.gather(name, self._ints[IntRow.ROW, :entries], out=out)
        return per_frame(out, self._frames)

    def columns(self, conditioner: str, entries: int) -> torch.Tensor:
        """Return [entries F, columns] float32."""
        return per_frame(self._columns[conditioner][:entries], self._frames)


@dataclass(frozen=True, slots=True, eq=False)
class BatchView:
    """One batch as a `pipelines.conditioning.base.PassView`."""

    rows: GatheredRows
    entries: int
    latents: torch.Tensor
    timesteps: torch.Tensor

    def field(self, name: str) -> torch.Tensor:
        """See `PassView`."""
        return self.rows.field(name, self.entries)

    def columns(self, conditioner: str) -> torch.Tensor:
        """See `PassView`."""
        return self.rows.columns(conditioner, self.entries)


def per_frame(values: torch.Tensor, frames: int) -> torch.Tensor:
    """[N, ...] -> [N F, ...]: repeat each entry for each of its frames."""
    if frames == 1:
        return values
    return values.unsqueeze(1).expand(-1, frames, *values.shape[1:]).flatten(0, 1)
