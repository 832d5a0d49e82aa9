"""Owns the projected text of each slot, where the runtime computes a prompt's keys and values once: docs/engine.md.

A slot's embeddings change when it is admitted and while a prompt cuts; only then are they projected, and only if their
text is not among the last few. Independent of networks: a `TextProjection` does the arithmetic.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch

from cache.ring import Ring
from pipelines.conditioning.base import Conditioner
from pipelines.conditioning.stream import SlotConditions
from pipelines.conditioning.text import PromptState, TextConditioner
from pipelines.core.conditions import ConditionPair, TextCondition
from pipelines.core.execution import Calls

from .denoise import BatchView, GatheredRows, IntRow
from .lanes import Lanes
from .model import TextProjection
from .slots import Slot

_STORED = 4  # projected texts: prompt and negative prompt, and those before
EMBEDS = "embeds"
"""The field of the text conditioner that projected text replaces."""

logger = logging.getLogger(__name__)


class PromptKeys:
    """The projected text of every ring row, for its prompt and its negative prompt."""

    def __init__(self, projection: TextProjection, ring: Ring, calls: Calls) -> None:
        """ring: has the field `embeds` [2, L, D]. calls: runs projections, on the caller's queue."""
        embeds = ring.tensor(EMBEDS)
        size, device = projection.size(embeds.shape[2]), embeds.device
        self._projection, self._calls = projection, calls
        self._rows = torch.zeros((ring.capacity, 2, size), dtype=projection.dtype, device=device)
        self._stored = torch.zeros((_STORED, size), dtype=projection.dtype, device=device)
        self._texts: list[TextCondition | None] = [None] * _STORED  # what is stored, by entry
        self._recent = list(range(_STORED))  # entries, least recently used first
        self._held: list[ConditionPair | None] = [None] * ring.capacity  # what each row was last given
        for _ in range(3):  # warms up, so that a later prompt does not capture
            self._project(embeds[0, 0])

    @property
    def cells(self) -> torch.Tensor:
        """[2 capacity, size]: cell 2 row is the row's prompt, 2 row + 1 its negative prompt."""
        return self._rows.flatten(0, 1)

    def refresh(self, slots: Iterable[Slot], lanes: Lanes, tick: int) -> None:
        """Bring the rows of these slots up to date, on the caller's queue, before tick `tick` steps them."""
        for slot in slots:
            pair = _pair(slot.conditions)
            if self._held[slot.row] is pair:
                continue
            lanes.order_write(slot.row, tick)
            self._held[slot.row] = None
            for cell, condition in enumerate((pair.positive, pair.negative)):
                self._rows[slot.row, cell].copy_(self._stored[self._entry(condition)])
            self._held[slot.row] = pair

    def clear(self) -> None:
        """Forget everything, because the weights have changed; the next `refresh` computes it again."""
        self._held = [None] * len(self._held)
        self._texts = [None] * _STORED

    def _entry(self, condition: TextCondition) -> int:
        """Return the entry that has a projected text, computed if need be."""
        known = next((entry for entry, text in enumerate(self._texts) if text is condition), None)
        entry = self._recent[0] if known is None else known
        if known is None:
            self._texts[entry] = None
            self._stored[entry].copy_(self._project(condition.embeds))
            self._texts[entry] = condition
        self._recent.remove(entry)
        self._recent.append(entry)
        return entry

    def _project(self, embeds: torch.Tensor) -> torch.Tensor:
        return self._calls("project", self._projection.project, embeds[None])[0]


def _pair(conditions: SlotConditions) -> ConditionPair:
    written = conditions.written[TextConditioner.name]
    assert isinstance(written, PromptState), written
    return written.pair


def can_project(ring: Ring, conditioners: Sequence[Conditioner], columns: int) -> bool:
    """Return whether these conditioners leave the text to the text conditioner; the reason if not is logged.

    columns: of a tick's tables.
    """
    by_text = {c.name for c in conditioners if isinstance(c, TextConditioner)}
    ints = torch.zeros((len(IntRow), columns), dtype=torch.int64, device=ring.tensor("latents").device)
    tables = {c.name: torch.zeros((columns, len(c.columns)), device=ints.device) for c in conditioners if c.columns}
    latents = ring.tensor("latents")[0]
    rows = GatheredRows(ring, ints, conditioners, tables)
    view = BatchView(rows, 1, latents, torch.zeros(len(latents), dtype=torch.int64, device=ints.device))
    for conditioner in conditioners:
        given = set(conditioner.inputs(view))
        if given & {EMBEDS, "encoder_attention_mask"} and conditioner.name not in by_text:
            logger.info(
                "the keys and values of prompts are computed in every pass: the conditioner %s changes the text there",
                conditioner.name,
            )
            return False
    return bool(by_text)
