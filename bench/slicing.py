"""Measures the peak memory of a large render with the networks whole and slice by slice.

`python -m bench.slicing --size 1024 --json`: each case runs in a process of its own; peak_mib is the most memory that
it ever held (ru_maxrss), loaded_mib what it held before its first picture, seconds the time of one picture, and
levels the largest difference of the pictures from the whole networks'.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from bench.command import bench_parser, print_runs
from pipelines.core.controls import Control
from pipelines.core.types import Frame
from pipelines.load import load_engine

_MIB = 2**20


def peak_mib() -> float:
    """The most memory that this process has held, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB


def measure(model: str, side_px: int, slicing: str, frames: int, dtype: str, file: Path) -> dict[str, object]:
    """Render `frames` pictures of a slot twice in this process; write the second ones to `file`."""
    engine = load_engine(
        model,
        device="cpu",
        dtype=dtype,
        backend="eager",
        width=side_px,
        height=side_px,
        frames_per_slot=frames,
        max_slots=1,
        slicing=slicing,
    )
    loaded = peak_mib()
    stream = engine.open(Control.of({"steps": 1, "strength": 0.5, "seed": 1}))
    row, column = np.mgrid[0:side_px, 0:side_px]
    image = np.stack([(row // 3 + column // 5) % 256, row % 256, column % 256], axis=-1).astype(np.uint8)
    seconds, pictures = 0.0, list[Frame]()
    for turn in range(2):
        for frame in range(frames):
            seq = turn * frames + frame
            stream.push(
                Frame(image=image, pts=seq, time_base=Fraction(1, 30), seq=seq, source_seq=seq, captured_ns=None)
            )
        pictures.clear()
        start = time.perf_counter()
        while len(pictures) < frames:
            engine.tick()
            pictures += stream.pull()
        seconds = (time.perf_counter() - start) / frames
    np.save(file, np.stack([picture.image for picture in pictures]))
    engine.close()
    figures = {"peak_mib": peak_mib(), "loaded_mib": loaded, "seconds": seconds}
    return {"slicing": slicing, **{name: round(value, 2) for name, value in figures.items()}}


def main() -> int:
    parser = bench_parser("slicing", __doc__)
    parser.add_argument("--model", default="mini-image")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--frames-per-slot", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("off", "on"), help="one case, in this process")
    parser.add_argument("--file", type=Path, help="of --only: where the pictures go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        file = options.file or Path(tempfile.mkdtemp()) / "pictures.npy"
        frames = options.frames_per_slot
        print(json.dumps(measure(options.model, options.size, options.only, frames, options.dtype, file)))
        return 0
    runs: list[dict[str, object]] = []
    rendered: list[np.ndarray[tuple[int, ...], np.dtype[np.int16]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for slicing in ("off", "on"):
            file = Path(folder) / f"{slicing}.npy"
            command = [sys.executable, "-m", "bench.slicing", *sys.argv[1:], "--only", slicing, "--file", str(file)]
            finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(finished.stdout.splitlines()[-1]))
            rendered.append(np.load(file).astype(np.int16))
            runs[-1]["levels"] = int(np.abs(rendered[-1] - rendered[0]).max())
    common = {"model": options.model, "size": options.size, "frames": options.frames_per_slot, "dtype": options.dtype}
    print_runs({"bench": "slicing", **common, "threads": options.threads, "runs": runs}, one_line=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
