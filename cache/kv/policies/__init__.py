"""The KV policies, in one table. They decide with host integers, not tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from cache.kv.plan import KVError
from cache.kv.policies.adaptive import AdaptiveSinkPolicy
from cache.kv.policies.base import KVPolicy
from cache.kv.policies.dual import DualPolicy
from cache.kv.policies.packed import PackedPolicy
from cache.kv.policies.selective import HeavyHitterPolicy, ImportanceRedundancyPolicy, ParticipativePolicy
from cache.kv.policies.windows import DeepSinkPolicy, FullPolicy, RebuildPolicy, SinkPolicy, WindowPolicy

POLICIES: Mapping[str, type[KVPolicy]] = {
    "full": FullPolicy,
    "window": WindowPolicy,
    "sink": SinkPolicy,
    "adaptive-sink": AdaptiveSinkPolicy,
    "deep-sink": DeepSinkPolicy,
    "participative": ParticipativePolicy,
    "heavy-hitter": HeavyHitterPolicy,
    "r1-kv": ImportanceRedundancyPolicy,
    "packed": PackedPolicy,
    "dual": DualPolicy,
    "rebuild": RebuildPolicy,
}


def make_policy(
    name: str, *, grid: tuple[int, int], policies: Mapping[str, type[KVPolicy]] = POLICIES, **options: Any
) -> KVPolicy:
    """The policy of that name. grid: (rows, columns) of tokens in a latent frame; options: the fields of its class.

    policies: the table, for one with more of them. Raises KVError for an unknown name or option and for invalid values.
    """
    if name not in policies:
        raise KVError(f"unknown KV policy {name!r}; choose one of {', '.join(policies)}")
    policy = policies[name]
    known = {field.name for field in fields(policy)} - {"grid"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise KVError(f"the policy {name!r} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return policy(grid=grid, **options)


__all__ = ["POLICIES", "KVPolicy", "make_policy"]
