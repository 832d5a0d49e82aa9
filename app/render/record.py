"""The record of a render in progress: OUTPUT.part/, with the settings that a resumed run must share.

Owns what may be overwritten and what may be resumed. Independent of engines and frames.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from app.media.containers import ANIMATIONS, CONTAINERS
from app.media.picture_reader import natural_key
from app.media.writer import Left, writing
from pipelines.core.errors import InputError, OutputError
from pipelines.core.preparation import PartForm

_VERSION = 2
_PROBE_BYTES = 2**20
Settings = dict[str, str]


@dataclass(slots=True, kw_only=True)
class RenderRecord:
    """settings: what a resumed run must share, by user-visible name. resumed: whether this continues an earlier run.

    whole_frames: frames in the output when it was last closed cleanly; None while it is being written and after a
    crash, when its last segment may be truncated. forms: what the engine's parts run with, in every frame.
    """

    output: Path
    settings: Settings
    forms: tuple[PartForm, ...] = ()
    resumed: bool = False
    whole_frames: int | None = None

    @classmethod
    def open(cls, output: Path, *, is_folder: bool, force: bool, resume: bool) -> Self:
        """Check that `output` may be written. Changes nothing on disk. Raises OutputError, InputError."""
        _check_output(output, is_folder=is_folder)
        file = part_folder(output) / "job.json"
        if resume:
            return cls._read(output, file)
        if force:
            return cls(output=output, settings={})
        if file.exists():
            raise OutputError(
                f"There is an interrupted render of {output}.", "Continue with --resume, or start over with --force."
            )
        if is_folder and output.exists() and any(output.iterdir()):
            raise OutputError(f"The folder {output} is not empty.", "Give another folder, or --force.")
        if not is_folder and output.exists():
            raise OutputError(f"{output} already exists.", "Give another name, or --force to overwrite it.")
        return cls(output=output, settings={})

    @classmethod
    def _read(cls, output: Path, file: Path) -> Self:
        if not file.is_file():
            state = f"{output} is not an interrupted render" if output.exists() else f"There is no {output} to resume"
            raise InputError(f"{state}: {file.parent} is missing.", "Omit --resume to start from the beginning.")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["version"] != _VERSION:
                raise InputError(f"{file} was written by another version of Zoetrope.", "Start over with --force.")
            settings, whole = content["settings"], content["whole_frames"]
            forms = tuple(PartForm.of(form) for form in content["forms"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is damaged: {error}.", "Start over with --force.") from error
        return cls(output=output, settings=settings, forms=forms, resumed=True, whole_frames=whole)

    @property
    def scratch(self) -> Path:
        """Folder for unfinished files."""
        return part_folder(self.output)

    def agree(self, settings: Mapping[str, str]) -> None:
        """Add settings; on a resumed run, refuse any that differs. Raises InputError."""
        if self.resumed:
            for name in settings:
                before, now = self.settings.get(name, "not given"), settings[name]
                if before != now:
                    raise InputError(
                        f"The interrupted render had another {name}: {before}; now it is {now}.",
                        "Give the same options to resume, or --force to start over.",
                    )
        self.settings.update(settings)

    def begin(self) -> None:
        """Write the record of a render in progress."""
        with writing(self.scratch):
            if not self.resumed:
                shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch.mkdir(exist_ok=True)
            self._write(None)

    def pause(self, frames: int) -> None:
        """Note that the output was closed cleanly with this many frames."""
        with writing(self.scratch, lambda: Left.playable(resumable=True)):
            self._write(frames)

    def end(self) -> None:
        """Remove the record: the output is complete."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _write(self, whole_frames: int | None) -> None:
        forms = [asdict(form) for form in self.forms]
        content = {"version": _VERSION, "settings": self.settings, "forms": forms, "whole_frames": whole_frames}
        unfinished = self.scratch / "job.writing"
        unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
        unfinished.replace(self.scratch / "job.json")


def part_folder(output: Path) -> Path:
    """The folder, next to `output`, with the record of its unfinished render."""
    return output.with_name(output.name + ".part")


def _check_output(output: Path, *, is_folder: bool) -> None:
    parent = output.parent
    if not parent.is_dir():
        raise OutputError(f"The folder {parent} does not exist.", f"Create it first: mkdir -p {parent}")
    if is_folder and output.exists() and not output.is_dir():
        suffixes = ", ".join((*CONTAINERS, *ANIMATIONS))
        raise OutputError(f"{output} is a file.", f"Give a name that ends in one of {suffixes}, or another folder.")
    if not is_folder and output.is_dir():
        raise OutputError(f"{output} is a folder.", "Give a file name, or end it in / for a folder of pictures.")


def check_apart(source: Path, output: Path) -> None:
    """Raise OutputError if the output would overwrite the input."""
    if output.exists() and source.exists() and output.samefile(source):
        raise OutputError(f"{output} is also the input.", "Give another output.")


def fingerprint(source: Path) -> str:
    """Name, size and a digest of the first and last MiB (for a folder, of the names and sizes) in one line."""
    digest = hashlib.sha256()
    if source.is_dir():
        files = sorted((file for file in source.iterdir() if file.is_file()), key=natural_key)
        for file in files:
            digest.update(os.fsencode(file.name) + f"\0{file.stat().st_size}\n".encode())
        return f"{source.name}, {len(files)} files, {digest.hexdigest()[:16]}"
    size = source.stat().st_size
    with source.open("rb") as opened:
        digest.update(opened.read(_PROBE_BYTES))
        opened.seek(max(0, size - _PROBE_BYTES))
        digest.update(opened.read(_PROBE_BYTES))
    return f"{source.name}, {size} bytes, {digest.hexdigest()[:16]}"
