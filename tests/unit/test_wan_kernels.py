"""Kernels of the Wan decoder without a GPU: in Triton's interpreter, against plain convolutions."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.fakes.wan_kernels import CASES


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_equal_plain_convolutions() -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    command = [sys.executable, "-m", "tests.fakes.wan_kernels"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    errors = {name: float(error) for name, error in (line.rsplit(": ", 1) for line in done.stdout.splitlines())}
    assert errors.keys() == CASES.keys()
    assert max(errors.values()) < 2e-6, errors  # both in float32, summed in other orders


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_a_tile_has_no_more_stages_than_shared_memory_holds() -> None:
    from pipelines.video.codecs.wan_winograd import PairTile, shortened

    tile = PairTile(128, 32, 128, 64, 8, 4)  # 2 (128 + 192) 32 numbers a stage: 40 KiB
    assert [shortened(tile, kib * 1024).stages for kib in (227, 160, 159, 99, 48)] == [4, 4, 3, 2, 1]
