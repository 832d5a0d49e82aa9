"""The video engine's streams equal plain loops over diffusers' modules without any cache, and so do its pictures.

float32 on random weights: 2e-5. Pictures: those of the whole clip, rounded to bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from pipelines.conditioning.actions import ACTION_NAMES
from pipelines.core.controls import Control
from pipelines.video.chunks import ChunkSlot
from pipelines.video.codecs.wan import WanCodec
from pipelines.video.engine import VideoEngine
from pipelines.video.loading.checkpoint_keys import KeyReport
from pipelines.video.model import VideoModel, VideoNetworks
from pipelines.video.options import VideoOptions
from pipelines.video.presets import VideoPreset
from pipelines.video.runtime import plain_runtime
from pipelines.video.stream import VideoStream
from pipelines.video.wan.actions import ActionEmbedder
from pipelines.video.wan.attention import choose_attention
from tests.fakes.tiny_video_model import random_actions
from tests.fakes.video_codecs import stock_decode, wan_vae
from tests.parity import plain_video as plain
from tests.parity.conftest import Report
from tests.parity.wan_pair import TEXT_TOKENS, our_model, stock_model

TOLERANCE = 2e-5
SEED = 9
SHAPE = (4, 4, 6)
SELF_FORCING = VideoPreset(
    steps=(1000, 750, 500, 250), chunk_frames=2, window_frames=12, policy="full", width=48, height=32
)
STREAM_V2 = replace(
    SELF_FORCING,
    steps=(700, 500, 400, 200),
    warp=False,
    shift=8.0,
    chunk_frames=1,
    window_frames=4,
    sink_frames=1,
    policy="sink",
    policy_options={"positions": "absolute"},
    stream="step-batch",
    clean_pass=False,
)
ROLLING = replace(
    SELF_FORCING,
    steps=(1000, 600, 300),
    window_frames=10,
    sink_frames=2,
    policy="sink",
    policy_options={"positions": "absolute"},
    stream="rolling",
)


CPU = torch.device("cpu")


class OneText:
    """The same random embedding for every text."""

    text_dim = 24

    def __init__(self) -> None:
        self.embedding = torch.randn((TEXT_TOKENS, 24), generator=torch.Generator().manual_seed(3))

    def encode(self, text: str) -> torch.Tensor:
        return self.embedding


def engine_of(
    stock: WanTransformer3DModel, preset: VideoPreset, embedder: ActionEmbedder | None = None, storage: str = "auto"
) -> VideoEngine:
    """Over diffusers' weights and diffusers' autoencoder."""
    transformer = our_model(stock)
    if embedder is not None:
        transformer.add_actions(embedder)
    attention = choose_attention("auto", device=CPU, dtype=torch.float32, head_dim=transformer.head_dim).backend
    networks = VideoNetworks(transformer=transformer, codec=WanCodec(wan_vae()), attention=attention)
    model = VideoModel(
        name="pair",
        family="self-forcing",
        why="a test",
        transformer=transformer,
        codec=networks.codec,
        runtime=plain_runtime(networks),
        text=OneText(),  # type: ignore[arg-type]
        preset=preset,
        dtype=torch.float32,
        device=CPU,
        licence="none",
        commercial=True,
        weights=KeyReport(mapped={}, missing=(), unexpected=(), mismatched={}),
    )
    return VideoEngine(model, VideoOptions(max_streams=1, guidance=False, storage=storage))


class Watched:
    """A stream whose finished latents are kept beside its pictures."""

    def __init__(self, engine: VideoEngine, control: Control) -> None:
        self.engine = engine
        self.stream: VideoStream = engine.open(control)
        self.latents: list[torch.Tensor] = []
        self.pictures: list[np.ndarray] = []
        decode = self.stream.decode

        def decode_and_keep(slot: ChunkSlot) -> None:
            self.latents.append(slot.latents.clone())
            decode(slot)

        self.stream.decode = decode_and_keep  # type: ignore[method-assign]

    def run(self, chunks: int, actions: Sequence[Mapping[str, float]] = ()) -> torch.Tensor:
        """Return latents [C, F, h, w] of `chunks` chunks. actions: of each chunk."""
        for number in range(chunks):
            if actions:
                self._wait_for_birth()
                self.stream.apply(Control.of({**dict.fromkeys(ACTION_NAMES, 0), **actions[number]}))
            while not self.stream.generate(self.stream.info.frames_per_chunk):
                self.engine.tick()
                self.engine.core.cache.check_integrity()
                self.pictures += [frame.image for frame in self.stream.pull()]
        self.pictures += [frame.image for frame in self.stream.flush()]
        return torch.cat(self.latents, dim=1)

    def _wait_for_birth(self) -> None:
        """Tick until no chunk waits to be admitted."""
        while self.stream._assembler.next_full is not None:
            self.engine.tick()
            self.pictures += [frame.image for frame in self.stream.pull()]


@pytest.fixture
def stock() -> Iterator[WanTransformer3DModel]:
    with torch.inference_mode():
        yield stock_model()


def plain_stream(stock: WanTransformer3DModel, preset: VideoPreset) -> plain.PlainStream:
    """Its steps are computed here, by the formulas."""
    raw = np.linspace(1.0, 0.0, 1001)[:-1]
    table = preset.shift * raw / (1 + (preset.shift - 1) * raw)
    if preset.warp:
        steps = [(1000 * table[1000 - step], table[1000 - step]) for step in preset.steps]
    else:
        steps = [(float(step), table[np.abs(1000 * table - step).argmin()]) for step in preset.steps]
    denoiser = plain.PlainDenoiser(stock, OneText().embedding)
    return plain.PlainStream(denoiser, steps, shape=SHAPE, seed=SEED, dtype=torch.float32)


STORAGES = pytest.mark.parametrize("storage", ["native", "rotated"])


@STORAGES
def test_chunks_with_all_of_their_past(stock: WanTransformer3DModel, storage: str, report: Report) -> None:
    ours = Watched(engine_of(stock, SELF_FORCING, storage=storage), Control(seed=SEED)).run(4)
    theirs = plain.chunk_by_chunk(plain_stream(stock, SELF_FORCING), [2] * 4, plain.everything)
    assert report(f"stream: chunk by chunk, full cache, {storage}", [ours - theirs]) < TOLERANCE


def test_chunks_of_several_lengths(stock: WanTransformer3DModel, report: Report) -> None:
    watched = Watched(engine_of(stock, SELF_FORCING), Control(seed=SEED, first_chunk_frames=1))
    watched.run(2)
    watched.stream.apply(Control(chunk_frames=1))
    ours = watched.run(2)
    theirs = plain.chunk_by_chunk(plain_stream(stock, SELF_FORCING), [1, 2, 1, 1], plain.everything)
    assert report("stream: chunks of 1, 2, 1, 1 latents", [ours - theirs]) < TOLERANCE


@STORAGES
@pytest.mark.parametrize("sink", [0, 1, 3])
def test_chunks_with_a_window(stock: WanTransformer3DModel, report: Report, sink: int, storage: str) -> None:
    options = {"positions": "absolute"}
    preset = replace(SELF_FORCING, policy="sink", window_frames=6, sink_frames=sink, policy_options=options)
    ours = Watched(engine_of(stock, preset, storage=storage), Control(seed=SEED)).run(6)
    theirs = plain.chunk_by_chunk(plain_stream(stock, preset), [2] * 6, plain.sliding(6, sink))
    assert report(f"stream: chunk by chunk, window 6, sink {sink}, {storage}", [ours - theirs]) < TOLERANCE


@pytest.mark.parametrize(("window", "sink"), [(5, 1), (7, 1), (6, 0), (6, 2)])
def test_another_window_or_sink_would_be_noticed(stock: WanTransformer3DModel, window: int, sink: int) -> None:
    options = {"positions": "absolute"}
    preset = replace(SELF_FORCING, policy="sink", window_frames=6, sink_frames=1, policy_options=options)
    ours = Watched(engine_of(stock, preset), Control(seed=SEED)).run(5)
    theirs = plain.chunk_by_chunk(plain_stream(stock, preset), [2] * 5, plain.sliding(window, sink))
    assert (ours - theirs).abs().max() > 20 * TOLERANCE


@pytest.mark.parametrize("changes", [{"seed": SEED + 1}, {"chunk_steps": 3}, {"seed_lock": True}], ids=str)
def test_another_seed_or_step_would_be_noticed(stock: WanTransformer3DModel, changes: dict[str, object]) -> None:
    ours = Watched(engine_of(stock, SELF_FORCING), Control.of({"seed": SEED, **changes})).run(2)
    theirs = plain.chunk_by_chunk(plain_stream(stock, SELF_FORCING), [2] * 2, plain.everything)
    assert (ours - theirs).abs().max() > 0.1


def test_without_a_clean_pass_the_past_keeps_the_last_level(stock: WanTransformer3DModel, report: Report) -> None:
    preset = replace(SELF_FORCING, clean_pass=False)
    ours = Watched(engine_of(stock, preset), Control(seed=SEED)).run(4)
    theirs = plain.chunk_by_chunk(plain_stream(stock, preset), [2] * 4, plain.everything, clean_timestep=None)
    assert report("stream: chunk by chunk, no clean pass", [ours - theirs]) < TOLERANCE


@STORAGES
def test_step_batched(stock: WanTransformer3DModel, report: Report, storage: str) -> None:
    ours = Watched(engine_of(stock, STREAM_V2, storage=storage), Control(seed=SEED)).run(9)
    theirs = plain.step_batched(plain_stream(stock, STREAM_V2), [1] * 9, plain.sliding(4, 1))
    assert report(f"stream: step-batched, window 4, sink 1, {storage}", [ours - theirs]) < TOLERANCE


@STORAGES
def test_rolling_window(stock: WanTransformer3DModel, report: Report, storage: str) -> None:
    ours = Watched(engine_of(stock, ROLLING, storage=storage), Control(seed=SEED)).run(7)
    theirs = plain.rolling(plain_stream(stock, ROLLING), 7, 2, plain.sliding(10, 2), keeps=True)
    assert report(f"stream: rolling window of 3 chunks, window 10, sink 2, {storage}", [ours - theirs]) < TOLERANCE


def test_moving_buffer_without_a_past(stock: WanTransformer3DModel, report: Report) -> None:
    preset = replace(ROLLING, clean_pass=False, policy_options={})
    ours = Watched(engine_of(stock, preset), Control(seed=SEED)).run(5)
    theirs = plain.rolling(plain_stream(stock, preset), 5, 2, plain.everything, keeps=False)
    assert report("stream: moving buffer of 3 chunks, no past", [ours - theirs]) < TOLERANCE


ACTIONS: tuple[dict[str, float], ...] = (
    {"camera_x": 1.0},
    {},
    {"push_y": -0.5, "camera_zoom": 0.25},
    {"camera_y": -1.0},
    {"push_x": 0.75},
    {},
)


@pytest.mark.parametrize("preset", [SELF_FORCING, STREAM_V2, ROLLING], ids=["chunk", "step-batch", "rolling"])
def test_every_latent_keeps_the_action_of_its_birth(
    stock: WanTransformer3DModel, report: Report, preset: VideoPreset
) -> None:
    """The plain loops recompute the whole past with the action of each frame."""
    embedder = random_actions(64)
    ours = Watched(engine_of(stock, preset, embedder), Control(seed=SEED)).run(6, ACTIONS)
    assert ours.shape[1] == 6 * preset.chunk_frames
    told = [[action.get(name, 0.0) for name in ACTION_NAMES] for action in ACTIONS for _ in range(preset.chunk_frames)]
    say = plain.act(stock, embedder.linear_1.weight, embedder.linear_2.weight)
    theirs = plain_stream(stock, preset)
    theirs.denoiser.say_actions = lambda frames: say(torch.tensor([told[:frames]]))
    if preset.stream == "chunk":
        expected = plain.chunk_by_chunk(theirs, [2] * 6, plain.everything)
    elif preset.stream == "step-batch":
        expected = plain.step_batched(theirs, [1] * 6, plain.sliding(4, 1))
    else:
        expected = plain.rolling(theirs, 6, 2, plain.sliding(10, 2), keeps=True)
    assert report(f"stream with actions: {preset.stream}", [ours - expected]) < TOLERANCE


def test_pictures_are_the_whole_clip_decoded_at_once(stock: WanTransformer3DModel, report: Report) -> None:
    watched = Watched(engine_of(stock, SELF_FORCING), Control(seed=SEED))
    latents = watched.run(4)
    whole = stock_decode(wan_vae(), latents[None]).clamp(0, 1)[0].permute(1, 2, 3, 0)
    pictures = torch.from_numpy(np.stack(watched.pictures)).double()
    assert len(pictures) == 1 + 4 * 7
    assert report("stream: pictures, of 255", [pictures - 255 * whole.double()]) <= 0.51
