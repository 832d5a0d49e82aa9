"""Owns data-parallel training on several GPUs of one host: equal weights, different data, averaged gradients.

Started by `torchrun --nproc-per-node N -m train.video.run ...`; otherwise a single process. Independent of networks and
losses.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor

from .budget import TimeBudget
from .graphs import SYNCHRONISE_EVERY


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """This process's place in the process group. rank: 0 writes files; size: number of processes."""

    rank: int = 0
    size: int = 1

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the crew, in one transfer; can be captured in a CUDA graph."""
        if self.size == 1:
            return
        gradients = list(tensors)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])

    def agree(self, value: float, device: torch.device) -> float:
        """Broadcast rank 0's value. Waits for the others."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return float(shared)

    def same(self, tensors: Sequence[Tensor]) -> None:
        """Broadcast rank 0's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Barrier: afterwards all can read what rank 0 has written."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Leave the process group at the end of the run. Captured CUDA graphs must be freed before: while one holds the
        communicator, leaving blocks forever.
        """
        if self.size > 1:
            gc.collect()
            distributed.barrier()
            distributed.destroy_process_group()


ALONE = Crew()


def join(device: torch.device) -> tuple[Crew, torch.device]:
    """The crew started by torchrun and this process's device; without torchrun, ALONE and `device`."""
    if "RANK" not in os.environ:
        return ALONE, device
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=size)
    return Crew(rank=rank, size=size), device


class CrewClock:
    """A budget of seconds by rank 0's clock: all processes take the same number of steps at the same learning rates.

    The clock is read every few steps, when the host synchronises with the device anyway.
    """

    def __init__(self, crew: Crew, device: torch.device, budget: TimeBudget) -> None:
        self.budget = budget
        self._crew, self._device = crew, device
        self._fraction, self._running = 0.0, True

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self.budget.steps

    @property
    def rate(self) -> float:
        """Steps per second so far."""
        return self.steps / max(self.budget.elapsed(), 1e-9)

    def fraction(self) -> float:
        """Share of the budget spent, as last agreed."""
        return self._fraction if self._crew.size > 1 else self.budget.fraction()

    def tick(self) -> bool:
        """Count a step; False once the time is spent."""
        running = self.budget.tick()
        if self._crew.size == 1:
            return running
        if self.budget.steps % SYNCHRONISE_EVERY == 0:
            self._fraction = self._crew.agree(self.budget.fraction(), self._device)
            self._running = self._crew.agree(float(running), self._device) > 0
        return self._running
