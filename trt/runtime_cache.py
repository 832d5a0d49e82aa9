"""Owns TensorRT-RTX's cache of the kernels that it compiles when a plan is first run, as a file beside the plan.

It starts with the sha256 of the rest: a damaged or half-written file is removed, and the kernels are compiled again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import torch

_logger = logging.getLogger(__name__)
_DIGEST_BYTES = 32


class RuntimeCache:
    """The compiled kernels of one plan on one card."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """folder: made when the cache is saved."""
        self._file = folder / f"{_card(device)}.cache"
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Give the cache, with what the file has, to a runtime configuration."""
        self._cache = config.create_runtime_cache()
        kernels = read_sealed(self._file)
        if kernels and not self._cache.deserialize(kernels):
            self._file.unlink(missing_ok=True)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the kernels to the file. A failure costs only the time to compile them again."""
        try:
            write_sealed(self._file, bytes(self._cache.serialize()))
        except OSError as error:
            _logger.warning("Compiled kernels cannot be kept in %s: %s", self._file, error)


def read_sealed(file: Path) -> bytes:
    """Return what `write_sealed` wrote; nothing if there is no file, or a damaged one, which is removed."""
    try:
        sealed = file.read_bytes()
    except OSError:
        return b""
    digest, content = sealed[:_DIGEST_BYTES], sealed[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() == digest:
        return content
    file.unlink(missing_ok=True)
    return b""


def write_sealed(file: Path, content: bytes) -> None:
    """Write the content and its digest, by one rename."""
    file.parent.mkdir(exist_ok=True)
    half = file.with_suffix(f".{os.getpid()}")
    try:
        half.write_bytes(hashlib.sha256(content).digest() + content)
        half.replace(file)
    finally:
        half.unlink(missing_ok=True)


def _card(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return "-".join([*"".join(c if c.isalnum() else " " for c in name).split(), f"{major}.{minor}"])
