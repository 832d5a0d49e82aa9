"""Owns what a bench says of the machine that it ran on."""

from __future__ import annotations

import torch


def device_name(device: torch.device) -> str:
    """The GPU's name, else "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
