"""Process-wide settings: how threads wait, the interpreter's switch interval, garbage collection. Independent of
engines.

`limit_spinning` has an effect only before torch is imported. Between two parallel regions of a network the threads of
GNU OpenMP, which PyTorch uses on Linux, spin for milliseconds. On an otherwise idle machine that is fastest. When
another process needs a core (a browser that shows the page, an encoder), spinning threads take it from working ones:
0.3 frames per second instead of 8, measured on two cores beside one busy process (docs/performance.md).
"""

from __future__ import annotations

import gc
import os
import sys

_SWITCH_S = 0.001
_VARIABLE = "GOMP_SPINCOUNT"
_SPINS = "1000"  # tens of microseconds, then the thread sleeps
_USER_SETTINGS = (_VARIABLE, "OMP_WAIT_POLICY")


def limit_spinning() -> None:
    """Let waiting OpenMP threads sleep soon, unless the environment already configures how they wait."""
    if not any(name in os.environ for name in _USER_SETTINGS):
        os.environ[_VARIABLE] = _SPINS


def shorten_switch_interval() -> None:
    """For a process with an event loop and busy threads: a thread waits for the interpreter lock at most 1 ms instead
    of Python's default of 5, so that other threads do not block the loop for longer."""
    sys.setswitchinterval(_SWITCH_S)


def exclude_from_collection() -> None:
    """Exclude all existing objects from later garbage collections.

    Modules and the page are some hundred thousand objects; a full collection of them stops every thread of the front
    for a tenth of a second. Call it once, after start-up.
    """
    gc.collect()
    gc.freeze()
