"""The contract of a kind of output: what a client may ask for, and how it is made from that. Independent of HTTP.

A new kind is a file with a request, an output and a maker, and a row in OUTPUT_KINDS of kinds.py; the routes, the
OpenAPI document and the page follow from the row. examples/add_an_output.py is a small one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar, get_args

from pydantic import BaseModel, ConfigDict

from app.session.session import Session
from app.webrtc.options import WebRtcOptions

from .output import Output
from .push_hosts import PushHosts
from .recordings import RecordingStore


class OutputRequest(BaseModel):
    """What a client sends to start an output: frozen, unknown fields rejected.

    kind: each subclass narrows it to a Literal of one name. Addresses and tokens are SecretStr: never shown again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str


Request = TypeVar("Request", bound=OutputRequest)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSetting:
    """What the server lends to an output. push_hosts: where clients may push to; a maker checks every address with it.

    codecs: encodes pictures. loop: the server's running event loop; a maker is called on another thread.
    """

    session: Session
    recordings: RecordingStore
    push_hosts: PushHosts
    webrtc: WebRtcOptions
    codecs: Executor
    loop: asyncio.AbstractEventLoop


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputKind(Generic[Request]):
    """A row of the table.

    make: raises InputError, PushHostError, OutputsError and OutputError; may take seconds. title: on the page.
    schemes: of the addresses that the page's form "Push to" starts it with; the request then has a field `address`.
    """

    request: type[Request]
    make: Callable[[Request, OutputSetting], Output]
    title: str
    schemes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The request's `kind`."""
        (name,) = get_args(self.request.model_fields["kind"].annotation)
        return str(name)
