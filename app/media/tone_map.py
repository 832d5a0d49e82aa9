"""Converts pictures of other colours than Rec.709 (HDR10, HLG, wide gamut) to Rec.709 pictures of standard range.

The formulas, as functions of arrays; a table of them; and the filter that looks pictures up in the table. Independent
of files. Signals are [..., 3] RGB in [0, 1]; light is in cd/m², relative to primaries; SDR white is 203 cd/m².
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.filter.context import FilterContext

Light = npt.NDArray[np.float64]
Table = npt.NDArray[np.uint16]

WHITE = 203.0
"""Diffuse white of HDR pictures, cd/m² (ITU-R BT.2408), shown as the white of SDR."""
PEAK = 1000.0
"""The brightest light that keeps detail, cd/m²: the peak of HLG's reference display, and what HDR10 is mastered for."""

# SMPTE ST 2084, 5.3 (PQ)
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
# ARIB STD-B67 (HLG)
_A = 0.17883277
_B, _C = 1 - 4 * _A, 0.5 - _A * np.log(4 * _A)

_TO_709: Mapping[int, Light] = MappingProxyType(  # linear light, by the number of the primaries in H.273
    {
        1: np.eye(3),
        9: np.array(
            [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
        ),
        12: np.array([[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]]),
    }
)
_LUMINANCE_2020 = np.array([0.2627, 0.6780, 0.0593])


def pq_light(signal: Light) -> Light:
    """The EOTF of SMPTE ST 2084."""
    root = np.power(signal, 1 / _M2)
    return np.asarray(10_000 * np.power(np.maximum(root - _C1, 0) / (_C2 - _C3 * root), 1 / _M1))


def pq_signal(light: Light | float) -> Light:
    """The inverse of `pq_light`."""
    power = np.power(np.asarray(light) / 10_000, _M1)
    return np.asarray(np.power((_C1 + _C2 * power) / (1 + _C3 * power), _M2))


def hlg_light(signal: Light) -> Light:
    """The EOTF of ITU-R BT.2100 on its reference display: ARIB STD-B67's inverse OETF, then the OOTF, gamma 1.2."""
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - _C) / _A) + _B) / 12)
    luminance = (scene @ _LUMINANCE_2020)[..., None]
    return np.asarray(1000 * np.power(luminance, 0.2) * scene)


def sdr_light(signal: Light) -> Light:
    """The EOTF of ITU-R BT.1886, black at 0."""
    return np.asarray(WHITE * np.power(signal, 2.4))


def rolled_off(light: Light) -> Light:
    """Highlights compressed from PEAK to WHITE by the curve of ITU-R BT.2390, 5.4.1; hues are kept."""
    brightest = light.max(axis=-1, keepdims=True)
    source = np.minimum(pq_signal(brightest) / pq_signal(PEAK), 1)
    target = float(pq_signal(WHITE) / pq_signal(PEAK))
    knee = 1.5 * target - 0.5
    t = np.maximum(source - knee, 0) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * target
    mapped = pq_light(np.where(source < knee, source, spline) * pq_signal(PEAK))
    return np.asarray(light * mapped / np.maximum(brightest, 1e-6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """light: from signal to light. high_range: lights above WHITE occur."""

    light: Callable[[Light], Light]
    high_range: bool


_SDR = Transfer(light=sdr_light, high_range=False)
_TRANSFERS: Mapping[int, Transfer] = MappingProxyType(  # by the number of the transfer characteristics in H.273
    {16: Transfer(light=pq_light, high_range=True), 18: Transfer(light=hlg_light, high_range=True)}
)
_REC709 = 1
_PRIMARIES_OF_HDR = 9  # BT.2020, also where the file does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Colours:
    """The colours of a picture, as numbered in ITU-T H.273."""

    transfer: int
    primaries: int

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Colours:
        """Those that the frame is tagged with; all of standard range and primaries close to Rec.709's as one."""
        transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
        if transfer not in _TRANSFERS:
            return cls(transfer=_REC709, primaries=primaries if primaries in _TO_709 else _REC709)
        return cls(transfer=transfer, primaries=primaries if primaries in _TO_709 else _PRIMARIES_OF_HDR)

    @property
    def plain(self) -> bool:
        """Whether such pictures are shown as they are."""
        return self.transfer == self.primaries == _REC709

    def to_sdr(self, signal: Light) -> Light:
        """signal: [..., 3] RGB of these colours -> RGB of Rec.709 for a BT.1886 display, in [0, 1]."""
        transfer = _TRANSFERS.get(self.transfer, _SDR)
        light = transfer.light(signal)
        if transfer.high_range:
            light = rolled_off(light)
        rec709 = light @ _TO_709[self.primaries].T / WHITE
        return np.asarray(np.power(rec709.clip(0, 1), 1 / 2.4))


_SIDE = 64
_TABLE_PX = 512  # 64 x 64 x 64 entries
_CLOCK = Fraction(1, 1000)


class ToneMap:
    """Pictures of one size and kind of colours, looked up in a table of `Colours.to_sdr`. Not thread-safe."""

    def __init__(self, entries: Table, width: int, height: int) -> None:
        """entries: `table` of the pictures' colours."""
        self._graph = Graph()
        self._source = self._add_buffer(width, height)
        given = self._add_buffer(_TABLE_PX, _TABLE_PX)
        lookup, sink = self._graph.add("haldclut", "clut=first:interp=tetrahedral"), self._graph.add("buffersink")
        self._source.link_to(lookup, 0, 0)
        given.link_to(lookup, 0, 1)
        lookup.link_to(sink)
        self._graph.configure()
        picture = av.VideoFrame.from_ndarray(entries, format="rgb48le")
        picture.pts, picture.time_base = 0, _CLOCK
        given.push(picture)
        given.push(None)
        self._count = 0

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """frame: full-range rgb48le of the colours and size -> rgb48le of Rec.709. Its time is not kept."""
        frame.pts, frame.time_base = self._count, _CLOCK
        self._count += 1
        self._source.push(frame)
        return self._graph.vpull()

    def _add_buffer(self, width: int, height: int) -> FilterContext:
        return self._graph.add(
            "buffer",
            video_size=f"{width}x{height}",
            pix_fmt="rgb48le",
            time_base=str(_CLOCK),
            colorspace="gbr",
            range="pc",
        )


def table(colours: Colours) -> Table:
    """`Colours.to_sdr` at 64 steps of each colour, as haldclut reads it: [512, 512, 3], red changes first."""
    axis = np.linspace(0, 1, _SIDE)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")
    values = colours.to_sdr(np.stack([red, green, blue], axis=-1))
    return np.round(values * 65535).astype(np.uint16).reshape(_TABLE_PX, _TABLE_PX, 3)
