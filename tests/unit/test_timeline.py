"""A story's timeline: what a file may contain, and that a render makes each change at its frame or chunk.

Engines are real ones with cheap models; renders write pictures, so that frames can be compared exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.render.job import render
from app.render.loop import StopSignal
from app.render.request import RenderRequest
from app.render.timeline import Timeline, TimelineError
from pipelines.core.contracts import Engine
from pipelines.core.controls import Control
from pipelines.core.errors import InputError
from pipelines.core.tick_log import BirthRecord
from pipelines.image.engine import ImageEngine
from pipelines.video.engine import VideoEngine
from tests.fakes.clips import make_clip
from tests.fakes.image_model import cheap_model
from tests.fakes.video_engine import KINDS, small_engine

RATE = Fraction(8)
Entry = Mapping[str, object]


# ---- the file --------------------------------------------------------------------------------------------------------


def test_a_file_becomes_cues_in_the_order_of_their_times() -> None:
    entries = [
        {"at_s": 4.5, "prompt": "a robot:2 | a cat", "scene_cut": True},
        {"at_s": 0, "prompt": "a cat", "seed": 3.0},
        {"at_s": 4.5, "strength": 1},
    ]
    timeline = Timeline.parse(json.dumps(entries), "story.json")
    assert [(cue.number, cue.at_s) for cue in timeline.cues] == [(2, 0), (1, Fraction(9, 2)), (3, Fraction(9, 2))]
    assert timeline.cues[0].control == Control.of({"prompt": "a cat", "seed": 3})
    assert timeline.cues[1].control == Control.of({"prompt": "a robot:2 | a cat", "scene_cut": True})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:05 a cat", "s.json is not JSON: "),
        ("[]", "s.json is not a list of entries. A timeline looks like"),
        ('{"at_s": 0, "prompt": "a"}', "s.json is not a list of entries"),
        ('[{"at_s": 0, "prompt": "a"}, "b"]', 's.json, entry 2: "b" is not an object with at_s.'),
        ('[{"prompt": "a"}]', "s.json, entry 1: "),
        ('[{"at_s": -1, "prompt": "a"}]', "entry 1: at_s cannot be -1. Give seconds from 0"),
        ('[{"at_s": "4", "prompt": "a"}]', 'entry 1: at_s cannot be "4"'),
        ('[{"at_s": true, "prompt": "a"}]', "entry 1: at_s cannot be true"),
        ('[{"at_s": NaN, "prompt": "a"}]', "entry 1: at_s cannot be NaN"),
        ('[{"at_s": 4}]', "entry 1 (at 4 s): nothing changes. Add a control"),
        ('[{"at_s": 4, "promt": "a"}]', "entry 1 (at 4 s): There is no control named 'promt'."),
        ('[{"at_s": 4, "strength": 7}]', "entry 1 (at 4 s): strength cannot be 7.0. Give a value from 0.02 to 1."),
        ('[{"at_s": 4, "seed": 1.5}]', "entry 1 (at 4 s): seed must be a whole number, not 1.5."),
        ('[{"at_s": 4, "seed": null}]', "entry 1 (at 4 s): seed cannot be null."),
        ('[{"at_s": 4, "width": 64}]', "entry 1 (at 4 s): width cannot change in a stream."),
    ],
)
def test_a_bad_file_is_refused_by_its_entry(text: str, message: str) -> None:
    with pytest.raises(TimelineError) as caught:
        Timeline.parse(text, "s.json")
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(TimelineError, match=r"The timeline .*none\.json cannot be read"):
        Timeline.read(tmp_path / "none.json")


# ---- the render ------------------------------------------------------------------------------------------------------


class Story:
    """Renders into a folder of pictures at 8 frames per second. engine: of the last render."""

    def __init__(self, folder: Path, make: Callable[[], Engine]) -> None:
        self.folder, self.make = folder, make
        self._renders = 0
        folder.mkdir(exist_ok=True)
        self.engine = make()

    def request(self, entries: Sequence[Entry], *, frames: int, **control: object) -> RenderRequest:
        self._renders += 1
        file = self.folder / "story.json"
        file.write_text(json.dumps(entries))
        return RenderRequest(
            source=None,
            output=self.folder / f"out{self._renders}",
            as_folder=True,
            control=Control.of({"prompt": "a cat", **control}),
            model="fake",
            frames=frames,
            frame_rate=RATE,
            timeline=file if entries else None,
        )

    def run(self, request: RenderRequest) -> list[np.ndarray]:
        self.engine = self.make()
        assert render(request, lambda *_, **__: self.engine, lambda _: None) == 0
        files = sorted(request.output.iterdir())
        return [np.asarray(Image.open(file)).astype(int) for file in files]

    def frames(self, entries: Sequence[Entry], frames: int, **control: object) -> list[np.ndarray]:
        return self.run(self.request(entries, frames=frames, **control))


def image_engine() -> ImageEngine:
    return ImageEngine(cheap_model())


def video_engine() -> VideoEngine:
    return small_engine(max_streams=1)


@pytest.fixture
def images(tmp_path: Path) -> Story:
    return Story(tmp_path / "images", image_engine)


@pytest.fixture
def video(tmp_path: Path) -> Story:
    return Story(tmp_path / "video", video_engine)


def same(a: list[np.ndarray], b: list[np.ndarray], within: int = 0) -> bool:
    assert len(a) == len(b)
    return max((np.abs(x - y).max() for x, y in zip(a, b, strict=True)), default=0) <= within


STILL = {"noise_walk_deg": 0.0, "depth": 5, "steps": 3}
CHANGES: tuple[tuple[dict[str, object], dict[str, object]], ...] = (
    ({}, {"prompt": "a robot"}),
    ({"prompt_change": "cut"}, {"prompt": "a robot"}),
    ({"guidance_mode": "full", "guidance_scale": 2.0}, {"guidance_scale": 9.0}),  # felt by all slots at the next tick
    ({}, {"steps": 1, "seed": 9.0}),
)


@pytest.mark.parametrize(("always", "change"), CHANGES)
def test_an_image_change_holds_from_its_first_frame_and_touches_none_before(
    images: Story, always: dict[str, object], change: dict[str, object]
) -> None:
    """Noise is the same for every slot, so a frame is a function of its controls alone."""
    before = images.frames([], 12, **STILL, **always)
    after = images.frames([], 12, **{"prompt": "a cat", **STILL, **always, **change})
    told = images.frames([{"at_s": 0.8, **change}], 12, **STILL, **always)  # between frames 6 and 7
    assert not same(before[7:], after[7:], within=4)
    assert same(told[:7], before[:7], within=1)
    assert same(told[7:], after[7:], within=1)


def test_a_change_at_the_start_is_the_same_as_an_option(images: Story, video: Story) -> None:
    for story in (images, video):
        told = story.frames([{"at_s": 0, "prompt": "a robot"}], 9)
        assert same(told, story.frames([], 9, prompt="a robot"))


def births(engine: Engine) -> list[BirthRecord]:
    return [record for record in engine.log.records() if isinstance(record, BirthRecord)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_that_changes_nothing_costs_no_pixel(tmp_path: Path, kind: str) -> None:
    """Chunks are finished before a change; overlapping windows are not flushed."""
    story = Story(
        tmp_path, lambda: small_engine(KINDS[kind], torch.float64, max_streams=1)
    )  # batches differ: no rounding
    nothing = [{"at_s": second, "prompt": "a cat"} for second in (0, 1, 2.5)]
    assert same(story.frames(nothing, 40), story.frames([], 40))


def test_a_video_change_holds_from_the_first_chunk_that_begins_then(video: Story) -> None:
    """Chunks of 5, 8, 8, ... frames begin at frames 0, 5, 13, 21: a change at frame 6 is for the chunk at 13."""
    plain = video.frames([], 29)
    told = video.frames([{"at_s": 6 / 8, "prompt": "a robot", "seed": 7}], 29)
    assert same(told[:13], plain[:13])
    assert not same(told[13:], plain[13:], within=4)
    exact = video.frames([{"at_s": 13 / 8, "prompt": "a robot", "seed": 7}], 29)
    assert same(told, exact)
    late = video.frames([{"at_s": 13.1 / 8, "prompt": "a robot", "seed": 7}], 29)
    assert same(late[:21], plain[:21])


def test_cuts_and_another_chunk_length_are_each_made_once(video: Story) -> None:
    entries: Sequence[Entry] = [
        {"at_s": 0.5, "chunk_frames": 1},
        {"at_s": 1.0, "scene_cut": True, "prompt": "a robot"},
        {"at_s": 2.0, "prompt": "a dog", "prompt_change": "cut"},
    ]
    video.frames(entries, 25)
    assert [len(record.source_seqs) for record in births(video.engine)] == [5, 4, 4, 4, 4, 4]


def test_a_three_shot_story_in_a_memory_of_shots(tmp_path: Path) -> None:
    """Each cut begins a shot: from its first frame on, pictures differ from those of a story without cuts."""
    dual = replace(KINDS["chunk"], policy="dual", sink_frames=2)
    story = Story(tmp_path, lambda: small_engine(dual, max_streams=1))
    shots = [{"at_s": 0, "prompt": "a cat"}, {"at_s": 1, "prompt": "a robot"}, {"at_s": 2, "prompt": "a dog"}]
    plain = story.frames([dict(shot) for shot in shots], 29)
    cut = story.frames([dict(shot, scene_cut=shot["at_s"] != 0) for shot in shots], 29)
    assert same(cut[:13], plain[:13])  # the chunk that begins at or after 1 s is that at frame 13
    assert not same(cut[13:21], plain[13:21], within=4)
    assert not same(cut[21:], plain[21:], within=4)


def test_inputs_are_told_at_their_own_times(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=20, rate=10, size=(48, 32), sound="")
    story = Story(tmp_path, video_engine)
    requests = [
        replace(story.request(e, frames=20), source=clip, frames=None, frame_rate=None)
        for e in ([], [{"at_s": 0.45, "seed": 7}], [{"at_s": 0.5, "seed": 7}])
    ]
    plain, told, exact = map(story.run, requests)
    assert len(told) == 20
    assert same(told, exact)
    assert same(told[:5], plain[:5])
    assert not same(told[5:13], plain[5:13], within=4)


# ---- what is refused, and what is resumed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"at_s": 2, "steps": 3}, "story.json, entry 1 (at 2 s): steps does not apply to a video model."),
        ({"at_s": 2, "chunk_frames": 3}, "entry 1 (at 2 s): chunk_frames cannot be 3."),
        ({"at_s": 2, "paused": True}, "entry 1 (at 2 s): paused would end the render."),
    ],
)
def test_what_the_engine_cannot_do_is_said_before_the_first_frame(video: Story, entry: Entry, message: str) -> None:
    request = video.request([entry], frames=9)
    with pytest.raises(TimelineError) as caught:
        video.run(request)
    assert message in str(caught.value)
    assert not request.output.exists()


class Stop:
    """A StopSignal that requests a stop after `calls` calls."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, signal: StopSignal) -> bool:
        self.calls -= 1
        return self.calls < 0


def interrupted(story: Story, entries: Sequence[Entry], patch: pytest.MonkeyPatch, **control: object) -> RenderRequest:
    """Run a render of 30 frames, stopped in the middle."""
    request = story.request(entries, frames=30, **control)
    stop = Stop(25)
    with patch.context() as now:
        now.setattr(StopSignal, "__call__", lambda signal: stop(signal))
        engine = story.make()
        assert render(request, lambda *_, **__: engine, lambda _: None) == 130
    assert 8 < len(list(request.output.iterdir())) < 29
    return replace(request, resume=True)


STORY: list[Entry] = [{"at_s": 0.5, "prompt": "a robot"}, {"at_s": 3, "prompt": "a dog", "seed": 5}]


@pytest.mark.parametrize(
    "control",
    [STILL, {**STILL, "transition_frames": 25}, {**STILL, "seed_lock": False}],
    ids=["locked", "in a transition", "numbered noise"],
)
def test_an_image_render_resumes_in_the_right_state(
    images: Story, monkeypatch: pytest.MonkeyPatch, control: dict[str, object]
) -> None:
    again = images.run(interrupted(images, STORY, monkeypatch, **control))
    assert same(again, images.frames(STORY, 30, **control), within=1)


def test_a_video_render_resumes_in_the_right_state(video: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    entries: Sequence[Entry] = [*STORY, {"at_s": 2, "scene_cut": True}]
    again = video.run(interrupted(video, entries, monkeypatch))
    assert same(again, video.frames(entries, 30))


def test_a_render_is_not_resumed_with_another_timeline(video: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    request = interrupted(video, STORY, monkeypatch)
    assert request.timeline is not None
    request.timeline.write_text('[{"at_s": 1, "prompt": "a dog"}]')
    with pytest.raises(InputError, match="The interrupted render had another timeline"):
        video.run(request)
