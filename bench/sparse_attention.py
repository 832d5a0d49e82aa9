"""Measures self-attention to windows of keys with restored denominators: time and error against full attention.

`python -m bench.sparse_attention --json`: the time of one layer of 64x64 tokens in the shapes of Stable Diffusion (8
heads of 40, 8 heads of 64), with random features, since time does not depend on them; and the error in mini-image at
1024x1024 pixels, whose own attention then has 64x64 tokens (the first 8 of its 24 heads of 6): queries, keys and values
of a frame, with the ratio of the frame before it, of a photograph that moves by 1.5 pixels a frame.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from bench.command import bench_parser, print_runs
from bench.feature_bank import PROMPT, clips
from pipelines.core.controls import Control
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.image.feature_bank.memory import self_attentions
from pipelines.image.sparse_attention.formulas import KeyWindows, full_attention, outside_attention, windowed_attention
from pipelines.load import load_engine

SHAPES = ((8, 40), (8, 64))
GRID = (64, 64)
BLOCK = 8
_RECORDED = 8  # heads
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(times), 1)


def refreshed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, windows: KeyWindows) -> torch.Tensor:
    """Do what a full call does: attention, its ratio, and what the keys outside the windows add."""
    result, ratio = full_attention(query, key, value, windows)
    return outside_attention(result, query, key, value, windows, ratio)


def timed(heads: int, width: int, sides: Sequence[int], repeats: int) -> list[dict[str, object]]:
    """Return the times of one layer for each window."""
    made = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn((1, heads, GRID[0] * GRID[1], width), generator=made) for _ in range(3))
    plain = milliseconds(lambda: functional.scaled_dot_product_attention(query, key, value), repeats)
    runs: list[dict[str, object]] = []
    for side in sides:
        windows = KeyWindows(GRID, block=BLOCK, window=side, device=query.device)
        ratio = torch.ones(query.shape[:3])
        windowed = milliseconds(partial(windowed_attention, query, key, value, windows, ratio), repeats)
        refresh = milliseconds(partial(refreshed, query, key, value, windows), max(1, repeats // 2))
        every_4 = (refresh + 3 * windowed) / 4
        runs.append(
            {
                "heads": f"{heads}x{width}",
                "window": side,
                "keys_share": round(windows.share, 3),
                "full_ms": plain,
                "windowed_ms": windowed,
                "refresh_ms": refresh,
                "speed_up": round(plain / windowed, 2),
                "speed_up_refreshed_every_4": round(plain / every_4, 2),
            }
        )
    return runs


class Recorder:
    """A processor that computes as diffusers' own and keeps queries, keys and values."""

    def __init__(self) -> None:
        self.heads: list[Heads] = []

    def __call__(self, attn: Any, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        self.heads.append((query[:, :_RECORDED], key[:, :_RECORDED], value[:, :_RECORDED]))
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        output: torch.Tensor = attn.to_out[0](seen)
        return output


def recorded(frames: int) -> list[Recorder]:
    """Return what mini-image's self-attention layers computed in each frame, one step each."""
    engine = load_engine("mini-image", backend="eager", width=1024, height=1024)
    assert isinstance(engine, ImageEngine)
    denoiser: Any = engine.core.denoiser
    recorders = []
    for _, module in self_attentions(denoiser.unet):
        recorders.append(Recorder())
        module.set_processor(recorders[-1])
    for recorder in recorders:  # loading runs parts too
        recorder.heads.clear()
    with engine.open(Control.of({"prompt": PROMPT, "steps": 1})) as stream:
        for number, picture in enumerate(clips(1024, frames)["pan"]):
            stream.push(Frame(image=picture, pts=number, time_base=Fraction(1, 24), seq=number))
            engine.tick()
            stream.flush()
    return recorders


def relative(got: torch.Tensor, exact: torch.Tensor) -> float:
    """|got - exact| / |exact|."""
    return float((got - exact).norm() / exact.norm())


def errors(recorders: Sequence[Recorder], sides: Sequence[int]) -> list[dict[str, object]]:
    """Return the mean relative error of all layers' attention, for each window: of the window alone, with the last
    frame's ratio, with what its keys outside added too, and of the last frame's attention as it was."""
    runs: list[dict[str, object]] = []
    for side in sides:
        windows = KeyWindows(GRID, block=BLOCK, window=side, device=torch.device("cpu"))
        found: dict[str, list[float]] = {name: [] for name in ("window_only", "ratio", "ratio_and_outside", "held")}
        mass = []
        for recorder in recorders:
            last, now = recorder.heads[-2:]
            before, ratio = full_attention(*last, windows)
            outside = outside_attention(before, *last, windows, ratio)
            exact, own = full_attention(*now, windows)
            windowed = windowed_attention(*now, windows, ratio)
            found["window_only"].append(relative(windowed_attention(*now, windows, torch.ones_like(own)), exact))
            found["ratio"].append(relative(windowed, exact))
            found["ratio_and_outside"].append(relative(windowed + outside, exact))
            found["held"].append(relative(before, exact))
            mass.append(float(own.mean()))
        means = {name: round(statistics.mean(values), 4) for name, values in found.items()}
        runs.append({"model": "mini-image 1024x1024", "window": side, "rho": round(statistics.mean(mass), 3), **means})
    return runs


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, object]:
    """Return all figures."""
    sides = [int(side) for side in options.windows.split(",")]
    runs = [run for heads, width in SHAPES for run in timed(heads, width, sides, options.repeats)]
    if not options.times_only:
        runs += errors(recorded(2), sides)
    return {"tokens": GRID[0] * GRID[1], "block": BLOCK, "threads": torch.get_num_threads(), "runs": runs}


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    parser = bench_parser("sparse_attention", __doc__)
    parser.add_argument("--repeats", type=int, default=5, help="of each timing")
    parser.add_argument("--windows", default="16,24,32", help="sides of windows, in tokens")
    parser.add_argument("--times-only", action="store_true", help="leave out the errors in mini-image")
    options = parser.parse_args(arguments)
    print_runs(measure(options), one_line=options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
