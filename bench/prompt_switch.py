"""Measures how fast a stream follows a new prompt: chunks until the classifier sees it, and until the old one is gone.

`python -m bench.prompt_switch --json`: pairs of held-out scenes that differ in subject and place, through the engine
and its controls, for each mode of `prompt_change`: cut (the past is passed again with the new prompt), flush (the
cache keeps sink and last frame), glide (embeddings are interpolated over `transition_frames`). --recache-from and
--recache-drift: of a cut, which layers of the past are computed again, see pipelines/video/recache.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.command import bench_parser, print_listing
from bench.video_options import add_options, classifier_of, load_model
from bench.video_quality import classify
from bench.video_scores import truth_of
from pipelines.core.controls import Control
from pipelines.video.engine import VideoEngine
from pipelines.video.model import VideoModel
from pipelines.video.options import VideoOptions
from pipelines.video.stream import VideoStream
from train.clips.captions import canonical_clip_caption
from train.clips.motions import ClipSpec, sample_clip_specs
from train.vocabulary import SUBJECTS

MODES = ("cut", "flush", "glide")
GLIDE_FRAMES = 24


def pairs(count: int, subjects: int, seed: int) -> tuple[ClipSpec, ClipSpec]:
    """(before, after): held-out scenes with a subject and a place that differ in both."""
    generator = torch.Generator().manual_seed(seed)
    drawn = sample_clip_specs(40 * count + 200, generator, torch.device("cpu"), True, subjects=subjects)
    rows = ((drawn.subject >= 0) & (drawn.place >= 0)).nonzero().flatten()
    fit = ClipSpec(*(field[rows] for field in drawn))
    half = rows.shape[0] // 2
    before, after = (ClipSpec(*(f[part] for f in fit)) for part in (slice(0, half), slice(half, 2 * half)))
    differ = ((before.subject != after.subject) & (before.place != after.place)).nonzero().flatten()[:count]
    return ClipSpec(*(f[differ] for f in before)), ClipSpec(*(f[differ] for f in after))


def caption_list(spec: ClipSpec) -> list[str]:
    """Canonical captions."""
    return [canonical_clip_caption(*row) for row in torch.stack(list(spec), 1).tolist()]


class Streams:
    """Streams of one engine, a chunk at a time, in lockstep."""

    def __init__(self, engine: VideoEngine, prompts: Sequence[str], seed: int) -> None:
        self._engine = engine
        self.last_s = 0.0
        """Time that the last chunk took, of all streams together."""
        self.streams: list[VideoStream] = [
            engine.open(Control.of({"prompt": prompt, "seed": seed + i})) for i, prompt in enumerate(prompts)
        ]

    def chunk(self) -> Tensor:
        """The last frame of every stream's next chunk: [N, 3, H, W] in 0..1."""
        started = time.perf_counter()
        for stream in self.streams:
            assert stream.generate(stream.info.frames_per_chunk)
        while any(stream.has_work for stream in self.streams):
            self._engine.tick()
        last = [stream.flush()[-1].image for stream in self.streams]
        self.last_s = time.perf_counter() - started
        return torch.from_numpy(np.stack(last)).permute(0, 3, 1, 2).float() / 255

    def apply(self, controls: Sequence[Control]) -> None:
        """Apply one control per stream."""
        for stream, control in zip(self.streams, controls, strict=True):
            stream.apply(control)

    def close(self) -> None:
        """Close all streams."""
        for stream in self.streams:
            stream.close()


def chunks_until(holds: Tensor) -> list[int | None]:
    """For rows [N, chunks] of bool: the chunk, from 1, from which it holds to the end; None: never."""
    chunks: list[int | None] = []
    for line in holds.tolist():
        trailing = 0
        while trailing < len(line) and line[len(line) - 1 - trailing]:
            trailing += 1
        chunks.append(len(line) - trailing + 1 if trailing else None)
    return chunks


def statistics_of(chunks: Sequence[int | None]) -> dict[str, float | None]:
    """Share of the streams that reach it, and their median and worst chunk."""
    reached = [chunk for chunk in chunks if chunk is not None]
    share = len(reached) / max(1, len(chunks))
    median, worst = (statistics.median(reached), max(reached)) if reached else (None, None)
    return {"share": round(share, 4), "median_chunk": median, "worst_chunk": worst}


def verdict(classes: Tensor, before: ClipSpec, after: ClipSpec) -> dict[str, Any]:
    """classes: [N, chunks, 3] after the change. Seen: subject and place are both new; gone: neither is the old one."""
    old, new = truth_of(before)[:, None, :2], truth_of(after)[:, None, :2]
    seen = (classes[..., :2] == new).all(2)
    gone = (classes[..., :2] != old).all(2)
    parts = {
        "new_seen": seen,
        "new_subject": classes[..., 0] == new[..., 0],
        "new_place": classes[..., 1] == new[..., 1],
        "old_gone": gone,
    }
    return {
        **{name: statistics_of(chunks_until(holds)) for name, holds in parts.items()},
        "new_seen_by_chunk": [round(v, 3) for v in seen.double().mean(0).tolist()],
    }


def switch(model: VideoModel, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one mode."""
    judge, side_px = classifier_of(options)
    before, after = pairs(options.captions, len(SUBJECTS), options.seed)
    chosen = VideoOptions(
        max_streams=len(before.subject),
        policy=options.policy,
        recache_from=options.recache_from,
        recache_drift=options.recache_drift,
    )
    engine = VideoEngine(model, chosen)
    streams = Streams(engine, caption_list(before), options.seed)
    for _ in range(options.chunks_before):
        last = streams.chunk()
    before_s = streams.last_s
    at_change = classify(judge, last.to(model.device), side_px).cpu()
    change = {"prompt_change": mode, "transition_frames": GLIDE_FRAMES}
    streams.apply([Control.of({"prompt": caption, **change}) for caption in caption_list(after)])
    classes, seconds = [], []
    for _ in range(options.chunks_after):
        classes.append(classify(judge, streams.chunk().to(model.device), side_px).cpu())
        seconds.append(streams.last_s)
    streams.close()
    engine.close()
    seen = (at_change[:, :2] == truth_of(before)[:, :2]).all(1).double().mean()
    times = {"chunk_before_s": round(before_s, 3), "first_chunk_s": round(seconds[0], 3)}
    return {**times, "old_seen_before": round(float(seen), 4), **verdict(torch.stack(classes, 1), before, after)}


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every mode."""
    model = load_model(options)
    return {
        "bench": "prompt_switch",
        "model": model.name,
        "streams": options.captions,
        "chunk_latents": model.preset.chunk_frames,
        "policy": options.policy or model.preset.policy,
        "glide_frames": GLIDE_FRAMES,
        "recache": {"from": options.recache_from, "drift": options.recache_drift},
        "modes": {mode: switch(model, mode, options) for mode in options.modes},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = bench_parser("prompt_switch", __doc__)
    add_options(parser, captions=32, seconds=0)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--recache-from", type=int, default=0, help="layer from which a cut computes the past again")
    parser.add_argument("--recache-drift", type=float, default=0.0, help="or the drift from which it does")
    parser.add_argument("--chunks-before", type=int, default=6)
    parser.add_argument("--chunks-after", type=int, default=10)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print_listing(measure(options), one_line=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
