"""The sound of a session's source: from the transport that receives it to all listeners.

Forwards frames and queues none; listeners bound their own queues. Independent of where sound comes from and goes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import av

SoundListener = Callable[[av.AudioFrame, int], None]
"""Takes a frame and the monotonic time in ns at which its first sample was captured. Quick; raises nothing."""


class SoundHub:
    """One session's sound: any number of sources and listeners. The newest source is the one that is heard.

    Safe from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: tuple[SoundSource, ...] = ()
        self._listeners: Mapping[object, SoundListener] = {}

    def listen(self, listener: SoundListener) -> Callable[[], None]:
        """Give `listener` every frame from now on; the result ends that (calling it twice is fine)."""
        with self._lock:
            key = object()
            self._listeners = {**self._listeners, key: listener}

        def forget() -> None:
            with self._lock:
                self._listeners = {other: one for other, one in self._listeners.items() if other is not key}

        return forget

    def open(self) -> SoundSource:
        """A source of sound, which is heard until it is closed or another one is opened."""
        with self._lock:
            source = SoundSource(self)
            self._sources = (*self._sources, source)
            return source

    def close(self, source: SoundSource) -> None:
        """The source has ended; the one before it is heard again. Closing twice is fine."""
        with self._lock:
            self._sources = tuple(one for one in self._sources if one is not source)

    def listeners(self, source: SoundSource) -> tuple[SoundListener, ...]:
        """Who listens to `source`: nobody while another one is heard."""
        heard = self._sources[-1:]
        return tuple(self._listeners.values()) if heard and heard[0] is source else ()


class SoundSource:
    """A source's end of a hub, used by a transport."""

    def __init__(self, hub: SoundHub) -> None:
        self._hub = hub

    @property
    def wanted(self) -> bool:
        """Whether anybody listens to this source: otherwise its sound need not be decoded."""
        return bool(self._hub.listeners(self))

    def give(self, sound: av.AudioFrame, captured_ns: int) -> None:
        """Hand a frame to all listeners. captured_ns: as for SoundListener."""
        for listener in self._hub.listeners(self):
            listener(sound, captured_ns)

    def close(self) -> None:
        """No more sound will come. Closing twice is fine."""
        self._hub.close(self)
