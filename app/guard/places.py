"""A bounded number of places, shared out by address, in which newcomers displace those who have shown nothing yet.

Owns who has a place, who is still waiting in it, and who gives way. Independent of what a place is for: TCP connections
until their request, WebSockets until their hello.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable


class Place:
    """One place. It begins waiting: its holder has shown nothing yet, and may have to give way to a newcomer."""

    def __init__(self, places: Places, address: str, give_way: Callable[[], None]) -> None:
        self.address = address
        self.lost = False  # had to give way
        self.give_way = give_way
        self._places = places

    def settle(self) -> None:
        """The holder has shown what it came for: it keeps the place until it leaves."""
        self._places.stop_waiting(self)

    def wait(self) -> None:
        """The holder has nothing to show any more, and waits again, as the last in the row."""
        self._places.begin_waiting(self)

    def leave(self) -> None:
        """Free the place. Twice, or after it was lost, is fine."""
        self._places.leave(self)


class Places:
    """All places. total: how many there are. per_address: how many one address may have, 1..total. Not thread-safe."""

    def __init__(self, *, total: int, per_address: int) -> None:
        assert 1 <= per_address <= total, (per_address, total)
        self.total = total
        self.per_address = per_address
        self._held: Counter[str] = Counter()
        self._taken: set[Place] = set()
        self._waiting: dict[str, dict[Place, None]] = {}  # by address, the longest first

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, address: str, give_way: Callable[[], None]) -> Place | None:
        """A place for a newcomer, waiting. None: none is free, and nobody who could give way is waiting.

        give_way: called once if this place is lost; it must not call back. Where all places of this address are taken,
        the one of them that has waited the longest gives way; where all of all are, the longest of the address that
        has the most waiting.
        """
        if self._held[address] >= self.per_address and not self._displace(address):
            return None
        if len(self._taken) >= self.total and not self.displace():
            return None
        place = Place(self, address, give_way)
        self._taken.add(place)
        self._held[address] += 1
        self.begin_waiting(place)
        return place

    def displace(self) -> bool:
        """Free the place of who has waited the longest, of the address with the most waiting. False: nobody waits."""
        crowd = max(self._waiting, key=lambda address: len(self._waiting[address]), default=None)
        return crowd is not None and self._displace(crowd)

    def begin_waiting(self, place: Place) -> None:
        """See Place.wait."""
        self.stop_waiting(place)
        if place in self._taken:
            self._waiting.setdefault(place.address, {})[place] = None

    def stop_waiting(self, place: Place) -> None:
        """See Place.settle."""
        waiting = self._waiting.get(place.address)
        if waiting is not None:
            waiting.pop(place, None)
            if not waiting:
                del self._waiting[place.address]

    def leave(self, place: Place) -> None:
        """See Place.leave."""
        self.stop_waiting(place)
        if place in self._taken:
            self._taken.remove(place)
            self._held[place.address] -= 1
            if not self._held[place.address]:
                del self._held[place.address]

    def _displace(self, address: str) -> bool:
        longest = next(iter(self._waiting.get(address, ())), None)
        if longest is None:
            return False
        self.leave(longest)
        longest.lost = True
        longest.give_way()
        return True
