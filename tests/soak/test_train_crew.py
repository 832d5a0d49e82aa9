"""Two training processes keep equal weights although each draws its own data, or run one stage each."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.video_options import MODEL
from train.video.adopt import adopt
from train.video.checkpoints import read_parts

ROOT = Path(__file__).resolve().parent.parent.parent
PACK = ROOT / "train" / "data" / "pack.npz"
PROGRAM = """
import sys
from pathlib import Path

import torch

from train.budget import TimeBudget
from train.crew import CrewClock, join
from train.session import TINY, Master, TrainingSession, adamw

crew, device = join(torch.device("cpu"))
out = Path(sys.argv[1])
session = TrainingSession(device=device, out=out, resume=out, scale=TINY, crew=crew)
torch.manual_seed(session.seed)
network = torch.nn.Linear(4, 4)
crew.same([p.data for p in network.parameters()])
master = Master(network, dtype=torch.float32, crew=crew)
optimiser = adamw(list(master.full), 1e-2, device)
session.seed_draws()
clock, running, first = CrewClock(crew, device, TimeBudget(1.0)), True, 0.0
while running:
    x = torch.randn(8, 4)
    first = first or float(x.sum())
    (network(x) - 1).square().mean().backward()
    master.step(optimiser)
    running = clock.tick()
session.log("end", step=float(clock.steps))
(out / f"rank-{crew.rank}.txt").write_text(f"{clock.steps} {first} {network.weight.tolist()}")
crew.leave()
"""


def two_processes(arguments: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    """Start them like torchrun, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen([sys.executable, *arguments], env={**base, "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(2)
    ]


@pytest.mark.soak
def test_two_processes_stay_alike(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    runs = two_processes([str(program), str(tmp_path)])
    assert [run.wait(120) for run in runs] == [0, 0]
    (steps, first, weights), other = ((tmp_path / f"rank-{r}.txt").read_text().split(maxsplit=2) for r in range(2))
    assert (steps, weights) == (other[0], other[2])
    assert first != other[1]
    assert int(steps) % 8 == 0
    assert (tmp_path / "curve.jsonl").read_text().count("\n") == 1


@pytest.mark.soak
@pytest.mark.skipif(not PACK.is_file(), reason="no train/data/pack.npz: python -m train.collect makes it")
def test_stages_side_by_side_each_write_their_own(tmp_path: Path) -> None:
    adopt(MODEL, tmp_path / "in", ["teacher"])
    command = ["-m", "train.video.run", "teacher+scorer", "--tiny", "--minutes", "0.02"]
    folders = ["--resume", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--pack", str(PACK)]
    assert [run.wait(200) for run in two_processes([*command, *folders])] == [0, 0]
    began, *ended = (
        read_parts(tmp_path / folder, stage)["transformer.blocks.0.attn1.to_q.weight"]
        for folder, stage in (("in", "teacher"), ("out", "teacher"), ("out", "scorer"))
    )
    assert all(not weights.equal(began) for weights in ended)
    assert not ended[0].equal(ended[1])
