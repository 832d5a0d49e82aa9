"""Owns the table of step caches: for each one what is cached, how it is brought up to date, and who decides for a slot.

Host values only; pipelines/image/step_reuse.py does the arithmetic. Independent of networks and of ticks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import TypeAlias

from cache.features.steps.accumulated import AccumulatedGate
from cache.features.steps.contract import Action, Extrapolation, Gate, Hold, Scheduled, of_computed
from cache.features.steps.first_block import FirstBlockGate
from cache.features.steps.interval import every
from cache.features.steps.magnitude import magnitude_schedule
from cache.features.steps.partition import dynamic_schedule
from cache.features.steps.router import RouterTable
from cache.features.steps.taylor import Taylor
from pipelines.core.errors import InputError, ModelError

from .step_profile import Pair, StepProfile


class Quantity(Enum):
    """The form in which a network's output is cached: NOISE, eps; CLEAN, x0; VELOCITY, a eps - b x0."""

    VELOCITY = "velocity"
    NOISE = "noise"
    CLEAN = "clean"


class Signal(Enum):
    """What is measured at each step for a slot's gate, as a relative L1 distance. LATENTS: the network's input, from
    that of the step before. TOP: the deepest feature above the branch, from that of the last computed step."""

    LATENTS = "latents"
    TOP = "top"


Correction: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Factor and offset of each channel of the cached output."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlotCache:
    """A cache's decisions for one slot. correct: (timestep, timestep whose output is reused) -> its correction; None:
    there is none."""

    gate: Gate
    correct: Callable[[int, int], Correction | None] | None = None


Start: TypeAlias = Callable[[tuple[int, ...], StepProfile | None], SlotCache]
"""(the slot's timesteps, the model's profile) -> its decisions. The profile is given where `needs_profile`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCache:
    """One cache. name: in the table. help: for the command line. branch: of the shallow network (see shallow_unet.py);
    0: it has none. output: whether the network's output is cached too, in the form `quantity`. extrapolation: of what
    is cached. measures: what its gates are told; None: nothing.
    """

    name: str
    help: str
    start: Start
    branch: int = 0
    output: bool = True
    quantity: Quantity = Quantity.NOISE
    extrapolation: Extrapolation = field(default_factory=Hold)
    measures: Signal | None = None
    needs_profile: bool = False


_WARM_UP = 0.2  # share of the steps, from the first on, that compute: there the output changes fastest


def static_interval(
    times: tuple[int, ...], profile: StepProfile | None, *, interval: int, instead: Action, last: int
) -> SlotCache:
    """DeepCache's and TaylorSeer's schedule, after a warm-up. See `every`."""
    return SlotCache(gate=Scheduled(every(len(times), interval, instead=instead, first=_warm_up(times), last=last)))


def magnitudes(
    times: tuple[int, ...], profile: StepProfile | None, *, threshold: float, most: int, retention: float
) -> SlotCache:
    """MagCache: the ratios between the slot's steps are products of the calibrated ones."""
    assert profile is not None
    levels = [math.prod(profile.ratios[: profile.nearest(t) + 1]) for t in times]
    ratios = (1.0, *(now / before for before, now in pairwise(levels)))
    schedule = magnitude_schedule(ratios, threshold=threshold, most=most, retention=retention)
    return SlotCache(gate=Scheduled(schedule))


def accumulated(times: tuple[int, ...], profile: StepProfile | None, *, threshold: float) -> SlotCache:
    """TeaCache, with the polynomial of the profile."""
    assert profile is not None
    first = max(2, _warm_up(times))
    return SlotCache(
        gate=AccumulatedGate(steps=len(times), threshold=threshold, polynomial=profile.polynomial, first=first)
    )


def first_block(times: tuple[int, ...], profile: StepProfile | None, *, threshold: float, most: int) -> SlotCache:
    """After First-Block-Cache: the first layers are those above the branch, which the shallow network runs anyway."""
    first = _warm_up(times)
    return SlotCache(gate=FirstBlockGate(steps=len(times), threshold=threshold, most=most, first=first, last=0))


def dynamic(times: tuple[int, ...], profile: StepProfile | None, *, interval: float) -> SlotCache:
    """CacheQuant: the best schedule of that length, and one factor and offset per channel."""
    assert profile is not None
    changes = [[_change(profile.pair(now, then)) for now in times] for then in times]
    schedule = dynamic_schedule(changes, interval, instead=Action.REUSE)
    return SlotCache(gate=Scheduled(schedule), correct=partial(_affine, profile))


def rectified(times: tuple[int, ...], profile: StepProfile | None, *, bound: float, most: int) -> SlotCache:
    """After ERTACache: computed where the error would pass a bound; steps adjusted and the mean error added."""
    assert profile is not None
    computed = list(range(_warm_up(times)))
    for step in range(len(computed), len(times)):
        pair = profile.pair(times[step], times[computed[-1]])
        if step - computed[-1] > most or (pair is not None and pair.error > bound):
            computed.append(step)
    schedule = of_computed(len(times), computed, Action.REUSE)
    return SlotCache(gate=Scheduled(schedule), correct=partial(_rectified, profile))


def routed(times: tuple[int, ...], profile: StepProfile | None, *, branch: int) -> SlotCache:
    """HarmoniCa: the learned table; a step does what the calibrated steps nearest to it and since the last one do."""
    assert profile is not None
    if not profile.router or profile.router_branch != branch:
        raise ModelError(
            f"The step profile has no router for branch {branch}.", "Train one: python -m train.step_router."
        )
    before, rows = -1, []
    for t in times:
        now = profile.nearest(t)
        passed = profile.router[before + 1 : now + 1] or ((False, False),)
        rows.append((any(row[0] for row in passed), any(row[1] for row in passed)))
        before = now
    warm = _warm_up(times)  # a slot that starts from a picture starts late in the table
    rows[:warm] = [(True, True)] * warm
    return SlotCache(gate=Scheduled(RouterTable(on=tuple(rows)).schedule))


def _warm_up(times: tuple[int, ...]) -> int:
    return math.ceil(_WARM_UP * len(times))


def _change(pair: Pair | None) -> float:
    return 0.0 if pair is None else pair.change


def _affine(profile: StepProfile, timestep: int, cached: int) -> Correction | None:
    pair = profile.pair(timestep, cached)
    return None if pair is None else (pair.a, pair.b)


def _rectified(profile: StepProfile, timestep: int, cached: int) -> Correction | None:
    pair = profile.pair(timestep, cached)
    return None if pair is None else ([pair.factor] * len(pair.bias), pair.bias)


STEP_CACHES: Mapping[str, StepCache] = MappingProxyType(
    {
        cache.name: cache
        for cache in (
            StepCache(
                name="deepcache",
                help="the deep half of the UNet every 4th step (DeepCache)",
                start=partial(static_interval, interval=4, instead=Action.SHALLOW, last=0),
                branch=1,
                output=False,
            ),
            StepCache(
                name="deepcache-taylor",
                help="the same, with the deep feature extrapolated",
                start=partial(static_interval, interval=4, instead=Action.SHALLOW, last=0),
                branch=1,
                output=False,
                extrapolation=Taylor(order=1),
            ),
            StepCache(
                name="first-block",
                help="the deep half of the UNet when the features above it have moved (after First-Block-Cache)",
                start=partial(first_block, threshold=0.1, most=3),
                branch=1,
                output=False,
                measures=Signal.TOP,
            ),
            StepCache(
                name="taylorseer",
                help="the whole UNet every 4th step, its output extrapolated in between (TaylorSeer)",
                start=partial(static_interval, interval=4, instead=Action.REUSE, last=1),
                extrapolation=Taylor(order=1),
            ),
            StepCache(
                name="magcache",
                help="reuse while the magnitude of the output stays (MagCache)",
                start=partial(magnitudes, threshold=0.15, most=4, retention=_WARM_UP),
                needs_profile=True,
            ),
            StepCache(
                name="teacache",
                help="reuse until the latents have moved too far (TeaCache)",
                start=partial(accumulated, threshold=0.3),
                measures=Signal.LATENTS,
                needs_profile=True,
            ),
            StepCache(
                name="dynamic",
                help="the best 1 of 2 steps by dynamic programming, outputs corrected by channel (CacheQuant)",
                start=partial(dynamic, interval=2.0),
                needs_profile=True,
            ),
            StepCache(
                name="rectified",
                help="reuse up to a bound of the error, with steps adjusted (after ERTACache)",
                start=partial(rectified, bound=0.065, most=3),
                needs_profile=True,
            ),
            StepCache(
                name="harmonica",
                help="a learned table of what to compute at which step (HarmoniCa)",
                start=partial(routed, branch=1),
                branch=1,
                needs_profile=True,
            ),
        )
    }
)
"""By name."""


def step_cache(chosen: str | StepCache) -> StepCache | None:
    """Return a cache, of the table if its name is given; None for "". Raises InputError for an unknown name."""
    if isinstance(chosen, StepCache):
        return chosen
    if chosen and chosen not in STEP_CACHES:
        raise InputError(f"There is no step cache {chosen!r}.", f"Choose one of: {', '.join(STEP_CACHES)}.")
    return STEP_CACHES[chosen] if chosen else None
