"""Owns the page of an analysis: one HTML file that needs nothing from outside and opens from the disk.

Independent of measuring and of files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from cache.features.frames import ReuseSettings
from pipelines.image.analysis.analysis import Analysis
from pipelines.image.analysis.calibrate import FLOORS_DB, Trial

from .advice import advice, decibels
from .plots import Point, heat_map, over_picture, pareto

_SHOWN = (
    ("levels", "what counts as motion, in levels of 255"),
    ("margin", "latents around it that are computed too"),
    ("store_frames", "frames with motion until everything is computed again"),
    ("refresh_frames", "frames that stand still until a part is computed again"),
    ("most_cells", "share of the picture above which everything is computed"),
)
_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f3f5f8; color: #1c2430; font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 28px 16px 56px; }
h1 { font-size: 25px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 0 0 6px; }
h3 { font-size: 14px; margin: 0 0 4px; }
.facts { color: #5a6675; margin: 0 0 20px; overflow-wrap: anywhere; }
section { background: #fff; border: 1px solid #dfe4ec; border-radius: 10px; }
section { padding: 18px 22px; margin: 0 0 18px; }
section p { margin: 0 0 10px; max-width: 80ch; }
svg { display: block; max-width: 100%; height: auto; }
.cards, .pair { display: grid; gap: 16px; }
.cards { grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); margin: 14px 0 4px; }
.pair { grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); align-items: start; }
.card { border: 1px solid #dfe4ec; border-radius: 8px; padding: 12px 16px; }
.card.best { border: 2px solid #1f62a3; background: #f4f8fd; }
.card b { font-size: 15px; } .card strong { display: block; font-size: 26px; line-height: 1.3; }
.card span { display: block; color: #5a6675; font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 5px 10px 5px 0; border-bottom: 1px solid #e6eaf0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: #f3f5f8; border-radius: 6px; padding: 10px 14px; margin: 16px 0 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
"""


def page(found: Analysis, clip: str, profile: str) -> str:
    """Return the page. clip: its name. profile: the name of the cache profile's file."""
    made = found.profile
    facts = (
        f"{made.model} at {made.width}x{made.height}, {made.steps} steps, strength {made.strength:g}, backend "
        f"{made.backend}; {found.frames} frames of {clip}; {made.made}"
    )
    sections = (
        _choice(found, profile),
        _trade(found),
        _where(found),
        _frames(found),
        _steps(found),
        _settings(found),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>What repeats: {escape(made.model)}, {escape(clip)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>What repeats in {escape(clip)}</h1><p class="facts">{escape(facts)}</p>{"".join(sections)}'
        "</main></body></html>\n"
    )


def _choice(found: Analysis, profile: str) -> str:
    told = advice(found)
    shown = {"exact": found.defaults["exact"], **found.chosen}
    cards = "".join(_card(name, trial, best=name == told.preset) for name, trial in shown.items())
    text = "".join(f"<p>{escape(sentence)}</p>" for sentence in told.sentences)
    made = found.profile
    size = f" --size {made.width}x{made.height}"
    commands = (
        f"zoetrope live --model {made.model} --cache-profile {profile}{size}\n"
        f"zoetrope render --model {made.model} --cache-profile {profile}{size} --reuse {told.preset} IN.mp4 OUT.mp4 "
        '--prompt "…"'
    )
    return _section("What to choose", f'{text}<div class="cards">{cards}</div><pre>{escape(commands)}</pre>')


def _card(name: str, trial: Trial, *, best: bool) -> str:
    limited = (
        "<span>limited to repeated frames: more does not pay</span>"
        if trial.settings.exact and name in FLOORS_DB
        else ""
    )
    mark = ' class="card best"' if best else ' class="card"'
    return (
        f"<div{mark}><b>{escape(name)}</b><strong>{trial.speed_up:.2f}×</strong>"
        f"<span>{escape(decibels(trial.psnr_db))}</span>"
        f"<span>{100 * trial.computed:.0f} % of the picture computed</span>"
        f"<span>{100 * trial.hit_rate:.0f} % of the frames reuse something</span>{limited}</div>"
    )


def _trade(found: Analysis) -> str:
    points = [Point(speed_up=trial.speed_up, psnr_db=trial.psnr_db) for trial in found.trials]
    points += [
        _named(f"{name}, built in", trial, filled=False) for name, trial in found.defaults.items() if name in FLOORS_DB
    ]
    points.append(_named("exact", found.defaults["exact"], filled=True))
    points += [_named(f"{name}, calibrated", trial, filled=True) for name, trial in found.chosen.items()]
    floors = [(f"{name}: at least {floor:g} dB", floor) for name, floor in FLOORS_DB.items()]
    first, stop = found.inside.part
    text = (
        "How fast each way to run is, and how far its pictures are from those computed in full (peak signal-to-noise "
        "ratio over the clip). Up and to the right is better. Rings are the built-in presets, discs the calibrated "
        f"ones, on the whole clip; grey dots are the {len(found.trials)} candidates, on frames {first} to {stop - 1}."
    )
    return _section("Speed against fidelity", f"<p>{escape(text)}</p>{pareto(points, floors)}")


def _named(name: str, trial: Trial, *, filled: bool) -> Point:
    inks = {"exact": "#3a4350", "balanced": "#1f62a3", "fastest": "#b4571b"}
    return Point(
        speed_up=trial.speed_up, psnr_db=trial.psnr_db, name=name, filled=filled, ink=inks[name.partition(",")[0]]
    )


def _where(found: Analysis) -> str:
    change = found.inside.live.picture
    most = max(1.0, float(np.percentile(change, 99)))
    moving = over_picture(found.picture, found.moving, most=1.0, told="moves in {} % of the frames")
    output = over_picture(found.picture, change / most, most=1.0, told="{} % of the largest change")
    text = (
        f"On average {100 * found.moving.mean():.0f} % of the picture moves from one frame to the next. Its noise is "
        f"{found.noise:.2f} levels of 255, averaged over the pixels of a latent."
    )
    return _section(
        "Where things move",
        f'<p>{escape(text)}</p><div class="pair">'
        f"<div><h3>In the input: how often a part moves</h3>{moving}</div>"
        f"<div><h3>In the output: mean change, up to {most:.0f} levels</h3>{output}</div></div>",
    )


def _frames(found: Analysis) -> str:
    live = found.inside.live
    mean = live.frames.mean(axis=2)
    most = _scale(mean)
    numbers = [str(found.inside.part[0] + 1 + n) for n in range(mean.shape[1])]
    steps = [str(n + 1) for n in range(live.frames.shape[2])]
    text = (
        "How much the output of each layer changes from one frame to the next at the same denoising step, relative to "
        "its size. Pale rows and columns repeat: there reuse costs little. Dark columns are frames with much motion."
    )
    per_step = (
        f"<h3>Mean over the frames, step by step</h3>"
        f"{heat_map(live.frames.mean(axis=1), live.blocks, steps, most=most, axis='step', width_px=560)}"
    )
    return _section(
        "From frame to frame",
        f"<p>{escape(text)}</p>{heat_map(mean, live.blocks, numbers, most=most, axis='frame')}{per_step}",
    )


def _steps(found: Analysis) -> str:
    render = found.inside.render
    count = render.output_steps.shape[0]
    pairs = [f"{n}→{n + 1}" for n in range(1, count)]
    names = [str(n + 1) for n in range(count)]
    text = (
        f"How much changes from one step to the next within a frame, in {count} steps of DDIM. Live streams of one to "
        "four steps have nothing to reuse here; renders of many steps do, with --step-cache: docs/caching-steps.md."
    )
    blocks = heat_map(render.steps, render.blocks, pairs, most=_scale(render.steps), axis="from step to step")
    table = render.output_steps
    square = heat_map(
        table, [f"step {n}" for n in names], names, most=_scale(table), axis="step", width_px=560, label_px=70
    )
    return _section(
        "From step to step",
        f"<p>{escape(text)}</p>{blocks}<h3>The network's output, any step against any other</h3>{square}",
    )


def _settings(found: Analysis) -> str:
    columns: list[tuple[str, ReuseSettings]] = []
    for name in FLOORS_DB:
        columns += [
            (f"{name}, built in", found.defaults[name].settings),
            (f"{name}, calibrated", found.chosen[name].settings),
        ]
    head = "".join(f'<th class="number">{escape(name)}</th>' for name, _ in columns)
    rows = "".join(_row(name, text, [settings for _, settings in columns]) for name, text in _SHOWN)
    return _section("Settings", f"<table><tr><th>setting</th>{head}</tr>{rows}</table>")


def _row(name: str, text: str, settings: Sequence[ReuseSettings]) -> str:
    cells = "".join(
        f'<td class="number">{"–" if one.exact else format(getattr(one, name), "g")}</td>' for one in settings
    )
    return f"<tr><td><b>{escape(name)}</b>: {escape(text)}</td>{cells}</tr>"


def _scale(values: np.ndarray) -> float:
    """Return the value of the darkest colour: round, and above nearly all values."""
    top = float(np.percentile(values, 92)) if values.size else 0.0
    return max(0.05, min(1.0, math.ceil(top * 20) / 20))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"
