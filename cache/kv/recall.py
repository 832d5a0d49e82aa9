"""Owns what a pass over frames that were passed before can keep of them: the keys and values of its first layers, and
the hidden states with which the other layers begin. And how far attention has drifted from what was kept.

After Elastic-Cache (2510.14973, of which only the abstract is used): what changes grows with depth, the attention of
the most attended tokens tells where, and only the layers from there on are computed again. Independent of policies and
of why frames are passed again; nothing here synchronises with the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cache.kv.bank import Bank
from cache.kv.store import widened

MOST_ATTENDED = 8
"""Tokens whose attention is compared, per head."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kept:
    """Copies of n slots of a row. keys, values: [layers, n, H, D], unrotated, of the layers before the last boundary.

    hidden: [boundaries, n, dim], the inputs of the layers that are boundaries.
    """

    keys: torch.Tensor
    values: torch.Tensor
    hidden: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Refresh:
    """A pass over the n tokens that were `kept`. first_layer: the first that is computed: 0, or a boundary.

    drift: float32 [layers before the last boundary] on the device, which the pass fills if first_layer is 0.
    """

    kept: Kept
    first_layer: int
    drift: torch.Tensor | None = None


def attention_drift(
    queries: torch.Tensor, before: torch.Tensor, now: torch.Tensor, *, tokens: int = MOST_ATTENDED
) -> torch.Tensor:
    """How far the attention of the most attended tokens has moved: a number, 0 for none, about 1 for all of it.

    queries [N, H, D], keys before and now [n, H, D], all rotated. a = softmax over keys of q . k / sqrt(D), mean over
    queries; sum of |a_now - a_before| over the `tokens` largest of a_now per head, over their sum; mean over heads.
    """
    scale = queries.shape[-1] ** -0.5
    old, new = (
        (torch.einsum("qhd,khd->hqk", widened(queries), widened(keys)) * scale).softmax(dim=-1).mean(dim=1)
        for keys in (before, now)
    )
    top = new.topk(min(tokens, new.shape[1]), dim=1)
    moved = (top.values - old.gather(1, top.indices)).abs().sum(dim=1)
    share: torch.Tensor = moved / top.values.sum(dim=1)
    return share.mean()


class Recall:
    """One pass of a cache that stores hidden states: `skips` and `entering` are called before each layer, in order."""

    def __init__(
        self, bank: Bank, index: torch.Tensor, exchange: Callable[..., object], refresh: Refresh | None
    ) -> None:
        """index: flat slots [B, N] of the pass's tokens; exchange: the view's."""
        assert bank.hidden is not None
        self._bank, self._index, self._exchange = bank, index, exchange
        self._hidden, self._boundaries = bank.hidden, bank.shape.boundaries
        self._refresh = refresh

    @property
    def refreshes(self) -> bool:
        """Whether the pass uses what was kept, at addresses that no later pass has."""
        return self._refresh is not None

    @property
    def measures(self) -> bool:
        """Whether the pass measures drift."""
        return self._refresh is not None and self._refresh.drift is not None

    def skips(self, layer: int) -> bool:
        """Whether the layer is not computed; its kept keys, values and hidden states are then in the cache."""
        refresh = self._refresh
        if refresh is None or layer >= refresh.first_layer:
            return False
        self._exchange(layer, refresh.kept.keys[layer][None], refresh.kept.values[layer][None])
        if layer in self._boundaries:
            self._store(layer, refresh.kept.hidden[self._boundaries.index(layer)])
        return True

    def entering(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states [B, F, n, dim] with which a layer begins; stored if it is a boundary."""
        if layer not in self._boundaries:
            return hidden
        refresh = self._refresh
        if refresh is not None and layer == refresh.first_layer:
            hidden = refresh.kept.hidden[self._boundaries.index(layer)].view(hidden.shape)
        self._store(layer, hidden)
        return hidden

    def measure(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, rotation: tuple[torch.Tensor, ...]
    ) -> None:
        """Write a layer's drift. queries: rotated [N, H, D]; keys: unrotated [N, H, D]; rotation: of both."""
        refresh = self._refresh
        if refresh is None or refresh.drift is None or layer >= len(refresh.drift):
            return
        before, now = (self._bank.rotate(x, *rotation) for x in (refresh.kept.keys[layer], keys))
        refresh.drift[layer].copy_(attention_drift(queries, before, now))

    def _store(self, layer: int, hidden: torch.Tensor) -> None:
        memory = self._hidden[self._boundaries.index(layer)].flatten(0, 1)
        memory.index_copy_(0, self._index.reshape(-1), hidden.reshape(-1, memory.shape[-1]).to(memory.dtype))
