"""What is measured of a clip and inside a network, and the search for presets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from cache.features.frames import PRESETS, ReuseSettings
from pipelines.core.errors import ModelError
from pipelines.image.analysis.calibrate import Trial, axes, better, chosen, search, threshold_levels, verify
from pipelines.image.analysis.motion import clip_noise, moving_share, typical_part
from pipelines.image.analysis.play import decisions, play
from pipelines.image.analysis.redundancy import blocks_of, measured, unet_of
from pipelines.image.engine import ImageEngine
from tests.fakes.image_model import cheap_model
from tests.unit.test_stream_reuse import scene, windows_model


@pytest.fixture(scope="module")
def engine() -> Iterator[ImageEngine]:
    engine = ImageEngine(windows_model())
    yield engine
    engine.close()


def clip(frames: int = 9) -> list[np.ndarray]:
    """A square that moves to and fro over a still ground."""
    return [scene(2 * (n % 4)) for n in range(frames)]


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


def test_candidates_are_verified_on_the_whole_clip() -> None:
    part = [trial(3, 33, levels=8.0), trial(2, 36, levels=6.0), trial(1.5, 31, levels=5.0)]
    judged: list[Trial] = []

    def judge(settings: ReuseSettings) -> Trial:
        judged.append(trial(2, 40 - settings.levels, levels=settings.levels))
        return judged[-1]

    verify(part, 32, judge)
    assert [one.settings.levels for one in judged] == [8.0]
    judged.clear()
    verify(part, 33, judge)
    assert [one.settings.levels for one in judged] == [8.0, 6.0], "8 falls below the floor there"


def test_what_is_chosen_is_fast_enough_and_faithful_enough() -> None:
    slow, fast, wrong = trial(1.01, 50), trial(1.3, 35), trial(2.0, 29)
    assert chosen([slow, fast, wrong], 32) is fast
    assert chosen([slow, fast, wrong], 28) is wrong
    assert chosen([slow, wrong], 32) is None


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
