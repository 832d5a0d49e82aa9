"""Measurement cards: percentiles, joules and rates against plain computation; meters; what a card says."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from app.measure.camera import camera_pictures, endless_camera
from app.measure.card import Card
from app.measure.feed import CameraFeed, PromptFeed, turn
from app.measure.figures import Segment, figures_of, percentile
from app.measure.machine import cpu_name, describe_machine
from app.measure.meters import Counters, energy_meter, resident_peak_mib
from pipelines.identity import IdentityEngine
from tests.fakes.subjects import MACHINE, setup

CPU = torch.device("cpu")


def plain_percentile(values: list[float], percent: float) -> float:
    """The value at percent of the way through the sorted values, linear between neighbours."""
    ordered, place = sorted(values), percent / 100 * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def segment(
    gaps: list[float], *, frames: int = 0, joules: float | None = None, latencies: tuple[float, ...] = ()
) -> Segment:
    return Segment(
        frames=frames or len(gaps),
        seconds=sum(gaps) / 1e3,
        gaps_ms=tuple(gaps),
        latencies_ms=latencies,
        joules=joules,
        peak_memory_mib=10.0 + len(gaps),
    )


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1001])
def test_percentiles_are_those_of_the_definition(count: int) -> None:
    draw = random.Random(count)
    values = [draw.expovariate(0.1) for _ in range(count)]
    for percent in (50, 95, 99):
        assert percentile(values, percent) == pytest.approx(plain_percentile(values, percent), rel=1e-12)


def test_figures_of_two_segments() -> None:
    draw = random.Random(1)
    first, second = ([draw.uniform(5, 9) for _ in range(count)] for count in (40, 60))
    figures = figures_of([segment(first, joules=30.0, latencies=(8.0, 9.0)), segment(second, joules=50.0)])
    assert (figures.frames, figures.gaps, figures.segments) == (100, 100, 2)
    assert figures.fps == pytest.approx(100 / (sum(first + second) / 1e3))
    assert figures.gap_ms_p50 == pytest.approx(plain_percentile(first + second, 50))
    assert figures.gap_ms_p95 == pytest.approx(plain_percentile(first + second, 95))
    assert figures.gap_ms_p99 == pytest.approx(plain_percentile(first + second, 99))
    assert figures.latency_ms_p50 == pytest.approx(8.5)
    assert figures.latency_ms_p95 == pytest.approx(8.95)
    assert figures.joules_per_frame == pytest.approx(80 / 100)
    assert figures.peak_memory_mib == 70.0, "the highest"


def test_chunks_count_their_frames_and_missing_energy_is_not_guessed() -> None:
    figures = figures_of([segment([400.0, 600.0], frames=24, joules=3.0), segment([500.0], frames=12)])
    assert figures.fps == pytest.approx(36 / 1.5)
    assert figures.gap_ms_p50 == 500.0
    assert figures.joules_per_frame is None, "only one of the two has it"
    assert figures.latency_ms_p50 is None


def test_a_counter_that_wraps_once() -> None:
    values = iter([0.0, 0.0, 95.0, 1000.0, 3.0, 1010.0])
    meter = Counters("two packages", [lambda: next(values), lambda: next(values)], [100.0, None])
    meter.start()
    assert meter.joules() == pytest.approx((3.0 - 95.0 + 100.0) + 10.0)


def rapl(folder: Path, name: str, microjoules: int) -> Path:
    package = folder / name
    package.mkdir(exist_ok=True)
    (package / "energy_uj").write_text(f"{microjoules}\n")
    (package / "max_energy_range_uj").write_text("262143328850\n")
    return package


def test_rapl_adds_packages_and_leaves_out_what_they_contain(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        rapl(tmp_path, name, 262_143_000_000 if name == "intel-rapl:1" else 5_000_000)
    meter = energy_meter(CPU, tmp_path)
    meter.start()
    rapl(tmp_path, "intel-rapl:0", 12_500_000)
    rapl(tmp_path, "intel-rapl:1", 671_150)  # past its limit
    rapl(tmp_path, "intel-rapl:0:0", 9_000_000)
    assert meter.joules() == pytest.approx(7.5 + 1.0)
    assert "RAPL" in meter.what


def test_a_cpu_without_counters_says_so(tmp_path: Path) -> None:
    meter = energy_meter(CPU, tmp_path)
    meter.start()
    assert meter.joules() is None
    assert "no RAPL counters" in meter.what
    (rapl(tmp_path, "intel-rapl:0", 1) / "energy_uj").write_text("nonsense")
    assert "cannot be read" in energy_meter(CPU, tmp_path).what


class NVMLError(Exception):
    """As in pynvml."""


def fake_nvml(monkeypatch: pytest.MonkeyPatch, millijoules: list[int]) -> list[str]:
    """A stand-in for pynvml. Returns the UUIDs that were asked for."""
    asked: list[str] = []

    def total(handle: object) -> int:
        if not millijoules:
            raise NVMLError("Not Supported")
        return millijoules.pop(0)

    module = ModuleType("pynvml")
    module.__dict__.update(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid),
        nvmlDeviceGetTotalEnergyConsumption=total,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    properties = SimpleNamespace(uuid="12ab")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return asked


def test_nvml_counts_in_millijoules_and_finds_the_card_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_nvml(monkeypatch, [1_000, 5_000, 7_250])
    meter = energy_meter(torch.device("cuda", 0))
    meter.start()
    assert meter.joules() == pytest.approx(2.25)
    assert asked == ["GPU-12ab"]


def test_a_card_that_cannot_count_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, [])
    meter = energy_meter(torch.device("cuda", 0))
    assert meter.joules() is None
    assert "Not Supported" in meter.what
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in energy_meter(torch.device("cuda", 0)).what


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's files")
def test_peak_memory_is_that_of_the_process(tmp_path: Path) -> None:
    before = resident_peak_mib()
    block = np.ones(2**27, np.uint8)  # 128 MiB
    assert resident_peak_mib() >= before
    assert resident_peak_mib() >= 128
    assert block[0] == 1
    (tmp_path / "status").write_text("VmPeak:\t  99 kB\nVmHWM:\t  3072 kB\n")
    assert resident_peak_mib(tmp_path / "status") == 3.0


def test_the_machine_is_described(tmp_path: Path) -> None:
    machine = describe_machine(CPU)
    assert machine.device == machine.cpu == cpu_name()
    assert machine.memory_gib > 0.5
    assert machine.cores >= 1
    assert machine.versions["torch"] == torch.__version__
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name : A Processor 9000\n")
    assert cpu_name(tmp_path / "cpuinfo") == "A Processor 9000"
    assert cpu_name(tmp_path / "missing")


def card(*, joules: float | None) -> Card:
    figures = figures_of([segment([10.0, 10.0, 12.0, 20.0], joules=joules, latencies=(21.0, 23.0))])
    return Card(
        date="2026-11-30T12:00:00+00:00",
        command="zoetrope bench",
        machine=MACHINE,
        setup=setup("zoetrope"),
        figures=figures,
    )


def test_the_text_of_a_card() -> None:
    lines = dict(line.split(maxsplit=1) for line in card(joules=6.0).as_text().splitlines() if " " in line.strip())
    assert lines["speed"] == "76.9 frames a second (4 frames in 0.1 s)"
    assert lines["evenness"] == "11.0 ms between frames (p50), 18.8 (p95), 19.8 (p99); p99/p50 1.80"
    assert lines["latency"] == "22.0 ms from push to picture (p50), 22.9 (p95)"
    assert lines["energy"] == "1.50 J a frame: no meter here"
    assert lines["memory"] == "14 MiB: what was allocated"
    assert "avx2" in lines["machine"]
    assert "not measured: no meter here" in card(joules=None).as_text()


def test_a_card_survives_json() -> None:
    read = json.loads(json.dumps(card(joules=None).as_json()))
    assert read["setup"]["size_px"] == [8, 6]
    assert read["figures"]["joules_per_frame"] is None
    assert read["figures"]["fps"] == pytest.approx(4 / 0.052)
    assert read["machine"]["versions"] == {"python": "3.11"}


# ---- feeding an engine ----


def test_a_camera_is_fed_in_the_worker_s_order() -> None:
    """The identity engine finishes a frame one tick after its push: frame n leaves in the round that takes n + 1."""
    engine = IdentityEngine(width=8, height=8, latency_ticks=1)
    feed = CameraFeed(engine.open(), endless_camera([np.full((8, 8, 3), value, np.uint8) for value in range(3)]))
    arrivals = [turn(engine, [feed])[0] for _ in range(5)]
    assert [arrival.frames if arrival else 0 for arrival in arrivals] == [0, 1, 1, 1, 1]
    assert all(arrival.latencies_ms[0] > 0 for arrival in arrivals if arrival)
    assert feed.stream.accounting.taken == 5
    engine.close()


def test_a_prompt_is_requested_again_only_when_the_stream_is_idle() -> None:
    engine = IdentityEngine(width=8, height=8, latency_ticks=2)
    feed = PromptFeed(engine.open())
    arrivals = [turn(engine, [feed])[0] for _ in range(9)]
    assert [arrival.frames if arrival else 0 for arrival in arrivals] == [0, 0, 1] * 3
    assert feed.stream.accounting.taken == 3
    engine.close()


def test_the_bundled_clip_is_cropped_to_the_stream() -> None:
    pictures = camera_pictures(192, 192)
    assert len(pictures) == 144
    assert all(picture.shape == (192, 192, 3) for picture in pictures)
    assert (pictures[0] != pictures[10]).any()
