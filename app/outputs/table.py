"""The outputs of all sessions: created when a session first requests one, stopped when it is over.

Independent of the kinds of output and of protocols.
"""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from app.session.session import Session

from .manager import SessionOutputs, at_once


class OutputTable:
    """Keeps no session alive. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: WeakKeyDictionary[Session, SessionOutputs] = WeakKeyDictionary()

    def of(self, session: Session) -> SessionOutputs:
        """The session's outputs, created on first use."""
        with self._lock:
            outputs = self._of.get(session)
            if outputs is None:
                outputs = self._of[session] = SessionOutputs.of(session)
            return outputs

    def known(self, session: Session) -> SessionOutputs | None:
        """The session's outputs, if it has ever requested any."""
        with self._lock:
            return self._of.get(session)

    def close(self) -> None:
        """Stop all outputs of all sessions at once and wait for them; called when the server stops."""
        with self._lock:
            all_of_them = list(self._of.values())
        at_once([outputs.close for outputs in all_of_them])
