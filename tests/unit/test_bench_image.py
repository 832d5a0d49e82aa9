"""The bench of ticks side by side, on a tiny shape: every case runs and counts every frame."""

from __future__ import annotations

import argparse

import pytest
import torch

from bench import image_host
from bench.image_lanes import CASES, Saturated, Spread, measure, run
from bench.shapes import SHAPES, build


@pytest.mark.filterwarnings("ignore:There are modules")
@pytest.mark.soak
def test_every_case_runs_on_a_tiny_shape() -> None:
    model = build(SHAPES["tiny"], torch.device("cpu"), torch.float32).model
    options = argparse.Namespace(lanes=[1], frames=8, ticks=4, seconds=0.01, profile=True)
    *rows, kernels = run(model, options)
    assert [row["what"] for row in rows] == [*CASES, "everything moves"]
    assert kernels["note"] == "kernels are timed on CUDA devices only"
    assert all(float(str(row["fps"])) > 0 for row in rows)
    assert all(float(str(row["bare graphs fps"])) > 0 for row in rows[:-1])


def test_frames_are_counted_and_timed() -> None:
    model = build(SHAPES["tiny"], torch.device("cpu"), torch.float32).model
    saturated = Saturated(model, CASES["four streams, 1 step"])
    saturated.run(6)
    assert [stream.accounting.out for stream in saturated.streams] == [6] * 4
    assert len(saturated.latency.values) == 24
    assert len(saturated.gaps.values) == len(saturated.ticks.values) == 6
    saturated.close()
    assert Spread(values=[0.001, 0.003, 0.002, 0.1]).ms(0.5, 1.0) == [3.0, 100.0]
    assert measure(model, CASES["1 step"], 3)["graphs captured"] == 0


def test_the_hosts_part_is_timed_while_nothing_is_computed() -> None:
    one, two = (image_host.measure(streams, steps=1, ticks=10) for streams in (1, 2))
    assert 0 < float(str(one["median_ms"])) <= float(str(one["p95_ms"]))
    assert two["streams"] == 2
