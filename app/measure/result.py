"""Makes a card out of a measured subject. Independent of what it is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from .apart import Apart
from .card import Card
from .figures import Segment, figures_of


def card_of(subject: Apart, segments: Sequence[Segment], command: str) -> Card:
    """Return the card of these stretches, dated now. command: repeats the measurement."""
    machine, setup = subject.about()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Card(date=date, command=command, machine=machine, setup=setup, figures=figures_of(segments))
