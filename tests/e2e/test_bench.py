"""`zoetrope bench` measures the bundled models on the CPU, in processes of their own, and prints cards."""

from __future__ import annotations

import json

import pytest

from app.__main__ import main
from app.cli import bench
from app.measure.live import ModelRequest
from pipelines.backends.table import BACKENDS
from pipelines.files.loader_options import LoaderOptions


def test_a_card_of_mini_image(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "--device", "cpu", "--backend", "eager", "--seconds", "1", "--json"]
    assert main([*arguments, "--steps", "1", "--prompt", "a photo, pencil sketch"]) == 0
    report = json.loads(capfd.readouterr().out)
    (card,) = report["cards"]
    setup, figures = card["setup"], card["figures"]
    assert (setup["model"], setup["weights"], setup["steps"], setup["size_px"]) == (
        "mini-image",
        "bundled",
        1,
        [192, 192],
    )
    assert (setup["task"], setup["gap_of"], setup["backend"]) == ("image to image", "frames", "eager")
    assert 0 < setup["load_s"] < setup["first_frame_s"]
    assert setup["warm_up_frames"] >= 24
    assert figures["frames"] == pytest.approx(figures["fps"] * figures["seconds"])
    assert figures["gap_ms_p50"] <= figures["gap_ms_p95"] <= figures["gap_ms_p99"]
    assert figures["latency_ms_p50"] > figures["gap_ms_p50"] / 2
    assert figures["peak_memory_mib"] > 100
    assert setup["energy"]
    assert {row["name"]: row["runs"] for row in report["backends"]}["eager"] is True


@pytest.mark.soak
def test_a_card_of_mini_video() -> None:
    request = ModelRequest(model="mini-video", options=LoaderOptions(device="cpu", backend="eager"), warm_up_s=0.0)
    card = bench.measure(request, 1.0)
    assert (card.setup.task, card.setup.gap_of) == ("from the prompt alone", "chunks of 12 frames")
    assert card.setup.steps == 4
    assert card.figures.frames % 12 == 0
    assert card.figures.latency_ms_p50 is not None
    assert "frames a second" in card.as_text()


@pytest.mark.soak
def test_every_backend_in_turn_and_the_table(capfd: pytest.CaptureFixture[str]) -> None:
    """The identity model has no backend; `--all` then measures it once."""
    assert main(["bench", "identity", "--seconds", "0.2", "--all"]) == 0
    text = capfd.readouterr().out
    assert "it has no network" in text
    rows = bench.candidates(ModelRequest(model="mini-video", options=LoaderOptions(device="cpu")))
    assert [row.name for row in rows] == list(BACKENDS)
    found = {row.name: row for row in rows}
    assert found["eager"].runs
    assert not found["cuda-graph"].runs
    assert "needs a CUDA device" in found["cuda-graph"].text


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--seconds", "0"], "seconds cannot be '0'"),
        (["--seconds", "soon"], "seconds cannot be 'soon'"),
        (["--all", "--backend", "eager"], "--all and --backend"),
        (["--backend", "none"], "no backend named 'none'"),
        (["no-such-model"], "no-such-model"),
    ):
        assert main(["bench", *arguments, "--device", "cpu"]) == 1
        assert message in capsys.readouterr().err
