"""`zoetrope analyse`: what cache profiles do and refuse, what the page says, what the command refuses and writes."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.analyse.advice import advice
from app.analyse.job import AnalyseRequest, run_analysis
from app.analyse.page import page
from app.analyse.plots import Point, colour, heat_map, pareto
from app.cli import analyse as door
from app.cli.options import add_engine_options, engine_options
from cache.features.frames import PRESETS, ReuseSettings
from pipelines.core.controls import Control
from pipelines.core.errors import InputError, ModelError, OutputError, ZoetropeError
from pipelines.files.loader_options import LoaderOptions
from pipelines.image.analysis import analysis
from pipelines.image.analysis.analysis import Analysis, Question, analyse, look_inside
from pipelines.image.analysis.calibrate import Trial
from pipelines.image.cache_profile import CacheProfile, CalibratedPreset
from pipelines.image.engine import ImageEngine
from pipelines.image.model import ImageModel
from pipelines.image.step_profile import Pair, StepProfile
from tests.unit.test_stream_reuse import scene, windows_model


def clip(frames: int = 9) -> list[np.ndarray]:
    """A square that moves to and fro over a still ground."""
    return [scene(2 * (n % 4)) for n in range(frames)]


def made(weights: str = "abc") -> ImageModel:
    return replace(windows_model(), name="windows", weights=lambda: weights)


@pytest.fixture(scope="module")
def engine() -> Iterator[ImageEngine]:
    engine = ImageEngine(made())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def found(engine: ImageEngine) -> Iterator[Analysis]:
    question = Question(control={"prompt": "a cat", "strength": 0.5, "steps": 2}, made="a test", step_profile=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "axes", lambda noise: (("levels", (2.0, 6.0)), ("margin", (1,))))
        inside = look_inside(engine, clip(), question, lambda what, done, total: None)
        yield analyse(engine, clip(), question, inside, lambda what, done, total: None)


def trial(speed_up: float, psnr_db: float, **changes: object) -> Trial:
    settings = replace(ReuseSettings(), **changes)  # type: ignore[arg-type]
    return Trial(settings=settings, speed_up=speed_up, psnr_db=psnr_db, computed=0.5, hit_rate=0.5)


# -- profiles ----------------------------------------------------------------------------------------------------------


def test_a_profile_is_read_as_it_was_written(found: Analysis, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(found.profile.text())
    assert CacheProfile.read(file) == found.profile
    assert found.profile.weights == "abc"
    assert (found.profile.width, found.profile.steps, found.profile.strength) == (64, 2, 0.5)


def test_found_settings_keep_to_their_floors(found: Analysis) -> None:
    for name, preset in found.profile.presets.items():
        assert preset.psnr_db is None or preset.psnr_db >= preset.floor_db, name


def profile(**changes: object) -> CacheProfile:
    settings = ReuseSettings(levels=7.0, margin=1)
    preset = CalibratedPreset(settings=settings, speed_up=2.0, psnr_db=33.0, computed=0.4, floor_db=32.0)
    own = CacheProfile(
        model="windows",
        weights="abc",
        made="a test",
        width=64,
        height=64,
        steps=2,
        strength=0.5,
        backend="eager",
        noise=0.5,
        presets={"balanced": preset, "fastest": preset},
    )
    return replace(own, **changes)  # type: ignore[arg-type]


def test_a_stream_reuses_by_the_profile() -> None:
    engine = ImageEngine(made(), cache_profile=profile())
    assert engine.core.reuse_presets["balanced"].levels == 7.0
    assert engine.core.reuse_presets["exact"] == PRESETS["exact"]
    with engine.open(Control.of({"prompt": "a cat", "reuse": "balanced"})) as stream:
        assert stream._reuse._frames is not None
        assert stream._reuse._frames.settings.margin == 1
    engine.close()


def test_its_step_profile_serves_a_model_without_one(tmp_path: Path) -> None:
    pair = Pair(change=0.1, error=0.1, a=(1.0,) * 4, b=(0.0,) * 4, factor=1.0, bias=(0.0,) * 4)
    steps = StepProfile(
        model="windows",
        weights="abc",
        made="a test",
        timesteps=(900, 500),
        pairs=((), (pair,)),
        ratios=(1.0, 1.0),
        polynomial=(1.0, 0.0),
    )
    file = tmp_path / "p.json"
    file.write_text(profile(step_profile=steps).text())
    engine = ImageEngine(made(), cache_profile=CacheProfile.read(file), step_cache="rectified")
    assert engine.core.model.load_profile() == steps
    engine.close()
    with pytest.raises(ModelError, match="needs a step profile"):
        ImageEngine(made(), cache_profile=profile(), step_cache="rectified")


def test_changed_weights_and_other_sizes_refuse_it() -> None:
    with pytest.raises(ModelError, match=r"other weights.*zoetrope analyse windows CLIP"):
        ImageEngine(made("changed"), cache_profile=profile())
    with pytest.raises(ModelError, match=r"made at 64x64, and windows runs at 128x64.*--size 128x64"):
        ImageEngine(made(), cache_profile=profile(), width=128)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "zoetrope-cache-profile/9"}, "another format"),
        ({"width": "64"}, "width is '64'"),
        ({"presets": {}}, "presets are"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_other_files_are_no_profiles(change: dict[str, object], told: str, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps({**json.loads(profile().text()), **change}))
    with pytest.raises(InputError, match=told):
        CacheProfile.read(file)


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(profile().text().replace('"margin": 1', '"margin": -1'))
    with pytest.raises(InputError, match="margin is -1"):
        CacheProfile.read(file)
    file.write_text("[]")
    with pytest.raises(InputError, match="cannot be read as a cache profile"):
        CacheProfile.read(file)
    with pytest.raises(InputError, match="There is no cache profile"):
        CacheProfile.read(tmp_path / "none.json")


def test_the_option_reaches_the_loader() -> None:
    parser = argparse.ArgumentParser()
    add_engine_options(parser)
    assert engine_options(parser.parse_args([])).cache_profile == ""
    assert engine_options(parser.parse_args(["--cache-profile", "p.json"])).cache_profile == str(
        Path("p.json").absolute()
    )


def test_nothing_is_faster_than_the_work_it_saves(found: Analysis) -> None:
    for one in (*found.trials, *found.defaults.values()):
        assert one.speed_up <= 1 / one.computed


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_shows_everything_and_needs_nothing(found: Analysis) -> None:
    html = page(found, "a <clip>.mp4", "p.json")
    assert "a &lt;clip&gt;.mp4" in html
    assert "<clip>" not in html
    for text in ("What to choose", "Speed against fidelity", "Where things move", "From frame to frame", "balanced"):
        assert text in html
    for block in found.inside.live.blocks:
        assert f">{block}</text>" in html
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(|@import""", html)
    assert addresses
    assert all(address.startswith("data:image/") for address in addresses)
    assert "nan" not in re.sub(r"base64,[^\"]*", "", html)


def test_advice_follows_what_was_measured(found: Analysis) -> None:
    def chosen(balanced: Trial, fastest: Trial) -> str:
        return advice(replace(found, chosen={"balanced": balanced, "fastest": fastest})).preset

    assert chosen(trial(2, 33), trial(3, 29)) == "balanced"
    assert chosen(trial(1, 99, exact=True), trial(1.4, 29)) == "fastest"
    assert chosen(trial(1, 99, exact=True), trial(1, 99, exact=True)) == "exact"


def test_colours_and_labels() -> None:
    assert (colour(0), colour(1), colour(9)) == ("#f7f9fc", "#0a2a5e", "#0a2a5e")
    drawn = heat_map(np.array([[0.0, 0.5]]), ["a&b"], ["1", "2"], most=0.5, axis="frame")
    assert "a&amp;b, frame 2: 50.0 %" in drawn
    named = [Point(speed_up=1.0, psnr_db=math.inf, name="one"), Point(speed_up=1.0, psnr_db=math.inf, name="two")]
    heights = [float(y) for y in re.findall(r'y="([0-9.]+)" font-size="12"', pareto(named, []))]
    assert abs(heights[0] - heights[1]) >= 15


# -- the command -------------------------------------------------------------------------------------------------------


def written_clip(folder: Path, frames: int = 9) -> Path:
    import cv2

    pictures = folder / "clip"
    pictures.mkdir()
    for number, picture in enumerate(clip(frames)):
        cv2.imwrite(str(pictures / f"{number:03}.png"), picture[..., ::-1])
    return pictures


def request(tmp_path: Path, **changes: object) -> AnalyseRequest:
    own = AnalyseRequest(
        model="mini-image",
        clip=tmp_path / "clip",
        stem=tmp_path / "out",
        engine=LoaderOptions(),
        control=Control.of({"prompt": "a cat"}),
        frames=120,
        made="a test",
        step_profile=False,
    )
    return replace(own, **changes)  # type: ignore[arg-type]


def loaded(model: str, options: LoaderOptions, notice: object) -> ImageEngine:
    return ImageEngine(made())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"clip": Path("nowhere.mp4")}, "There is no file or folder nowhere.mp4"),
        ({"model": "mini-video"}, "mini-video is not an image model"),
        ({"model": "identity"}, "identity is not an image model"),
        ({"stem": Path("/nowhere/out")}, "/nowhere is not a folder"),
    ],
)
def test_what_cannot_be_analysed_is_refused_before_loading(
    change: dict[str, object], told: str, tmp_path: Path
) -> None:
    written_clip(tmp_path)

    def load(*_: object, **__: object) -> ImageEngine:
        raise AssertionError("nothing is loaded")

    with pytest.raises(ZoetropeError, match=told) as raised:
        run_analysis(request(tmp_path, **change), load, str, lambda *_: None)
    assert raised.value.remedy


def test_a_short_clip_and_files_in_the_way_are_refused(tmp_path: Path) -> None:
    written_clip(tmp_path, 7)
    with pytest.raises(InputError, match=r"The clip has 7 frames.*8 frames or more"):
        run_analysis(request(tmp_path), loaded, str, lambda *_: None)
    (tmp_path / "out.html").touch()
    with pytest.raises(OutputError, match=r"out\.html exist"):
        run_analysis(request(tmp_path), loaded, str, lambda *_: None)


def test_an_interrupted_analysis_leaves_no_file(tmp_path: Path) -> None:
    written_clip(tmp_path)

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_analysis(request(tmp_path), loaded, str, interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["clip"]


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    door.add_parser(parser.add_subparsers())
    return parser.parse_args(["analyse", *arguments])


def test_the_command_line() -> None:
    plain = door.request_from_options(options("mini-image"))
    assert plain.clip == door.SAMPLE
    assert plain.clip.is_file()
    assert (plain.profile.name, plain.page.name) == ("mini-image-cache.json", "mini-image-cache.html")
    assert plain.engine.backend == "auto"
    given = door.request_from_options(options("m", "c.mp4", "--out", "x/y", "--steps", "3", "--frames", "9"))
    assert (given.clip, given.page, given.frames) == (Path("c.mp4"), Path("x/y.html"), 9)
    assert given.control.steps == 3
    with pytest.raises(InputError, match="--frames cannot be '7'"):
        door.request_from_options(options("m", "--frames", "7"))
    with pytest.raises(InputError, match="--cache-profile"):
        door.request_from_options(options("m", "--cache-profile", "p.json"))


@pytest.mark.soak
def test_the_bundled_model_on_the_bundled_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.__main__ import main
    from pipelines.load import load_engine

    monkeypatch.setattr(analysis, "axes", lambda noise: (("margin", (1,)),))
    stem = tmp_path / "camera"
    arguments = ["analyse", "mini-image", "--frames", "16", "--device", "cpu", "--backend", "eager", "--out", str(stem)]
    assert main(arguments) == 0
    assert stem.with_suffix(".html").stat().st_size < 2**20
    engine = load_engine("mini-image", device="cpu", backend="eager", cache_profile=str(stem.with_suffix(".json")))
    engine.close()
    with pytest.raises(ModelError, match="made at 192x192"):
        load_engine(
            "mini-image",
            device="cpu",
            backend="eager",
            width=256,
            height=192,
            cache_profile=str(stem.with_suffix(".json")),
        )
