"""Owns the static interval: the whole network at every N-th step, the cached feature in between (DeepCache, Ma et al.
2023, uniform 1:N inference). Independent of what is cached."""

from __future__ import annotations

from .contract import Action, Schedule, of_computed


def every(steps: int, interval: int, *, instead: Action, first: int = 1, last: int = 0) -> Schedule:
    """Return a schedule that computes every `interval` steps. first, last: how many steps at either end are computed.

    first: the interval is counted from the last of them.
    """
    assert interval >= 1, interval
    assert first >= 1, first
    assert last >= 0, last
    computed = [s for s in range(steps) if s < first or (s - first + 1) % interval == 0 or s >= steps - last]
    return of_computed(steps, computed, instead)
