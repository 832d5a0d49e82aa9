"""Reuse in streams of the image engine: what frames cost and look like, and when everything is computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from pipelines.core.control_table import CONTROLS, Propagation
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError
from pipelines.core.tick_log import BirthRecord
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.image.loading.networks import UNetDenoiser
from pipelines.image.model import ImageModel
from pipelines.image.reuse.networks import window_networks
from pipelines.image.stream import ImageStream
from tests.fakes.image_model import TEXT_SHAPE, cheap_model, cheap_runtime, stable_diffusion_schedule

SIDE = 64  # pixels: 32 latents, 16 cells


class Lora:
    """The live scale of a LoRA."""

    def set_scale(self, scale: float) -> None: ...


CPU = torch.device("cpu")


def windows_model(dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> ImageModel:
    """A random UNet of two levels, of which windows can be computed."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        unet = UNet2DConditionModel(
            sample_size=SIDE // 2,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=TEXT_SHAPE[1],
            attention_head_dim=8,
            norm_num_groups=4,
        )
    schedule = stable_diffusion_schedule()
    denoiser = UNetDenoiser(
        unet.to(device, dtype).eval().requires_grad_(False),
        schedule=schedule,
        prediction_type="epsilon",
        device=device,
        dtype=dtype,
    )
    runtime = replace(cheap_runtime(denoiser), windows=lambda: window_networks(denoiser))
    size = (SIDE, SIDE)
    return cheap_model(name="windows", size_px=size, runtime=runtime, dtype=dtype, device=device, lora=Lora())


@pytest.fixture
def engine() -> Iterator[ImageEngine]:
    made = ImageEngine(windows_model(torch.float64), work_dtype=torch.float64)
    yield made
    made.close()


def opened(engine: ImageEngine, reuse: str = "balanced", **control: object) -> ImageStream:
    return engine.open(Control.of({"prompt": "a cat", "strength": 0.5, "steps": 2, "reuse": reuse, **control}))


def scene(x: int = 0) -> np.ndarray:
    """A smooth picture, with a white square of 8 pixels whose left edge is at x."""
    along = np.linspace(20, 180, SIDE)
    picture = np.stack([along[:, None] + 0 * along, 0 * along[:, None] + along, np.full((SIDE, SIDE), 90.0)], axis=2)
    picture[28:36, x : x + 8] = 255
    return picture.astype(np.uint8)


def frame(picture: np.ndarray, seq: int) -> Frame:
    return Frame(image=picture, pts=seq, time_base=Fraction(1, 24), seq=seq)


def step(engine: ImageEngine, stream: ImageStream, picture: np.ndarray, seq: int) -> list[Frame]:
    assert stream.push(frame(picture, seq))
    engine.tick()
    engine._check_storage()
    stream.check_integrity()
    return stream.pull()


def works(engine: ImageEngine) -> list[str]:
    return [record.work for record in engine.log.records() if isinstance(record, BirthRecord)]


def played(engine: ImageEngine, stream: ImageStream, pictures: list[np.ndarray]) -> list[np.ndarray]:
    out = [frame.image for seq, picture in enumerate(pictures) for frame in step(engine, stream, picture, seq)]
    return out + [frame.image for frame in stream.flush()]


def psnr(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    error = np.mean([(x.astype(float) - y) ** 2 for x, y in zip(a, b, strict=True)])
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


MOVING = [scene(x) for x in range(0, 14, 2)]


def test_off_and_exact_give_the_same_pictures(engine: ImageEngine) -> None:
    pictures = [scene(0), scene(0), scene(4), scene(4), scene(4), scene(8)]
    wanted = played(engine, opened(engine, "off"), pictures)
    stream = opened(engine, "exact")
    got = played(engine, stream, pictures)
    assert all(np.array_equal(a, b) for a, b in zip(wanted, got, strict=True))
    assert (stream.reuse_counts.full, stream.reuse_counts.hold) == (3, 3)


def test_held_frames_keep_their_own_times_and_count(engine: ImageEngine) -> None:
    stream = opened(engine, "exact")
    out = [f for seq in range(5) for f in step(engine, stream, scene(), seq)] + stream.flush()
    assert [(f.seq, f.source_seq, f.pts) for f in out] == [(i, i, i) for i in range(5)]
    assert stream.accounting.out == 5
    assert stream.accounting.balanced


def test_more_frames_are_held_than_there_are_buffers(engine: ImageEngine) -> None:
    """Beyond that a push is refused until something is pulled."""
    stream = opened(engine, "exact")
    taken = sum(stream.push(frame(scene(), seq)) for seq in range(200))
    assert 20 < taken < 40
    assert len(stream.flush()) == taken
    assert stream.push(frame(scene(), 200))


def test_what_moves_is_computed_and_close_to_all_of_it(engine: ImageEngine) -> None:
    wanted = played(engine, opened(engine, "off"), MOVING)
    before = len(works(engine))
    stream = opened(engine)
    got = played(engine, stream, MOVING)
    assert works(engine)[before:] == ["full", "full", "store", *["windows"] * 4]
    assert psnr(wanted[:2], got[:2]) == 99.0
    assert psnr(wanted, got) > 30
    assert stream.reuse_counts.computed < 0.8
    assert stream.reuse_counts.hit_rate == 4 / 7


def test_streams_in_one_batch_do_not_see_each_other(engine: ImageEngine) -> None:
    alone = played(engine, opened(engine), MOVING)
    one, other = opened(engine), opened(engine, prompt="a robot")
    out: list[np.ndarray] = []
    for seq, picture in enumerate(MOVING):
        assert one.push(frame(picture, seq))
        assert other.push(frame(scene(50 - seq), seq))
        engine.tick()
        out += [f.image for f in one.pull()]
        other.pull()
    out += [f.image for f in one.flush()]
    assert psnr(alone, out) > 60


def test_frames_admitted_before_one_tick_are_computed_in_turn(engine: ImageEngine) -> None:
    alone = played(engine, opened(engine), MOVING)
    stream = opened(engine)
    for seq, picture in enumerate(MOVING):
        assert stream.push(frame(picture, seq))
    out = [f.image for f in stream.flush()]
    assert psnr(alone, out) > 60


@pytest.mark.parametrize("mode", ["full", "self", "onetime"])
def test_guidance_reuses_too(engine: ImageEngine, mode: str) -> None:
    guided = {"guidance_mode": mode, "guidance_scale": 1.5, "negative_prompt": "dull"}
    wanted = played(engine, opened(engine, "off", **guided), MOVING)
    stream = opened(engine, **guided)
    got = played(engine, stream, MOVING)
    assert stream.reuse_counts.windows == 4
    assert psnr(wanted, got) > 30


CHANGES: dict[str, object] = {
    "prompt": "a robot",
    "prompt_change": "cut",
    "prompt_blend": "slerp",
    "transition_frames": 3,
    "negative_prompt": "dull",
    "guidance_mode": "self",
    "guidance_scale": 2.0,
    "guidance_delta": 0.5,
    "step_function": "tcd",
    "strength": 0.8,
    "steps": 3,
    "depth": 3,
    "seed": 7,
    "seed_lock": False,
    "noise_walk_deg": 5.0,
    "bank_strength": 0.3,
    "lora_scale": 0.5,
    "reuse": "fastest",
    "renew": True,
    "similarity_filter": True,
    "similarity_threshold": 0.5,
    "similarity_max_skips": 3,
}


def test_every_control_of_an_image_stream_is_changed_here() -> None:
    """But `bank`, which excludes reuse."""
    assert {*CHANGES, "bank"} == {
        name for name, row in CONTROLS.items() if "image" in row.engines and row.propagation is not Propagation.REOPEN
    }


@pytest.mark.parametrize("name", CHANGES)
def test_after_a_change_the_next_tick_computes_everything(engine: ImageEngine, name: str) -> None:
    """For the frame that is admitted next, and for those in flight, whose steps were to be windows."""
    stream = opened(engine)
    for seq, picture in enumerate(MOVING[:5]):
        step(engine, stream, picture, seq)
    assert works(engine)[-1] == "windows"
    stream.apply(Control.of({name: CHANGES[name]}))
    assert {slot.work.action.value for slot in stream.active} == {"full"}
    step(engine, stream, MOVING[5], 5)
    assert works(engine)[-1] == "full"
    assert stream.controls.renew is False


def test_a_change_of_the_whole_engine_reaches_other_streams(engine: ImageEngine) -> None:
    stream, other = opened(engine), opened(engine, "off")
    for seq, picture in enumerate(MOVING[:5]):
        step(engine, stream, picture, seq)
    other.apply(Control(lora_scale=0.5))
    assert stream.push(frame(MOVING[5], 5))
    assert works(engine)[-1] == "full"
    engine.tick()
    assert {slot.work.action.value for slot in stream.active} == {"full"}


def test_a_prompt_in_transition_computes_everything(engine: ImageEngine) -> None:
    stream = opened(engine, transition_frames=3)
    for seq, picture in enumerate(MOVING):
        step(engine, stream, picture, seq)
    stream.apply(Control.of({"prompt": "a robot"}))
    for seq in range(7, 14):
        step(engine, stream, MOVING[0], seq)
    assert works(engine)[-7:-4] == ["full"] * 3
    assert works(engine)[-1] == "hold"


def test_changed_frames_look_as_without_reuse(engine: ImageEngine) -> None:
    """A prompt that cuts, while windows are in flight."""

    def run(reuse: str) -> list[np.ndarray]:
        stream = opened(engine, reuse, prompt_change="cut")
        out = []
        for seq, picture in enumerate(MOVING):
            if seq == 4:
                stream.apply(Control.of({"prompt": "a robot"}))
            out += [f.image for f in step(engine, stream, picture, seq)]
        out += [f.image for f in stream.flush()]
        stream.close()
        return out

    wanted, got = run("off"), run("balanced")
    assert psnr(wanted[4:], got[4:]) > 45


def test_reset_and_close_give_everything_back(engine: ImageEngine) -> None:
    streams = [opened(engine) for _ in range(3)]
    for stream in streams:
        step(engine, stream, scene(0), 0)
        step(engine, stream, scene(0), 1)
    streams[0].reset()
    step(engine, streams[0], scene(0), 0)
    assert works(engine)[-1] == "full"
    for stream in streams:
        stream.close()
    assert opened(engine)._reuse._lines == (0, 1, 2, 1)


def test_what_cannot_reuse_says_so(engine: ImageEngine) -> None:
    grouped = ImageEngine(windows_model(), frames_per_slot=2)
    with pytest.raises(ControlError, match="frames_per_slot 2"):
        grouped.open(Control.of({"reuse": "exact"}))


def test_a_feature_bank_and_windows_exclude_each_other(engine: ImageEngine) -> None:
    stream, other = opened(engine), opened(engine, "off")
    with pytest.raises(ControlError, match="bank and reuse cannot both be on"):
        stream.apply(Control(bank=True))
    with pytest.raises(ControlError, match="a stream of this engine reuses windows"):
        other.apply(Control(bank=True))
    stream.apply(Control(reuse="off"))
    other.apply(Control(bank=True))
    step(engine, other, scene(0), 0)
    stream.apply(Control(reuse="balanced"))
    assert stream.reuse is not None
    assert stream.reuse.without_windows == "a stream of this engine has a feature bank"
    other.apply(Control(bank=False))
    step(engine, other, scene(0), 1)
    stream.apply(Control(strength=0.6))
    got = played(engine, stream, MOVING)
    assert works(engine)[-1] == "windows"
    alone = played(engine, opened(engine, strength=0.6), MOVING)
    assert all(np.array_equal(a, b) for a, b in zip(alone, got, strict=True))  # the same windows in the same places


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: ImageEngine(cheap_model(size_px=(SIDE, SIDE))), "the backend eager has no windows"),
        (lambda: ImageEngine(windows_model(), width=66, height=SIDE), "width and height must be multiples of 4 for it"),
    ],
)
def test_without_windows_pictures_are_held_or_computed_and_the_reason_is_said(
    made: Callable[[], ImageEngine], why: str
) -> None:
    engine = made()
    stream = opened(engine)
    core = engine.core
    for seq in range(3):
        picture = np.full((core.height, core.width, 3), 90, np.uint8)
        picture[0, 0] = seq
        picture[:, : 20 * (seq // 2)] = 255
        step(engine, stream, picture, seq)
    assert works(engine) == ["full", "hold", "full"]
    assert stream.reuse is not None
    assert stream.reuse.without_windows == why
    stream.apply(Control(reuse="exact"))
    assert stream.reuse.without_windows == ""


def test_noise_of_its_own_is_never_reused(engine: ImageEngine) -> None:
    stream = opened(engine, seed_lock=False)
    for seq in range(4):
        step(engine, stream, scene(0), seq)
    assert works(engine)[-4:] == ["full"] * 4
