"""The Python client of the frame-stream API."""

from __future__ import annotations

from .client import ClientStream, StreamFrame, ZoetropeClient

__all__ = ["ClientStream", "StreamFrame", "ZoetropeClient"]
