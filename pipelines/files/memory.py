"""Owns the memory check before loading (how many bytes a model needs, and whether the device has them), and the advice
given when memory runs out later.

Reads the headers of safetensors files only; independent of networks and engines.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipelines.core.errors import ModelLayoutError, OutOfMemoryError
from pipelines.core.host_memory import CGROUP_FOLDER, free_host_bytes, gib

from .layout import Component, find_weights

_MAX_HEADER_BYTES = 100_000_000
# For activations, the ring and libraries, in addition to the weights. Deliberately a low estimate.
WORKING_BYTES = 256 * 2**20
_CGROUP_FOLDER = CGROUP_FOLDER
_RGB = 3


def count_parameters(file: Path) -> int:
    """Return the number of values in a safetensors file, from its header. Raises ModelLayoutError if it is damaged."""
    damaged = ModelLayoutError(f"{file} is not a complete safetensors file.", "Download it again.")
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise damaged
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAX_HEADER_BYTES, file.stat().st_size):
            raise damaged
        try:
            header = json.loads(stream.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError):
            raise damaged from None
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    end = max((entry["data_offsets"][1] for entry in tensors), default=0)
    if 8 + length + end > file.stat().st_size:
        raise damaged
    return sum(math.prod(entry["shape"]) for entry in tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What decoding needs for pictures of a size that was asked for; nothing for the model's own.

    channels: of the decoder's last layers, which run at full size. frames: decoded at once. multiple_px: sizes are
    multiples of it. sliced: it runs in bands, and frame by frame (pipelines/image/slicing.py). The estimate is low:
    one layer's input and output; sliced, the tensor before the last doubling of the size, and the pictures.
    """

    width: int = 0
    height: int = 0
    frames: int = 1
    channels: int = 0
    itemsize: int = 0
    multiple_px: int = 8
    sliced: bool = False

    @property
    def needed_bytes(self) -> int:
        """Bytes of what decoding holds at once."""
        return self.width * self.height * self._bytes_per_px

    def size_within(self, free_bytes: int) -> str:
        """The largest size of the same shape that needs no more, as WxH; empty if there is none."""
        side = math.sqrt(max(free_bytes, 0) / max(1, self.needed_bytes))
        width, height = (int(size * side) // self.multiple_px * self.multiple_px for size in (self.width, self.height))
        return f"{width}x{height}" if min(width, height) > 0 else ""

    @property
    def _bytes_per_px(self) -> int:
        if self.sliced:
            return (self.channels // 4 + _RGB * self.frames) * self.itemsize
        return 2 * self.channels * self.itemsize * self.frames


class Budget:
    """Adds up the memory that the parts of a model need."""

    def __init__(self, *, allow_pickle: bool = False) -> None:
        self.weights_bytes = 0
        self.pictures = Pictures()
        self._parameters = 0
        self._allow_pickle = allow_pickle

    def add(self, component: Component, dtype: torch.dtype) -> None:
        """Add a part that will be loaded in `dtype`. Pickles have no header, so their size on disk is used."""
        weights = find_weights(component, allow_pickle=self._allow_pickle, prefer_half=dtype is torch.float16)
        if weights.pickled:
            self.weights_bytes += sum(file.stat().st_size for file in weights.files)
            return
        parameters = sum(count_parameters(file) for file in weights.files)
        self._parameters += parameters
        self.weights_bytes += parameters * dtype.itemsize

    @property
    def half_bytes(self) -> int:
        """What the same parts would need in a 16-bit dtype (pickles and pictures not counted)."""
        return self._parameters * 2

    @property
    def other_bytes(self) -> int:
        """What is needed at any size."""
        return self.weights_bytes + WORKING_BYTES

    @property
    def needed_bytes(self) -> int:
        """Weights, working memory and pictures."""
        return self.other_bytes + self.pictures.needed_bytes

    @property
    def sliced_bytes(self) -> int:
        """`needed_bytes` if decoding runs slice by slice."""
        return self.other_bytes + replace(self.pictures, sliced=True).needed_bytes


def check_memory(
    budget: Budget, device: torch.device, *, free_bytes: Callable[[torch.device], int] | None = None
) -> None:
    """Raise OutOfMemoryError, saying what would fit, if a model needs more memory than the device has free.

    Slicing, which saves memory, is suggested where pictures are not sliced and would fit so.
    """
    free = (free_bytes or free_memory_bytes)(device)
    if budget.needed_bytes <= free:
        return
    kind = "GPU memory" if device.type == "cuda" else "memory"
    remedies = []
    if budget.pictures.needed_bytes and (size := budget.pictures.size_within(free - budget.other_bytes)):
        remedies.append(f"--size {size} would fit")
    if budget.sliced_bytes < budget.needed_bytes and budget.sliced_bytes <= free:
        remedies.insert(0, f"--slicing on would fit ({gib(budget.sliced_bytes)})")
    elif not remedies and 0 < budget.half_bytes + WORKING_BYTES <= free:
        half = "float16" if device.type == "cuda" else "bfloat16"
        remedies.append(f"--dtype {half} would fit ({gib(budget.half_bytes + WORKING_BYTES)})")
    remedies.append("the bundled mini-image fits in 1 GiB")
    pictures = budget.pictures
    at = f" at {pictures.width}x{pictures.height}" if pictures.needed_bytes else ""
    raise OutOfMemoryError(
        f"The model{at} needs about {gib(budget.needed_bytes)} of {kind}, and {gib(free)} are free.",
        f"Close other programs, or choose a smaller model: {'; '.join(remedies)}.",
    )


def free_memory_bytes(device: torch.device) -> int:
    """Return the free bytes of a CUDA device, or of the host, within the limit of its container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes(_CGROUP_FOLDER)


def what_would_fit(*, slots: int, ran: int, width: int, height: int, multiple_px: int, depth: int, steps: int) -> str:
    """Advise, with concrete numbers, what to do when a batch of `slots` slots at width x height pixels did not fit.

    ran: slots of the largest batch that has run. Activations grow in proportion to slots and pixels; if no smaller
    batch has run, half of it is assumed to fit. multiple_px: sizes are multiples of it. depth, steps: current values.
    """
    known = 0 < ran < slots
    fits = ran if known else slots // 2
    share = (fits if fits else 0.5) / slots
    side = math.sqrt(share)
    small = [max(multiple_px, int(size * side) // multiple_px * multiple_px) for size in (width, height)]
    size = f"{small[0]}x{small[1]}"
    if not fits:
        return f"Start with --size {size} or smaller, or with a 16-bit dtype, or close other programs that use it."
    fitting = f"{fits} slot{'s have' if fits > 1 else ' has'} run" if known else f"About {fits} would fit"
    lower = [f"{name} {max(1, int(now * share))}" for name, now in (("depth", depth), ("steps", steps)) if now > 1]
    choices = [*([f"set {' or '.join(lower)}"] if lower else []), f"start with --size {size} to keep all {slots}"]
    return f"{fitting}: {', or '.join(choices)}."
