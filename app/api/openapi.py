"""The application and its OpenAPI document, in which each operation has every status that it can answer.

Routes name their own statuses; those of the guard and of failures, which any operation can answer, are added here.
Independent of the routes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import fastapi

OPENAPI_URL = "/v1/openapi.json"
_ANY: Mapping[int, str] = MappingProxyType(
    {
        401: "no token of this server, or a wrong one",
        403: "a foreign Host or Origin",
        429: "too many wrong tokens, or too many requests of this kind, from one address; Retry-After says when",
        500: "the server's disk is full, its files cannot be written, or a fault of its own",
    }
)
_WITH_BODY: Mapping[int, str] = MappingProxyType({408: "the body came too slowly", 413: "the body is too large"})
_FILE: Mapping[int, str] = MappingProxyType(
    {206: "the part that Range names", 400: "Range cannot be read", 416: "Range is beyond the file's end"}
)
_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
_RETRIED = (429, 503)


class Application(fastapi.FastAPI):
    """FastAPI without its documentation pages (they would load scripts from a CDN)."""

    def __init__(self) -> None:
        super().__init__(
            title="Zoetrope",
            version="1",
            description="Live generated video: sessions, frames, pictures and render jobs.",
            openapi_url=OPENAPI_URL,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )

    def openapi(self) -> dict[str, Any]:
        """The document; made once."""
        if self.openapi_schema is None:
            for item in super().openapi()["paths"].values():
                for operation in item.values():
                    _complete(operation)
        assert self.openapi_schema is not None
        return self.openapi_schema


def _complete(operation: dict[str, Any]) -> None:
    responses: dict[str, dict[str, Any]] = operation["responses"]
    wanted = {**_ANY, **(_WITH_BODY if "requestBody" in operation else {})}
    if _sends_file(responses):
        responses.setdefault("206", {"description": _FILE[206], "content": responses["200"]["content"]})
        wanted = {**wanted, **{status: text for status, text in _FILE.items() if status >= 400}}
    for status, text in wanted.items():
        responses.setdefault(str(status), {"description": text, "content": _ERROR})
    for status in _RETRIED:
        if (response := responses.get(str(status))) is not None:
            response.setdefault("headers", _RETRY_AFTER)


def _sends_file(responses: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(kind.startswith("video/") for kind in responses.get("200", {}).get("content", {}))
