"""Streaming multipart requests: small text fields and one file, with size limits enforced while the body arrives.

The route chooses where the file goes; the client's file name is ignored. Independent of the routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from pipelines.core.errors import ControlError, InputError, TooLargeError

from .access import off_loop
from .context import ApiContext
from .errors import validation_text
from .schema import PROMPT_SCHEMA

M = TypeVar("M", bound=BaseModel)
_TEXT_FIELDS = ("options", "prompt")
_FEED_BYTES = 16 << 10  # parsed in one turn of the event loop
_WRITE_BYTES = 256 << 10  # buffered before they are written
_OVERHEAD_BYTES = 16 << 10  # for boundaries and part headers


class Multipart:
    """Incremental parser. `feed` takes the bytes that have arrived, `take_file` returns the file's part of them.

    file_field: the name of the one field that may be a file. text_bytes: limit of all other fields together. There is
    nothing to take but these fields, each once, and every other one is refused as it begins.
    """

    def __init__(self, boundary: bytes, file_field: str, text_bytes: int) -> None:
        self.has_file = False
        self.complete = False
        self._file_field = file_field
        self._text_bytes_left = self._text_bytes = text_bytes
        self._texts: dict[str, bytearray] = {}
        self._file = bytearray()
        self._header = (bytearray(), bytearray())
        self._part = ""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body. Raises InputError, TooLargeError."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InputError("The multipart body is malformed.", "Send it as curl -F does.") from error

    def take_file(self) -> bytes:
        """The bytes of the file that arrived since the last call."""
        taken = bytes(self._file)
        self._file.clear()
        return taken

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the file that were not taken yet."""
        return len(self._file)

    def fields(self) -> dict[str, str]:
        """The text fields. Raises InputError if one is not UTF-8."""
        try:
            return {name: bytes(text).decode() for name, text in self._texts.items()}
        except UnicodeDecodeError as error:
            raise InputError("A field is not UTF-8 text.", "Send text as UTF-8.") from error

    def _begin(self) -> None:
        self._part = ""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _header_end(self) -> None:
        name, value = bytes(self._header[0]).lower(), bytes(self._header[1])
        for part in self._header:
            part.clear()
        if name == b"content-disposition":
            self._part = parse_options_header(value)[1].get(b"name", b"").decode(errors="replace")

    def _headers_end(self) -> None:
        if not self._part:
            raise InputError("A part of the body has no name.", "Send it as curl -F does.")
        if self._part in self._texts or (self._part == self._file_field and self.has_file):
            raise InputError(f"The field {self._part!r} was given twice.", "Give it once.")
        if self._part not in (*_TEXT_FIELDS, self._file_field):
            raise InputError(
                f"Unknown field {self._part[:40]!r}.",
                f"The text fields are: {', '.join(_TEXT_FIELDS)}. The file's field is: {self._file_field}.",
            )
        if self._part == self._file_field:
            self.has_file = True
        else:
            self._texts[self._part] = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part == self._file_field:
            self._file.extend(data[start:end])
            return
        self._texts[self._part].extend(data[start:end])
        self._text_bytes_left -= end - start
        if self._text_bytes_left < 0:
            raise TooLargeError("The text fields are too long.", f"Send at most {self._text_bytes} bytes in total.")

    def _end(self) -> None:
        self.complete = True


async def read_multipart(
    context: ApiContext, request: Request, *, file_field: str, sink: BinaryIO, max_bytes: int
) -> tuple[dict[str, str], bool]:
    """Write the file of a multipart request to `sink`. Returns the text fields, and whether there was a file.

    max_bytes: limit of the file. Raises TooLargeError as soon as it is exceeded, InputError for a malformed body.
    """
    maximum = max_bytes + context.limits.text_bytes + _OVERHEAD_BYTES
    too_large = TooLargeError(f"The upload is larger than {max_bytes} bytes.", "Send a smaller file.")
    if _content_length(request) > maximum:
        raise too_large
    parser = Multipart(_boundary(request), file_field, context.limits.text_bytes)
    arrived = written = 0
    try:
        async for chunk in request.stream():
            arrived += len(chunk)
            if arrived > maximum or written + parser.waiting_bytes > max_bytes:
                raise too_large
            for start in range(0, len(chunk), _FEED_BYTES):
                if start:
                    await asyncio.sleep(0)  # others' turn
                parser.feed(chunk[start : start + _FEED_BYTES])
            if parser.waiting_bytes >= _WRITE_BYTES:
                written += await off_loop(context, sink.write, parser.take_file())
    except ClientDisconnect as error:
        raise InputError("The upload was interrupted.", "Send it again.") from error
    if not parser.complete:
        raise InputError("The multipart body is incomplete.", "Send it again.")
    written += await off_loop(context, sink.write, parser.take_file())
    if written > max_bytes:
        raise too_large
    return parser.fields(), parser.has_file


def read_options(model: type[M], fields: dict[str, str]) -> M:
    """The options of a multipart request: its field `options` (JSON); the field `prompt` overrides that control.

    Raises InputError or ControlError for an invalid value.
    """
    with _validating():
        options = model.model_validate_json(fields.get("options", "").strip() or "{}")
    prompt = fields.get("prompt")
    if prompt is None:
        return options
    with _validating():
        content = options.model_dump(exclude_unset=True)
        return model.model_validate({**content, "controls": {**content.get("controls", {}), "prompt": prompt}})


@contextmanager
def _validating() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        code, message = validation_text(error.errors(include_url=False, include_context=False, include_input=False))
        kind = ControlError if code == "bad_control" else InputError
        raise kind(message, "See the OpenAPI document at /v1/openapi.json.") from error


def _content_length(request: Request) -> int:
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 200:
        raise InputError("The body is not multipart/form-data.", "Send it as curl -F does.")
    return boundary


def multipart_schema(
    options: type[BaseModel], file_field: str, file_types: str, *, rules: Mapping[str, object] | None = None
) -> dict[str, object]:
    """The request body for the OpenAPI document. file_types: media types. rules: JSON Schema of the whole form."""
    options_schema = options.model_json_schema(ref_template="#/components/schemas/{model}")
    options_schema.pop("$defs")  # already in the document, from other routes' bodies
    prompt = {
        **PROMPT_SCHEMA,
        "description": f"Overrides options.controls.prompt. {PROMPT_SCHEMA['description']}",
    }
    properties = {
        "prompt": prompt,
        "options": options_schema,
        file_field: {"type": "string", "format": "binary", "description": f"{file_types}; optional."},
    }
    schema = {"type": "object", "additionalProperties": False, "properties": properties, **(rules or {})}
    encoding = {"options": {"contentType": "application/json"}, file_field: {"contentType": file_types}}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema, "encoding": encoding}}}
    }
