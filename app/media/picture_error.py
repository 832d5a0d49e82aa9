"""The error of all that reads picture files."""

from __future__ import annotations

from pipelines.core.errors import InputError


class PictureError(InputError):
    """Not a valid picture, or too large."""
