"""What may be told to a client: texts without the places of files on the server, of which only the last names stay.

Texts come from engines, renders and the system, which name whole paths for whoever started the server. Independent of
routes; idempotent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator

_OUR_ADDRESSES = ("v1", "page", "healthz", "readyz", "metrics", "zoetrope")  # HTTP and OSC
_START = r"(?:file://|~|\.{1,2})?/"
_QUOTED = re.compile(rf"(?P<quote>['\"`])(?P<place>{_START}[^'\"`\n]+)(?P=quote)")  # may hold spaces
_BARE = re.compile(rf"(?<![\w:/.~'\"`])(?P<place>{_START}[^\s'\"`,;:()<>\[\]{{}}|]+)")
_HUB_ID = re.compile(r"[^/.~][^/]*/[^/]+")


def told(text: str, known: Iterable[str] = ()) -> str:
    """`text` with each path that begins at /, ~ or a dot reduced to its last name.

    known: places to reduce wherever they occur, for those that the pattern misses: with spaces, or relative ones.
    """
    for place in known:
        if "/" in place and _HUB_ID.fullmatch(place) is None:
            text = text.replace(place, PurePath(place).name)
    text = _QUOTED.sub(lambda found: f"{found['quote']}{_last(found['place'])}{found['quote']}", text)
    return _BARE.sub(lambda found: _last(found["place"]), text)


def model_name(model: str) -> str:
    """A model as clients know it: a bundled name or a hub id as it is, of a folder or file the last name."""
    return model if "/" not in model or _HUB_ID.fullmatch(model) else PurePath(model).name


Told = Annotated[str, AfterValidator(told)]
"""A field of a text that is shown to a client."""

ModelName = Annotated[str, AfterValidator(model_name)]


def _last(place: str) -> str:
    names = [name for name in place.split("/") if name not in ("", ".", "..", "~", "file:")]
    if not names or (place.startswith("/") and names[0] in _OUR_ADDRESSES):
        return place
    return names[-1]
