"""Process-wide settings: how threads wait, the interpreter's switch interval, garbage collection, free memory, what
stays out. Independent of engines.

`limit_spinning` has an effect only before torch is imported. Between two parallel regions of a network the threads of
GNU OpenMP, which PyTorch uses on Linux, spin for milliseconds. On an otherwise idle machine that is fastest. When
another process needs a core (a browser that shows the page, an encoder), spinning threads take it from working ones:
0.3 frames per second instead of 8, measured on two cores beside one busy process (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SWITCH_S = 0.001
_VARIABLE = "GOMP_SPINCOUNT"
_SPINS = "1000"  # tens of microseconds, then the thread sleeps
_USER_SETTINGS = (_VARIABLE, "OMP_WAIT_POLICY")
_UNUSED_PACKAGES = ("peft", "scipy", "sklearn")


def limit_spinning() -> None:
    """Let waiting OpenMP threads sleep soon, unless the environment already configures how they wait."""
    if not any(name in os.environ for name in _USER_SETTINGS):
        os.environ[_VARIABLE] = _SPINS


def shorten_switch_interval() -> None:
    """For a process with an event loop and busy threads: a thread waits for the interpreter lock at most 1 ms instead
    of Python's default of 5, so that other threads do not block the loop for longer."""
    sys.setswitchinterval(_SWITCH_S)


def begin_start() -> None:
    """Start faster: no garbage collections until `end_start`. They take a fifth of the time that imports take, and find
    nothing."""
    gc.disable()


def end_start() -> None:
    """Begin to collect garbage, but never what exists now.

    Modules and the page are some hundred thousand objects; a full collection of them stops every thread of the process
    for a tenth of a second. Call it once, after start-up.
    """
    gc.freeze()
    gc.enable()


@contextmanager
def giving_memory_back(every_s: float = 30.0) -> Iterator[None]:
    """Give free memory back to the system now and then: after a crowd has left, glibc keeps what lies between things
    that stay. Takes about a millisecond; does nothing with other C libraries."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, TypeError):  # musl, macOS; Windows has no "this process"
        yield
        return
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(every_s):
            trim(0)

    thread = threading.Thread(target=run, name="memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def leave_out_packages() -> None:
    """Treat packages that the model libraries import if they find them, and that we never use, as not installed.

    Only for a process of our own: the libraries do not look for them again.
    """
    for name in _UNUSED_PACKAGES:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # what Python itself takes as "cannot be imported"
