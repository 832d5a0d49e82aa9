"""Contests: turns in real processes, failures that end only themselves, ratios of the same round."""

from __future__ import annotations

import importlib.util
import itertools
import json
from functools import partial

import numpy as np
import pytest

from app.measure.apart import Apart
from app.measure.camera import camera_pictures
from app.measure.subject import Begun
from bench.compare import json_of, main, text_of
from bench.contest import Contestant, Outcome, Rounds, hold
from bench.image_contest import ImageCase, auto_pipeline, load_parts, ours, plain_loop, streamdiffusion
from bench.image_peers import AutoPipelinePeer
from bench.plain_loop import PlainLoop
from bench.video_contest import VideoCase, anyflow, contestants, end_to_end, transformer_alone
from pipelines.core.errors import ModelError
from tests.fakes.subjects import broken, turns

ROUNDS = Rounds(rounds=3, seconds=0.5, command="python -m bench.compare")


def contestant(name: str, fps: float, *, is_ours: bool = False, fails_at: int = 0, dies_at: int = 0) -> Contestant:
    return Contestant(name=name, ours=is_ours, make=partial(turns, name, fps, fails_at, dies_at))


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def outcome(said: list[str]) -> Outcome:
    entries = [
        contestant("peer", 10.0),
        contestant("ours", 25.0, is_ours=True),
        contestant("more", 20.0, is_ours=True),
        contestant("full", 1.0, fails_at=2),
        contestant("dead", 1.0, dies_at=1),
        Contestant(name="broken", ours=False, make=broken),
        Contestant(name="absent", ours=False, make=broken, module="no_such_module", pip="pip install no-such-module"),
        Contestant(name="refused", ours=True, make=broken, refusal="It needs CUDA."),
    ]
    return hold("everything", entries, ROUNDS, said.append)


def test_every_contestant_has_a_card_or_a_reason(outcome: Outcome) -> None:
    assert list(outcome.cards) == ["peer", "ours", "more"]
    reasons = {entry.name: (entry.reason, entry.pip) for entry in outcome.not_run}
    assert reasons["full"] == ("The device has no memory left. Close something.", "")
    assert "SIGKILL" in reasons["dead"][0]
    assert reasons["broken"][0] == "ValueError: no such layer"
    assert reasons["absent"] == ("the package no_such_module is not installed", "pip install no-such-module")
    assert reasons["refused"][0] == "It needs CUDA."
    assert len(reasons) == 5


def test_the_order_turns_round_after_every_round(outcome: Outcome, said: list[str]) -> None:
    rounds = [line.split(":")[:2] for line in said if line.startswith("round")]
    order = [
        (int(number.split()[1]), name.strip()) for number, name in rounds if name.strip() in ("peer", "ours", "more")
    ]
    assert order == [
        (number, name)
        for number, names in ((1, "peer ours more"), (2, "more ours peer"), (3, "peer ours more"))
        for name in names.split()
    ]
    assert outcome.cards["peer"].figures.segments == 3
    assert outcome.cards["peer"].figures.fps == pytest.approx(10.0)


def test_ratios_are_of_ours_and_peers_in_the_same_round(outcome: Outcome) -> None:
    ratios = {(ratio.ours, ratio.peer): ratio for ratio in outcome.ratios}
    assert ratios.keys() == {("ours", "peer"), ("more", "peer")}
    assert ratios["ours", "peer"].ratio == pytest.approx(2.5)
    assert ratios["ours", "peer"].same_work
    assert not ratios["more", "peer"].same_work


def test_the_outcome_as_text_and_json(outcome: Outcome) -> None:
    text = text_of(outcome)
    assert "ours / peer: 2.50 (2.50 to 2.50)" in text
    assert "more / peer: 2.00 (2.00 to 2.00)  (not the same work)" in text
    assert "not run: absent: the package no_such_module is not installed (pip install no-such-module)" in text
    read = json.loads(json.dumps(json_of(outcome)))
    assert read["cards"]["ours"]["figures"]["fps"] == pytest.approx(25.0)
    assert read["cards"]["ours"]["command"] == "python -m bench.compare"


def test_standard_output_of_a_subject_is_not_ours(capfd: pytest.CaptureFixture[str]) -> None:
    with Apart(partial(turns, "peer", 5.0, 0, 0), lambda text: None) as apart:
        assert apart.measure(1.0).frames == 2
    written = capfd.readouterr()
    assert "standard output" not in written.out
    assert "peer writes to standard output" in written.err


def test_an_answer_is_not_awaited_for_ever() -> None:
    with (
        Apart(partial(turns, "peer", 5.0, 0, 0), lambda text: None, timeout_s=0.0) as apart,
        pytest.raises(ModelError, match="no answer"),
    ):
        apart.about()


# ---- the real contestants, on the CPU in this process ----

BEGUN = Begun(lambda text: None, 0.0)
needs_streamdiffusion = pytest.mark.skipif(
    importlib.util.find_spec("streamdiffusion") is None,
    reason="streamdiffusion is not installed (pip install --no-deps streamdiffusion==0.1.1)",
)


@needs_streamdiffusion
@pytest.mark.parametrize("model", ["tiny", pytest.param("mini-image", marks=pytest.mark.soak)])
def test_contestants_of_images_run_the_same_case(model: str) -> None:
    """mini-image has its real weights; every subject counts the same."""
    case = ImageCase(model=model, device="cpu", steps=2, warm_up_s=0.0)
    subjects = [make(case, BEGUN) for make in (plain_loop, auto_pipeline, streamdiffusion)]
    live = ours(case, "eager", BEGUN)
    setups = [subject.setup for subject in (*subjects, live)]
    assert len({(s.counted, s.size_px, s.steps, s.precision, s.weights, s.model) for s in setups}) == 1
    segments = [subject.measure(0.3) for subject in (*subjects, live)]
    assert all(segment.frames == len(segment.gaps_ms) >= 1 for segment in segments[:3])
    assert all(segment.fps > 0 for segment in segments)
    plain, _, streaming, engine = segments
    assert list(plain.latencies_ms) == list(plain.gaps_ms), "a call returns its own picture"
    two_calls = [first + second for first, second in itertools.pairwise(streaming.gaps_ms)]
    assert list(streaming.latencies_ms) == pytest.approx(two_calls), "a picture leaves with the next call"
    assert len(engine.latencies_ms) == engine.frames
    live.close()


def test_the_peer_s_picture_is_that_of_the_plain_loop() -> None:
    """The same weights, prompt, strength and timesteps, but other noise: the pictures correlate by 0.98; with another
    input by 0.16."""
    parts, _ = load_parts(ImageCase(model="mini-image", device="cpu", steps=2))
    picture = camera_pictures(192, 192)[20]
    drawn = AutoPipelinePeer(parts, steps=2, strength=0.5)(picture)
    expected = PlainLoop(parts.model, 2, 0.5)(picture)
    assert np.corrcoef(drawn.ravel(), expected.ravel())[0, 1] > 0.95


@pytest.mark.filterwarnings("default:flex_attention called without torch.compile")
@pytest.mark.parametrize(("model", "window"), [("tiny", 6), pytest.param("mini-video", 9, marks=pytest.mark.soak)])
def test_contestants_of_videos_run_the_same_case(model: str, window: int) -> None:
    """mini-video's real weights in ours; AnyFlow with random ones in the same shape."""
    case = VideoCase(model=model, device="cpu", window_frames=window, warm_up_s=0.0)
    peer, alone, whole = (
        anyflow(case, False, BEGUN),
        transformer_alone(case, "eager", BEGUN),
        end_to_end(case, "eager", BEGUN),
    )
    assert (peer.setup.counted, peer.setup.precision) == (alone.setup.counted, alone.setup.precision)
    assert peer.setup.size_px == alone.setup.size_px == whole.setup.size_px
    assert whole.setup.steps == alone.setup.steps == 4
    segments = [subject.measure(0.3) for subject in (peer, alone, whole)]
    assert all(segment.frames == 12 * len(segment.gaps_ms) for segment in segments[:2])
    assert segments[2].frames == 12 * (len(segments[2].gaps_ms) + 1), "the first of a stretch has no gap"
    assert not segments[1].latencies_ms, "latents do not leave it as pictures"
    assert whole.setup.warm_up_frames >= 4 * window, "its window is full"
    whole.close()


def test_what_cannot_run_on_a_cpu_is_named() -> None:
    case = VideoCase(model="tiny", device="cpu", window_frames=6)
    flashdreams = next(c for c in contestants(case) if c.name.startswith("flashdreams"))
    assert flashdreams.pip == "pip install flashdreams==0.1.0"
    assert "CUDA" in flashdreams.refusal
    found = hold("video", [flashdreams], ROUNDS, lambda text: None)
    assert not found.cards
    assert found.not_run[0].reason


@pytest.mark.soak
def test_the_command_measures_and_prints_json(capfd: pytest.CaptureFixture[str]) -> None:
    """Two processes with random weights; the rest is left out."""
    arguments = [
        "image",
        "--device",
        "cpu",
        "--image-model",
        "tiny",
        "--steps",
        "1",
        "--seconds",
        "0.2",
        "--rounds",
        "2",
    ]
    assert main([*arguments, "--warm-up", "0", "--only", "plain loop", "zoetrope, eager", "cuda-graph", "--json"]) == 0
    (contest,) = json.loads(capfd.readouterr().out)["contests"]
    assert list(contest["cards"]) == ["plain loop", "zoetrope, eager"]
    assert all(card["figures"]["segments"] == 2 and card["figures"]["fps"] > 0 for card in contest["cards"].values())
    (ratio,) = contest["ratios"]
    assert ratio["same_work"]
    assert ratio["lowest"] <= ratio["ratio"] <= ratio["highest"]
    assert {entry["name"] for entry in contest["not_run"]} >= {"zoetrope, cuda-graph"}


def test_the_list_names_everybody_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--list", "--skip", "compiled"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "  streamdiffusion 0.1.1" in listed
    assert "  flashdreams 0.1.0" in listed
    assert not any("compiled" in line for line in listed)
    with pytest.raises(SystemExit):
        main(["sound"])
