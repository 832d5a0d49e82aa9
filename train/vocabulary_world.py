"""Owns the words for places, lights and styles, in the order of their indices. Independent of how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """Something a prompt can name.

    name: the canonical word. phrases: wordings after a subject ("on the beach"). labels: wordings used alone between
    commas ("beach"). The first of each is canonical.
    """

    name: str
    phrases: tuple[str, ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.phrases or not self.labels:
            raise ValueError(f"term {self.name!r} has no wording; give at least one phrase and one label")


def _term(name: str, phrases: tuple[str, ...], *labels: str) -> Term:
    return Term(name=name, phrases=phrases, labels=labels or (name,))


PLACES: tuple[Term, ...] = (
    _term("beach", ("on the beach", "at the seaside"), "beach", "seaside"),
    _term("forest", ("in the forest", "in the woods"), "forest", "woods"),
    _term("desert", ("in the desert", "among sand dunes"), "desert", "sand dunes"),
    _term("mountains", ("in the mountains", "among snowy peaks"), "mountains", "snowy peaks"),
    _term("city", ("in the city", "downtown"), "city", "skyline"),
    _term("space", ("in space", "in outer space"), "space", "outer space"),
    _term("underwater", ("underwater", "under the sea"), "underwater", "under the sea"),
    _term("meadow", ("in the meadow", "in a field of flowers"), "meadow", "field of flowers"),
    _term("room", ("in the room", "in a living room"), "room", "living room"),
    _term("stage", ("on the stage", "on stage", "in a theatre"), "stage", "theatre"),
    _term("street", ("in the street", "on the road"), "street", "road"),
    _term("volcano", ("near a volcano", "at the volcano"), "volcano", "lava"),
)

STUDIO = _term("studio", ("in a studio", "on a plain background"), "studio", "plain background")
"""The place of index -1; usually omitted from captions."""

LIGHTS: tuple[Term, ...] = (
    _term("day", ("by day", "in daylight"), "day", "daylight"),
    _term("sunset", ("at sunset", "at dusk"), "sunset", "dusk"),
    _term("night", ("at night", "in the moonlight"), "night", "moonlight"),
    _term("snowfall", ("in the snow", "in snowfall"), "snow", "snowfall"),
)

STYLES: tuple[Term, ...] = (
    _term("plain", ("in plain style",), "plain"),
    _term("pencil sketch", ("as a pencil sketch", "drawn in pencil"), "pencil sketch", "pencil drawing", "sketch"),
    _term("pixel art", ("as pixel art", "in pixel art style"), "pixel art", "pixels"),
    _term("watercolour", ("as a watercolour", "painted in watercolour"), "watercolour", "watercolor"),
    _term("neon lines", ("in neon lines", "as neon lines"), "neon lines", "neon"),
    _term("flat poster", ("as a flat poster", "as a poster"), "flat poster", "poster"),
    _term("night vision", ("in night vision", "seen through night vision"), "night vision"),
)
