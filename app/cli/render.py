"""`zoetrope render`: a video, pictures or a prompt in, a video or pictures out. Parses the command line only."""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.render.timeline import Timeline
from app.worker.threads import begin_start, end_start, leave_out_packages, limit_spinning
from pipelines.core.errors import InputError

from .options import add_control_options, add_engine_options, control_from_options, engine_options, parse_size

if TYPE_CHECKING:
    from app.render.request import OutSize, RenderRequest
    from app.render.take import TakeRequest
    from pipelines.core.contracts import Engine
    from pipelines.core.controls import Control

_DEFAULT_RATE = Fraction(24)
_MAX_RATE = 1000
_EXAMPLES = """examples:
  zoetrope render camera.mp4 out.mp4 --prompt "a robot on the beach, pencil sketch" --strength 0.5
  zoetrope render drawings/ out.webm --fps 12 --prompt "a robot, neon lines"
  zoetrope render --prompt-only --seconds 10 out.mp4 --prompt "a cat on the beach"
  zoetrope render camera.mp4 out.gif --prompt "a robot"        (or .mov, .mkv, .webm)
  zoetrope render camera.mp4 frames/ --prompt "a robot"        (a folder of PNG)
  zoetrope render --prompt-only --seconds 12 out.mp4 --timeline examples/story.json
  zoetrope render camera.mp4 out.mp4 --prompt "a robot" --step-function dpmpp --steps 20 --step-cache taylorseer
  zoetrope render camera.mp4 out.mp4 --prompt "a robot" --resume
  zoetrope render --take FOLDER out.mp4                        (replays a live session's take)
  zoetrope render --take FOLDER out.mp4 --fill-drops --steps 8 --size 512x512
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `render` to the command line."""
    parser = subparsers.add_parser(
        "render",
        help="render a video, pictures or a prompt to a file",
        description="Render a video file, a folder of pictures or only a prompt to a video file or a folder of PNG.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="+", metavar="INPUT OUTPUT", help="only OUTPUT with --prompt-only and --take")
    parser.add_argument("--prompt-only", action="store_true", help="no input: generate from the prompt alone")
    parser.add_argument("--seconds", metavar="S", help="length of a prompt-only render")
    parser.add_argument(
        "--fps",
        metavar="N",
        help="frame rate of pictures (default 24) and prompt-only renders (default: the model's own)",
    )
    parser.add_argument(
        "--aspect", default="pad", metavar="pad|crop|stretch", help="if the aspect ratios differ (default pad)"
    )
    parser.add_argument("--out-size", default="native", metavar="native|source|WxH", help="size of the output")
    parser.add_argument(
        "--first-picture", metavar="FILE", help="a picture that a prompt-only video begins with (video models)"
    )
    parser.add_argument(
        "--max-pixels", metavar="N", help="largest picture or video frame that is read, in pixels (default 67108864)"
    )
    parser.add_argument(
        "--timeline", metavar="FILE", help="timed control changes, as JSON: docs/render.md has the format"
    )
    parser.add_argument("--take", metavar="FOLDER", help="replay a live session's take: the same frames as live")
    parser.add_argument(
        "--fill-drops", action="store_true", help="with --take: also render the inputs dropped live (changes frames)"
    )
    parser.add_argument(
        "--step-cache",
        default="",
        metavar="NAME",
        help="reuse what the network computes from step to step, for renders of many steps: docs/caching-steps.md",
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted render")
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    add_engine_options(parser)
    add_control_options(parser)
    parser.set_defaults(run=run, own_process=False)


def run(options: argparse.Namespace) -> int:
    """Check the options, then render. Returns the exit status. Raises ZoetropeError."""
    if options.take is not None:
        return _run_take(take_from_options(options), own_process=options.own_process)
    if options.fill_drops:
        raise InputError("--fill-drops was given without a take.", "Add --take FOLDER.")
    request = request_from_options(options)
    timeline = Timeline.read(request.timeline) if request.timeline is not None else Timeline()
    tell_unknown_words(options.model, request.control, *(cue.control for cue in timeline.cues))
    with _loading(own_process=options.own_process) as load:
        from app.render.job import render

        return render(request, load, _say)


def _run_take(request: TakeRequest, *, own_process: bool) -> int:
    with _loading(own_process=own_process) as load:
        from app.render.take import render_take

        return render_take(request, load, _say)


@contextmanager
def _loading(*, own_process: bool) -> Iterator[Callable[..., Engine]]:
    """Prepare the process for an engine; gives what loads one."""
    limit_spinning()
    if own_process:
        leave_out_packages()
        begin_start()

    def load(*arguments: Any, **options: Any) -> Engine:
        from pipelines.load import load_engine

        engine = load_engine(*arguments, **options)
        if own_process:
            end_start()
        return engine

    try:
        yield load
    finally:
        gc.enable()


def take_from_options(options: argparse.Namespace) -> TakeRequest:
    """The request with --take. Raises InputError for an option that the take itself determines."""
    from app.render.take import TakeRequest

    engine, control = engine_options(options), control_from_options(options).changes()
    steps = control.pop("steps", 0)
    others = {"--prompt-only": options.prompt_only, "--seconds": options.seconds, "--fps": options.fps}
    others |= {
        "--resume": options.resume,
        "--lora": options.lora,
        "--first-picture": options.first_picture,
        "--max-pixels": options.max_pixels,
        "--timeline": options.timeline,
        "--step-cache": options.step_cache,
        **dict.fromkeys(map(_flag, control), True),
    }
    given = [name for name, value in others.items() if value]
    if given:
        raise InputError(
            f"{', '.join(given)} cannot be combined with --take, which has its own.",
            "Besides device, dtype, backend and output, only --fill-drops, --steps and --size can be given.",
        )
    if len(options.paths) != 1:
        raise InputError(f"{len(options.paths)} paths were given.", "With --take give OUTPUT only.")
    assert isinstance(steps, int)
    output = str(options.paths[0])
    runs_on = {"device": engine.device, "dtype": engine.dtype, "backend": engine.backend}
    return TakeRequest(
        take=Path(options.take),
        output=Path(output),
        as_folder=output.endswith(("/", "\\")),
        fill_drops=options.fill_drops,
        steps=steps,
        size=parse_size(options.size) if options.size is not None else None,
        runs_on={name: value for name, value in runs_on.items() if value != "auto"},
        allow_pickle=options.allow_pickle,
        force=options.force,
    )


def _flag(control: str) -> str:
    return "--" + control.replace("_", "-")


def request_from_options(options: argparse.Namespace) -> RenderRequest:
    """The request of the command line. Raises InputError."""
    from app.media.geometry import Aspect
    from app.render.request import RenderRequest

    if options.force and options.resume:
        raise InputError("--force and --resume were both given.", "--force starts over, --resume continues: give one.")
    if len(options.paths) != (1 if options.prompt_only else 2):
        shape = "OUTPUT only" if options.prompt_only else "INPUT and OUTPUT"
        raise InputError(f"{len(options.paths)} paths were given.", f"Give {shape}.")
    if options.aspect not in {aspect.value for aspect in Aspect}:
        raise InputError(f"aspect cannot be {options.aspect!r}.", "Choose one of: pad, crop, stretch.")
    rate = _frame_rate(options.fps) if options.fps is not None else None
    output = str(options.paths[-1])
    return RenderRequest(
        source=None if options.prompt_only else Path(options.paths[0]),
        output=Path(output),
        as_folder=output.endswith(("/", "\\")),
        control=control_from_options(options),
        model=options.model,
        engine=engine_options(options).changed({"step_cache": options.step_cache}),
        aspect=Aspect(options.aspect),
        out_size=_out_size(options.out_size),
        frame_rate=rate,
        frames=_frames(options, rate or _DEFAULT_RATE) if rate is not None else None,
        seconds=_seconds(options, rate),
        first_picture=_first_picture(options),
        timeline=Path(options.timeline) if options.timeline is not None else None,
        force=options.force,
        resume=options.resume,
        **_max_pixels(options),
    )


def tell_unknown_words(model: str, *controls: Control) -> None:
    """Print which words of the prompts a bundled model does not know, with similar ones it does."""
    from pipelines.files.vocabulary import Vocabulary, world_file

    world = world_file(model)
    if world is None:
        return
    vocabulary = Vocabulary.read(world)
    for prompt in dict.fromkeys(prompt for control in controls for prompt in control.prompt or ()):
        if notice := vocabulary.notice(prompt.text):
            _say(f"{prompt.text!r}: {notice}")


def _first_picture(options: argparse.Namespace) -> Path | None:
    if options.first_picture is None:
        return None
    if not options.prompt_only:
        raise InputError("--first-picture was given with an input.", "It belongs to --prompt-only.")
    return Path(options.first_picture)


def _max_pixels(options: argparse.Namespace) -> dict[str, int]:
    """What was given, as a field of the request."""
    if options.max_pixels is None:
        return {}
    digits = options.max_pixels
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10 and 0 < int(digits) < 2**31):
        raise InputError(f"--max-pixels cannot be {digits!r}.", "Give a whole number of pixels, up to 2147483647.")
    return {"max_px": int(digits)}


def _seconds(options: argparse.Namespace, rate: Fraction | None) -> Fraction | None:
    """The length of a prompt-only render at the model's own rate; None if `frames` gives it."""
    if rate is not None or _frames(options, _DEFAULT_RATE) is None:
        return None
    return _number("seconds", options.seconds)


def _frames(options: argparse.Namespace, rate: Fraction) -> int | None:
    if not options.prompt_only:
        if options.seconds is not None:
            raise InputError("--seconds was given with an input.", "It belongs to --prompt-only.")
        return None
    if options.seconds is None:
        raise InputError("--prompt-only needs a length.", "Give --seconds S.")
    frames = round(_number("seconds", options.seconds) * rate)
    if frames < 1:
        raise InputError(f"{options.seconds} seconds at {rate} frames a second is less than one frame.", "Give more.")
    return frames


def _frame_rate(text: str) -> Fraction:
    """'24', '23.976' or '30000/1001'."""
    top, slash, bottom = text.partition("/")
    rate = _number("fps", top) / (_number("fps", bottom) if slash else 1)
    if rate > _MAX_RATE:
        raise InputError(f"fps cannot be {text}.", f"Give at most {_MAX_RATE}.")
    return rate


def _number(name: str, text: str) -> Fraction:
    """A decimal number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} cannot be {text!r}.", "Give a number above 0.")
    return Fraction(str(value)).limit_denominator(100_000)


def _out_size(text: str) -> OutSize:
    return text if text in ("native", "source") else parse_size(text)


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")
