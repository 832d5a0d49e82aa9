"""Chooses the writer of an output: a video file, an animated picture or a folder of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from .animation_writer import AnimationPlan, AnimationWriter, frames_folder
from .containers import Animation, Container, FileKind
from .picture_writer import PictureWriter, numbered_pictures
from .pieces import plays
from .sound_choice import Sound
from .video_writer import VideoPlan, VideoWriter
from .writer import FrameWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPlan:
    """What to write. output: the file or folder. kind: its row in containers; None for a folder of pictures.

    scratch: an existing folder on the same file system, for unfinished files. size: (width, height) in pixels, even for
    a video. time_base: of pts and durations, seconds. sound: only a video file keeps it. resumable: whether --resume
    can go on from what an error leaves.
    """

    output: Path
    kind: FileKind | None
    scratch: Path
    size: tuple[int, int]
    frame_rate: Fraction
    time_base: Fraction
    sound: Sound | None = None
    resumable: bool = True


def open_writer(plan: OutputPlan, *, keep: bool, keep_last_piece: bool) -> FrameWriter:
    """keep: continue after the frames of an interrupted run. keep_last_piece: of a video, whose end is known to be
    complete. Raises OutputError."""
    match plan.kind:
        case None:
            return PictureWriter(plan.output, resume=keep, resumable=plan.resumable)
        case Animation() as kind:
            animation = AnimationPlan(kind=kind, size=plan.size, time_base=plan.time_base, resumable=plan.resumable)
            return AnimationWriter(plan.output, plan.scratch, animation, keep=keep)
        case Container() as kind:
            video = VideoPlan(
                kind=kind,
                size=plan.size,
                frame_rate=plan.frame_rate,
                time_base=plan.time_base,
                sound=plan.sound,
                resumable=plan.resumable,
            )
            return VideoWriter(plan.output, plan.scratch, video, keep=keep, keep_last_piece=keep_last_piece)


def has_frames(output: Path, kind: FileKind | None, scratch: Path) -> bool:
    """Whether an interrupted output has frames to continue from. Truncates an incomplete end."""
    match kind:
        case None:
            return output.is_dir() and bool(numbered_pictures(output))
        case Animation():
            return bool(numbered_pictures(frames_folder(scratch)))
        case Container():
            try:
                kind.trim(output)
            except OSError:
                return False
            return plays(output)


def no_sound(kind: FileKind | None) -> str:
    """Why a source's sound is dropped, as a sentence; empty if the kind of output has sound."""
    match kind:
        case None:
            return "A folder of pictures has no sound: the source's sound is dropped."
        case Animation():
            return "A GIF has no sound: the source's sound is dropped."
        case Container():
            return ""
