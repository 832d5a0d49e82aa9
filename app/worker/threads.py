"""How threads share the cores and the interpreter. Knows no engine.

The tensor library's: `share_the_cores` has an effect only before torch is imported.

Between two parallel parts of a network the threads of GNU OpenMP, which PyTorch uses on Linux, spin for milliseconds.
Alone on the machine that is quickest. Where anything else wants a core (a browser that shows the page, an encoder) the
spinning thread keeps the working one from it: measured on two cores beside one busy process, 0.3 frames a second
instead of 8 (docs/performance.md).
"""

from __future__ import annotations

import gc
import os
import sys

_SWITCH_S = 0.001
_VARIABLE = "GOMP_SPINCOUNT"
_SPINS = "1000"  # tens of microseconds, then the thread sleeps
_CHOSEN_BY_USER = (_VARIABLE, "OMP_WAIT_POLICY")


def share_the_cores() -> None:
    """Let waiting threads sleep soon, unless the environment already says how they wait."""
    if not any(name in os.environ for name in _CHOSEN_BY_USER):
        os.environ[_VARIABLE] = _SPINS


def hand_over_soon() -> None:
    """For a process with an event loop and busy threads: one that wants the interpreter's lock gets it after 1 ms, not
    5 as Python has it, so that no thread's Python code holds the loop up for longer."""
    sys.setswitchinterval(_SWITCH_S)


def keep_for_good() -> None:
    """Leave what exists now out of all later garbage collections.

    Modules and the page are some hundred thousand objects, and a full collection of them stops every thread of the
    front for a tenth of a second. Called once, when the start is over.
    """
    gc.collect()
    gc.freeze()
