"""Every rule of every key/value policy matters: changing any one makes the comparison with its plain meaning fail.

A mutation replaces text in the source of one function, which is then recompiled in its module.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cache.kv import bank as kv_bank
from cache.kv import ops as kv_ops
from cache.kv import scores as kv_scores
from cache.kv.plan import KVError
from cache.kv.policies import adaptive, base, dual, packed, selective, windows
from cache.kv.tables import PhaseTables
from tests.parity.kv_comparison import CASES, compare

TOLERANCE = 1e-12


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """`old` becomes `new` in the source of `name` of `owner`, a class or a module."""

    case: str
    rule: str
    owner: Any
    name: str
    old: str
    new: str


def mutated(owner: Any, name: str, old: str, new: str) -> Any:
    """Return the attribute compiled from changed source; a property for a property."""
    attribute = inspect.getattr_static(owner, name)
    function = attribute.fget if isinstance(attribute, property) else attribute
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} has {source.count(old)} times {old!r}"
    module = sys.modules[function.__module__]
    scope: dict[str, Any] = {}
    code = "from __future__ import annotations\n" + source.replace(old, new)
    exec(compile(code, function.__code__.co_filename, "exec"), vars(module), scope)
    return scope[function.__name__]


def apply(patch: pytest.MonkeyPatch, mutation: Mutation) -> None:
    """Install the mutation wherever the function is used."""
    changed = mutated(mutation.owner, mutation.name, mutation.old, mutation.new)
    original = inspect.getattr_static(mutation.owner, mutation.name)
    patch.setattr(mutation.owner, mutation.name, changed)
    if not inspect.ismodule(mutation.owner):
        return
    for table in (kv_ops.OPERATIONS, kv_scores.SCORES):
        for kind, function in list(table.items()):
            if function is original:
                patch.setitem(table, kind, changed)  # type: ignore[arg-type]
    for rule, function in list(base.POSITION_RULES.items()):
        if function is original:
            patch.setitem(base.POSITION_RULES, rule, changed)  # type: ignore[arg-type]
    users = [
        adaptive,
        dual,
        kv_scores,
        packed,
        selective,
        windows,
        sys.modules["cache.kv.cache"],
        sys.modules["cache.kv.view"],
    ]
    for module in users:
        if vars(module).get(mutation.name) is original:
            patch.setattr(module, mutation.name, changed)


def mutation(case: str, rule: str, owner: Any, name: str, old: str, new: str) -> Any:
    """A parameter of the test."""
    found = Mutation(case=case, rule=rule, owner=owner, name=name, old=old, new=new)
    return pytest.param(found, id=f"{case}: {rule}".replace(" ", "-"))


SINK, WINDOW = windows.SinkPolicy, windows.WindowPolicy
PARTICIPATIVE, HEAVY = selective.ParticipativePolicy, selective.HeavyHitterPolicy
R1_KV = selective.ImportanceRedundancyPolicy
WEIGHED = "_importance_redundancy"
PACKED, DUAL = packed.PackedPolicy, dual.DualPolicy

MUTATIONS = [
    # Full, window, sink
    mutation("full", "positions go up by one a frame", base, "by_slot", "reached += span.frames", "reached += 2"),
    mutation("window", "the window counts the chunk", SINK, "plan", "len(sinks) - frames", "len(sinks)"),
    mutation("window", "evicts the oldest", SINK, "plan", "recent[max(len(recent) - room, 0) :]", "recent[:room]"),
    mutation("window", "all of a chunk stays", windows.SinkPolicy, "plan", "self.chunk_keep(frames, keep)", "1"),
    mutation("sink", "the first frames stay", base, "leading_frames", "< sink_frames", "< sink_frames - 1"),
    mutation("sink", "the sink is part of the window", SINK, "plan", "window_frames - len(sinks)", "window_frames"),
    mutation("sink", "positions are slots", base, "by_slot", "positions.append(reached", "positions.append(span.frame"),
    mutation("sink, absolute positions", "positions are indices", base, "absolute", "span.frame for", "0 for"),
    mutation(
        "sink, window of noise (Rolling Forcing)",
        "noisy frames go",
        base,
        "kept_spans",
        "ledger.spans if s.kept",
        "ledger.spans",
    ),
    mutation(
        "deep-sink", "the sink ends at the tail", base, "realigned", "first - len(sinks)", "first - len(sinks) - 1"
    ),
    mutation("deep-sink", "the sink moves along", base, "realigned", "first - len(sinks) + i", "i"),
    mutation("deep-sink", "the tail keeps its indices", base, "realigned", "[span.frame for", "[2 * span.frame for"),
    # Adaptive sink
    mutation("adaptive-sink", "below the threshold", kv_ops, "refresh", "< op.threshold", "< op.threshold - 1"),
    mutation("adaptive-sink", "not above it", kv_ops, "refresh", "< op.threshold", "> op.threshold"),
    mutation("adaptive-sink", "the least similar", kv_ops, "refresh", "argmin", "argmax"),
    mutation(
        "adaptive-sink", "keys count", kv_ops, "refresh", "(cosines[0] + cosines[1])", "(cosines[1] + cosines[1])"
    ),
    mutation("adaptive-sink", "values count", kv_ops, "refresh", "(cosines[0] + cosines[1])", "(cosines[0] * 2)"),
    mutation("adaptive-sink", "by the mean token", kv_ops, "refresh", "widened(keys).mean(dim=(0, 1))", "keys[0, 0]"),
    mutation("adaptive-sink", "by the newest", adaptive.AdaptiveSinkPolicy, "before", "past[-1]", "past[-2]"),
    mutation("adaptive-sink", "once the window is full", adaptive.AdaptiveSinkPolicy, "before", "not evicted or", ""),
    # Participative compression
    mutation("participative", "the sink is no candidate", base, "leading_frames", "< sink_frames", "< sink_frames - 1"),
    mutation("participative", "recent frames are not", PARTICIPATIVE, "plan", "- self.recent_frames\n", "\n"),
    mutation("participative", "the budget", PARTICIPATIVE, "plan", "self.budget_frames -", "self.budget_frames - 1 -"),
    mutation("participative", "only when full", PARTICIPATIVE, "plan", "> self.window_frames", "> self.budget_frames"),
    mutation(
        "participative", "the best", kv_ops, "select_tokens", "topk(count, dim=0)", "topk(count, 0, largest=False)"
    ),
    mutation("participative", "in order", kv_ops, "select_tokens", ".indices.sort(dim=0).values", ".indices"),
    mutation("participative", "summed over queries", kv_scores, "_products", "queries).sum(dim=0)", "queries)[0]"),
    mutation(
        "participative",
        "summed over heads",
        kv_scores,
        "_products",
        "torch.einsum(",
        "(lambda e, k, q: (k * q)[:, 0].sum(dim=-1))(",
    ),
    mutation("participative", "rotated keys", kv_scores, "_products", "candidates.rotated(", "("),
    mutation("participative", "scored as they stood", selective, "_compressed", "s.position - shift", "s.position"),
    mutation(
        "participative",
        "time is unified",
        base,
        "by_slot",
        "positions.append(reached",
        "positions.append(reached - (span.frame < 0)",
    ),
    mutation(
        "participative",
        "place is kept",
        kv_ops,
        "_pick",
        "cells.index_select(0, slots[:, 0])",
        "cells.index_select(0, slots[:, 0]) * (cells.dim() > 2)",
    ),
    # Heavy hitters
    mutation(
        "heavy-hitter", "recent frames stay", HEAVY, "plan", "- self.recent_frames\n", "- self.recent_frames - 1\n"
    ),
    mutation("heavy-hitter", "so many heavy ones", HEAVY, "plan", "self.heavy_frames)\n", "self.heavy_frames - 1)\n"),
    mutation(
        "heavy-hitter", "the heaviest", kv_ops, "select_tokens", "topk(count, dim=0)", "topk(count, 0, largest=False)"
    ),
    mutation("heavy-hitter", "in order", kv_ops, "select_tokens", ".indices.sort(dim=0).values", ".indices"),
    mutation(
        "heavy-hitter",
        "each head its own",
        kv_scores,
        "_accumulated",
        ".index_select(0, candidates.index)",
        ".index_select(0, candidates.index).mean(1, True).expand(-1, 2)",
    ),
    mutation("heavy-hitter", "softmax", kv_ops, "accumulate", "logits.softmax(dim=-1)", "logits"),
    mutation("heavy-hitter", "its scale", kv_ops, "accumulate", "-0.5", "-1.5"),
    mutation("heavy-hitter", "accumulated", kv_ops, "accumulate", "+=", "="),
    mutation(
        "heavy-hitter",
        "new tokens begin at none",
        kv_bank.Bank,
        "reset_slots",
        "if self.attention is not None",
        "if False",
    ),
    mutation(
        "heavy-hitter",
        "sums move with their tokens",
        kv_bank.Bank,
        "cells",
        "self.origins, self.attention)",
        "self.origins)",
    ),
    # Importance and redundancy
    mutation("r1-kv", "recent frames stay", R1_KV, "plan", "- self.recent_frames\n", "- self.recent_frames - 1\n"),
    mutation("r1-kv", "the window counts the chunk", R1_KV, "plan", "- frames\n", "- frames - 1\n"),
    mutation("r1-kv", "its weights", kv_scores, WEIGHED, "(1 - weight)", "weight / 3"),
    mutation("r1-kv", "redundancy counts against", kv_scores, WEIGHED, "important - (", "important + ("),
    mutation("r1-kv", "unrotated keys", kv_scores, WEIGHED, "redundancy(keys)", "redundancy(candidates.rotated(keys))"),
    mutation("r1-kv", "rotated keys", kv_scores, WEIGHED, "candidates.rotated(keys)", "keys"),
    mutation("r1-kv", "its scale", kv_scores, "importance", "-0.5", "0.5"),
    mutation("r1-kv", "mean over queries", kv_scores, "importance", ".mean(dim=1)", "[:, 0]"),
    mutation(
        "r1-kv",
        "maximum over neighbours",
        kv_scores,
        "importance",
        "F.max_pool1d(received[None],",
        "(lambda x, *_, **__: x)(received[None],",
    ),
    mutation("r1-kv", "softmax over keys", kv_scores, "importance", "softmax(dim=-1)", "softmax(dim=1)"),
    mutation("r1-kv", "normalised keys", kv_scores, "redundancy", "F.normalize(widened(keys), dim=-1)", "keys"),
    mutation("r1-kv", "softmax of redundancy", kv_scores, "redundancy", ".softmax(dim=0)", ""),
    # Packed
    mutation(
        "packed, top-k", "the mean of keys", kv_ops, "pool_frames", ".mean(dim=(1, 3, 5))", ".amax(dim=(1, 3, 5))"
    ),
    mutation(
        "packed, top-k",
        "in the middle of the box, time",
        PACKED,
        "_blocks",
        "t * frames + (frames - 1) / 2",
        "t * frames",
    ),
    mutation(
        "packed, top-k", "in the middle of the box, rows", PACKED, "_blocks", "y * rows + (rows - 1) / 2", "y * rows"
    ),
    mutation(
        "packed, recent",
        "in the middle of the box, columns",
        PACKED,
        "_blocks",
        "x * columns + (columns - 1) / 2",
        "x * columns",
    ),
    mutation(
        "packed, top-k",
        "the best",
        kv_ops,
        "select_blocks",
        "topk(len(op.targets))",
        "topk(len(op.targets), largest=False)",
    ),
    mutation("packed, top-k", "in order", kv_ops, "select_blocks", ".indices.sort().values", ".indices"),
    mutation("packed, top-k", "half of the heads", kv_ops, "select_blocks", "[:, :heads]", ""),
    mutation("packed, top-k", "all queries", kv_ops, "select_blocks", "[:: bank.policy.query_stride]", "[:1]"),
    mutation("packed, top-k", "rotated keys", kv_ops, "select_blocks", "bank.rotate(", "(lambda k, c, s: k)("),
    mutation(
        "packed, top-k",
        "the pool is bounded",
        PACKED,
        "_next_block",
        "len(blocks) == limit",
        "len(blocks) == limit - 1",
    ),
    mutation("packed, top-k", "so many blocks", PACKED, "_selected", "min(blocks, self.mid_blocks)", "min(blocks, 1)"),
    mutation("packed, top-k", "scored next to the recent", PACKED, "plan", "mid_end - (len", "mid_end - 3 - (len"),
    mutation("packed, recent", "the latest", PACKED, "_next_block", "blocks = blocks[1:]", "blocks = blocks[:-1]"),
    mutation("packed, recent", "a block counts its frames", base, "by_slot", "reached += span.frames", "reached += 1"),
    mutation(
        "packed, recent", "recent frames stay whole", PACKED, "plan", "> self.recent_frames", "> self.recent_frames - 1"
    ),
    mutation("packed, recent", "sinks stay whole", base, "leading_frames", "< sink_frames", "< sink_frames - 1"),
    # Dual
    mutation("dual", "phases", PhaseTables, "update", "span.phase * self._phase_step", "0.0"),
    mutation("dual", "their step", DUAL, "phase_step", "self.theta", "self.theta * 1.001"),
    mutation("dual", "the shot is one more", DUAL, "plan", "default=-1) + 1", "default=-1)"),
    mutation(
        "dual",
        "the last shot takes the rest",
        DUAL,
        "context_shots",
        "[share] * (shots - 1) + [self.context_frames - share * (shots - 1)]",
        "[self.context_frames - share * (shots - 1)] + [share] * (shots - 1)",
    ),
    mutation("dual", "context stays", DUAL, "anchors", "self.context_frames", "self.context_frames - 1"),
    mutation("dual", "the local window counts the chunk", DUAL, "plan", "len(local) + frames", "len(local)"),
    mutation("dual", "a cut drops the shot", DUAL, "scene_cut", "Ledger(", "Ledger(spans=ledger.spans, "),
    mutation(
        "dual",
        "local follows context",
        base,
        "by_slot",
        "positions.append(reached",
        "positions.append(max(reached - 1, 0)",
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_changing_a_rule_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(monkeypatch, mutation)
    try:
        largest = max(float(d.abs().max()) for d in compare(CASES[mutation.case]))
    except (AssertionError, KVError):
        return  # check_integrity, or the cache itself, has noticed.
    assert largest > 1000 * TOLERANCE, f"{mutation.rule} can be changed unnoticed"


def test_an_unchanged_source_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    unchanged: Callable[..., Any] = mutated(base, "by_slot", "reached += span.frames", "reached += span.frames")
    monkeypatch.setitem(base.POSITION_RULES, "slot", unchanged)  # type: ignore[arg-type]
    assert max(float(d.abs().max()) for d in compare(CASES["sink"])) < TOLERANCE
