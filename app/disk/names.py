"""Names that begin with a time and sort by creation, also when the clock has been set back.

The oldest file is deleted first, and it is found by its name. Independent of what is named.
"""

from __future__ import annotations

import datetime as dt

STAMP = r"\d{8}-\d{6}"
"""The pattern of a stamp."""

_FORMAT = "%Y%m%d-%H%M%S"
_SECOND = dt.timedelta(seconds=1)


def stamp_after(newest: str | None, now: dt.datetime | None = None) -> str:
    """The time in UTC as YYYYMMDD-HHMMSS; if that is not later than `newest`, a second after `newest`.

    newest: a name that begins with the last stamp given; None for none. now: None for the clock's.
    """
    stamp = (now or dt.datetime.now(dt.UTC)).strftime(_FORMAT)
    if newest is None or newest[: len(stamp)] < stamp:
        return stamp
    try:
        return (dt.datetime.strptime(newest[: len(stamp)], _FORMAT).replace(tzinfo=dt.UTC) + _SECOND).strftime(_FORMAT)
    except (ValueError, OverflowError):  # not a date, or the last one
        return stamp
