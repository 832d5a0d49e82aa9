"""Measures the drift of every cache policy: the same prompts for a minute under each, and how picture quality changes.

`python -m bench.drift --json`: 32 held-out captions x 60 s x every case of CASES, streams in lockstep as one batch. One
JSON file per case under --out; cases whose file exists are skipped, so a run that was interrupted, or ended by
--minutes, can be continued. Formulas: bench/video_quality.py; plots: bench/drift_plots.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bench.command import bench_parser
from bench.motion_judge import load_motion_judge
from bench.rollouts import ROLLOUT_BACKEND, Rollout, RolloutSettings
from bench.video_options import add_options, classifier_of, load_model
from bench.video_quality import FRAME_RATE, StreamFigures, StreamMeter
from bench.video_scores import bars, summary
from bench.world_clips import held_out_captions
from pipelines.video.loading.families import MINI_VIDEO
from pipelines.video.model import VideoModel
from pipelines.video.options import VideoOptions
from train.vocabulary import SUBJECTS

OUT = Path("docs/drift")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A policy of cache.kv.policies with options for a window of 12 latent frames, including a chunk of 3; of 9 where
    the name ends in -9.
    """

    policy: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def video_options(self, latents: int) -> VideoOptions:
        """latents: of the whole stream, all of which `full` must hold."""
        own = {**self.options, **({"max_frames": latents} if self.policy == "full" else {})}
        return VideoOptions(policy=self.policy, policy_options=own)


CASES: Mapping[str, Case] = MappingProxyType(
    {
        "window": Case(policy="window", options={"window_frames": 12}),
        "sink-1": Case(policy="sink", options={"window_frames": 12, "sink_frames": 1}),
        "sink-3": Case(policy="sink", options={"window_frames": 12, "sink_frames": 3}),
        "adaptive-sink": Case(policy="adaptive-sink", options={"window_frames": 12, "sink_frames": 3}),
        "deep-sink": Case(policy="deep-sink", options={"window_frames": 12, "sink_frames": 6, "positions": "slot"}),
        "participative": Case(
            policy="participative", options={"window_frames": 12, **MINI_VIDEO.other_policies["participative"]}
        ),
        "r1-kv": Case(policy="r1-kv", options={"window_frames": 12, **MINI_VIDEO.other_policies["r1-kv"]}),
        "r1-kv-no-sink": Case(policy="r1-kv", options={"window_frames": 12, "sink_frames": 0, "recent_frames": 3}),
        "r1-kv-9": Case(policy="r1-kv", options={"window_frames": 9, "sink_frames": 3, "recent_frames": 1}),
        "sink-3-9": Case(policy="sink", options={"window_frames": 9, "sink_frames": 3}),
        **{
            policy: Case(policy=policy, options=MINI_VIDEO.other_policies[policy])
            for policy in ("heavy-hitter", "packed", "dual", "rebuild")
        },
        "sink-3-absolute": Case(
            policy="sink", options={"window_frames": 12, "sink_frames": 3, "positions": "absolute"}
        ),
        "sink-6": Case(policy="sink", options={"window_frames": 12, "sink_frames": 6}),
        "deep-sink-realigned": Case(policy="deep-sink", options={"window_frames": 12, "sink_frames": 6}),
        "full": Case(policy="full"),
    }
)
"""Every policy at least once, and several sink sizes; the most promising first."""


class OutOfTimeError(Exception):
    """--minutes are over; finished cases have their files."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """What all cases share. stop_at: in time.monotonic()."""

    model: VideoModel
    options: argparse.Namespace
    stop_at: float

    @property
    def settings(self) -> dict[str, Any]:
        """What two results must share to be comparable."""
        o = self.options
        return {
            "model": self.model.name,
            "captions": o.captions,
            "seconds": o.seconds,
            "seed": o.seed,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    @property
    def latents(self) -> int:
        """Latent frames per stream, up to a chunk more than its seconds need."""
        chunk, frames = self.model.preset.chunk_frames, int(self.options.seconds) * FRAME_RATE
        return (-(-(frames + 3) // (4 * chunk)) + 1) * chunk


def measured(run: Run, case: Case) -> dict[str, Any]:
    """Measure one case. Raises OutOfTimeError."""
    o = run.options
    judge, side_px = classifier_of(o)
    spec, captions = held_out_captions(o.captions, len(SUBJECTS))
    settings = RolloutSettings(options=case.video_options(run.latents), seed=o.seed)
    parts: list[StreamFigures] = []
    rolled_s, passed = 0.0, time.perf_counter()
    for start in range(0, len(captions), o.batch):
        rollout = Rollout(run.model, captions[start : start + o.batch], settings)
        meter = StreamMeter(judge, side_px=side_px)
        for piece in _in_time(rollout.pieces(o.seconds * FRAME_RATE), run.stop_at):
            _synchronise(run.model.device)
            rolled_s += time.perf_counter() - passed
            meter.add(piece)
            passed = time.perf_counter()
        parts.append(meter.figures())
        held = {name: size // rollout.streams for name, size in rollout.bytes.items()}
    scores = summary(StreamFigures.concatenate(parts), spec, load_motion_judge())
    return {
        **run.settings,
        "policy": case.policy,
        "options": dict(case.options),
        "device": run.model.device.type,
        "backend": run.model.runtime.backend,
        "streams_folded": rollout.cache.folded,
        "frames_per_second": round(len(captions) * o.seconds * FRAME_RATE / rolled_s, 1),
        "rolled_s": round(rolled_s, 1),
        "kv_mib_of_a_stream": round(held["kv"] / 2**20, 2),
        "bars": {bar.name: bar.record() for bar in bars(scores)},
        **scores,
    }


def _in_time(pieces: Iterator[Tensor], stop_at: float) -> Iterator[Tensor]:
    for piece in pieces:
        if time.monotonic() > stop_at:
            raise OutOfTimeError
        yield piece


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_case(file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A finished case. Raises ValueError if it was measured with other settings."""
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    other = {name: result.get(name) for name, value in settings.items() if result.get(name) != value}
    if other:
        raise ValueError(f"{file} was measured with {other}, not {dict(settings)}: use another --out, or delete it")
    return result


def run_cases(run: Run, names: Sequence[str], out: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(results by name, names not measured in time). Each finished case is written at once."""
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        file = out / f"{name}.json"
        if file.is_file():
            results[name] = read_case(file, run.settings)
            continue
        try:
            results[name] = measured(run, CASES[name])
        except OutOfTimeError:
            return results, list(names[number:])
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps(results[name]) + "\n", encoding="utf-8")
        unfinished.replace(file)
        print(json.dumps({"case": name, **row(results[name])}), file=sys.stderr, flush=True)
    return results, []


def row(result: Mapping[str, Any]) -> dict[str, Any]:
    """A case's row of the table: figures at the end of the stream, relative to those of seconds 2 to 5."""
    end, reference, start = result["end"], result["seconds_2_to_5"], result["start"]

    def relative(name: str, before: Mapping[str, Any]) -> float:
        return round(end[name] / before[name], 3) if before[name] else 0.0

    return {
        "sharpness": relative("sharpness", reference),
        "saturation": relative("saturation", reference),
        "degree": relative("degree", start),
        "flicker": relative("flicker", reference),
        "colour_drift": round(end.get("histogram_drift", 0.0), 3),
        "subject": round(end["subject"], 3),
        "place": round(end["place"], 3),
        "style": round(end["style"], 3),
        "motion": end["motion"],
        "kv_mib": result["kv_mib_of_a_stream"],
        "fps": result["frames_per_second"],
        "bars_missed": [name for name, bar in result["bars"].items() if not bar["met"]],
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, one line per case."""
    rows = {name: row(result) for name, result in results.items()}
    columns = [name for name in next(iter(rows.values())) if name != "bars_missed"] if rows else []
    lines = [f"| policy | {' | '.join(columns)} | bars missed |", "|" + "---|" * (len(columns) + 2)]
    for name, values in rows.items():
        cells = " | ".join(str(values[column]) for column in columns)
        lines.append(f"| {name} | {cells} | {len(values['bars_missed'])} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the missing cases, and print."""
    parser = bench_parser("drift", __doc__)
    add_options(parser, captions=32, seconds=60)
    parser.add_argument("--batch", type=int, default=64, help="captions rolled out together")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the cases' files")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after this time; run again to continue")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model = load_model(options, auto_on_cuda=ROLLOUT_BACKEND)
    run = Run(model=model, options=options, stop_at=time.monotonic() + 60 * options.minutes)
    results, left = run_cases(run, options.cases, options.out)
    report = {"bench": "drift", **run.settings, "cases": {name: row(r) for name, r in results.items()}, "left": left}
    sys.stdout.write((json.dumps(report) if options.json else table(results)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
