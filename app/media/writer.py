"""What a renderer writes to: the interface of a frame writer, and the conversion of system errors to OutputError.

Independent of file formats.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

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

    def remarks(self) -> list[str]:
        """Sentences for the user on what the output does not have or has changed; each is given once."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a failed write leaves. kept: a clause. go_on: how to go on once the cause is mended."""

    kept: str = "Nothing was written"
    go_on: str = "start again"

    @classmethod
    def playable(cls, *, resumable: bool) -> Self:
        """An output that plays up to where it ends."""
        return cls(kept="What was written stays playable", go_on=_GO_ON[resumable])

    @classmethod
    def stored(cls, frames: int, *, resumable: bool) -> Self:
        """An output that does not exist yet, while the frames that it is made of do."""
        return cls(kept=f"{frames} frames are kept", go_on=_GO_ON[resumable]) if frames and resumable else cls()


_GO_ON = {True: "continue with --resume", False: "start over with --force"}


@contextmanager
def writing(path: Path, left: Callable[[], Left] = Left) -> Iterator[None]:
    """Convert errors of the system and the muxer to OutputError. left: asked after an error."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        number = error.errno if isinstance(error, OSError) else None
        remains = left()
        if number == errno.ENOSPC:
            raise OutputError(
                f"The disk is full: {path} cannot grow.",
                f"{remains.kept}. Free some space and {remains.go_on}.",
            ) from error
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        nothing = remains == Left()
        raise OutputError(
            f"{path} cannot be written: {reason}.",
            f"{remains.kept}; {'check the folder, or choose another container' if nothing else remains.go_on}.",
        ) from error
