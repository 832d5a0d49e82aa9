"""The render loop and how it ends, with a fake engine: no frame is lost, skipped ones are repeated, resuming is
exact."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.cli import render as door
from app.media.containers import CONTAINERS
from app.media.geometry import Aspect
from app.media.source import SourceFrame
from app.render.job import render
from app.render.loop import StopSignal
from app.render.record import part_folder
from app.render.request import RenderRequest
from pipelines.core.controls import Control
from pipelines.core.errors import InputError, OutputError
from pipelines.core.preparation import NoPreparation, PartForm, PreparationStatus
from pipelines.core.prompts import WeightedPrompt
from pipelines.files.loader_options import LoaderOptions, VideoChoices
from tests.fakes.clips import make_clip, play
from tests.fakes.engine import FakeEngine


class Bench:
    """Runs renders with a new fake engine each; `said` collects the messages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.engines: list[FakeEngine] = []

    def request(self, source: Path | None, output: str, **changes: object) -> RenderRequest:
        request = RenderRequest(
            source=source,
            output=self.folder / output,
            as_folder=output.endswith("/"),
            control=Control(prompt=(WeightedPrompt(text="a cat"),)),
            model="fake",
        )
        return replace(request, **changes)  # type: ignore[arg-type]

    def run(self, request: RenderRequest, make: Callable[[], FakeEngine] = FakeEngine) -> int:
        def load(*_: object, **__: object) -> FakeEngine:
            self.engines.append(make())
            return self.engines[-1]

        status = render(request, load, self.said.append)
        assert self.engines[-1].calls["close"] == 1
        return status


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", frames=60, rate=25)


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_every_frame_once_in_order_with_the_sound(bench: Bench, clip: Path, suffix: str) -> None:
    assert bench.run(bench.request(clip, f"out{suffix}")) == 0
    source, played = play(clip), play(bench.folder / f"out{suffix}")
    assert played.indices == [k % 40 for k in range(60)]
    assert played.times_s == pytest.approx(source.times_s, abs=0.001)
    assert played.duration_s == pytest.approx(source.duration_s, abs=0.04)
    assert played.sound_s == pytest.approx(source.sound_s, abs=0.04)
    assert bench.engines[0].calls["refused"] > 0  # the ring was full at times
    assert not part_folder(bench.folder / f"out{suffix}").exists()


def test_skipped_frames_are_the_one_before_again(bench: Bench, clip: Path) -> None:
    request = bench.request(clip, "out.mp4", control=Control(similarity_filter=True))
    skipped = {1, 2, 7, 30, 31, 32, 58, 59}
    assert bench.run(request, lambda: FakeEngine(skip=skipped.__contains__)) == 0
    shown, last = [], 0
    for index in range(60):
        last = last if index in skipped else index
        shown.append(last % 40)
    assert play(bench.folder / "out.mp4").indices == shown


def test_a_folder_of_pictures_in_and_out(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(12):
        Image.new("RGB", (64, 48), (index, 0, 0)).save(folder / f"{index}.png")
    assert bench.run(bench.request(folder, "out/", frame_rate=Fraction(12))) == 0
    assert [int(255 - image[0, 0, 0]) for image in pictures(tmp_path / "out")] == list(range(12))
    assert bench.run(bench.request(folder, "out.mp4", frame_rate=Fraction(12))) == 0
    assert play(tmp_path / "out.mp4").duration_s == pytest.approx(1.0, abs=0.01)


def test_an_animated_gif_has_no_sound_and_says_so(bench: Bench, clip: Path) -> None:
    assert bench.run(bench.request(clip, "out.gif")) == 0
    with Image.open(bench.folder / "out.gif") as image:
        assert image.n_frames == 60
    assert "A GIF has no sound: the source's sound is dropped." in bench.said
    assert not part_folder(bench.folder / "out.gif").exists()


def test_an_output_that_cannot_be_begun_leaves_nothing_and_promises_nothing(
    bench: Bench, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(CONTAINERS[".mkv"], video_options={"preset": "none such"})
    with monkeypatch.context() as patch:
        patch.setattr("app.media.containers.CONTAINERS", {".mkv": row})
        with pytest.raises(OutputError, match="Nothing was written; check the folder") as caught:
            bench.run(bench.request(clip, "out.mkv"))
    assert "--resume" not in str(caught.value)
    assert not (bench.folder / "out.mkv").exists()
    assert not part_folder(bench.folder / "out.mkv").exists()
    assert bench.run(bench.request(clip, "out.mkv")) == 0  # the remedy: no --force is needed


@pytest.mark.parametrize("output", ["out.mp4", "out.mov", "out.gif", "out/"])
def test_an_engine_that_fails_before_its_first_frame_leaves_nothing(bench: Bench, clip: Path, output: str) -> None:
    with pytest.raises(RuntimeError, match="fails here"):
        bench.run(bench.request(clip, output), lambda: FakeEngine(fail_at_tick=1))
    assert not (bench.folder / output).is_file()
    assert not part_folder(bench.folder / output).exists()
    assert bench.run(bench.request(clip, output)) == 0


def test_prompt_only_has_the_asked_length(bench: Bench) -> None:
    assert bench.run(bench.request(None, "out.mp4", frames=30, frame_rate=Fraction(10))) == 0
    played = play(bench.folder / "out.mp4")
    assert played.greys == pytest.approx([3 * k for k in range(30)], abs=2)
    assert played.duration_s == pytest.approx(3.0, abs=0.01)
    assert bench.engines[0].streams == []  # closed


@pytest.mark.parametrize(
    ("aspect", "out_size", "expected"),
    [
        (Aspect.PAD, "native", (64, 48)),
        (Aspect.PAD, "source", (102, 50)),
        (Aspect.CROP, "source", (66, 50)),
        (Aspect.STRETCH, (33, 21), (34, 22)),
    ],
)
def test_output_sizes(
    bench: Bench, tmp_path: Path, aspect: Aspect, out_size: object, expected: tuple[int, int]
) -> None:
    odd = make_clip(tmp_path / "odd.mkv", frames=3, size=(101, 49), sound="", encoder="ffv1")
    assert bench.run(bench.request(odd, "out.mp4", aspect=aspect, out_size=out_size)) == 0
    assert play(tmp_path / "out.mp4").size == expected


class Interrupt:
    """A StopSignal that requests a stop after `calls` calls."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, signal: StopSignal) -> bool:
        self.calls -= 1
        return self.calls < 0


def test_an_interrupted_gif_plays_and_resumes(bench: Bench, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Interrupt(40)
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "__call__", lambda signal: stop(signal))
        assert bench.run(bench.request(clip, "out.gif")) == 130
    with Image.open(bench.folder / "out.gif") as image:
        assert 5 < image.n_frames < 60
        assert f"has {image.n_frames} frames and is playable" in bench.said[-1]
    assert bench.run(bench.request(clip, "out.gif", resume=True)) == 0
    with Image.open(bench.folder / "out.gif") as image:
        assert image.n_frames == 60


@pytest.mark.parametrize("output", ["out.mp4", "out.mkv", "out.webm", "out/"])
@pytest.mark.parametrize("calls", [5, 60, 95])
def test_an_interrupted_render_plays_and_resumes_to_the_same(
    bench: Bench, clip: Path, output: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.run(bench.request(clip, "whole/")) == 0
    stop = Interrupt(calls)
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "__call__", lambda signal: stop(signal))
        assert bench.run(bench.request(clip, output)) == 130
    assert "--resume continues" in bench.said[-1]
    with pytest.raises(OutputError, match=r"There is an interrupted render of"):
        bench.run(bench.request(clip, output))
    assert bench.run(bench.request(clip, output, resume=True)) == 0
    if output == "out/":
        whole, resumed = pictures(bench.folder / "whole"), pictures(bench.folder / "out")
        assert len(resumed) == 60
        assert all(np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True))
    else:
        played = play(bench.folder / output)
        assert played.indices == [k % 40 for k in range(60)]
        assert played.duration_s == pytest.approx(2.4, abs=0.04)
        assert played.sound_s == pytest.approx(2.4, abs=0.04)
    assert not part_folder(bench.folder / output).exists()


class StoredForms(NoPreparation):
    """A preparation with one plan, which is used once it is stored. called: what a render asks of it."""

    def __init__(self, plan: str) -> None:
        self.plan, self.called = plan, list[str]()
        self.forms = (PartForm(part="decode", recipe="copying", plan=plan) if plan else PartForm(part="decode"),)
        self.status = PreparationStatus(runs="copied" if plan else "PyTorch")

    def freeze(self) -> bool:
        self.called.append("freeze")
        return not self.plan

    def hold(self) -> None:
        self.called.append("hold")

    def missing(self, forms: Sequence[PartForm]) -> list[PartForm]:
        return [form for form in forms if form.plan not in {"", self.plan}]

    def take_over(self, form: PartForm) -> str:
        self.called.append(f"take over {form.plan or 'the network'}")
        return "It was built again." if form.plan else ""


@pytest.mark.parametrize(("before", "now"), [("", "newer"), ("older", "older"), ("older", "newer")])
def test_all_frames_of_a_render_are_made_by_the_same_plans(
    bench: Bench, clip: Path, before: str, now: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Interrupt(5)
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "__call__", lambda signal: stop(signal))
        assert bench.run(bench.request(clip, "out.mp4"), lambda: FakeEngine(preparation=StoredForms(before))) == 130
    first, preparation = bench.engines[-1].preparation, StoredForms(now)
    assert isinstance(first, StoredForms)
    assert first.called == ["freeze"]
    built = "Networks: PyTorch. Faster ones are being built for the next render."
    assert (built in bench.said) == (not before)
    resumed = bench.request(clip, "out.mp4", resume=True)
    if before not in {"", now}:
        with pytest.raises(InputError, match=r"ran with plans that are not stored now: older \(decode\)"):
            bench.run(resumed, lambda: FakeEngine(preparation=preparation))
        assert preparation.called == []
        return
    assert bench.run(resumed, lambda: FakeEngine(preparation=preparation)) == 0
    assert preparation.called == ["hold", f"take over {before or 'the network'}"]
    assert ("It was built again." in bench.said) == bool(before)
    assert play(bench.folder / "out.mp4").indices == [k % 40 for k in range(60)]


def test_an_engine_that_fails_leaves_what_was_rendered(bench: Bench, clip: Path) -> None:
    with pytest.raises(RuntimeError, match="fails here"):
        bench.run(bench.request(clip, "out.mp4"), lambda: FakeEngine(fail_at_tick=30))
    rendered = len(play(bench.folder / "out.mp4").greys)
    assert 10 < rendered < 60
    assert bench.run(bench.request(clip, "out.mp4", resume=True)) == 0
    assert play(bench.folder / "out.mp4").indices == [k % 40 for k in range(60)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": Control(prompt=(WeightedPrompt(text="a dog"),))}, "another prompt: a cat:1; now it is a dog:1"),
        (
            {"control": Control(prompt=(WeightedPrompt(text="a cat"),), strength=0.7)},
            "another set of controls: prompt; now it is prompt, strength",
        ),
        ({"aspect": Aspect.CROP}, "another aspect: pad; now it is crop"),
        ({"out_size": (32, 32)}, "another output size: native; now it is 32x32"),
        ({"engine": LoaderOptions(dtype="float32")}, "another dtype: auto; now it is float32"),
        ({"model": "another"}, "another model: fake; now it is another"),
        (
            {"engine": LoaderOptions(video=VideoChoices(sink_frames=3))},
            "another video: not given; now it is {'sink_frames': 3}",
        ),
    ],
)
def test_resuming_with_other_options_names_the_difference(
    bench: Bench, clip: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(RuntimeError):
        bench.run(bench.request(clip, "out.mp4"), lambda: FakeEngine(fail_at_tick=30))
    with pytest.raises(InputError) as caught:
        bench.run(bench.request(clip, "out.mp4", resume=True, **changes))
    assert message in str(caught.value)


def test_resuming_with_another_input_or_engine_is_refused(bench: Bench, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        bench.run(bench.request(clip, "out.mp4"), lambda: FakeEngine(fail_at_tick=30))
    other = make_clip(tmp_path / "other.mp4", frames=61)
    with pytest.raises(InputError, match=r"another input: clip\.mp4, .*; now it is other\.mp4"):
        bench.run(bench.request(other, "out.mp4", resume=True))
    with pytest.raises(InputError, match="another engine size: 64x48; now it is 32x48"):
        bench.run(bench.request(clip, "out.mp4", resume=True), lambda: FakeEngine(width=32))


def test_a_numbered_noise_catches_up(bench: Bench) -> None:
    """Prompt-only frame k of the fake is a picture of value 3 k: correct only if the stream was advanced to frame k."""
    request = bench.request(None, "out/", frames=40, frame_rate=Fraction(10))
    with pytest.raises(RuntimeError):
        bench.run(request, lambda: FakeEngine(fail_at_tick=20))
    assert 5 < len(pictures(bench.folder / "out")) < 40
    assert bench.run(replace(request, resume=True)) == 0
    assert [int(image[0, 0, 0]) for image in pictures(bench.folder / "out")] == [3 * k for k in range(40)]


def test_a_source_that_breaks_off_is_finished_and_status_1(bench: Bench, tmp_path: Path) -> None:
    def noisy(index: int, size: tuple[int, int]) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)

    whole = make_clip(tmp_path / "whole.mp4", frames=100, options={"movflags": "faststart"}, draw=noisy)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    assert bench.run(bench.request(cut, "out.mp4")) == 1
    frames = len(play(tmp_path / "out.mp4").greys)
    assert 40 <= frames <= 70
    assert any(f"cannot be decoded beyond frame {frames} ({frames / 25:.2f} s)" in sentence for sentence in bench.said)
    assert b"moof" not in (tmp_path / "out.mp4").read_bytes()
    assert play(tmp_path / "out.mp4").sound_s == pytest.approx(frames / 25, abs=0.1)


def test_nothing_is_overwritten_without_force(bench: Bench, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for output, message in (("out.mp4", "already exists"), ("out/", "is not empty")):
        with pytest.raises(OutputError, match=message):
            render(bench.request(clip, output), FakeEngine, bench.said.append)
        assert bench.run(bench.request(clip, output, force=True)) == 0
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    assert len(pictures(tmp_path / "out")) == 60


def test_bad_places_each_with_a_message(bench: Bench, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    for output, changes, error, message in (
        ("none/out.mp4", {}, OutputError, "does not exist. Create it first: mkdir -p"),
        ("out.avi", {}, OutputError, "which is not supported"),
        ("folder.mp4", {}, OutputError, "is a folder"),
        ("file/", {}, OutputError, "is a file"),
        ("clip.mp4", {"force": True}, OutputError, "is also the input"),
        ("out.mp4", {"resume": True}, InputError, r"There is no .* to resume"),
        ("out.mp4", {"out_size": "source", "frames": 2}, InputError, "without an input"),
    ):
        with pytest.raises(error, match=message):
            bench.run(bench.request(None if "frames" in changes else clip, output, **changes))
        assert not (tmp_path / "out.mp4").exists()
        assert not part_folder(tmp_path / "out.mp4").exists()
    assert bench.run(bench.request(clip, "out.mp4")) == 0
    with pytest.raises(InputError, match="is not an interrupted render"):
        bench.run(bench.request(clip, "out.mp4", resume=True))


def test_memory_is_bounded_by_the_ring(bench: Bench, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is read only as fast as frames are written: never further ahead than the ring is deep."""
    from app.media.picture_writer import PictureWriter
    from app.media.video_reader import VideoReader

    counts = {"read": 0, "written": 0, "ahead": 0}
    frames, write = VideoReader.frames, PictureWriter.write

    def reading(self: VideoReader, start: int = 0) -> Iterator[SourceFrame]:
        for frame in frames(self, start):
            counts["read"] += 1
            counts["ahead"] = max(counts["ahead"], counts["read"] - counts["written"])
            yield frame

    def writing(self: PictureWriter, image: np.ndarray, pts: int, duration: int) -> None:
        counts["written"] += 1
        write(self, image, pts, duration)

    monkeypatch.setattr(VideoReader, "frames", reading)
    monkeypatch.setattr(PictureWriter, "write", writing)
    assert bench.run(bench.request(clip, "out/")) == 0
    assert counts["read"] == counts["written"] == 60
    assert counts["ahead"] <= 4  # 3 slots and the one that waits


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    door.add_parser(parser.add_subparsers())
    return parser.parse_args(["render", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("out.mp4",), "1 paths were given. Give INPUT and OUTPUT."),
        (("a", "b", "c"), "3 paths were given"),
        (("a", "b", "--prompt-only", "--seconds", "1"), "Give OUTPUT only"),
        (("b", "--prompt-only"), "needs a length. Give --seconds S."),
        (("b", "--prompt-only", "--seconds", "0.001"), "is less than one frame"),
        (("b", "--prompt-only", "--seconds", "-1"), "seconds cannot be '-1'. Give a number above 0."),
        (("a", "b", "--seconds", "1"), "It belongs to --prompt-only"),
        (("a", "b", "--fps", "fast"), "fps cannot be 'fast'"),
        (("a", "b", "--fps", "1/0"), "fps cannot be '0'"),
        (("a", "b", "--fps", "5000"), "fps cannot be 5000"),
        (("a", "b", "--max-pixels", "0"), "--max-pixels cannot be '0'. Give a whole number"),
        (("a", "b", "--max-pixels", "4K"), "--max-pixels cannot be '4K'"),
        (("a", "b", "--max-pixels", "9" * 5000), "--max-pixels cannot be"),
        (("a", "b", "--strength", "7"), "strength cannot be 7.0"),
        (("a", "b", "--aspect", "fit"), "aspect cannot be 'fit'. Choose one of: pad, crop, stretch."),
        (("a", "b", "--out-size", "big"), "'big' is not a size"),
        (("a", "b", "--force", "--resume"), "--force and --resume were both given"),
        (("a", "b", "--prompt", "word " * 10_000), "(10000 words)"),
    ],
)
def test_bad_command_lines(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        door.request_from_options(options(*arguments))
    assert message in str(caught.value)


def test_the_command_line_becomes_a_request() -> None:
    request = door.request_from_options(
        options(
            "--prompt-only",
            "--seconds",
            "2",
            "--fps",
            "30000/1001",
            "out/",
            "--prompt",
            "a cat",
            "--size",
            "64x32",
            "--step-cache",
            "taylorseer",
        )
    )
    assert request.engine.step_cache == "taylorseer"
    assert request.source is None
    assert request.as_folder
    assert request.frames == 60
    assert request.frame_rate == Fraction(30000, 1001)
    assert (request.model, request.engine.width, request.engine.height) == ("mini-image", 64, 32)


def test_words_outside_the_bundled_world_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    door.tell_unknown_words("mini-image", Control.of({"prompt": "a robt on the beach"}))
    assert "'robt' (try 'robot'" in capsys.readouterr().err


def test_what_a_folder_holds_besides_pictures_is_told(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (64, 48), (50 * number,) * 3).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("x")
    (folder / "._0.png").write_bytes(b"x")
    assert bench.run(bench.request(folder, "out/")) == 0
    assert len(pictures(tmp_path / "out")) == 4
    assert [said for said in bench.said if "notes.txt" in said] == [
        "Not read, as their names are not those of pictures: notes.txt."
    ]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_an_animation_keeps_its_times(bench: Bench, tmp_path: Path, form: str) -> None:
    frames = [Image.new("RGB", (64, 48), (grey,) * 3) for grey in (40, 90, 140, 190)]
    frames[0].save(tmp_path / "a", form, save_all=True, append_images=frames[1:], duration=[40, 100, 250, 40])
    assert bench.run(bench.request(tmp_path / "a", "out.mp4")) == 0
    played = play(tmp_path / "out.mp4")
    assert played.times_s == pytest.approx([0, 0.04, 0.14, 0.39], abs=0.002)
    assert played.duration_s == pytest.approx(0.43, abs=0.01)


def test_a_limit_of_pixels_is_that_of_the_command_line(bench: Bench, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    request = door.request_from_options(options(str(tmp_path / "a.png"), "out/", "--max-pixels", "3071"))
    with pytest.raises(InputError, match=r"64x48 px is too large.*at most 3071 pixels"):
        render(request, lambda *_, **__: FakeEngine(), bench.said.append)
