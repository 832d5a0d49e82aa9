"""Two streams of an image engine that differ in everything, for comparisons of backends."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from pipelines.core.contracts import Engine
from pipelines.core.controls import Control
from pipelines.core.types import Frame, Picture


def play_two_streams(engine: Engine, side_px: int) -> list[Picture]:
    """Other steps, strengths, guidance and prompts, changed while slots are in flight. Returns the frames of six ticks
    on pictures of side_px × side_px; both streams are closed."""
    random = np.random.default_rng(3)
    first = engine.open(Control.of({"prompt": "a red house", "steps": 2, "strength": 0.6, "seed": 1}))
    second = engine.open(
        Control.of({"prompt": "a boat", "steps": 1, "seed": 2, "guidance_mode": "full", "guidance_scale": 1.5})
    )
    frames = []
    for tick in range(6):
        if tick == 2:
            first.apply(Control.of({"prompt": "a green tree", "strength": 0.8, "guidance_mode": "self"}))
        if tick == 4:
            second.apply(Control.of({"guidance_mode": "onetime", "steps": 2}))
        picture = random.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
        for stream in (first, second):
            stream.push(Frame(image=picture, pts=tick, time_base=Fraction(1, 24), seq=tick))
        engine.tick()
        frames += [frame.image for stream in (first, second) for frame in stream.pull()]
    for stream in (first, second):
        stream.close()
    return frames
