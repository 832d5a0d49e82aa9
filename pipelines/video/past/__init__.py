"""What a stream keeps beside its KV cache, to pass it again when the policy or a change of prompt requires it.

One class for each kind of policy, chosen here; the schedules in pipelines/video/schedules treat all alike.
"""

from __future__ import annotations

from cache.kv.policies import KVPolicy
from cache.kv.policies.dual import DualPolicy
from cache.kv.policies.windows import RebuildPolicy

from .base import PastParts, StreamPast
from .rebuild import RebuildPast
from .shots import ShotPast
from .window import WindowPast

PASTS: dict[type[KVPolicy], type[StreamPast]] = {RebuildPolicy: RebuildPast, DualPolicy: ShotPast}
"""By class of policy; all others have a WindowPast."""


def make_past(policy: KVPolicy, parts: PastParts) -> StreamPast:
    """Make the `StreamPast` that goes with a policy."""
    return PASTS.get(type(policy), WindowPast)(parts)


__all__ = ["PASTS", "PastParts", "StreamPast", "make_past"]
