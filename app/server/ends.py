"""The ordinary ends of a server besides Ctrl-C: SIGTERM (docker stop, systemd) and SIGHUP (its terminal was closed).

All of them end it alike: takes and recordings are finished, workers joined, shared memory unlinked. Independent of what
is served.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ends_like_ctrl_c() -> Iterator[None]:
    """In this context the first SIGTERM or SIGHUP raises KeyboardInterrupt, and later ones do not disturb the clean-up.

    SIGHUP stays ignored where it was (nohup). Does nothing outside the main thread, which alone gets signals. While
    uvicorn runs, it has SIGTERM's handler: it drains, and raises the signal again when it is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = [signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        ends.append(hang_up)

    def end(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)  # to whoever handles that now
            return
        for each in ends:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, end) for each in ends}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
