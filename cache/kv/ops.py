"""Owns how each operation of a plan runs on the device, one layer of one row at a time.

Counts and ranges come from the host; choices (which tokens, which blocks, whether a sink is replaced) are made on the
device by top-k with a known count or by masks. Nothing here synchronises with the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from cache.kv.bank import Bank
from cache.kv.plan import Move, Operation, PoolFrames, Refresh, SelectBlocks, SelectTokens, Span
from cache.kv.scores import Candidates, Queries, token_scores
from cache.kv.store import widened


def move(bank: Bank, layer: int, row: int, op: Move, queries: Queries) -> None:
    """Copy a range of slots."""
    for cells in bank.cells(layer, row):
        cells[op.target : op.target + op.length] = cells[op.source : op.source + op.length]


def refresh(bank: Bank, layer: int, row: int, op: Refresh, queries: Queries) -> None:
    """Replace the sink frame that is least similar to the newest frame, if that similarity is below the threshold.

    Similarity: the mean of the cosines of the mean key and of the mean value over a frame's tokens.
    """

    def means(span: Span) -> tuple[torch.Tensor, torch.Tensor]:
        one, slots = slice(row, row + 1), slice(span.start, span.stop)
        keys, values = bank.store.keys(layer, one, slots), bank.store.values(layer, one, slots)
        return widened(keys).mean(dim=(0, 1)).flatten(), widened(values).mean(dim=(0, 1)).flatten()

    sinks = [torch.stack(part) for part in zip(*(means(span) for span in op.sinks), strict=True)]
    cosines = [torch.cosine_similarity(s, n, dim=-1) for s, n in zip(sinks, means(op.newest), strict=True)]
    similarity = (cosines[0] + cosines[1]) / 2
    minimum = similarity.argmin()
    for i, span in enumerate(op.sinks):
        replaced = (minimum == i) & (similarity[i] < op.threshold)
        for cells in bank.cells(layer, row):
            newest = cells[op.newest.start : op.newest.stop]
            cells[span.start : span.stop] = torch.where(replaced, newest, cells[span.start : span.stop])


def pool_frames(bank: Bank, layer: int, row: int, op: PoolFrames, queries: Queries) -> None:
    """Average keys and values over boxes of (frames, rows, columns); incomplete boxes are dropped."""
    one, (frames, rows, columns) = slice(row, row + 1), bank.policy.pooling
    height, width = bank.policy.grid
    pooled = []
    for read in (bank.store.keys, bank.store.values):
        whole = widened(torch.cat([read(layer, one, slice(s.start, s.stop)) for s in op.sources]))
        grid = whole.reshape(-1, height, width, *whole.shape[2:])
        grid = grid[:, : height // rows * rows, : width // columns * columns]
        boxes = grid.reshape(-1, frames, height // rows, rows, width // columns, columns, *whole.shape[2:])
        pooled.append(boxes.mean(dim=(1, 3, 5)).flatten(0, 2))
    first = row * bank.capacity
    index = torch.arange(first + op.target.start, first + op.target.stop, device=pooled[0].device)
    bank.store.write(layer, index, pooled[0].to(bank.shape.dtype), pooled[1].to(bank.shape.dtype))


def select_tokens(bank: Bank, layer: int, row: int, op: SelectTokens, queries: Queries) -> None:
    """Keep the candidates' best tokens, in their original order."""
    length = op.candidates[0].length
    starts = bank.starts[row, : len(op.candidates)]
    index = (starts[:, None] + torch.arange(length, device=starts.device)).flatten()
    count = sum(span.length for span in op.targets)
    candidates = Candidates(bank=bank, layer=layer, row=row, index=index, length=length)
    scores = token_scores(op.scoring, candidates, queries)
    best = index[scores.topk(count, dim=0).indices.sort(dim=0).values]
    targets = torch.cat([torch.arange(s.start, s.stop, device=index.device) for s in op.targets])
    for cells in bank.cells(layer, row):
        cells.index_copy_(0, targets, _pick(cells, best))


def _pick(cells: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """cells [capacity, heads, ...] at slots [n, 1], or per head [n, heads] -> [n, heads, ...]."""
    if slots.shape[1] == 1:
        return cells.index_select(0, slots[:, 0])
    index = slots.reshape(*slots.shape, *([1] * (cells.dim() - 2)))
    return cells.gather(0, index.expand(-1, -1, *cells.shape[2:]))


def select_blocks(bank: Bank, layer: int, row: int, op: SelectBlocks, queries: Queries) -> None:
    """Keep the best pooled blocks, in their original order. Scored by half of the heads."""
    assert queries is not None
    length = op.candidates[0].length
    starts = bank.starts[row, : len(op.candidates)]
    index = starts[:, None] + torch.arange(length, device=starts.device)
    flat = index.flatten()
    rotation = (table[row].index_select(0, flat) for table in (bank.tables.cos, bank.tables.sin))
    keys = widened(bank.rotate(bank.store.take(layer, row, flat)[0], *rotation))
    keys = keys.reshape(*index.shape, *keys.shape[1:]).sum(dim=1)
    summed = widened(queries[:: bank.policy.query_stride]).sum(dim=0)
    heads = max(bank.shape.heads // 2, 1)
    scores = (keys * summed)[:, :heads].sum(dim=-1).mean(dim=-1)
    best = index[scores.topk(len(op.targets)).indices.sort().values].flatten()
    targets = torch.cat([torch.arange(s.start, s.stop, device=flat.device) for s in op.targets])
    for cells in bank.cells(layer, row):
        cells.index_copy_(0, targets, cells.index_select(0, best))


def accumulate(bank: Bank, layer: int, row: int, slots: slice, queries: torch.Tensor, keys: torch.Tensor) -> None:
    """Add the softmax attention that each attended token [M] receives from the queries [N, H, D], per head."""
    assert bank.attention is not None
    strided = widened(queries[:: bank.policy.query_stride])
    logits = torch.einsum("nhd,mhd->nhm", strided, widened(keys)) * bank.shape.head_dim**-0.5
    bank.attention[layer, row, slots] += logits.softmax(dim=-1).sum(dim=0).transpose(0, 1)


OPERATIONS: Mapping[type, Callable[[Bank, int, int, Any, Queries], None]] = {
    Move: move,
    Refresh: refresh,
    PoolFrames: pool_frames,
    SelectTokens: select_tokens,
    SelectBlocks: select_blocks,
}


def run(bank: Bank, layer: int, row: int, op: Operation, queries: Queries = None) -> None:
    """Run one operation."""
    OPERATIONS[type(op)](bank, layer, row, op, queries)


def touched(op: Operation) -> tuple[int, ...]:
    """The first slots of the spans (for a move, of the range) whose contents the operation changes."""
    match op:
        case Move():
            return (op.target,)
        case Refresh():
            return tuple(span.start for span in op.sinks)
        case PoolFrames():
            return (op.target.start,)
        case _:
            return tuple(span.start for span in op.targets)


def shape_of(op: Operation) -> tuple[object, ...]:
    """The part of an operation that a captured graph fixes: targets and counts; candidates are uploaded."""
    match op:
        case SelectTokens():
            return (type(op).__name__, op.scoring, len(op.candidates), *(span.start for span in op.targets))
        case SelectBlocks():
            return (type(op).__name__, len(op.candidates), *(span.start for span in op.targets))
        case _:
            return (type(op).__name__, op)
