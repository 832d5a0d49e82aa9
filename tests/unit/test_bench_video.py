"""bench.video_stream on the CPU at tiny size: its rows, its arithmetic, and its peer."""

from __future__ import annotations

import json

import pytest
import torch

from bench.model_stream import measure_camera, moving_pictures
from bench.video_shapes import VIDEO_SHAPES
from bench.video_stream import main
from tests.fakes.video_engine import small_engine


def test_the_command_prints_a_row_for_each_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    arguments = ["--shape", "tiny", "--device", "cpu", "--chunks", "1", "--chunk-latents", "3", "--no-peer"]
    arguments += ["--threads", str(threads)]
    try:
        assert main([*arguments, "--codecs", "tiny", "--profile", "--json"]) == 0
    finally:
        torch.set_num_threads(threads)
    figures = json.loads(capsys.readouterr().out)
    rows = figures["runs"]
    assert [(r["what"], r.get("codec")) for r in rows] == [
        ("transformer", None),
        ("frames", "tiny"),
        ("engine", "tiny"),
    ]
    assert rows[0]["loop_fps"] > 0
    assert all(r["end_to_end_fps"] > 0 and r["first_frame_ms"] > 0 for r in rows[1:])
    assert rows[2]["action_to_picture_frames"] == 12, "those of the chunk that was born before the key was pressed"
    assert 0 < rows[2]["action_to_picture_ms_at_best"] < rows[2]["action_to_picture_ms_mean"]
    assert figures["device"] == "cpu"
    assert figures["attention"] == "flash"


def test_a_camera_s_rows_count_its_pictures() -> None:
    model = small_engine().core.model
    row = measure_camera(model, chunk_frames=2, chunks=2)
    assert row["chunk_latents"] == 2
    assert isinstance(row["end_to_end_fps"], float)
    assert row["end_to_end_fps"] > 0
    assert isinstance(row["input_to_picture_ms_p50"], float)


def test_the_camera_moves() -> None:
    camera = moving_pictures(16, 24)
    first, second = next(camera), next(camera)
    assert first.image.shape == (16, 24, 3)
    assert (first.seq, second.seq) == (0, 1)
    assert (first.image != second.image).any()


@pytest.mark.filterwarnings("default:flex_attention called without torch.compile")
def test_the_peer_runs_at_the_same_shape() -> None:
    from bench.video_peer import PeerSettings, measure_peer

    settings = PeerSettings(
        shape=VIDEO_SHAPES["tiny"],
        window_frames=9,
        device=torch.device("cpu"),
        dtype=torch.float32,
        compiled=False,
        full_chunks=2,
    )
    row = measure_peer(settings)
    assert "error" not in row
    assert isinstance(row["loop_fps"], float)
    assert row["loop_fps"] > 0


def test_the_floor_is_that_of_the_arithmetic() -> None:
    """Wan 2.1 1.3B at 480×832: 40.41 and 28.30 TFLOP per pass at windows 21 and 12; 58.8 frames per second at 990
    TFLOP/s."""
    shape = VIDEO_SHAPES["wan-1.3b"]
    assert shape.frame_tokens == 1560
    assert shape.pass_tflop(3, 21) == pytest.approx(40.41, abs=0.01)
    assert shape.pass_tflop(3, 12) == pytest.approx(28.30, abs=0.01)
    assert shape.floor_fps(3, 21, passes=5) == pytest.approx(58.8, abs=0.05)
    assert VIDEO_SHAPES["wan-1.3b-square"].floor_fps(3, 21, passes=5) == pytest.approx(117.9, abs=0.1)
