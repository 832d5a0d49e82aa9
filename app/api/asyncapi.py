"""The AsyncAPI 3.0 document of the frame stream, generated from the message models. Served at /v1/asyncapi.json.

It describes the WebSocket as OpenAPI describes HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, get_args

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic.json_schema import models_json_schema

from .context import ApiContext
from .stream.messages import PROTOCOL_VERSION, ClientMessage, CloseCode, Message, ServerMessage
from .stream.wire import HEADER_BYTES, VERSION

_SCHEMAS = "#/components/schemas/{model}"
_INPUT = "input_picture"
_FRAME = "frame"
_HEADER_TEXT = (
    f"A header of {HEADER_BYTES} bytes, little-endian, then the picture. Header: magic 'ZT'; u8 version = {VERSION}; "
    "u8 format (0 raw RGB, 1 JPEG, 2 WebP); u16 flags = 0; u16 header bytes = 32; u32 seq; u32 source_seq "
    "(0xFFFFFFFF: none); f64 captured_ms (the client's clock, echoed; 0: none); u16 width; u16 height; u32 server_us."
)


def router(context: ApiContext) -> APIRouter:
    """The route that serves the document."""
    routes = APIRouter(prefix="/v1", tags=["documents"])
    document = asyncapi_document(context.limits.message_bytes, context.root_path)
    text = json.dumps(document).encode()  # built once: it takes milliseconds

    @routes.get("/asyncapi.json", operation_id="asyncapi", response_class=JSONResponse)
    async def asyncapi() -> Response:
        """The frame stream's messages, as an AsyncAPI 3.0 document."""
        return Response(text, media_type="application/json")

    return routes


def asyncapi_document(max_bytes: int, root_path: str = "") -> dict[str, Any]:
    """The document. max_bytes: limit of a binary message. root_path: of the server (context.py)."""
    client, server = _models(ClientMessage), _models(ServerMessage)
    messages = {_name(model): _message(model) for model in (*client, *server)}
    messages[_INPUT] = _binary("An input picture; the newest wins.", max_bytes)
    messages[_FRAME] = _binary("A finished frame; must be acknowledged.", None)
    sent, received = [*map(_name, client), _INPUT], [*map(_name, server), _FRAME]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Zoetrope frame stream",
            "version": str(PROTOCOL_VERSION),
            "description": "Pictures in, generated frames out, over one WebSocket. " + _close_codes(),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {"stream": _channel((*sent, *received), root_path)},
        "operations": {
            # actions are from the server's point of view
            "from_client": _operation("receive", sent, "What a client sends; hello first."),
            "to_client": _operation("send", received, "What the server sends."),
        },
        "components": {"messages": messages, "schemas": _schemas((*client, *server))},
    }


def _models(union: Any) -> tuple[type[Message], ...]:
    """The models of an annotated union, in order."""
    return get_args(get_args(union)[0])


def _name(model: type[Message]) -> str:
    return str(model.model_fields["type"].default)


def _message(model: type[Message]) -> dict[str, Any]:
    return {
        "name": _name(model),
        "contentType": "application/json",
        "summary": (model.__doc__ or "").strip().splitlines()[0],
        "payload": {"$ref": _SCHEMAS.format(model=model.__name__)},
    }


def _binary(summary: str, max_bytes: int | None) -> dict[str, Any]:
    payload: dict[str, Any] = {"type": "string", "format": "binary"}
    if max_bytes is not None:
        payload["maxLength"] = max_bytes
    return {
        "contentType": "application/octet-stream",
        "summary": summary,
        "description": _HEADER_TEXT,
        "payload": payload,
    }


def _schemas(models: Iterable[type[Message]]) -> dict[str, Any]:
    _, found = models_json_schema([(model, "validation") for model in models], ref_template=_SCHEMAS)
    schemas: dict[str, Any] = found["$defs"]
    return schemas


def _channel(messages: Iterable[str], root_path: str) -> dict[str, Any]:
    return {
        "address": root_path + "/v1/sessions/{id}/stream",
        "description": "Opened with POST /v1/sessions, which also gives the token for hello.",
        "parameters": {"id": {"description": "The session's id."}},
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
    }


def _operation(action: str, messages: Iterable[str], summary: str) -> dict[str, Any]:
    return {
        "action": action,
        "summary": summary,
        "channel": {"$ref": "#/channels/stream"},
        "messages": [{"$ref": f"#/channels/stream/messages/{name}"} for name in messages],
    }


def _close_codes() -> str:
    codes = ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in CloseCode)
    return f"Close codes: {codes}."
