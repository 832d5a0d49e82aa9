"""Places shared out by address: who gets one, and who has to give way."""

from __future__ import annotations

from app.guard.places import Place, Places


class Hall:
    """Places, and the names of those who had to give way."""

    def __init__(self, *, total: int, per_address: int) -> None:
        self.places = Places(total=total, per_address=per_address)
        self.gone: list[str] = []

    def take(self, address: str, name: str) -> Place | None:
        return self.places.take(address, lambda: self.gone.append(name))


def test_of_one_address_the_longest_waiting_gives_way_to_a_newcomer() -> None:
    hall = Hall(total=10, per_address=2)
    first, second = hall.take("a", "1"), hall.take("a", "2")
    assert first is not None and second is not None  # noqa: PT018
    first.wait()  # has shown something in the meantime, and now waits anew
    assert hall.take("a", "3") is not None
    assert hall.gone == ["2"]
    assert second.lost
    assert not first.lost
    assert hall.take("b", "4") is not None  # of another address
    assert (hall.gone, len(hall.places)) == (["2"], 3)


def test_who_has_shown_something_keeps_the_place() -> None:
    hall = Hall(total=10, per_address=2)
    for name in "12":
        place = hall.take("a", name)
        assert place is not None
        place.settle()
    assert hall.take("a", "3") is None
    assert hall.gone == []
    place.leave()
    place.leave()
    assert hall.take("a", "4") is not None
    assert len(hall.places) == 2


def test_where_all_are_taken_the_crowd_gives_way() -> None:
    hall = Hall(total=6, per_address=4)
    for address in "baaaa":
        assert hall.take(address, address) is not None
    assert hall.take("c", "c") is not None
    assert hall.take("d", "d") is not None
    assert hall.gone == ["a"]  # not b, who has waited longer, but alone
    assert len(hall.places) == 6


def test_a_crowd_of_many_addresses_is_bounded_too() -> None:
    hall = Hall(total=8, per_address=4)
    for number in range(1000):
        assert hall.take(f"192.0.2.{number}", str(number)) is not None
    assert len(hall.places) == 8
    assert hall.gone == [str(number) for number in range(992)]


def test_a_lost_place_stays_lost() -> None:
    hall = Hall(total=1, per_address=1)
    first = hall.take("a", "1")
    second = hall.take("a", "2")
    assert first is not None
    first.wait()
    first.leave()
    assert len(hall.places) == 1
    assert second is not None
    second.settle()
    assert hall.take("a", "3") is None
