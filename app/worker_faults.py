"""Whose session ends when something fails in the worker, and what its user is told. Knows no pipe.

A tick is one batch of all sessions. When it fails, one session is taken out and the tick is run again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from pipelines.errors import ModelError, StreamError, ZoetropeError

from .worker_session import WorkerSession

_LOG = logging.getLogger(__name__)


def session_to_end(sessions: Collection[WorkerSession], error: ZoetropeError) -> WorkerSession:
    """The one whose stream failed. Where that cannot be said (memory ran out for all of them): the one with the most in
    flight, and among equals the youngest, since without it the tick ran before.

    sessions: at least one, oldest first.
    """
    if isinstance(error, StreamError):
        for session in sessions:
            if session.stream is error.stream:
                return session
    busy = [session for session in sessions if session.busy] or list(sessions)
    return max(reversed(busy), key=lambda session: session.stream.accounting.in_flight)


def unforeseen(error: Exception) -> ModelError:
    """An exception that is no ZoetropeError, from one session's own part, as its user is told; the log has it whole."""
    _LOG.error("a session ends by an error that should not be", exc_info=error)
    return ModelError(f"The stream failed: {type(error).__name__}: {error}", "Open a new session.")
