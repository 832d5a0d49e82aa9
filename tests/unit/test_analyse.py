"""`zoetrope analyse`: what is measured, what is searched, what profiles do and refuse, and what is written."""

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
import torch

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
from pipelines.image.analysis.calibrate import Trial, axes, better, search, threshold_levels, verified
from pipelines.image.analysis.motion import clip_noise, moving_share, typical_part
from pipelines.image.analysis.play import decisions, play
from pipelines.image.analysis.redundancy import blocks_of, measured, unet_of
from pipelines.image.cache_profile import CacheProfile, CalibratedPreset
from pipelines.image.engine import ImageEngine
from pipelines.image.model import ImageModel
from tests.fakes.image_model import cheap_model
from tests.unit.test_stream_reuse import scene, windows_model

STILL_EXACT = ReuseSettings(exact=True)


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


# -- the clip ----------------------------------------------------------------------------------------------------------


def test_noise_is_that_of_the_means_of_latents() -> None:
    """Of n pixels each with deviation s, a mean's difference from frame to frame has deviation s sqrt(2 / n)."""
    random = np.random.default_rng(0)
    pictures = [np.clip(128 + random.normal(0, 4, (128, 128, 3)), 0, 255).round().astype(np.uint8) for _ in range(6)]
    assert clip_noise(pictures, 4) == pytest.approx(4 * math.sqrt(2 / 16), rel=0.05)
    assert clip_noise([pictures[0]] * 3, 4) == 0
    assert clip_noise([pictures[0], 255 - pictures[0] // 2], 4) == 2, "at most"


def test_cells_that_move_are_counted() -> None:
    moving = moving_share([scene(0), scene(0), scene(8)], factor=2, cell=2, levels=4, noise_factor=6)
    assert moving.shape == (16, 16)
    assert set(np.unique(moving)) == {0.0, 0.5}
    assert np.argwhere(moving).min(axis=0).tolist() == [7, 0]  # rows 28 to 35, columns 0 to 15, in cells of 4 pixels
    assert np.argwhere(moving).max(axis=0).tolist() == [8, 3]


def test_the_part_is_neither_the_quietest_nor_the_wildest() -> None:
    still, little, much = [scene(0)] * 10, [scene(n % 2) for n in range(10)], [scene(8 * (n % 2)) for n in range(10)]
    assert typical_part([*still, *little, *much], 8, 2) in range(8, 18)
    assert typical_part(still, 12, 2) == 0


# -- the search --------------------------------------------------------------------------------------------------------


def test_thresholds_begin_above_the_noise() -> None:
    assert threshold_levels(0.0) == (2.0, 3.0, 4.0, 6.0)
    assert threshold_levels(1.5)[0] == 6.0
    assert threshold_levels(20.0) == (16.0,)


def test_of_trials_the_fastest_above_the_floor_is_better() -> None:
    slow, fast, wrong = trial(1.2, 40), trial(1.5, 33), trial(2.0, 20)
    assert better([slow, fast, wrong], 32) is fast
    assert better([slow, wrong], 45) is slow
    assert better([slow, trial(1.21, 33)], 32) is slow, "what is hardly faster changes nothing"


def test_the_search_finds_the_corner_of_a_known_trade() -> None:
    """Faster and worse with every setting: levels end where the floor is."""
    judged = []

    def judge(settings: ReuseSettings) -> Trial:
        judged.append(settings)
        cost = settings.levels + (4 - settings.margin)
        return Trial(settings=settings, speed_up=1 + cost / 4, psnr_db=44 - 2 * cost, computed=0.5, hit_rate=0.5)

    best = search(PRESETS["balanced"], 32.0, judge, axes(0.0))
    assert best.psnr_db >= 32
    assert best.settings.levels + (4 - best.settings.margin) == 6
    assert len(judged) < 20
    nothing = search(PRESETS["balanced"], 60.0, judge, axes(0.0))
    assert nothing.settings.levels == 2, "the nearest to a floor that is out of reach"


def test_what_fails_on_the_whole_clip_is_passed_over() -> None:
    part = [trial(3, 33, levels=8.0), trial(2, 36, levels=6.0), trial(1.5, 31, levels=5.0)]

    def judge(settings: ReuseSettings) -> Trial:
        return Trial(settings=settings, speed_up=2, psnr_db=40 - settings.levels, computed=1, hit_rate=0)

    assert verified(part, 32, judge).settings.levels == 8.0
    assert verified(part, 33, judge).settings.levels == 6.0
    assert verified(part, 39, judge).settings.exact


def test_decisions_are_those_of_the_stream(engine: ImageEngine) -> None:
    settings = replace(ReuseSettings(), margin=1, refresh_frames=2)
    pictures = [*clip(5), *[scene(0)] * 5]
    counts = play(engine, pictures, {"prompt": "a cat", "steps": 2}, settings).counts
    found = [action.value for action, _ in decisions(engine, pictures, settings)]
    assert [found.count(name) for name in ("full", "store", "windows", "hold")] == [
        counts.full,
        counts.store,
        counts.windows,
        counts.hold,
    ]
    assert decisions(engine, pictures, replace(settings, oldest_frames=95)) == decisions(engine, pictures, settings)


# -- redundancy --------------------------------------------------------------------------------------------------------


def test_changes_of_blocks_equal_a_plain_computation(engine: ImageEngine) -> None:
    control = {"prompt": "a cat", "strength": 0.5, "steps": 2}
    pictures = [scene(0), scene(8), scene(8)]
    outputs: list[torch.Tensor] = []
    handle = (
        unet_of(engine)
        .up_blocks[1]
        .resnets[0]
        .register_forward_hook(lambda module, inputs, output: outputs.append(output.double().clone()))
    )
    found = measured(engine, pictures, control, lambda *_: None, "")
    handle.remove()
    row = found.blocks.index("up 2 resnet 1")
    assert found.frames.shape == (len(found.blocks), 2, 2)

    def change(now: torch.Tensor, before: torch.Tensor) -> float:
        return float((now - before).abs().mean() / before.abs().mean())

    for frame in (0, 1):
        for step in (0, 1):
            wanted = change(outputs[2 * frame + 2 + step], outputs[2 * frame + step])
            assert found.frames[row, frame, step] == pytest.approx(wanted, rel=1e-4, abs=1e-9)
    assert (found.frames[:, 1] == 0).all(), "frames that repeat change nothing"
    wanted = np.mean([change(outputs[2 * n + 1], outputs[2 * n]) for n in range(3)])
    assert found.steps[row, 0] == pytest.approx(wanted, rel=1e-4)
    assert np.diag(found.output_steps).tolist() == [0, 0]
    assert found.picture.shape == (32, 32)
    assert not engine.core.runtime.denoiser.unet.conv_in._forward_hooks  # type: ignore[attr-defined]


def test_blocks_are_named_in_the_order_in_which_they_run(engine: ImageEngine) -> None:
    names = list(blocks_of(unet_of(engine)))
    assert names[:4] == ["first convolution", "down 1 resnet 1", "down 2 resnet 1", "down 2 attention 1"]
    assert names[-1] == "output"


def test_a_network_without_blocks_says_what_to_do() -> None:
    engine = ImageEngine(cheap_model())
    with pytest.raises(ModelError, match="--backend eager"):
        unet_of(engine)
    engine.close()


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
def test_the_bundled_model_on_the_bundled_clip(tmp_path: Path) -> None:
    from app.__main__ import main
    from pipelines.load import load_engine

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
