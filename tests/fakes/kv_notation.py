"""Formats the contents of a key/value cache row as one line, cell by cell, for tests that spell them out.

`S0@0` is sink frame 0 at position 0; S sink, X context, R recent, C chunk, T selected tokens, M pooled block, P pending
pooled block; lower-case `c` is a frame that the next chunk drops; `--` is a free cell; `!2` a shot index.
"""

from __future__ import annotations

from collections.abc import Iterable

from cache.kv.plan import (
    Accumulated,
    ImportanceRedundancy,
    Ledger,
    Move,
    Operation,
    Plan,
    PoolFrames,
    Products,
    Refresh,
    SelectBlocks,
    SelectTokens,
    Span,
    SpanKind,
)
from cache.kv.policies import KVPolicy

_LETTERS = {
    SpanKind.SINK: "S",
    SpanKind.CONTEXT: "X",
    SpanKind.RECENT: "R",
    SpanKind.CHUNK: "C",
    SpanKind.SELECTED: "T",
    SpanKind.MID: "M",
    SpanKind.POOL: "P",
}
_SCORINGS = {Products: "queries", Accumulated: "attention", ImportanceRedundancy: "importance"}


def written(span: Span) -> str:
    """Format one cell."""
    letter = _LETTERS[span.kind] if span.kept else _LETTERS[span.kind].lower()
    frame = "" if span.frame < 0 else str(span.frame)
    return f"{letter}{frame}@{span.position}" + (f"!{span.phase}" if span.phase else "")


def cells(policy: KVPolicy, ledger: Ledger) -> str:
    """Format all cells in slot order, with bars between regions."""
    at = {span.start: written(span) for span in (*ledger.spans, *ledger.pool)}
    return " | ".join(
        " ".join(at.get(region.slots(cell)[0], "--") for cell in range(region.cells)) for region in policy.regions
    )


def walk(policy: KVPolicy, chunks: Iterable[int], *, keep: int | None = None) -> list[str]:
    """Return the cells after each chunk has begun."""
    return [cells(policy, plan.ledger) for plan in plans(policy, chunks, keep=keep)]


def plans(policy: KVPolicy, chunks: Iterable[int], *, keep: int | None = None) -> list[Plan]:
    """Return the plan of each chunk."""
    ledger, out = Ledger(), []
    for frames in chunks:
        plan = policy.plan(ledger, frames, keep=keep)
        ledger = plan.ledger
        out.append(plan)
    return out


def operations(plan: Plan) -> list[str]:
    """Format a plan's operations on the past in order; `first pass:` marks those that wait for the chunk's queries."""
    return [_written(op) for op in plan.now] + [f"first pass: {_written(op)}" for op in plan.first_pass]


def _written(op: Operation) -> str:
    match op:
        case Move():
            return f"move {op.length} from {op.source} to {op.target}"
        case Refresh():
            return f"refresh {_line(op.sinks)} by {written(op.newest)} below {op.threshold}"
        case PoolFrames():
            return f"pool {_line(op.sources)} to {op.target.start}"
        case SelectBlocks():
            return f"blocks of {_line(op.candidates)} to {', '.join(str(s.start) for s in op.targets)}"
        case SelectTokens():
            by = _SCORINGS[type(op.scoring)]
            return f"tokens by {by} of {_line(op.candidates)} to {', '.join(str(s.start) for s in op.targets)}"


def _line(spans: Iterable[Span]) -> str:
    return " ".join(written(span) for span in spans)
