"""Measures what KV policies cost a chunk, and how far back in time what they keep reaches.

`python -m bench.kv_reach --json`: cases of bench.drift, chunk by chunk in turn on the same captions. A token that is
attended is found again among all that the stream has made by its values, layer by layer and head by head; its age is
that of its latent frame when the last chunk begins.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.command import bench_parser, print_runs
from bench.drift import CASES
from bench.folded_cache import FoldedView, StreamsInStep
from bench.rollouts import Rollout, RolloutSettings
from bench.video_options import add_options, load_model
from bench.video_quality import FRAME_RATE
from bench.world_clips import held_out_captions
from cache.kv.view import KVView
from train.vocabulary import SUBJECTS

WINDOWS = ("window", "sink-3", "sink-6", "participative", "r1-kv", "r1-kv-no-sink", "sink-3-9", "r1-kv-9")


def marks(values: Tensor) -> Tensor:
    """Tokens' values [N, H, D] float32 -> a number for each token and head [H, N] int64, equal for equal values."""
    return values[..., :2].float().contiguous().view(torch.int64)[..., 0].transpose(0, 1).contiguous()


def frame_ages(attended: Tensor, history: Tensor, frame_tokens: int) -> Tensor:
    """Age in latent frames of each attended token, [H, M], 1 for the newest frame; marks [H, M] and [H, n] of all
    tokens so far, in order of time. Raises ValueError for a token that has never been.
    """
    ordered, order = history.sort(dim=1)
    found = torch.searchsorted(ordered, attended).clamp_max(history.shape[1] - 1)
    if not bool((ordered.gather(1, found) == attended).all()):
        raise ValueError("a token is attended that the stream has not made: is the storage exact?")
    return history.shape[1] // frame_tokens - order.gather(1, found) // frame_tokens


class TracedStreams:
    """A `StreamsInStep` of one stream that remembers the marks of all tokens, and what the last pass attended to."""

    def __init__(self, streams: StreamsInStep, layers: int) -> None:
        self._streams = streams
        self.folded, self.bytes = streams.folded, streams.bytes
        self.history: list[list[Tensor]] = [[] for _ in range(layers)]
        self.attended: list[Tensor] = [torch.empty(0)] * layers
        self.own: list[Tensor] = [torch.empty(0)] * layers

    def begin(self, frames: int) -> None:
        """The chunk before is finished: what its last pass wrote stays."""
        if self.own[0].numel():
            for layer, own in enumerate(self.own):
                self.history[layer].append(own)
        self._streams.begin(frames)

    def reset(self) -> None:
        """See `StreamsInStep`."""
        self._streams.reset()

    def view(self) -> _TracedView:
        """See `StreamsInStep`."""
        return _TracedView(self._streams.view(), self)


class _TracedView:
    def __init__(self, view: KVView | FoldedView, traced: TracedStreams) -> None:
        self._view, self._traced = view, traced
        self.rows, self.observes, self.signature, self.recall = view.rows, view.observes, view.signature, view.recall
        self.query_rotation = view.query_rotation
        self.observe = view.observe

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        attended = self._view.exchange(layer, keys, values)
        self._traced.own[layer], self._traced.attended[layer] = marks(values[0]), marks(attended[1][0])
        return attended


def reach(traced: TracedStreams, frame_tokens: int) -> dict[str, float]:
    """Ages of the past that the last pass attended to, in latent frames, over all layers and heads."""
    ages = []
    for history, attended, own in zip(traced.history, traced.attended, traced.own, strict=True):
        everything = torch.cat([*history, own], dim=1)
        found = frame_ages(attended, everything, frame_tokens) - own.shape[1] // frame_tokens
        ages.append(found[found > 0].float())
    old = torch.cat(ages)
    return {
        "mean_age": round(float(old.mean()), 2),
        "median_age": float(old.median()),
        "oldest": float(old.max()),
        "distinct_frames": statistics.mean(len(set(part.tolist())) for part in ages),
        "older_than_12": round(float((old > 12).float().mean()), 3),
    }


class Stream:
    """One caption under one case."""

    def __init__(self, model: Any, caption: str, name: str, latents: int, seed: int) -> None:
        settings = RolloutSettings(options=CASES[name].video_options(latents), seed=seed)
        self.rollout = Rollout(model, [caption], settings)
        self.traced = TracedStreams(self.rollout.cache, model.transformer.layers)
        self.rollout.cache = self.traced  # type: ignore[assignment]
        self.seconds: list[float] = []

    def chunk(self) -> None:
        """Make a chunk."""
        started = time.perf_counter()
        self.rollout.next_piece()
        self.seconds.append(time.perf_counter() - started)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All cases on all captions."""
    model = load_model(options)
    _, captions = held_out_captions(options.captions, len(SUBJECTS))
    chunk = model.preset.chunk_frames
    chunks = -(-options.seconds * FRAME_RATE // (4 * chunk))
    runs: dict[str, list[Mapping[str, float]]] = {name: [] for name in options.cases}
    for caption in captions:
        streams = {name: Stream(model, caption, name, chunk * chunks, options.seed) for name in options.cases}
        for _ in range(chunks):
            for stream in streams.values():
                stream.chunk()
        for name, stream in streams.items():
            steady = stream.seconds[len(stream.seconds) // 2 :]
            policy = stream.rollout.cache._streams.policy  # type: ignore[attr-defined]
            runs[name].append(
                {
                    "chunk_ms": round(1e3 * statistics.median(steady), 1),
                    "attended_tokens": stream.traced.attended[0].shape[1],
                    **reach(stream.traced, policy.frame_tokens),
                }
            )
    means = [
        {"case": name, **{key: round(statistics.mean(run[key] for run in found), 3) for key in found[0]}}
        for name, found in runs.items()
    ]
    return {"bench": "kv_reach", "model": model.name, "captions": options.captions, "chunks": chunks, "runs": means}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = bench_parser("kv_reach", __doc__)
    add_options(parser, captions=1, seconds=20)
    parser.set_defaults(backend="eager", dtype="float32")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(WINDOWS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print_runs(measure(options), one_line=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
