"""bench.cache_plots and bench.cache_drift: what the plots select and draw, and drift that is known beforehand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from bench import cache_floors
from bench.cache_clips import CLIPS
from bench.cache_drift import DriftComparison, DriftMeter, measure_drift, slope_per_minute
from bench.cache_plots import EQUAL_DB, GOALS, MARKERS, Axes, Run, draw_marker, draw_panel, main, pareto_front, plot
from bench.drift_plots import BLACK, PANEL_PX, inks
from pipelines.core.types import Picture


def _run(cache: str, speed_up: float, psnr_db: float, clip: str = "still", preset: str = "") -> Run:
    return Run(clip=clip, cache=cache, speed_up=speed_up, psnr_db=psnr_db, preset=preset)


def test_the_front_is_what_nothing_beats() -> None:
    runs = [
        _run("exact", 1.0, math.inf),
        _run("good", 1.8, 34),
        _run("worse in both", 1.5, 33),
        _run("as fast but worse", 1.8, 31),
        _run("fast", 3.0, 28),
        _run("slow and bad", 0.9, 20),
    ]
    assert [run.cache for run in pareto_front(runs)] == ["exact", "good", "fast"]
    assert pareto_front([]) == []


def test_axes_hold_all_runs_and_the_goal() -> None:
    runs = [_run("a", 0.8, 18), _run("b", 6.0, math.inf)]
    axes = Axes.around(runs, (8.0, 30.0))
    width, height = PANEL_PX
    assert axes.worst_db == 10
    assert axes.at(0.8, 10) == (40, height - 40)
    assert axes.at(axes.fastest, EQUAL_DB) == (width - 40, 40)
    assert axes.at(6.0, math.inf)[1] == 40
    assert axes.at(1.0, 5.0)[1] == height - 40, "off the scale is drawn at its edge"
    assert axes.at(2.0, 30)[0] - axes.at(1.0, 30)[0] == pytest.approx(
        axes.at(4.0, 30)[0] - axes.at(2.0, 30)[0], abs=1
    ), "doublings are as far apart"


@pytest.mark.parametrize("shape", MARKERS)
def test_every_marker_is_drawn_around_its_point(shape: str) -> None:
    panel = np.full((41, 41, 3), 255, np.uint8)
    draw_marker(panel, (20, 20), shape, (0, 0, 200), 5)
    rows, columns = np.nonzero((panel != 255).any(-1))
    assert panel[20, 20].tolist() == [0, 0, 200]
    assert abs(rows.mean() - 20) < 1.2
    assert abs(columns.mean() - 20) < 0.6
    assert rows.max() - rows.min() <= 14


def test_a_preset_is_black_and_a_goal_is_seen() -> None:
    runs = [_run("window", 2.0, 33, preset="balanced"), _run("deep", 1.4, 29)]
    ink = inks(["window", "deep"], bold=["window"])
    panel = draw_panel("still", runs, ink, (1.8, 32.0))
    axes = Axes.around(runs, (1.8, 32.0))
    x, y = axes.at(2.0, 33)
    assert panel[y, x].tolist() == list(BLACK)
    x, y = axes.at(1.4, 29)
    assert panel[y, x].tolist() == list(ink["deep"])
    assert (panel != draw_panel("still", runs, ink)).any()


def test_the_command_draws_a_result(tmp_path: Path) -> None:
    result, out = tmp_path / "result.json", tmp_path / "images" / "cache.png"
    runs = [
        {"clip": clip, "cache": cache, "speed_up": 1 + number, "psnr_db": decibels, "preset": preset}
        for clip in ("still", "figure", "fast", "fog")
        for number, (cache, decibels, preset) in enumerate((("exact", None, "exact"), ("deep", 28.5, None)))
    ]
    result.write_text(json.dumps({"bench": "cache", "runs": runs}), encoding="utf-8")
    main([str(result), "--out", str(out)])
    picture = cv2.imread(str(out))
    assert picture.shape == (2 * PANEL_PX[1], 3 * PANEL_PX[0], 3)
    assert (picture[PANEL_PX[1] :, PANEL_PX[0] : 2 * PANEL_PX[0]] < 100).any(), "the legend"
    assert Run.of(runs[0]).psnr_db == math.inf
    assert Run.of(runs[1]).preset == ""
    with pytest.raises(ValueError, match=r"lacks speed_up, psnr_db"):
        Run.of({"clip": "still", "cache": "deep"})
    with pytest.raises(ValueError, match="no runs"):
        plot([], out)
    assert GOALS["still"] == (1.8, 32.0)


# -- drift -------------------------------------------------------------------------------------------------------------

FPS = 2
FIELD = np.random.default_rng(3).uniform(60, 180, (24, 24, 3))


def _stream(seconds: int, change: Callable[[float], np.ndarray]) -> list[Picture]:
    """Frames of a picture that `change` makes at a time in seconds."""
    frames = [change((number + 0.5) / FPS) for number in range(seconds * FPS)]
    return [frame.round().clip(0, 255).astype(np.uint8) for frame in frames]


def _grey(levels: np.ndarray) -> np.ndarray:
    return levels @ np.array([0.299, 0.587, 0.114]).reshape(3, 1) * np.ones(3)


def test_a_steady_stream_does_not_drift() -> None:
    found = measure_drift(_stream(20, lambda second: FIELD), FPS)
    assert found.seconds == 20
    assert found.histogram < 1e-6
    assert found.saturation == pytest.approx(0, abs=1e-9)
    assert found.contrast == pytest.approx(0, abs=1e-9)


def test_fading_colours_and_contrast_are_found() -> None:
    def pale(second: float) -> np.ndarray:
        keep = 1 - 0.3 * second / 60
        return keep * FIELD + (1 - keep) * _grey(FIELD)

    found = measure_drift(_stream(60, pale), FPS)
    assert found.saturation == pytest.approx(-0.30 / (1 - 0.3 * 3.5 / 60), abs=0.01)
    assert abs(found.contrast) < 0.01
    assert found.histogram > 0.1
    flat = measure_drift(_stream(60, lambda second: 120 + (FIELD - 120) * (1 + 0.2 * second / 60)), FPS)
    assert flat.contrast == pytest.approx(0.20 / (1 + 0.2 * 3.5 / 60), abs=0.01)


def test_the_slope_is_that_of_a_line() -> None:
    values = 2.0 + 0.01 * np.arange(30)
    assert slope_per_minute(values) == pytest.approx(60 * 0.01 / values[2:5].mean())
    assert slope_per_minute(np.zeros(10)) == 0


def test_a_comparison_says_who_drifts_more() -> None:
    steady = measure_drift(_stream(12, lambda second: FIELD), FPS)
    brighter = measure_drift(_stream(12, lambda second: FIELD + 3 * second), FPS)
    fine = DriftComparison(cached=steady, uncached=steady, inputs=brighter)
    assert fine.no_more
    assert not DriftComparison(cached=brighter, uncached=steady, inputs=steady).no_more
    assert DriftComparison(cached=steady, uncached=brighter, inputs=steady).no_more
    record = fine.record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["no_more_than_uncached"]
    assert record["inputs"]["histogram"] > 0.2


def test_a_stream_that_is_too_short_is_refused() -> None:
    meter = DriftMeter(FPS)
    for frame in _stream(8, lambda second: FIELD)[:-1]:
        meter.add(frame)
    with pytest.raises(ValueError, match="at least 8"):
        meter.drift()
    with pytest.raises(ValueError, match="at least 1"):
        DriftMeter(0)


# -- the clips by themselves -------------------------------------------------------------------------------------------


def test_the_clips_are_measured_against_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    arguments = ["--clips", "still", "fast", "cuts", "--frames", "14", "--size", "64", "48", "--sheet", str(sheet)]
    assert cache_floors.main([*arguments, "--json"]) == 0
    rows = {row["clip"]: row for row in json.loads(capsys.readouterr().out)["runs"]}
    assert rows["still"]["static_share"] > 0.97 > 0.5 > rows["fast"]["static_share"]
    assert rows["still"]["held_psnr_db"] > 36 > 20 > rows["fast"]["held_psnr_db"]
    assert (rows["cuts"]["cuts"], rows["still"]["cuts"]) == (1, 0)
    assert cv2.imread(str(sheet)).shape == (len(CLIPS) * 48, 8 * 64, 3)
