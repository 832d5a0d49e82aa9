"""Owns the arithmetic of a tick: one vectorised formula over the active rows, whatever step each is at.

Every number that differs between rows comes from two small tables that the host fills before the tick; `run` reads
static buffers only and never waits for the device, so it can be captured in a CUDA graph. Knows no streams and no
control names. docs/engine.md has the formulas in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch

from cache.ring import Ring

from .model import Condition, Denoiser


class FloatRow(IntEnum):
    """Rows of the table of real numbers; its columns are the entries of the batch (slots, then extra rows)."""

    A = 0
    B = 1
    C_SKIP = 2
    C_OUT = 3
    A_NEXT = 4
    W_NOISE = 5
    W_EPS = 6
    INVERSE_B_NEXT = 7
    GAIN = 8  # g - 1 where guidance acts, else 0
    DELTA = 9
    FULL = 10  # 1: eps_u is the extra row's prediction
    STOCK = 11  # 1: eps_u is delta times the stock noise, which moves on with the slot
    STOCK_START = 12  # 1: the stock noise becomes the extra row's prediction first (onetime, first step)
    ENTRY_A = 13  # of the slots admitted in this tick: level of the picture (0: no picture)
    ENTRY_B = 14  # and of the entry noise


class IntRow(IntEnum):
    """Rows of the table of whole numbers."""

    ROW = 0  # row in the ring
    EMBED = 1  # cell of the ring's text fields: 2 row, + 1 for the negative prompt
    TIMESTEP = 2
    STEP = 3  # step index of the slot
    NOISE = 4  # cell of the ring's noise: the noise that the next step adds
    EXTRA = 5  # batch entry with this slot's negative evaluation (itself where there is none)
    ENTRY_ROW = 6  # rows of the slots admitted in this tick
    FINISHED_ROW = 7  # rows of the slots that end with this tick


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTerms:
    """The numbers of one step for N rows, each shaped to multiply latents [N, F, C, h, w]. Names as in `FloatRow`."""

    a: torch.Tensor
    b: torch.Tensor
    c_skip: torch.Tensor
    c_out: torch.Tensor
    a_next: torch.Tensor
    w_noise: torch.Tensor
    w_eps: torch.Tensor
    inverse_b_next: torch.Tensor
    gain: torch.Tensor
    delta: torch.Tensor
    full: torch.Tensor
    stock: torch.Tensor
    stock_start: torch.Tensor

    @classmethod
    def of(cls, floats: torch.Tensor, rows: int) -> StepTerms:
        """From the first `rows` columns of the table [len(Real), columns]."""
        shaped = floats[:, :rows].reshape(len(FloatRow), rows, 1, 1, 1, 1)
        return cls(**{name: shaped[FloatRow[name.upper()]] for name in cls.__dataclass_fields__})


def predicted_noise(latents: torch.Tensor, x0: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """eps = (X - a x0) / b."""
    return (latents - a * x0) / b


def guided_noise(
    eps_c: torch.Tensor, eps_extra: torch.Tensor | None, stock: torch.Tensor | None, terms: StepTerms
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(eps, stock) with eps = eps_u + g (eps_c - eps_u); eps_extra, stock: None where no row of the batch has one."""
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


def next_latents(x_hat: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor, terms: StepTerms) -> torch.Tensor:
    """X' = a' x_hat + w_noise n + w_eps eps; the last step's terms make it x_hat."""
    return terms.a_next * x_hat + terms.w_noise * noise + terms.w_eps * eps


def next_stock(stock: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor, terms: StepTerms) -> torch.Tensor:
    """s' = (w_noise n + w_eps eps) / b' + (a' / b') P(b s): the noise that explains X' as a noising of the input.

    For LCM and turbo this is s' = n + (a' / b') P(b s), Kodaira et al. 2023, section 3.2.
    """
    moved = terms.w_noise * noise + terms.w_eps * eps + terms.a_next * denoised(terms.b * stock, eps, terms)
    return terms.inverse_b_next * moved


class DenoiseBatch:
    """Gather, model, formula, scatter.

    The ring has the fields latents, stock [F, C, h, w], noise [steps, F, C, h, w], embeds [2, L, D] and, where the
    model takes it, pooled [2, P]; text fields are float32. Everything else has the dtype of the table `floats`.
    """

    def __init__(
        self,
        ring: Ring,
        denoiser: Denoiser,
        floats: torch.Tensor,
        ints: torch.Tensor,
        *,
        pooled: bool,
        time_ids: torch.Tensor | None,
    ) -> None:
        """reals: [len(Real), 2 capacity], wholes: [len(Whole), 2 capacity] int64, on the device. time_ids: [6]."""
        self._ring, self._denoiser = ring, denoiser
        self._floats, self._ints = floats, ints
        self._pooled, self._time_ids = pooled, time_ids
        entries = 2 * ring.capacity
        latents, embeds = ring.tensor("latents"), ring.tensor("embeds")
        self._frames = latents.shape[1]
        self._latents = torch.empty((entries, *latents.shape[1:]), dtype=latents.dtype, device=latents.device)
        self._embeds = torch.empty((entries, *embeds.shape[2:]), dtype=embeds.dtype, device=embeds.device)

    def run(self, rows: int, extra: int, use_stock: bool) -> None:
        """One step of the slots in the first `rows` columns; `extra` columns after them evaluate negative prompts."""
        ring, ints = self._ring, self._ints[:, : rows + extra]
        handles = ints[IntRow.ROW, :rows]
        latents = ring.gather("latents", ints[IntRow.ROW], out=self._latents[: rows + extra])
        x0 = self._denoiser(
            latents.flatten(0, 1), self._per_frame(ints[IntRow.TIMESTEP]), self._condition(rows + extra)
        ).view_as(latents)
        levels = self._floats[:, : rows + extra].reshape(len(FloatRow), rows + extra, 1, 1, 1, 1)
        eps_all = predicted_noise(latents, x0, levels[FloatRow.A], levels[FloatRow.B])
        terms = StepTerms.of(self._floats, rows)
        noise = ring.cells("noise").index_select(0, ints[IntRow.NOISE, :rows])
        eps_extra = eps_all.index_select(0, ints[IntRow.EXTRA, :rows]) if extra else None
        stock = ring.gather("stock", handles) if use_stock else None
        eps, stock = guided_noise(eps_all[:rows], eps_extra, stock, terms)
        x_hat = denoised(latents[:rows], eps, terms)
        ring.scatter("latents", handles, next_latents(x_hat, eps, noise, terms))
        if stock is not None:
            moved = next_stock(stock, eps, noise, terms)
            ring.scatter("stock", handles, torch.where(terms.stock > 0, moved, stock))

    def _condition(self, entries: int) -> Condition:
        cells = self._ints[IntRow.EMBED, :entries]
        embeds = torch.index_select(self._ring.cells("embeds"), 0, cells, out=self._embeds[:entries])
        pooled = self._ring.cells("pooled").index_select(0, cells) if self._pooled else None
        time_ids = self._time_ids
        return Condition(
            embeds=self._per_frame(embeds),
            pooled=None if pooled is None else self._per_frame(pooled),
            time_ids=None if time_ids is None else time_ids.expand(entries * self._frames, -1),
            row=self._per_frame(self._ints[IntRow.ROW, :entries]),
            step=self._per_frame(self._ints[IntRow.STEP, :entries]),
        )

    def _per_frame(self, values: torch.Tensor) -> torch.Tensor:
        """[N, ...] -> [N F, ...]: each entry once for each of its frames."""
        if self._frames == 1:
            return values
        return values.unsqueeze(1).expand(-1, self._frames, *values.shape[1:]).flatten(0, 1)
