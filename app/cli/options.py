"""Command-line options generated from the control table, and the options that choose the engine to load.

The table itself validates values, so that errors read the same on the command line, the page and the API. Independent
of the commands; imports nothing heavy.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from pipelines.backends.table import backend_help
from pipelines.core.control_table import CONTROLS, STREAM_CONTROLS, ControlSpec
from pipelines.core.controls import Control, Controls
from pipelines.core.errors import ControlError, InputError
from pipelines.files.loader_options import SLICING, LoaderOptions, VideoChoices
from pipelines.files.lora_files import LoraFile

VIDEO_ENGINE_CONTROLS = tuple(
    name for name, spec in CONTROLS.items() if name not in STREAM_CONTROLS and spec.engines == ("video",)
)
"""The controls that configure a video model's engine."""

_PREFIX = "control_"  # separates the names of controls from those of a command's own options
_SIZE = re.compile(r"(\d+)[xX×](\d+)")


def add_control_options(parser: argparse.ArgumentParser, names: Iterable[str] = STREAM_CONTROLS) -> None:
    """Add one option for each named control: `--strength X`, `--seed-lock` / `--no-seed-lock`, ..."""
    group = parser.add_argument_group("controls", "Omitted controls keep the model's defaults.")
    for name in names:
        spec = CONTROLS[name]
        flag = "--" + name.replace("_", "-")
        if spec.kind == "bool":
            group.add_argument(
                flag,
                dest=_PREFIX + name,
                action=argparse.BooleanOptionalAction,
                default=None,
                help=_help_text(spec),
            )
        else:
            group.add_argument(flag, dest=_PREFIX + name, metavar=_placeholder(spec), help=_help_text(spec))


def control_from_options(options: argparse.Namespace) -> Control:
    """Return the controls that were given. Raises ControlError, worded by the table, for an invalid value."""
    given = {name: value for name in CONTROLS if (value := getattr(options, _PREFIX + name, None)) is not None}
    return Control.of({name: _typed(CONTROLS[name], value) for name, value in given.items()})


def add_engine_options(parser: argparse.ArgumentParser, *, with_model: bool = True) -> None:
    """Add the options that choose a model and how to run it. with_model: add --model; else the parser has one."""
    group = parser.add_argument_group("engine")
    if with_model:
        group.add_argument("--model", default="mini-image", metavar="NAME", help=_escaped(Controls.model.help))
    group.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, cuda:1, ...; for live also a list: cuda:0,cuda:1 (default auto)",
    )
    group.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default auto)")
    group.add_argument("--backend", default="auto", help=_escaped(backend_help()))
    group.add_argument("--size", metavar="WxH", help="picture size in pixels (default: the model's)")
    group.add_argument(
        "--frames-per-slot", default="1", metavar="N", help=_escaped(Controls.frames_per_slot.help) + " (default 1)"
    )
    group.add_argument(
        "--lora", action="append", default=[], metavar="PATH[:SCALE]", help="a LoRA file or hub id; may be repeated"
    )
    group.add_argument(
        "--cache-profile", metavar="FILE", help="presets of `--reuse` that `zoetrope analyse` calibrated for this model"
    )
    group.add_argument("--autoencoder", default="auto", metavar="NAME", help="auto, tiny, a folder or a hub id")
    group.add_argument(
        "--slicing",
        choices=SLICING,
        default="off",
        help="run an image model slice by slice, in less memory: auto, if it would not fit; on; off (default off)",
    )
    video = parser.add_argument_group("video models", "The defaults of omitted options depend on the model.")
    for name in VIDEO_ENGINE_CONTROLS:
        spec = CONTROLS[name]
        video.add_argument("--" + name.replace("_", "-"), metavar=_placeholder(spec), help=_escaped(spec.help))
    video.add_argument("--video-stream", metavar="KIND", help="chunk, step-batch or rolling")
    video.add_argument("--family", metavar="NAME", help="how a checkpoint was trained, if its name does not tell")
    video.add_argument("--base", metavar="FOLDER", help="the Wan 2.1 folder that completes a checkpoint")
    group.add_argument("--allow-pickle", action="store_true", help="also read pickled weights, which can run code")
    group.add_argument(
        "--no-safety",
        action="store_true",
        help="disable the model's safety checker, which blackens the pictures that it flags",
    )


def engine_options(options: argparse.Namespace) -> LoaderOptions:
    """Return the loader options that the command line chooses, besides `options.model`.

    Raises InputError for a size that cannot be parsed, ControlError for a value outside the table's range.
    """
    width, height = parse_size(options.size) if options.size is not None else (0, 0)
    frames = _typed(Controls.frames_per_slot, options.frames_per_slot)
    checked = Control.of({"model": options.model, "width": width, "height": height, "frames_per_slot": frames})
    assert checked.frames_per_slot is not None
    return LoaderOptions(
        device=options.device,
        dtype=options.dtype,
        width=width,
        height=height,
        frames_per_slot=checked.frames_per_slot,
        backend=options.backend,
        loras=tuple(LoraFile(source=source, weight=weight) for source, weight in map(parse_lora, options.lora)),
        autoencoder=options.autoencoder,
        allow_pickle=options.allow_pickle,
        safety=not options.no_safety,
        video=_video_choices(options),
        cache_profile=str(Path(options.cache_profile).absolute()) if options.cache_profile else "",
        slicing=options.slicing,
    )


def _video_choices(options: argparse.Namespace) -> VideoChoices:
    given = {name: value for name in VIDEO_ENGINE_CONTROLS if (value := getattr(options, name)) is not None}
    typed = {name: _typed(CONTROLS[name], value) for name, value in given.items()}
    others = {"stream": options.video_stream, "family": options.family, "base": options.base}
    return VideoChoices.of(
        {**Control.of(typed).changes(), **{name: value for name, value in others.items() if value is not None}}
    )


def parse_size(text: str) -> tuple[int, int]:
    """'512x288' -> (512, 288). Raises InputError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or "0" in (found[1], found[2]):
        raise InputError(f"{text!r} is not a size.", "Give width x height in pixels, for example 512x288.")
    return int(found[1]), int(found[2])


def parse_lora(text: str) -> tuple[str, float]:
    """'style.safetensors:0.8' -> ('style.safetensors', 0.8). The weight defaults to 1; the name of an existing path is
    never split."""
    source, colon, weight = text.rpartition(":")
    if colon and not Path(text).exists():
        try:
            return source, float(weight)
        except ValueError:
            pass  # a colon inside the path
    return text, 1.0


def _typed(spec: ControlSpec, value: object) -> object:
    """Convert an option's text to the type of its control. The range is checked later. Raises ControlError."""
    if not isinstance(value, str) or spec.kind not in ("int", "float"):
        return value
    try:
        return int(value) if spec.kind == "int" else float(value)
    except ValueError:
        expected = "a whole number" if spec.kind == "int" else "a number"
        raise ControlError(f"{spec.name} must be {expected}, not {value!r}.") from None


def _placeholder(spec: ControlSpec) -> str:
    match spec.kind:
        case "choice":
            return "|".join(spec.choices)
        case "int":
            return "N"
        case "float":
            return "X"
    return "TEXT"


def _help_text(spec: ControlSpec) -> str:
    """Return the control's help, range, unit, default and when a change takes effect."""
    facts = []
    if spec.minimum is not None and spec.maximum is not None:
        form = ".0f" if spec.kind == "int" else "g"
        whose = "weights " if spec.kind == "prompts" else ""
        facts.append(f"{whose}{spec.minimum:{form}} to {spec.maximum:{form}}{' ' + spec.unit if spec.unit else ''}")
    elif spec.unit:
        facts.append(spec.unit)
    if spec.kind == "bool":
        facts.append(f"default {'on' if spec.default else 'off'}")
    elif spec.default not in ((), ""):
        facts.append(f"default {spec.default}")
    felt = spec.propagation.value
    if spec.cut_propagation is not None:
        felt += f", {spec.cut_propagation.value} with prompt_change cut"
    facts.append(f"felt at the {felt}")
    return _escaped(f"{spec.help} [{'; '.join(facts)}]")


def _escaped(text: str) -> str:
    """argparse formats help texts with %."""
    return text.replace("%", "%%")
