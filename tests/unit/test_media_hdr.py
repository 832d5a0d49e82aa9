"""HDR10, HLG and wide gamut become standard pictures: against the standards' formulas, computed here one number at a
time."""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type

from app.media.frame_colours import check_base
from app.media.open_source import open_source
from app.media.tone_map import Colours, ToneMap, pq_light, pq_signal, table
from pipelines.core.errors import InputError
from pipelines.core.types import Picture
from tests.fakes.clips import make_clip

BT709, PQ, HLG = 1, 16, 18  # transfer characteristics in ITU-T H.273
BT2020, DISPLAY_P3 = 9, 12  # primaries
WHITE, PEAK = 203.0, 1000.0  # cd/m2
XY = {  # chromaticities of red, green, blue; white is D65 in all three
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}


def to_xyz(primaries: int) -> Any:
    """The matrix from linear RGB to XYZ (SMPTE RP 177)."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in XY[primaries]]).T
    x, y = 0.3127, 0.3290
    return columns * np.linalg.solve(columns, np.array([x / y, 1, (1 - x - y) / y]))


def st2084(code: float) -> float:
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = code ** (1 / m2)
    return 10_000 * float(max(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def st2084_code(light: float) -> float:
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = (light / 10_000) ** m1
    return float(((c1 + c2 * power) / (1 + c3 * power)) ** m2)


def std_b67(code: float) -> float:
    """Scene light in [0, 1]."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * math.log(4 * a)
    return code**2 / 3 if code <= 0.5 else (math.exp((code - c) / a) + b) / 12


def light_of(colour: tuple[float, float, float], transfer: int) -> list[float]:
    """cd/m2 of each primary."""
    if transfer == PQ:
        return [st2084(code) for code in colour]
    if transfer == HLG:
        scene = [std_b67(code) for code in colour]
        luminance = 0.2627 * scene[0] + 0.6780 * scene[1] + 0.0593 * scene[2]
        return [1000 * float(luminance**0.2) * value for value in scene]
    return [WHITE * code**2.4 for code in colour]


def rolled_off(light: float) -> float:
    """ITU-R BT.2390, 5.4.1, with black at 0."""
    most = st2084_code(WHITE) / st2084_code(PEAK)
    knee = 1.5 * most - 0.5
    code = min(st2084_code(light) / st2084_code(PEAK), 1.0)
    if code >= knee:
        t = (code - knee) / (1 - knee)
        code = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    return st2084(code * st2084_code(PEAK))


def expected(colour: tuple[float, float, float], transfer: int, primaries: int) -> list[float]:
    """8-bit RGB of Rec.709."""
    light = light_of(colour, transfer)
    if transfer != BT709 and max(light) > 0:
        scale = rolled_off(max(light)) / max(light)
        light = [value * scale for value in light]
    linear = np.linalg.solve(to_xyz(BT709), to_xyz(primaries) @ np.array(light)) / WHITE
    return [255 * min(max(float(value), 0.0), 1.0) ** (1 / 2.4) for value in linear]


KINDS = [(HLG, BT2020), (PQ, BT2020), (BT709, BT2020), (BT709, DISPLAY_P3), (PQ, DISPLAY_P3)]


@pytest.mark.parametrize(("transfer", "primaries"), KINDS)
def test_the_conversion_follows_the_standards(transfer: int, primaries: int) -> None:
    steps = (0.0, 0.1, 0.35, 0.5, 0.58, 0.75, 1.0)
    colours = Colours(transfer=transfer, primaries=primaries)
    for colour in product(steps, steps, steps):
        ours = 255 * colours.to_sdr(np.array(colour))
        assert ours.tolist() == pytest.approx(expected(colour, transfer, primaries), abs=0.2)


@pytest.mark.parametrize(("transfer", "primaries"), KINDS)
def test_the_fast_table_equals_the_formula(transfer: int, primaries: int) -> None:
    """Within half a step of 255 on average; most in the darkest shades, where BT.1886 is steepest."""
    colours = Colours(transfer=transfer, primaries=primaries)
    image = np.random.default_rng(3).integers(0, 65536, (64, 96, 3)).astype(np.uint16)
    frame = av.VideoFrame.from_ndarray(image, format="rgb48le")
    quick = np.asarray(ToneMap(table(colours), 96, 64)(frame).to_ndarray()).astype(float) / 257
    plain = 255 * colours.to_sdr(image / 65535)
    difference = np.abs(quick - plain)
    assert difference.mean() < 0.5
    assert np.percentile(difference, 99) < 5


def test_perceptual_quantisation_round_trips() -> None:
    lights = np.array([0.0, 0.1, 1, 100, 203, 1000, 10_000])
    assert pq_light(pq_signal(lights)) == pytest.approx(lights, rel=1e-6, abs=1e-6)


PATCHES = [  # non-linear RGB of the file
    (0.5, 0.5, 0.5),
    (0.75, 0.75, 0.75),
    (0.6, 0.3, 0.2),
    (0.25, 0.5, 0.3),
    (0.3, 0.35, 0.6),
    (0.7, 0.6, 0.2),
]


def limited(colour: tuple[float, float, float]) -> tuple[int, int, int]:
    """10-bit Y'CbCr of BT.2020, limited range."""
    red, green, blue = colour
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    return (
        round(64 + 876 * luma),
        round(512 + 896 * (blue - luma) / 1.8814),
        round(512 + 896 * (red - luma) / 1.4746),
    )


def patches_frame() -> av.VideoFrame:
    """Columns of 32 x 48 pixels, one for each patch."""
    frame = av.VideoFrame(32 * len(PATCHES), 48, "yuv420p10le")
    values = [limited(colour) for colour in PATCHES]
    for number, plane in enumerate(frame.planes):
        row = np.repeat(np.array([value[number] for value in values], "<u2"), 32 if number == 0 else 16)
        rows = np.zeros((plane.height, plane.line_size // 2), "<u2")
        rows[:, : row.size] = row
        plane.update(rows.tobytes())
    return frame


CODECS = {  # by file name: the encoder and its options
    "a.mkv": ("ffv1", {}),
    "a.ts": ("libx265", {"x265-params": "log-level=none:crf=4", "preset": "ultrafast"}),
    "a.mov": ("libx264", {"qp": "2"}),
    "a.mp4": ("libx264", {"qp": "2", "bf": "0"}),
}


def hdr_clip(path: Path, *, transfer: int, primaries: int, matrix: int) -> Path:
    encoder, options = CODECS[path.name]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoder, rate=25)
        frame = patches_frame()
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p10le"
        context = stream.codec_context
        context.options = options
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = (
            transfer,
            primaries,
            matrix,
            1,
        )
        for index in range(2):
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def first(path: Path) -> Picture:
    return next(iter(open_source(path, None).frames())).image


@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize("name", CODECS)
def test_high_dynamic_range_is_shown_in_full_colours(tmp_path: Path, name: str, transfer: int) -> None:
    image = first(hdr_clip(tmp_path / name, transfer=transfer, primaries=BT2020, matrix=BT2020))
    for number, colour in enumerate(PATCHES):
        shown = image[24, 32 * number + 16].tolist()
        assert shown == pytest.approx(expected(colour, transfer, BT2020), abs=4), colour


def test_a_transfer_without_the_rest_of_the_tags_is_enough(tmp_path: Path) -> None:
    image = first(hdr_clip(tmp_path / "a.mkv", transfer=HLG, primaries=2, matrix=2))
    assert image[24, 80].tolist() == pytest.approx(expected(PATCHES[2], HLG, BT2020), abs=4)


def test_wide_gamut_of_standard_range_is_converted(tmp_path: Path) -> None:
    image = first(hdr_clip(tmp_path / "a.mkv", transfer=14, primaries=BT2020, matrix=BT2020))
    assert image[24, 80].tolist() == pytest.approx(expected(PATCHES[2], BT709, BT2020), abs=4)


def test_white_and_highlights_of_a_phone() -> None:
    """HLG at 75 % is diffuse white (203 cd/m2): near SDR's white, with room for highlights, and the peak is white."""
    for code, low, high in ((0.75, 215, 235), (1.0, 254, 255), (0.5, 130, 150), (0.0, 0, 0)):
        assert low <= expected((code,) * 3, HLG, BT2020)[0] <= high


@pytest.mark.parametrize(
    ("kind", "transfer", "matrix", "refused"),
    [
        (Type.DOVI_METADATA, 2, 2, True),
        (Type.DOVI_RPU_BUFFER, 2, 2, True),
        (Type.DOVI_METADATA, PQ, BT2020, False),
        (Type.DOVI_METADATA, HLG, BT2020, False),
        (Type.SEI_UNREGISTERED, 2, 2, False),
    ],
)
def test_dolby_vision_is_read_by_its_base_or_refused(kind: Type, transfer: int, matrix: int, refused: bool) -> None:
    frame: Any = SimpleNamespace(side_data=[SimpleNamespace(type=kind)], color_trc=transfer, colorspace=matrix)
    with pytest.raises(InputError, match="Export it as HDR10") if refused else nullcontext():
        check_base(frame, "a.mp4")


def test_standard_video_is_not_touched(tmp_path: Path) -> None:
    plain = make_clip(tmp_path / "a.mp4", frames=1, sound="")
    tagged = make_clip(
        tmp_path / "b.mp4", frames=1, sound="", tags={"color_trc": 1, "color_primaries": 1, "colorspace": 6}
    )
    assert np.array_equal(first(plain), first(tagged))
