"""What a stream remembers beside its cache, and passes again when the cache's policy or a change of prompt asks for it.

One object for each kind of policy, chosen here; the schedules in pipelines/video/schedules do not tell them apart.
"""

from __future__ import annotations

from cache.kv.policies import KVPolicy
from cache.kv.policies.dual import DualPolicy
from cache.kv.policies.windows import RebuildPolicy

from .base import Memory, MemoryParts
from .rebuild import RebuildMemory
from .shots import ShotMemory
from .window import WindowMemory

MEMORIES: dict[type[KVPolicy], type[Memory]] = {RebuildPolicy: RebuildMemory, DualPolicy: ShotMemory}
"""By class of policy; all others have a WindowMemory."""


def make_memory(policy: KVPolicy, parts: MemoryParts) -> Memory:
    """The memory that goes with a policy."""
    return MEMORIES.get(type(policy), WindowMemory)(parts)


__all__ = ["MEMORIES", "Memory", "MemoryParts", "make_memory"]
