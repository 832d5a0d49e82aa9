"""Measures the bundled video model: held-out captions at the beginning and after a minute, autoencoders.

`python -m bench.mini_video --json`: 128 held-out captions, 60 seconds each, with the folder's own steps and cache
policy, as one batch; subject, place and style judged by the classifier, motion by optical flow; each bar with whether
it is met. `--device cuda` for the full run; `--captions 4 --seconds 6` for a quick one on a CPU. Formulas:
bench/video_quality.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.command import bench_parser, print_listing
from bench.machine import device_name
from bench.motion_judge import load_motion_judge
from bench.rollouts import ROLLOUT_BACKEND, Rollout, RolloutSettings
from bench.sheets import Keeper, write_png
from bench.video_options import add_options, classifier_of, folder_mib, load_model, options_of
from bench.video_quality import FRAME_RATE, StreamFigures, StreamMeter
from bench.video_scores import bars, summary
from bench.world_clips import held_out_captions, load_sprites, motion_clips
from pipelines.video.codecs.codec import VideoCodec, decode_clip, encode_clip
from pipelines.video.model import VideoModel
from train.clips.motions import ClipSpec

SHEET_SECONDS = (0, 1, 2, 3, 5, 8, 12, 20, 30, 45, 59)
SHEET_STREAMS = 16
PSNR_CLIPS, PSNR_LATENTS = 22, 5


def psnr_db(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture pair [N, 3, H, W] in 0..1: [N], in dB."""
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)).clamp(min=1e-10))


def reconstruction_db(codec: VideoCodec, clips: Tensor) -> Tensor:
    """PSNR of every frame of clips [B, 3, 1 + 4k, H, W] in 0..1, encoded and decoded one by one: [B, F] in dB."""
    psnr = []
    for clip in clips[:, None]:
        decoded = decode_clip(codec, encode_clip(codec, clip.to(codec.device))).float().cpu()
        psnr.append(psnr_db(decoded[0].transpose(0, 1), clip[0].transpose(0, 1).cpu()))
    return torch.stack(psnr)


def measure_autoencoder(codec: VideoCodec, clips: Tensor, pictures: Tensor | None) -> dict[str, float]:
    """Mean PSNR in dB on rendered clips, on their first frames, and on each of three photographs as first frames."""
    of_clips = reconstruction_db(codec, clips)
    result = {"clips": float(of_clips.mean()), "first_frames": float(of_clips[:, 0].mean())}
    if pictures is not None:
        of_pictures = reconstruction_db(codec, pictures[:, :, None])[:, 0].tolist()
        result |= dict(zip(("astronaut", "chelsea", "coffee"), of_pictures, strict=True))
    return {name: round(value, 2) for name, value in result.items()}


def autoencoders(options: argparse.Namespace, size_px: tuple[int, int]) -> dict[str, Any]:
    """Figures of the folder's two autoencoders. size_px: (width, height); square for clips."""
    generator = torch.Generator().manual_seed(401)
    clips = motion_clips(PSNR_CLIPS, PSNR_LATENTS, load_sprites(), generator, size_px=size_px[0])[1].frames
    pictures = None
    if options.photographs:
        from train.autoencoder import test_pictures

        pictures = torch.nn.functional.interpolate(test_pictures(), size_px[::-1], mode="area")
    return {
        kind: measure_autoencoder(load_model(options, autoencoder=kind).codec, clips, pictures)
        for kind in ("stock", "tiny")
    }


def roll_out(
    model: VideoModel, captions: Sequence[str], settings: RolloutSettings, options: argparse.Namespace, keeper: Keeper
) -> tuple[StreamFigures, dict[str, Any]]:
    """Figures of streams of options.seconds, and their cost."""
    judge, side_px = classifier_of(options)
    rollout, meter = Rollout(model, captions, settings), StreamMeter(judge, side_px=side_px)
    rolled_s, last = 0.0, time.perf_counter()
    frames = options.seconds * FRAME_RATE
    for piece in keeper.passing(rollout.pieces(frames)):
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        rolled_s += time.perf_counter() - last
        meter.add(piece)
        last = time.perf_counter()
    cost = {
        "streams": len(captions),
        "frames_per_second": round(len(captions) * frames / rolled_s, 1),
        "rolled_s": round(rolled_s, 1),
        "bytes_of_a_stream": {name: size // len(captions) for name, size in rollout.bytes.items()},
        "backend": model.runtime.backend,
    }
    return meter.figures(), cost


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures as one dictionary."""
    began = time.perf_counter()
    model = load_model(options, auto_on_cuda=ROLLOUT_BACKEND)
    subjects = load_sprites().shape[0]
    spec, captions = held_out_captions(options.captions, subjects)
    settings = RolloutSettings(options=options_of(options), seed=options.seed)
    keeper = Keeper(SHEET_SECONDS, SHEET_STREAMS)
    motion = load_motion_judge()
    parts, costs = [], []
    for start in range(0, len(captions), options.batch):
        rows = slice(start, start + options.batch)
        part = keeper if start == 0 else Keeper((), 0)
        figures, cost = roll_out(model, captions[rows], settings, options, part)
        parts.append(figures)
        costs.append(cost)
    scores = summary(StreamFigures.concatenate(parts), spec, motion)
    passed = {bar.name: bar.record() for bar in bars(scores)}
    if options.sheet is not None:
        write_sheet(options.sheet, keeper, spec, captions)
    result: dict[str, Any] = {
        "bench": "mini_video",
        "model": model.name,
        "model_mib": folder_mib(Path(options.model)),
        "device": device_name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "captions": len(captions),
        "seconds": options.seconds,
        "steps": len(model.preset.steps),
        "policy": options.policy or model.preset.policy,
        **scores,
        "cost": costs[0],
        "bars": passed,
        "all_met": all(bar["met"] for bar in passed.values()),
    }
    if options.autoencoders:
        result["psnr_db"] = autoencoders(options, model.size_px)
    result["took_s"] = round(time.perf_counter() - began, 1)
    return result


def write_sheet(file: Path, keeper: Keeper, spec: ClipSpec, captions: Sequence[str]) -> None:
    """Write the sheet, and its rows' captions to a text file next to it."""
    write_png(keeper.sheet(), file)
    text = "\n".join(captions[:SHEET_STREAMS]) + "\n"
    file.with_suffix(".txt").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = bench_parser("mini_video", __doc__)
    add_options(parser, captions=128, seconds=60)
    parser.add_argument("--batch", type=int, default=128, help="captions rolled out together")
    parser.add_argument("--sheet", type=Path, help="write frames of the first 16 captions to this .png")
    parser.add_argument("--no-autoencoders", dest="autoencoders", action="store_false")
    parser.add_argument(
        "--no-photographs", dest="photographs", action="store_false", help="if OpenCV and scikit-image are missing"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print_listing(measure(options), one_line=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
