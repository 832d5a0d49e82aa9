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

    same_work: whether both count the same work with as many streams; if not, read both cards.
    """

    ours: str
    peer: str
    ratio: float
    lowest: float
    highest: float
    same_work: bool


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
    turns = _Turns(say)
    try:
        for contestant in contestants:
            turns.load(contestant)
        order = list(contestants)
        for number in range(1, rounds.rounds + 1):
            for contestant in order:
                turns.measure(contestant, rounds.seconds, number)
            order.reverse()
        cards = turns.cards(rounds.command)
    finally:
        turns.close()
    ran = [contestant for contestant in contestants if contestant.name in cards]
    return Outcome(
        what=what,
        rounds=rounds.rounds,
        cards=cards,
        ratios=_ratios(ran, cards, turns.segments),
        not_run=tuple(turns.not_run),
    )


class _Turns:
    """The contestants that are alive, what they measured, and the others."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._alive: dict[str, Apart] = {}
        self.segments: dict[str, list[Segment]] = {}
        self.not_run: list[NotRun] = []

    def load(self, contestant: Contestant) -> None:
        """Start it and wait until it is warm."""
        if reason := _missing(contestant):
            self._fail(contestant, reason)
            return
        self._say(f"{contestant.name}: loading")
        self._alive[contestant.name] = Apart(contestant.make, self._say)
        try:
            self._alive[contestant.name].about()
        except ZoetropeError as error:
            self._fail(contestant, str(error))

    def measure(self, contestant: Contestant, seconds: float, number: int) -> None:
        """Measure its stretch of a round, if it is alive."""
        apart = self._alive.get(contestant.name)
        if apart is None:
            return
        try:
            segment = apart.measure(seconds)
        except ZoetropeError as error:
            self._fail(contestant, str(error))
            return
        self.segments.setdefault(contestant.name, []).append(segment)
        self._say(f"round {number}: {contestant.name}: {segment.fps:.2f} frames a second")

    def cards(self, command: str) -> dict[str, Card]:
        """Return a card for each that is alive, in the order in which they were loaded."""
        return {name: card_of(apart, self.segments[name], command) for name, apart in self._alive.items()}

    def close(self) -> None:
        """End all processes."""
        for apart in self._alive.values():
            apart.close()

    def _fail(self, contestant: Contestant, reason: str) -> None:
        self._say(f"{contestant.name}: not run: {reason}")
        self.not_run.append(NotRun(name=contestant.name, reason=reason, pip=contestant.pip))
        self.segments.pop(contestant.name, None)
        if (apart := self._alive.pop(contestant.name, None)) is not None:
            apart.close()


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
                    same_work=_work(cards[ours.name]) == _work(cards[peer.name]),
                )
            )
    return tuple(ratios)


def _work(card: Card) -> tuple[str, int]:
    return card.setup.counted, card.setup.streams
