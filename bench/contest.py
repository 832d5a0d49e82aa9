"""Lets contestants take turns: each in a process of its own, all alive at once, measured in rounds.

The order turns round after every round, so that a slow drift of the machine cancels out. A contestant that fails, or
whose package is missing, is named with the reason and does not end the others. Independent of what is measured.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from app.measure.apart import Apart
from app.measure.card import Card
from app.measure.figures import Segment
from app.measure.result import card_of
from app.measure.subject import MakeSubject, Say
from pipelines.core.errors import ZoetropeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """name: in the result. ours: one of this project's, which the others are compared with. make: loads it. module:
    that must be importable, besides this project's dependencies; pip: the command that installs it. refusal: why it
    cannot run here; "" if it can.
    """

    name: str
    ours: bool
    make: MakeSubject
    module: str = ""
    pip: str = ""
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRun:
    """A contestant without a card, and why. pip: the command that may help."""

    name: str
    reason: str
    pip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Frames a second of one of ours divided by those of a peer: the median of the rounds, the lowest and the highest.

    same_count: whether both count the same work; if not, ours does more: read both cards.
    """

    ours: str
    peer: str
    ratio: float
    lowest: float
    highest: float
    same_count: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a contest: what is compared, a card for each contestant that ran, the ratios, and who did not."""

    what: str
    rounds: int
    cards: dict[str, Card]
    ratios: tuple[Ratio, ...]
    not_run: tuple[NotRun, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How to measure: `rounds` stretches of `seconds` each. command: that repeats it."""

    rounds: int
    seconds: float
    command: str


def hold(what: str, contestants: Sequence[Contestant], rounds: Rounds, say: Say) -> Outcome:
    """Load all contestants, one after the other, then measure them in turns."""
    not_run: list[NotRun] = []
    alive: dict[str, Apart] = {}
    segments: dict[str, list[Segment]] = {}

    def fail(contestant: Contestant, reason: str) -> None:
        say(f"{contestant.name}: not run: {reason}")
        not_run.append(NotRun(name=contestant.name, reason=reason, pip=contestant.pip))
        segments.pop(contestant.name, None)
        if (apart := alive.pop(contestant.name, None)) is not None:
            apart.close()

    try:
        for contestant in contestants:
            if reason := _missing(contestant):
                fail(contestant, reason)
                continue
            say(f"{contestant.name}: loading")
            alive[contestant.name] = Apart(contestant.make, say)
            try:
                alive[contestant.name].about()
            except ZoetropeError as error:
                fail(contestant, str(error))
        order = list(contestants)
        for number in range(rounds.rounds):
            for contestant in [c for c in order if c.name in alive]:
                try:
                    segment = alive[contestant.name].measure(rounds.seconds)
                except ZoetropeError as error:
                    fail(contestant, str(error))
                    continue
                segments.setdefault(contestant.name, []).append(segment)
                say(f"round {number + 1}: {contestant.name}: {segment.fps:.2f} frames a second")
            order.reverse()
        cards = {name: card_of(alive[name], measured, rounds.command) for name, measured in segments.items()}
    finally:
        for apart in alive.values():
            apart.close()
    ratios = _ratios([c for c in contestants if c.name in cards], cards, segments)
    return Outcome(what=what, rounds=rounds.rounds, cards=cards, ratios=ratios, not_run=tuple(not_run))


def _missing(contestant: Contestant) -> str:
    """Why it cannot run here, seen without starting it; "" if it may."""
    if contestant.module and importlib.util.find_spec(contestant.module) is None:
        return f"the package {contestant.module} is not installed"
    return contestant.refusal


def _ratios(ran: Sequence[Contestant], cards: dict[str, Card], segments: dict[str, list[Segment]]) -> tuple[Ratio, ...]:
    ratios = []
    for ours in (c for c in ran if c.ours):
        for peer in (c for c in ran if not c.ours):
            pairs = zip(segments[ours.name], segments[peer.name], strict=True)
            by_round = [a.fps / b.fps for a, b in pairs]
            ratios.append(
                Ratio(
                    ours=ours.name,
                    peer=peer.name,
                    ratio=statistics.median(by_round),
                    lowest=min(by_round),
                    highest=max(by_round),
                    same_count=cards[ours.name].setup.counted == cards[peer.name].setup.counted,
                )
            )
    return tuple(ratios)
