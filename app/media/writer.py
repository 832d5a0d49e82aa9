"""What a renderer writes to: the contract of a frame writer, and the step that turns system errors into ours.

Knows no file format.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import numpy.typing as npt

from pipelines.core.errors import OutputError


class FrameWriter(Protocol):
    """Takes frames in order. Exactly one of finish, suspend and abandon is called last."""

    @property
    def frames(self) -> int:
        """Frames that the output has, those of an earlier, interrupted run included."""
        ...

    def write(self, image: npt.NDArray[np.uint8], pts: int, duration: int) -> None:
        """image: [H, W, 3] uint8 RGB. pts, duration: in the source's time base. Raises OutputError."""
        ...

    def finish(self, *, complete: bool) -> None:
        """Make the final output. complete: the source was rendered to its end, so its whole sound is kept."""
        ...

    def suspend(self) -> None:
        """Stop with every frame kept, so that the output plays and a later run can go on."""
        ...

    def abandon(self) -> None:
        """Let go after an error; raises nothing. What reached the disk stays."""
        ...


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system or the muxer raises into OutputError."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.ENOSPC:
            raise OutputError(
                f"The disk is full: {path} cannot grow.",
                "What was written stays playable. Make room and go on with --resume.",
            ) from error
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise OutputError(
            f"{path} cannot be written: {reason}.", "What was written stays playable; --resume goes on from it."
        ) from error
