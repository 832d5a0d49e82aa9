"""`zoetrope analyse`: measures what repeats in a user's clip, and writes a cache profile and a page about it.

Parses the command line and shows progress; app/analyse/ does the rest.
"""

from __future__ import annotations

import argparse
import datetime as dt
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.worker.threads import limit_spinning
from pipelines.core.errors import InputError

from .options import add_control_options, add_engine_options, control_from_options, engine_options

if TYPE_CHECKING:
    from app.analyse.job import AnalyseRequest
    from pipelines.image.analysis.analysis import Analysis

SAMPLE = Path(__file__).parents[2] / "assets" / "samples" / "camera.mp4"
_CONTROLS = (
    "prompt",
    "negative_prompt",
    "strength",
    "steps",
    "step_function",
    "guidance_scale",
    "guidance_mode",
    "seed",
)
_PROMPT = "a photo, pencil sketch"
_MOST_FRAMES = 2000
_EXAMPLES = """examples:
  zoetrope analyse mini-image                          (the bundled camera clip, a few minutes)
  zoetrope analyse mini-image holiday.mp4 --prompt "a photo, watercolour" --out holiday
  zoetrope live --cache-profile holiday.json           (then choose `reuse` on the page, under Engine)
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `analyse` to the command line."""
    parser = subparsers.add_parser(
        "analyse",
        help="measure what repeats in a clip, and calibrate reuse for it",
        description="Play a clip through an image model, measure what repeats from frame to frame and from step to "
        "step, and write a cache profile that `live` and `render` load, with a page that explains it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="as for --model of `live`; an image model")
    parser.add_argument(
        "clip", nargs="?", type=Path, metavar="CLIP", help="a video, or a folder of pictures (default: a bundled one)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="NAME", help="write NAME.json and NAME.html (default: MODEL-cache, here)"
    )
    parser.add_argument("--frames", default="120", metavar="N", help="read at most N frames of the clip (default 120)")
    parser.add_argument(
        "--no-step-profile", action="store_true", help="measure none for step caches if the model came without"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the files")
    add_engine_options(parser, with_model=False)
    add_control_options(parser, _CONTROLS)
    parser.set_defaults(run=run, own_process=False)


def run(options: argparse.Namespace) -> int:
    """Analyse, write both files and say what to choose. Raises ZoetropeError."""
    limit_spinning()
    request = request_from_options(options)
    from app.analyse.job import run_analysis
    from pipelines.load import load_engine

    with _Bars() as bars:
        found = run_analysis(request, load_engine, bars.say, bars)
    _tell(request, found)
    return 0


def request_from_options(options: argparse.Namespace) -> AnalyseRequest:
    """Return the request of the command line. Raises InputError."""
    from app.analyse.job import AnalyseRequest
    from pipelines.core.controls import Control

    if options.cache_profile:
        raise InputError("--cache-profile was given to analyse, which makes one.", "Leave it out.")
    engine = engine_options(options)
    if engine.frames_per_slot != 1:
        raise InputError("Reuse needs --frames-per-slot 1.", "Leave the option out.")
    control = control_from_options(options)
    if not control.prompt:
        control = Control.of({**control.changes(), "prompt": _PROMPT})
    day = dt.datetime.now(dt.UTC).date().isoformat()
    return AnalyseRequest(
        model=options.model,
        clip=options.clip or SAMPLE,
        stem=options.out or Path(f"{Path(options.model).name or 'model'}-cache"),
        engine=engine,
        control=control,
        frames=_frames(options.frames),
        made=f"zoetrope {shlex.join(sys.argv[1:])}, {day}" if options.own_process else f"zoetrope analyse, {day}",
        step_profile=not options.no_step_profile,
        force=options.force,
    )


def _frames(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 8 <= int(text) <= _MOST_FRAMES):
        raise InputError(f"--frames cannot be {text!r}.", f"Give a whole number from 8 to {_MOST_FRAMES}.")
    return int(text)


class _Bars:
    """Shows one progress bar after the other on the terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def say(self, sentence: str) -> None:
        """Show a sentence between bars."""
        self._end()
        sys.stderr.write(sentence + "\n")

    def __call__(self, what: str, done: int, total: int) -> None:
        """See `pipelines.image.analysis.play.Progress`."""
        from tqdm import tqdm

        if self._bar is None or self._bar.desc != f"{what}: ":
            self._end()
            shape = "{desc}{percentage:3.0f}% |{bar:30}| {elapsed}"
            self._bar = tqdm(total=total, desc=f"{what}: ", bar_format=shape, file=sys.stderr)
            self._bar.desc = f"{what}: "
        self._bar.update(done - self._bar.n)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _tell(request: AnalyseRequest, found: Analysis) -> None:
    for name, preset in found.profile.presets.items():
        price = "the same pictures" if preset.psnr_db is None else f"{preset.psnr_db:.1f} dB"
        sys.stdout.write(f"{name}: {preset.speed_up:.2f} times as fast, {price}, on this clip\n")
    sys.stdout.write(f"Cache profile: {request.profile}\nPage: {request.page}\n")
    sys.stdout.write(f"Use it: zoetrope live --model {request.model} --cache-profile {request.profile}\n")
