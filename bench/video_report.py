"""Runs all of mini-video's benches: a queue of commands shared by all GPUs.

`python -m bench.video_report --out DIR`: bench.mini_video for one minute and for ten, bench.actions,
bench.prompt_switch and bench.drift, each to DIR/NAME.json with its output in NAME.log, the drift cases in DIR/drift/, a
sheet of rollouts; then one line per bench with the bars it misses. Not included: speed on two cores
(bench.video_stream), which needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.drift import CASES
from bench.video_options import MODEL

OUT_OF_TIME = 124


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """name: of its output files; command: arguments of `python -m`."""

    name: str
    command: Sequence[str]


def jobs_of(options: argparse.Namespace, parts: int) -> list[Job]:
    """The longest first. parts: how many concurrent jobs drift is split into."""
    out, short = Path(options.out), ["--no-photographs", "--no-autoencoders"]
    shared = ["--model", str(options.model), "--json", *options.bench]
    few, cases = ["--captions", str(options.drift_captions)], list(CASES)
    minute = ["--seconds", str(options.seconds)]
    measured = ["bench.drift", *shared, *few, *minute, "--out", str(out / "drift"), "--cases"]
    drift = [
        Job(name=f"drift_{part}", command=[*measured, *cases[part::parts]]) for part in range(min(parts, len(cases)))
    ]
    sheet = ["--captions", str(options.captions), *minute, "--no-photographs", "--sheet", str(out / "rollouts.png")]
    long = [*few, "--seconds", str(10 * options.seconds), *short]
    return [
        Job(name="mini_video", command=["bench.mini_video", *shared, *sheet]),
        Job(name="ten_times_as_long", command=["bench.mini_video", *shared, *long]),
        *drift,
        Job(name="actions", command=["bench.actions", *shared]),
        Job(name="prompt_switch", command=["bench.prompt_switch", *shared]),
    ]


def run_job(job: Job, out: Path, device: int | None, stop_at: float) -> int:
    """Its exit code, or OUT_OF_TIME. device: CUDA index; None: not set."""
    environment = {**os.environ, **({} if device is None else {"CUDA_VISIBLE_DEVICES": str(device)})}
    left = stop_at - time.monotonic()
    if left <= 0:
        return OUT_OF_TIME
    unfinished = out / f"{job.name}.part"
    with unfinished.open("wb") as result, (out / f"{job.name}.log").open("wb") as log:
        try:
            command = [sys.executable, "-m", *job.command]
            done = subprocess.run(command, env=environment, stdout=result, stderr=log, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            return OUT_OF_TIME
    if not done.returncode:
        unfinished.replace(out / f"{job.name}.json")
    return done.returncode


def run_all(jobs: Sequence[Job], out: Path, devices: Sequence[int | None], stop_at: float) -> dict[str, int]:
    """Exit codes by name. Each device takes the next job as soon as it is free."""
    free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for device in devices:
        free.put(device)

    def work(job: Job) -> int:
        device, began = free.get(), time.monotonic()
        try:
            code = run_job(job, out, device, stop_at)
        finally:
            free.put(device)
        print(f"{job.name}: {code} after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        return code

    with ThreadPoolExecutor(len(devices)) as pool:
        return dict(zip([job.name for job in jobs], pool.map(work, jobs), strict=True))


def verdict(result: Mapping[str, Any]) -> str:
    """The bars that a bench's result misses, as "name value (least .., most ..)"; for drift, those of each case."""
    if "cases" in result:
        missed = {case: row["bars_missed"] for case, row in result["cases"].items()}
        return "; ".join(f"{case}: {', '.join(names) or 'every bar is met'}" for case, names in missed.items())
    if "bars" not in result:
        return "measured; it has no bars"
    missed_bars = [
        f"{name} {bar['value']} ({', '.join(f'{k} {bar[k]}' for k in ('least', 'most') if k in bar)})"
        for name, bar in result["bars"].items()
        if not bar["met"]
    ]
    return "; ".join(missed_bars) or "every bar is met"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 if a job failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.video_report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop unfinished jobs after this time")
    parser.add_argument("--captions", type=int, default=128, help="of bench.mini_video")
    parser.add_argument("--drift-captions", type=int, default=32, help="of bench.drift and of the long streams")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("bench", nargs="*", help="after --: options for every bench, as -- --threads 1")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    devices: list[int | None] = [*range(torch.cuda.device_count())] or [None]
    jobs = jobs_of(options, len(devices))
    codes = run_all(jobs, options.out, devices, time.monotonic() + 60 * options.minutes)
    for job in jobs:
        file = options.out / f"{job.name}.json"
        if codes[job.name] or not file.is_file():
            print(f"{job.name}: no result (exit code {codes[job.name]}); see {file.with_suffix('.log')}")
            continue
        print(f"{job.name}: {verdict(json.loads(file.read_text(encoding='utf-8')))}")
    return int(any(codes.values()))


if __name__ == "__main__":
    sys.exit(main())
