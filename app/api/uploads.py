"""Multipart requests, read as they arrive: small text fields and one file, with a cap that holds while it streams.

The file goes where the route says; the name that the client gave it is never looked at. Knows no route.
"""

from __future__ import annotations

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
_WRITE_BYTES = 256 << 10  # collected before they are written
_ROOM_BYTES = 16 << 10  # for the lines between the parts


class Multipart:
    """The parser's state. `feed` takes what has arrived, `take_file` gives what of it belongs to the file.

    file_field: the name of the one field that may be a file. text_bytes: cap of all other fields together.
    """

    def __init__(self, boundary: bytes, file_field: str, text_bytes: int) -> None:
        self.has_file = False
        self.complete = False
        self._file_field = file_field
        self._text_bytes = text_bytes
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
            raise InputError("The multipart body cannot be read.", "Send it as curl -F does.") from error

    def take_file(self) -> bytes:
        """What has come of the file since the last call."""
        taken = bytes(self._file)
        self._file.clear()
        return taken

    @property
    def waiting_bytes(self) -> int:
        """Of the file, not taken yet."""
        return len(self._file)

    def fields(self) -> dict[str, str]:
        """The text fields. Raises InputError for what is no UTF-8."""
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
            raise InputError(f"The field {self._part[:40]!r} was given twice.", "Give each once.")
        if self._part == self._file_field:
            self.has_file = True
        else:
            self._texts[self._part] = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part == self._file_field:
            self._file.extend(data[start:end])
            return
        self._texts[self._part].extend(data[start:end])
        if sum(map(len, self._texts.values())) > self._text_bytes:
            raise TooLargeError("The text fields are too long.", f"Send at most {self._text_bytes} bytes of them.")

    def _end(self) -> None:
        self.complete = True


async def read_multipart(
    context: ApiContext, request: Request, *, file_field: str, sink: BinaryIO, max_bytes: int
) -> tuple[dict[str, str], bool]:
    """The text fields of a multipart request, and whether the file was there, which is written to `sink`.

    max_bytes: of the file. Raises TooLargeError as soon as it is passed, InputError for what is no multipart.
    """
    maximum = max_bytes + context.limits.text_bytes + _ROOM_BYTES
    too_large = TooLargeError(f"The upload is larger than {max_bytes} bytes.", "Send less.")
    if _announced(request) > maximum:
        raise too_large
    parser = Multipart(_boundary(request), file_field, context.limits.text_bytes)
    arrived = written = 0
    try:
        async for chunk in request.stream():
            arrived += len(chunk)
            if arrived > maximum or written + parser.waiting_bytes > max_bytes:
                raise too_large
            parser.feed(chunk)
            if parser.waiting_bytes >= _WRITE_BYTES:
                written += await off_loop(context, sink.write, parser.take_file())
    except ClientDisconnect as error:
        raise InputError("The upload broke off.", "Send it again.") from error
    if not parser.complete:
        raise InputError("The multipart body ends too early.", "Send it again.")
    written += await off_loop(context, sink.write, parser.take_file())
    if written > max_bytes:
        raise too_large
    return parser.fields(), parser.has_file


def read_options(model: type[M], fields: dict[str, str]) -> M:
    """The options of a multipart request: its field `options` (JSON); `prompt`, if given, takes that control's place.

    Raises InputError or ControlError for an unknown field, and for what does not fit.
    """
    for name in fields:
        if name not in ("options", "prompt"):
            raise InputError(f"There is no field {name[:40]!r}.", "The text fields are: options, prompt.")
    with _told():
        options = model.model_validate_json(fields.get("options", "").strip() or "{}")
    prompt = fields.get("prompt")
    if prompt is None:
        return options
    with _told():
        content = options.model_dump(exclude_unset=True)
        return model.model_validate({**content, "controls": {**content.get("controls", {}), "prompt": prompt}})


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        code, message = validation_text(error.errors(include_url=False, include_context=False, include_input=False))
        kind = ControlError if code == "bad_control" else InputError
        raise kind(message, "The OpenAPI document at /v1/openapi.json says what fits.") from error


def _announced(request: Request) -> int:
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
    of_options = options.model_json_schema(ref_template="#/components/schemas/{model}")
    of_options.pop("$defs")  # other routes' bodies have brought these into the document
    prompt = {
        **PROMPT_SCHEMA,
        "description": f"Takes the place of options.controls.prompt. {PROMPT_SCHEMA['description']}",
    }
    properties = {
        "prompt": prompt,
        "options": of_options,
        file_field: {"type": "string", "format": "binary", "description": f"{file_types}; may be left out."},
    }
    schema = {"type": "object", "additionalProperties": False, "properties": properties, **(rules or {})}
    encoding = {"options": {"contentType": "application/json"}, file_field: {"contentType": file_types}}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema, "encoding": encoding}}}
    }
