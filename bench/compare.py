"""Compares this project with its peers on the same weights, in turns within one run: a measurement card for each.

`python -m bench.compare --json`: on a CPU with the bundled models; on CUDA with random weights in SD-Turbo's shape
(512×512 image to image, 1, 2 and 4 steps) and in Wan 2.1 1.3B's (480×832, window of 21 latents, chunks of 3).
`python -m bench.compare image --steps 1 --streams 4`, `python -m bench.compare video --list`, `--only NAME ...`.
Every contestant runs in a process of its own; one that fails or is not installed is named with the reason.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict

from app.worker.threads import limit_spinning
from bench.contest import Contestant, Outcome, Rounds, hold
from pipelines.core.errors import ModelError

_MINI_VIDEO_WINDOW, _WAN_WINDOW = 12, 21


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("kinds", nargs="*", metavar="image|video", help="default: both")
    options.add_argument("--json", action="store_true", help="one JSON line instead of text")
    options.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    options.add_argument("--image-model", help="mini-image or a shape of bench.shapes (default: by device)")
    options.add_argument("--video-model", help="mini-video or a shape of bench.video_shapes (default: by device)")
    options.add_argument("--steps", type=int, nargs="+", help="image: default 2 for mini-image, 1 2 4 for shapes")
    options.add_argument("--streams", type=int, default=1, help="image: also ours with that many streams")
    options.add_argument("--window", type=int, help="video: latent frames (default 12 for mini-video, 21 for shapes)")
    options.add_argument("--autotuned", action="store_true", help="video: also flashdreams with its max-autotune")
    options.add_argument("--only", nargs="+", metavar="TEXT", help="contestants whose names contain one of these")
    options.add_argument("--skip", nargs="+", metavar="TEXT", default=[], help="not those whose names contain one")
    options.add_argument("--list", action="store_true", help="only name the contestants")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=5.0, help="of each contestant in each round")
    options.add_argument("--warm-up", type=float, default=5.0, help="at least, seconds, after the first frame")
    options.add_argument("--threads", type=int, default=0, help="CPU threads of PyTorch (default: its own)")
    return options


def contests(options: argparse.Namespace) -> dict[str, list[Contestant]]:
    """The contestants of every contest that the options request, by what is compared.

    Raises ModelError if PyTorch cannot use the device.
    """
    from bench import image_contest, video_contest
    from pipelines.files.precision import choose_device

    device = str(choose_device(options.device or "auto"))
    cuda, found = device.startswith("cuda"), {}
    if "image" in options.kinds:
        model = options.image_model or ("sd-turbo" if cuda else "mini-image")
        for steps in options.steps or ([2] if model == "mini-image" else [1, 2, 4]):
            image = image_contest.ImageCase(
                model=model,
                device=device,
                steps=steps,
                streams=options.streams,
                threads=options.threads,
                warm_up_s=options.warm_up,
            )
            found[f"image to image, {model}, steps: {steps}"] = image_contest.contestants(image)
    if "video" in options.kinds:
        model = options.video_model or ("wan-1.3b" if cuda else "mini-video")
        video = video_contest.VideoCase(
            model=model,
            device=device,
            window_frames=options.window or (_MINI_VIDEO_WINDOW if model == "mini-video" else _WAN_WINDOW),
            autotuned=options.autotuned,
            threads=options.threads,
            warm_up_s=options.warm_up,
        )
        found[f"causal video, {model}, window {video.window_frames}"] = video_contest.contestants(video)
    return {what: _chosen(options, all_of_it) for what, all_of_it in found.items()}


def _chosen(options: argparse.Namespace, contestants: Sequence[Contestant]) -> list[Contestant]:
    def named(name: str, texts: Sequence[str]) -> bool:
        return any(text in name for text in texts)

    chosen = [c for c in contestants if options.only is None or named(c.name, options.only)]
    return [c for c in chosen if not named(c.name, options.skip)]


def text_of(outcome: Outcome) -> str:
    """A table of the contestants, the ratios, and who did not run."""
    lines = [f"\n{outcome.what} ({outcome.rounds} rounds)"]
    for name, card in outcome.cards.items():
        f = card.figures
        energy = "" if f.joules_per_frame is None else f"  {f.joules_per_frame:.2f} J"
        latency = "" if f.latency_ms_p50 is None else f"  latency {f.latency_ms_p50:.1f} ms"
        gap = f"gap {f.gap_ms_p50:.2f} / {f.gap_ms_p95:.2f} / {f.gap_ms_p99:.2f} ms"
        lines.append(f"  {name:<48}{f.fps:8.2f} FPS  {gap}{latency}  {f.peak_memory_mib:.0f} MiB{energy}")
    for r in outcome.ratios:
        work = "" if r.same_work else "  (not the same work)"
        lines.append(f"  {r.ours} / {r.peer}: {r.ratio:.2f} ({r.lowest:.2f} to {r.highest:.2f}){work}")
    lines += [f"  not run: {n.name}: {n.reason}{f' ({n.pip})' if n.pip else ''}" for n in outcome.not_run]
    return "\n".join(lines)


def json_of(outcome: Outcome) -> dict[str, object]:
    """The outcome as plain values."""
    return asdict(outcome)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 if nothing at all could be measured."""
    options = parser().parse_args(arguments)
    options.kinds = options.kinds or ["image", "video"]
    if unknown := set(options.kinds) - {"image", "video"}:
        parser().error(f"{sorted(unknown)[0]!r} is neither image nor video")
    if options.rounds < 1 or options.seconds <= 0:
        parser().error("--rounds and --seconds must be above 0")
    limit_spinning()
    try:
        found = contests(options)
    except ModelError as error:
        parser().error(str(error))
    if options.list:
        for what, contestants in found.items():
            print("\n".join([what, *(f"  {c.name}" for c in contestants)]))
        return 0
    command = f"python -m bench.compare {shlex.join(sys.argv[1:] if arguments is None else arguments)}".rstrip()
    rounds = Rounds(rounds=options.rounds, seconds=options.seconds, command=command)
    outcomes = []
    for what, contestants in found.items():
        outcomes.append(hold(what, contestants, rounds, lambda text: print(text, file=sys.stderr, flush=True)))
        if not options.json:
            print(text_of(outcomes[-1]), flush=True)
    if options.json:
        print(json.dumps({"bench": "compare", "contests": [json_of(outcome) for outcome in outcomes]}))
    return 0 if any(outcome.cards for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
