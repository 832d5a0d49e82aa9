"""Shows a session's frames as a camera of this machine, for other programs.

Optional (pyvirtualcam and a driver: v4l2loopback on Linux, OBS elsewhere). Owns one thread; the newest frame wins, the
last one is repeated. Independent of sessions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from app.media.picture import cover
from pipelines.core.errors import InputError, OutputError
from pipelines.core.types import Frame, Picture

from .output import OutputPhase, OutputReading
from .pacing import PacedFrames

_JOIN_S = 5.0


class NoVirtualCameraError(InputError):
    """This machine has no virtual camera, or the package is not installed."""


class Camera(Protocol):
    """The part of pyvirtualcam.Camera in use. device: the name that other programs show."""

    @property
    def device(self) -> str: ...
    def send(self, frame: Picture) -> None: ...
    def close(self) -> None: ...


OpenCamera = Callable[[int, int, float, str], Camera]
"""(width and height in pixels, frames per second, device or "" for any) -> camera. Raises InputError."""


def open_camera(width: int, height: int, rate: float, device: str) -> Camera:
    """Open pyvirtualcam's camera. Raises InputError without the package or a driver."""
    try:
        from pyvirtualcam import Camera as System
    except ImportError as error:
        remedy = "pip install 'zoetrope[virtual-camera]'"
        raise NoVirtualCameraError("A virtual camera needs the package pyvirtualcam.", remedy) from error
    try:
        camera: Any = System(width, height, rate, device=device or None)
    except (RuntimeError, ValueError, OSError) as error:
        raise NoVirtualCameraError(
            f"There is no virtual camera to write to: {str(error).strip()}.",
            "On Linux load v4l2loopback (modprobe v4l2loopback); on macOS and Windows install OBS.",
        ) from error
    return camera  # type: ignore[no-any-return]  # has what Camera asks


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualCameraOptions:
    """size: even (width, height) in pixels. rate: frames per second. device: "" for any."""

    size: tuple[int, int]
    rate: Fraction = Fraction(30)
    device: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.rate <= 120:
            raise InputError(f"A camera of {float(self.rate):g} frames a second is not possible.", "Give 1 to 120.")
        if not all(16 <= side <= 8192 and side % 2 == 0 for side in self.size):
            raise InputError(f"A camera cannot be {self.size[0]}x{self.size[1]}.", "Give even sides from 16 to 8192.")


class VirtualCamera:
    """A running camera. Raises InputError if it cannot be opened."""

    def __init__(self, options: VirtualCameraOptions, open_device: OpenCamera = open_camera) -> None:
        self._options = options
        self._camera = open_device(*options.size, float(options.rate), options.device)
        self._frames = PacedFrames(options.rate)
        self._name = self._camera.device
        self._phase, self._text = OutputPhase.STARTING, f"{self._name} waits for the first frame"
        self._sent = 0
        self._thread = threading.Thread(target=self._run, name="virtual-camera", daemon=True)
        self._thread.start()

    def offer(self, frame: Frame, arrived_ns: int) -> None:
        self._frames.offer(frame)

    def read(self) -> OutputReading:
        return OutputReading(
            kind="virtual camera",
            phase=self._phase,
            done=self._sent,
            dropped=self._frames.replaced,
            text=self._text,
        )

    def stop(self) -> None:
        self._frames.close()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        try:
            self._show()
        except (RuntimeError, ValueError, OSError, OutputError) as error:
            self._frames.close()
            self._phase, self._text = OutputPhase.FAILED, f"{self._name} ended: {str(error).strip()}"
        finally:
            self._camera.close()

    def _show(self) -> None:
        width, height = self._options.size
        if self._frames.first() is not None:
            self._phase, self._text = OutputPhase.RUNNING, f"showing on {self._name}"
            self._frames.restart()
            while (ticked := self._frames.next()) is not None:
                self._camera.send(cover(ticked[1], width, height))
                self._sent += 1
        self._phase, self._text = OutputPhase.STOPPED, f"{self._name} is off"
