"""The feature bank in streams of the image engine, over a tiny UNet in float64, against a bank spelled out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from pipelines.conditioning import CONDITIONERS
from pipelines.conditioning.feature_bank import MAX_LINES, FeatureBankConditioner, is_cut, thumbnail
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError, StreamError
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.image.feature_bank.formulas import extended_attention, fused, merged
from pipelines.image.feature_bank.memory import BankConfig, BankMemory, layer_shapes, self_attentions
from pipelines.image.feature_bank.runtime import BankDenoiser, bank_of
from pipelines.image.loading.networks import UNetDenoiser
from pipelines.image.model import Condition
from pipelines.image.stream import ImageStream
from tests.fakes.image_model import cheap_model, frames, tiny_unet, unet_model

ON = {"steps": 2, "bank": True, "strength": 0.5}


def engine_of(**options: Any) -> ImageEngine:
    return ImageEngine(unet_model(torch.float64), work_dtype=torch.float64, **options)


def alike(count: int, start: int = 0) -> list[Frame]:
    """Return frames that hardly differ, so that none of them is taken for a cut."""
    base, noise = frames(1)[0].image.astype(int), np.random.default_rng(1)
    return [
        replace(f, image=np.clip(base + noise.integers(-9, 10, base.shape), 0, 255).astype(np.uint8))
        for f in frames(count + start)
    ][start:]


def run(engine: ImageEngine, stream: ImageStream, pictures: Sequence[Frame]) -> list[np.ndarray]:
    out = []
    for picture in pictures:
        assert stream.push(picture)
        engine.tick()
        out += stream.pull()
    return [f.image for f in [*out, *stream.flush()]]


def same(one: Sequence[np.ndarray], two: Sequence[np.ndarray], levels: int = 0) -> bool:
    assert len(one) == len(two)
    return all(np.abs(a.astype(int) - b.astype(int)).max() <= levels for a, b in zip(one, two, strict=True))


class PlainBank:
    """A processor with a bank in a dictionary, one entry after the other. lines: of the entries of the pass."""

    lines: Sequence[int] = ()

    def __init__(self, orders: torch.Tensor, *, fuses: bool) -> None:
        self.orders, self.fuses = orders, fuses
        self.bank: dict[int, tuple[torch.Tensor, ...]] = {}
        self.seen: dict[int, int] = {}

    def __call__(self, attn: Any, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        results = []
        for line, hidden in zip(self.lines, hidden_states.split(1), strict=True):
            q, k, v = attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden)
            if line not in self.bank:
                own = attn.to_out[0](extended_attention(q, (k, k[:, :0]), (v, v[:, :0]), heads=attn.heads))
                results.append(own)
                self.bank[line], self.seen[line] = (k, v, own), 1
                continue
            keys, values, outputs = self.bank[line]
            own = attn.to_out[0](extended_attention(q, (k, keys), (v, values), heads=attn.heads))
            strength, threshold = torch.tensor([0.8]), torch.tensor(0.98)
            results.append(fused(own, outputs, strength, threshold) if self.fuses else own)
            count = self.seen[line]
            if count % 4 == 0:
                order = self.orders[count // 4 % len(self.orders)][None]
                self.bank[line] = merged((keys, values, outputs), (k, v, own), order)
            self.seen[line] = count + 1
        return torch.cat(results)


@torch.inference_mode()
def test_ten_frames_at_two_steps_equal_a_bank_spelled_out() -> None:
    plain, reference = unet_model(torch.float64).runtime.denoiser, unet_model(torch.float64).runtime.denoiser
    assert isinstance(plain, UNetDenoiser)
    assert isinstance(reference, UNetDenoiser)
    memory = BankMemory(
        layer_shapes(plain.unet, (8, 8)), 4, BankConfig(), device=torch.device("cpu"), dtype=torch.float64
    )
    banked, own = BankDenoiser(plain, memory), BankDenoiser(reference, memory)
    spelled = own._denoiser
    processors = []
    for name, module in self_attentions(spelled.unet):
        layer = memory.layers[name]
        processors.append(PlainBank(layer._orders, fuses=layer.fuses))
        module.set_processor(processors[-1])
    assert [p.fuses for p in processors] == [False, True, True]  # one down, two up
    noise = torch.Generator().manual_seed(3)
    first = torch.randn((2, 4, 8, 8), generator=noise, dtype=torch.float64)
    changed = 0.0
    for _ in range(10):
        latents = first + 0.1 * torch.randn(first.shape, generator=noise, dtype=torch.float64)
        condition = Condition(
            embeds=torch.ones((2, 3, 16)), pooled=None, time_ids=None, row=torch.tensor([3, 1]),
            step=torch.tensor([0, 1]), negative=torch.tensor([0, 0]),
            inputs={"feature_bank": torch.tensor([[0, 7, 0.8]] * 2)},
        )  # fmt: skip
        timestep = torch.tensor([500, 250])
        got = banked(latents, timestep, condition)
        for processor in processors:
            processor.lines = (0, 2)
        expected = spelled(latents, timestep, replace(condition, inputs={}))
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
        changed = float((got - plain(latents, timestep, replace(condition, inputs={}))).abs().max())
    assert changed > 1e-3
    assert [m.processor.__class__.__name__ for _, m in self_attentions(plain.unet)] == ["AttnProcessor2_0"] * 3


def test_off_is_bit_identical_to_an_engine_without_the_bank() -> None:
    without = engine_of(conditioners=[c for c in CONDITIONERS if c != FeatureBankConditioner.of])
    engine, pictures = engine_of(), alike(6)
    expected = run(without, without.open(Control(steps=2)), pictures)
    assert same(run(engine, engine.open(Control(steps=2)), pictures), expected)
    stream = engine.open(Control.of(ON))
    engine.tick()
    stream.push(pictures[0])
    engine.tick()
    assert bank_of(engine.core.runtime) is not None
    stream.close()
    assert same(run(engine, engine.open(Control(steps=2)), pictures), expected)
    assert bank_of(engine.core.runtime) is None


def test_the_first_frame_is_as_without_a_bank_and_later_ones_are_not() -> None:
    engine, pictures = engine_of(), alike(6)
    plain = run(engine, engine.open(Control(steps=2)), pictures)
    banked = run(engine, engine.open(Control.of(ON)), pictures)
    assert same(plain[:1], banked[:1])
    assert not same(plain[1:], banked[1:], 1)


def test_streams_in_one_batch_do_not_see_each_other() -> None:
    engine, one, two = engine_of(), alike(8), alike(8, start=5)
    alone = [
        run(engine, engine.open(Control.of({**ON, "bank": on})), p)
        for p, on in ((one, True), (two, True), (one, False))
    ]
    streams = [engine.open(Control.of({**ON, "bank": on})) for on in (True, True, False)]
    out: list[list[np.ndarray]] = [[], [], []]
    for tick in range(8):
        for stream, pictures in zip(streams, (one, two, one), strict=True):
            stream.push(pictures[tick])
        engine.tick()
        for stream, images in zip(streams, out, strict=True):
            images += [f.image for f in stream.pull()]
    for stream, images, expected in zip(streams, out, alone, strict=True):
        assert same(images + [f.image for f in stream.flush()], expected)


@pytest.mark.parametrize(
    "change",
    [{"prompt": "b"}, {"seed": 9}, {"strength": 0.7}, {"steps": 1}, {"guidance_mode": "full", "guidance_scale": 3.0}],
)
def test_after_a_change_a_stream_is_as_if_new(change: dict[str, object]) -> None:
    engine, pictures = engine_of(), alike(12)
    stream = engine.open(Control.of(ON))
    run(engine, stream, pictures[:5])
    for picture in pictures[5:7]:
        stream.push(picture)
        engine.tick()
        stream.pull()
    stream.apply(Control.of(change))
    later = run(engine, stream, pictures[7:])
    fresh = run(engine, engine.open(Control.of({**ON, **change})), pictures[7:])
    assert same(later[-5:], fresh)
    strong = stream.apply(Control(bank_strength=0.0))
    assert strong == engine.core.next_tick
    assert not same(
        run(engine, stream, pictures[:1]), run(engine, engine.open(Control.of({**ON, **change})), pictures[:1])
    )


def test_slots_in_flight_follow_a_cut_into_the_new_epoch_and_stay_behind_otherwise() -> None:
    engine, pictures = engine_of(), alike(4)
    for cuts in ("glide", "cut"):
        stream = engine.open(Control.of({**ON, "steps": 4, "prompt_change": cuts}))
        for picture in pictures:
            stream.push(picture)
            engine.tick()
        epochs = {slot.conditions.columns["feature_bank"][1] for slot in stream.active}
        stream.apply(Control.of({"prompt": "b"}))
        stream.push(pictures[0])
        engine.tick()
        now = [slot.conditions.columns["feature_bank"][1] for slot in stream.active]
        assert (len(set(now)) == 1) == (cuts == "cut")
        assert now[-1] > max(epochs)
        stream.close()


def test_a_scene_cut_and_a_reset_empty_the_bank() -> None:
    engine, pictures = engine_of(), alike(4)
    stream = engine.open(Control.of(ON))
    first = run(engine, stream, pictures)
    negative = [replace(p, image=255 - p.image) for p in pictures]
    other = run(engine, engine.open(Control.of(ON)), negative)
    assert same(run(engine, stream, negative), other)
    stream.reset()
    assert same(run(engine, stream, pictures), first)


def test_a_backend_without_a_unet_refuses_and_lines_are_given_back() -> None:
    with pytest.raises(ControlError, match=r"plans.*backend eager"):
        ImageEngine(cheap_model()).open(Control(bank=True))
    engine = engine_of()
    streams = [engine.open(Control(bank=True, steps=8)) for _ in range(MAX_LINES // 16)]
    extra = engine.open(Control(steps=8))
    with pytest.raises(ControlError, match="lines"):
        extra.apply(Control(bank=True))
    with pytest.raises(ControlError, match="lines"):
        engine.open(Control(bank=True, steps=1))
    streams[1].apply(Control(steps=4))
    extra.apply(Control(bank=True, steps=4))
    streams[0].close()
    extra.apply(Control(steps=8))
    bank = next(c for c in engine.core.conditioners if isinstance(c, FeatureBankConditioner))
    assert bank.lines_needed == MAX_LINES
    for stream in (*streams, extra):
        stream.close()
    assert bank.lines_needed == 0


def test_a_bank_that_grows_keeps_what_it_holds() -> None:
    engine, pictures = engine_of(), alike(6)
    expected = run(engine, engine.open(Control.of(ON)), pictures)
    engine = engine_of()
    stream = engine.open(Control.of(ON))
    out = []
    for place, picture in enumerate(pictures):
        if place == 3:
            engine.open(Control.of(ON))
        stream.push(picture)
        engine.tick()
        out += [f.image for f in stream.pull()]
    assert same(out + [f.image for f in stream.flush()], expected)


def test_layers_are_found_with_their_sizes() -> None:
    shapes = layer_shapes(tiny_unet(torch.float64), (5, 7))
    assert {name.partition(".attentions")[0]: s.tokens for name, s in shapes.items()} == {
        "down_blocks.0": 35,
        "up_blocks.0": 35,
    }
    assert [bool(s.outputs) for s in shapes.values()] == [False, True, True]


def test_a_pass_reads_no_value_back() -> None:
    """Fake tensors have no values: whatever would wait for the device fails."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    plain = unet_model(torch.float32).runtime.denoiser
    assert isinstance(plain, UNetDenoiser)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        memory = BankMemory(
            layer_shapes(plain.unet, (8, 8)), 4, BankConfig(), device=torch.device("cpu"), dtype=torch.float32
        )
        condition = Condition(
            embeds=torch.ones((2, 3, 16)), pooled=None, time_ids=None, row=torch.zeros(2, dtype=torch.int64),
            step=torch.zeros(2, dtype=torch.int64), negative=torch.zeros(2, dtype=torch.int64),
            inputs={"feature_bank": torch.zeros((2, 3))},
        )  # fmt: skip
        timestep = torch.full((2,), 500)
        assert BankDenoiser(plain, memory)(torch.zeros((2, 4, 8, 8)), timestep, condition).shape == (2, 4, 8, 8)


def test_too_little_memory_for_the_bank_ends_the_stream_that_wanted_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, pictures = engine_of(), alike(3)
    plain, banked = engine.open(Control(steps=2)), engine.open(Control.of(ON))
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.image.state.bank_runtime", _out_of_memory)
        plain.push(pictures[0])
        with pytest.raises(StreamError, match="too little memory for the feature bank") as caught:
            engine.tick()
    assert caught.value.stream is banked
    banked.close()
    assert len(run(engine, plain, pictures[1:])) == 3


def _out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("no room")


def test_cuts_are_noticed_where_they_are() -> None:
    file = Path(__file__).parents[2] / "assets" / "samples" / "camera.mp4"  # three scenes
    with av.open(str(file)) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    small = [thumbnail(replace(frames(1)[0], image=picture)) for picture in pictures]
    assert [i for i, pair in enumerate(itertools.pairwise(small)) if is_cut(*pair)] == [53, 101]
    assert not is_cut(None, small[0])
    assert not is_cut(small[0], thumbnail(None))


def test_slots_of_several_frames_use_a_line_together() -> None:
    engine, pictures = engine_of(frames_per_slot=2), alike(8)
    plain = run(engine, engine.open(Control(steps=2)), pictures)
    banked = run(engine, engine.open(Control.of(ON)), pictures)
    assert same(plain[:2], banked[:2])
    assert not same(plain[2:], banked[2:])
