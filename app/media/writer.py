"""What a renderer writes to: the interface of a frame writer, and the conversion of system errors to OutputError.

Independent of file formats.
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
        """Frames in the output, including those of an earlier, interrupted run."""
        ...

    def write(self, image: npt.NDArray[np.uint8], pts: int, duration: int) -> None:
        """image: [H, W, 3] uint8 RGB. pts, duration: in the source's time base. Raises OutputError."""
        ...

    def finish(self, *, complete: bool) -> None:
        """Write the final output. complete: the source was rendered to its end, so all of its sound is kept."""
        ...

    def suspend(self) -> None:
        """Stop with all frames kept, so that the output is playable and a later run can resume."""
        ...

    def abandon(self) -> None:
        """Clean up after an error; never raises. What was written stays."""
        ...


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert errors of the system and the muxer to OutputError."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.ENOSPC:
            raise OutputError(
                f"The disk is full: {path} cannot grow.",
                "What was written stays playable. Free some space and continue with --resume.",
            ) from error
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise OutputError(
            f"{path} cannot be written: {reason}.", "What was written stays playable; continue with --resume."
        ) from error
