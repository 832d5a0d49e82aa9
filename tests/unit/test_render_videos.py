"""Renders of videos whose size changes on the way: every picture whole, placed by its own size."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.media.geometry import Aspect
from app.media.source import SourceInfo
from app.render.framing import Framing
from app.render.job import render
from app.render.request import OutSize, RenderRequest
from pipelines.core.controls import Control
from pipelines.core.types import Frame, Picture
from tests.fakes.clips import make_clip, play
from tests.fakes.engine import FakeEngine

WIDE, TALL = (96, 48), (48, 96)
CORNERS = (60, 110, 160, 210)


def four(index: int, size: tuple[int, int]) -> Picture:
    """A picture whose quarters have the shades of `CORNERS`."""
    shades = np.array(CORNERS, np.uint8).reshape(2, 2)
    grown = shades.repeat(size[1] // 2, axis=0).repeat(size[0] // 2, axis=1)
    return np.repeat(grown[:, :, None], 3, axis=2)


def make_source(folder: Path, kind: str) -> Path:
    """Six wide pictures, then six tall ones."""
    if kind == "pictures":
        source = folder / "in"
        source.mkdir()
        for index in range(12):
            Image.fromarray(four(index, WIDE if index < 6 else TALL)).save(source / f"{index}.png")
        return source
    parts = [make_clip(folder / f"{size[0]}{kind}", frames=6, size=size, draw=four) for size in (WIDE, TALL)]
    source = folder / f"joined{kind}"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    return source


@pytest.mark.parametrize("kind", [".ts", "pictures"])
@pytest.mark.parametrize(
    ("out_size", "expected", "tall"),
    [
        ("source", WIDE, (36, 0, 24, 48)),  # left, top, width, height of the tall pictures in the output
        ((192, 96), (192, 96), (72, 0, 48, 96)),
        ("native", (64, 48), (20, 0, 24, 48)),
    ],
)
def test_a_size_that_changes_midway_is_shown_whole(
    tmp_path: Path, kind: str, out_size: OutSize, expected: tuple[int, int], tall: tuple[int, int, int, int]
) -> None:
    request = RenderRequest(
        source=make_source(tmp_path, kind),
        output=tmp_path / "out",
        as_folder=True,
        control=Control(),
        model="fake",
        out_size=out_size,
    )
    assert render(request, lambda *_, **__: FakeEngine(), lambda text: None) == 0
    images = [255 - np.asarray(Image.open(file)).astype(int) for file in sorted((tmp_path / "out").glob("*.png"))]
    assert [image.shape[1::-1] for image in images] == [expected] * 12
    left, top, width, height = tall
    for image in images[6:]:
        inner = image[top : top + height, left : left + width]
        assert quarters(inner) == pytest.approx(list(CORNERS), abs=5)
    if out_size != "native":
        for image in images[:6]:
            assert quarters(image) == pytest.approx(list(CORNERS), abs=5)


def quarters(image: np.ndarray) -> list[float]:
    """The shade in the middle of each quarter."""
    height, width = image.shape[:2]
    return [
        float(
            image[
                row * height // 4 - 2 : row * height // 4 + 2, column * width // 4 - 2 : column * width // 4 + 2
            ].mean()
        )
        for row in (1, 3)
        for column in (1, 3)
    ]


@pytest.mark.parametrize("aspect", list(Aspect))
def test_pictures_that_come_late_are_placed_by_their_own_input(aspect: Aspect) -> None:
    """Four wide pictures, two tall, one wide: all pushed before the first comes out."""
    info = SourceInfo(
        name="a",
        size=WIDE,
        pixel_aspect=1.0,
        frame_rate=Fraction(25),
        time_base=Fraction(1, 25),
        frames=7,
        origin_s=Fraction(0),
        has_sound=False,
    )
    framing = Framing((64, 64), info, aspect)
    assert framing.choose_output("source", even_sides=True) == (WIDE if aspect is not Aspect.CROP else (48, 48))
    sizes = [WIDE] * 4 + [TALL] * 2 + [WIDE]
    inside = [framing.placed(index, four(index, size)) for index, size in enumerate(sizes)]
    for index, size in enumerate(sizes):
        frame = Frame(image=inside[index], pts=index, time_base=Fraction(1, 25), seq=index, source_seq=index)
        image = framing.finished(frame)
        if aspect is Aspect.PAD and size == TALL:
            image = image[:, 36:60]
        assert quarters(image) == pytest.approx(list(CORNERS), abs=8)


@pytest.mark.parametrize(
    ("suffix", "leap_s"), [(".mp4", 0), (".mp4", 5 * 3600), (".mkv", 0), (".webm", 5 * 3600), (".mov", 5 * 3600)]
)
def test_a_clock_that_restarts_or_leaps_keeps_picture_and_sound_together(
    tmp_path: Path, leap_s: int, suffix: str
) -> None:
    """leap_s: by how much the clock of the second of three parts differs."""
    part = make_clip(tmp_path / "a.ts", frames=25).read_bytes()
    far = make_clip(tmp_path / "b.ts", frames=25, options={"output_ts_offset": str(leap_s)}).read_bytes()
    source = tmp_path / "joined.ts"
    source.write_bytes(part + far + part)
    output = tmp_path / f"out{suffix}"
    request = RenderRequest(source=source, output=output, control=Control(), model="fake")
    assert render(request, lambda *_, **__: FakeEngine(), lambda text: None) == 0
    played = play(output)
    assert played.indices == [*range(25)] * 3
    assert played.times_s[-1] == pytest.approx(2.96, abs=0.25)
    assert played.duration_s == pytest.approx(3.0, abs=0.3)
    assert played.sound_s == pytest.approx(3.0, abs=0.3)


@pytest.mark.parametrize("name", ["out 12:30.mp4", "http:a.mkv", "a:b.webm", "a:b.mov", "a:b.gif"])
def test_a_relative_output_may_have_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make_clip(tmp_path / "plain.mp4", frames=4).rename(tmp_path / "clip 1:2.mp4")
    monkeypatch.chdir(tmp_path)
    request = RenderRequest(source=Path("clip 1:2.mp4"), output=Path(name), control=Control(), model="fake")
    assert render(request, lambda *_, **__: FakeEngine(), lambda text: None) == 0
    assert len(play(tmp_path / name).times_s) == 4
