"""What a stream remembers beside its cache, and passes again when the cache's policy or a change of prompt asks for it.

One object for each kind of policy, chosen here; the schedules in pipelines/video/schedules do not tell them apart.
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
    """The memory that goes with a policy."""
    return PASTS.get(type(policy), WindowPast)(parts)


__all__ = ["PASTS", "PastParts", "StreamPast", "make_past"]
