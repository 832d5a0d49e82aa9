"""Owns how the device scores the tokens among which a policy keeps the best, one layer of one row at a time.

Works on stored keys and a chunk's queries; independent of plans, spans and what is done with the scores. Every score is
a formula of tensors: nothing here synchronises with the device or branches on its results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from cache.kv.bank import Bank
from cache.kv.plan import Accumulated, ImportanceRedundancy, Products, Scoring
from cache.kv.store import widened

Queries = torch.Tensor | None
"""The chunk's rotated queries of this row and layer: [N, H, D]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """n tokens of one row and layer. index: their slots [n] int64, in temporal order; length: tokens of a cell."""

    bank: Bank
    layer: int
    row: int
    index: torch.Tensor
    length: int

    def keys(self) -> torch.Tensor:
        """Unrotated, [n, H, D] in the cache's dtype."""
        return self.bank.store.take(self.layer, self.row, self.index)[0]

    def rotated(self, keys: torch.Tensor) -> torch.Tensor:
        """These keys at the candidates' positions during scoring, with their original rows and columns."""
        bank = self.bank
        assert bank.origins is not None
        cells = self.index.numel() // self.length
        times = bank.candidate_times[self.row]
        cos, sin = (part[:cells].repeat_interleave(self.length, dim=0)[:, None] for part in times)
        origins = bank.origins[self.layer, self.row].index_select(0, self.index)
        return bank.rotate(keys, *bank.with_origins(cos, sin, origins))


def importance(queries: torch.Tensor, keys: torch.Tensor, *, pool_tokens: int) -> torch.Tensor:
    """Attention that each key receives: rotated queries [N, H, D], rotated keys [n, H, D] -> [n, H], float32 or wider.

    Softmax over the n keys of q . k / sqrt(D), mean over the queries, then the maximum over `pool_tokens` (odd)
    neighbouring keys. FlowCache (2602.10825), after R1-KV.
    """
    logits = torch.einsum("qhd,khd->hqk", widened(queries), widened(keys)) * keys.shape[-1] ** -0.5
    received = logits.softmax(dim=-1).mean(dim=1)
    return F.max_pool1d(received[None], pool_tokens, stride=1, padding=pool_tokens // 2)[0].transpose(0, 1)


def redundancy(keys: torch.Tensor) -> torch.Tensor:
    """How much each key is like the others: unrotated keys [n, H, D] -> [n, H], float32 or wider, 1 in sum over keys.

    Softmax over j of (k_j . sum_i k_i - 1) / n with normalised keys: the mean cosine to the others without the n x n
    cosines. FlowCache (2602.10825), after R1-KV.
    """
    unit = F.normalize(widened(keys), dim=-1)
    alike = (unit * unit.sum(dim=0)).sum(dim=-1) - 1
    return (alike / keys.shape[0]).softmax(dim=0)


def _products(scoring: Products, candidates: Candidates, queries: Queries) -> torch.Tensor:
    """Sum of q . k (rotated) over queries and heads: (sum of q) . k -> [n, 1]."""
    assert queries is not None
    keys = widened(candidates.rotated(candidates.keys()))
    return torch.einsum("nhd,hd->n", keys, widened(queries).sum(dim=0))[:, None]


def _accumulated(scoring: Accumulated, candidates: Candidates, queries: Queries) -> torch.Tensor:
    """The attention received so far, [n, H]."""
    attention = candidates.bank.attention
    assert attention is not None
    return attention[candidates.layer, candidates.row].index_select(0, candidates.index)


def _importance_redundancy(scoring: ImportanceRedundancy, candidates: Candidates, queries: Queries) -> torch.Tensor:
    """w * importance - (1 - w) * redundancy, [n, H]. FlowCache (2602.10825): w = 0.07."""
    assert queries is not None
    keys, weight = candidates.keys(), scoring.importance
    strided = queries[:: candidates.bank.policy.query_stride]
    important = importance(strided, candidates.rotated(keys), pool_tokens=scoring.pool_tokens)
    return weight * important - (1 - weight) * redundancy(keys)


SCORES: Mapping[type, Callable[[Any, Candidates, Queries], torch.Tensor]] = {
    Products: _products,
    Accumulated: _accumulated,
    ImportanceRedundancy: _importance_redundancy,
}


def token_scores(scoring: Scoring, candidates: Candidates, queries: Queries) -> torch.Tensor:
    """Scores of the candidates, the higher the better: [n, 1] for all heads together, or [n, H]."""
    return SCORES[type(scoring)](scoring, candidates, queries)
