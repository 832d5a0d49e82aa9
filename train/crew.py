"""Owns training on several GPUs of one host: the same weights everywhere, other data, gradients averaged.

Started by `torchrun --nproc-per-node N -m train.video.run ...`; alone otherwise. Knows no network and no loss.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor

from .budget import Budget
from .graphs import SYNCHRONISE_EVERY


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """This process among those that train together. rank: 0 writes files; size: how many there are."""

    rank: int = 0
    size: int = 1

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes its mean over the crew, in place and in one transfer; can be captured in a CUDA graph."""
        if self.size == 1:
            return
        gradients = list(tensors)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])

    def agree(self, value: float, device: torch.device) -> float:
        """Rank 0's value. Waits for the others."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return float(shared)

    def same(self, tensors: Sequence[Tensor]) -> None:
        """Give all the values of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """For all others: what rank 0 has written can be read after it."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """The end of the run. Steps captured in CUDA graphs must be gone: while one holds the communicator, leaving
        waits for ever.
        """
        if self.size > 1:
            gc.collect()
            distributed.barrier()
            distributed.destroy_process_group()


ALONE = Crew()


def join(device: torch.device) -> tuple[Crew, torch.device]:
    """The crew that torchrun started, and this process's device; alone, and `device`, where it did not."""
    if "RANK" not in os.environ:
        return ALONE, device
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=size)
    return Crew(rank=rank, size=size), device


class CrewClock:
    """A budget of seconds by rank 0's clock: all take the same number of steps at the same learning rates.

    The clock is read every few steps, when the device is waited for anyway.
    """

    def __init__(self, crew: Crew, device: torch.device, budget: Budget) -> None:
        self.budget = budget
        self._crew, self._device = crew, device
        self._fraction, self._running = 0.0, True

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self.budget.steps

    @property
    def rate(self) -> float:
        """Steps a second so far."""
        return self.steps / max(self.budget.elapsed(), 1e-9)

    def fraction(self) -> float:
        """Share of the budget that is spent, as agreed last."""
        return self._fraction if self._crew.size > 1 else self.budget.fraction()

    def tick(self) -> bool:
        """Count a step; False once the time is used."""
        running = self.budget.tick()
        if self._crew.size == 1:
            return running
        if self.budget.steps % SYNCHRONISE_EVERY == 0:
            self._fraction = self._crew.agree(self.budget.fraction(), self._device)
            self._running = self._crew.agree(float(running), self._device) > 0
        return self._running
