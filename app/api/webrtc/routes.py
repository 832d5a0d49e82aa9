"""Signalling over HTTP: WHIP in (RFC 9725), WHEP out (its draft), and one peer for both directions.

A session's own routes take its token; POST /v1/whip opens a new session and needs the server's token
(app/guard/middleware.py). Its Location ends in an unguessable id. Independent of the media.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import fastapi
from fastapi import Depends, Request, Response
from starlette.exceptions import HTTPException

from app.api.access import off_loop, session_of, session_path
from app.api.context import ApiContext
from app.api.schema import ErrorAnswer
from app.api.sessions import BUSY, REFUSALS, SESSION_TOKEN, UNFIT, UNREAD
from app.session.session import Session
from app.webrtc.options import WebRtcOptions
from app.webrtc.sdp import ROLES, Role, ice_links
from pipelines.core.errors import TooLargeError

from .peers import NoRestartError, Peer, Peers

SDP = "application/sdp"
TRICKLE = "application/trickle-ice-sdpfrag"
_SDP_TEXT = {"schema": {"type": "string"}}
_OFFER = {"requestBody": {"required": True, "content": {SDP: _SDP_TEXT}}}
_FRAGMENT = {"requestBody": {"required": True, "content": {TRICKLE: _SDP_TEXT}}}
_ETAG_FORM = '^"[!#-~]+"$'  # "*" would ask for an ICE restart, which is refused
_ETAG = {"type": "string", "pattern": _ETAG_FORM}
_IF_MATCH = {"name": "If-Match", "in": "header", "required": False, "schema": _ETAG}
_EXPOSED = "Location, ETag, Link, Zoetrope-Session, Zoetrope-Token, Retry-After"


def router(context: ApiContext, options: WebRtcOptions | None = None) -> fastapi.APIRouter:
    """The routes under /v1. Peers are closed when the application shuts down."""
    peers = Peers(context, options or WebRtcOptions())

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        yield
        await peers.stop()

    routes = fastapi.APIRouter(prefix="/v1", tags=["webrtc"], lifespan=lifespan)
    _add_endpoints(routes, _Endpoint(context, peers))
    return routes


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error responses for the OpenAPI document."""
    return {status: {"model": ErrorAnswer, "description": HTTPStatus(status).phrase} for status in statuses}


_JOIN_RESPONSES: dict[int | str, dict[str, Any]] = {
    201: {"description": "the SDP answer", "content": {SDP: _SDP_TEXT}},
    **UNREAD,
    **BUSY,
    **UNFIT,
    **_errors(406, 413, 415),
}


def _add_endpoints(routes: fastapi.APIRouter, endpoint: _Endpoint) -> None:
    @routes.post(
        "/whip",
        status_code=201,
        operation_id="whip_new",
        response_class=Response,
        responses=_JOIN_RESPONSES,
        openapi_extra=_OFFER,
    )
    async def whip_new(request: Request) -> Response:
        """Open a session and send it video. The response headers Zoetrope-Session and Zoetrope-Token identify it."""
        return await endpoint.open_session(request)

    @routes.options("/whip", status_code=204, operation_id="whip_new_options", response_class=Response)
    async def whip_new_options() -> Response:
        """The accepted media type, and the ICE servers."""
        return endpoint.describe(trusted=True)

    _add_peer(routes, endpoint, "/whip/{peer_id}", "whip_new", None)
    for role in ROLES.values():
        path = f"/sessions/{{session_id}}/{role.name}"
        _add_role(routes, endpoint, path, role)
        _add_peer(routes, endpoint, f"{path}/{{peer_id}}", role.name, role)


def _add_role(routes: fastapi.APIRouter, endpoint: _Endpoint, path: str, role: Role) -> None:
    actions = " and ".join(("send video",) * role.gives + ("receive video",) * role.takes)

    @routes.post(
        path,
        status_code=201,
        operation_id=role.name,
        response_class=Response,
        summary=actions.capitalize(),
        responses={**_JOIN_RESPONSES, **REFUSALS},
        openapi_extra=_OFFER,
        dependencies=[Depends(SESSION_TOKEN)],
    )
    async def join(session_id: str, request: Request) -> Response:
        """SDP offer in, SDP answer out."""
        return await endpoint.join(request, session_of(endpoint.context, session_id, request), role)

    @routes.options(
        path,
        status_code=204,
        operation_id=f"{role.name}_options",
        response_class=Response,
        responses=_errors(401, 404),
    )
    async def options(session_id: str, request: Request) -> Response:
        """The accepted media type, and with the session's token the ICE servers."""
        trusted = "authorization" in request.headers
        if trusted:
            session_of(endpoint.context, session_id, request)
        return endpoint.describe(trusted=trusted)


def _add_peer(routes: fastapi.APIRouter, endpoint: _Endpoint, path: str, name: str, role: Role | None) -> None:
    session = [{"name": "session_id", "in": "path", "required": True, "schema": {"type": "string"}}] if role else []
    guards = [Depends(SESSION_TOKEN)] if role else []
    refusals = REFUSALS if role else _errors(404)

    @routes.patch(
        path,
        status_code=204,
        operation_id=f"{name}_trickle",
        response_class=Response,
        responses={**refusals, **UNREAD, **_errors(400, 412, 413, 415, 422, 428)},
        openapi_extra={"parameters": [*session, _IF_MATCH], **_FRAGMENT},
        dependencies=guards,
    )
    async def trickle(peer_id: str, request: Request) -> Response:
        """Trickle ICE: further candidates of the client. If-Match: the ETag of the connection."""
        return await endpoint.trickle(request, endpoint.peer(peer_id, request, role))

    @routes.delete(
        path,
        operation_id=f"{name}_end",
        response_class=Response,
        responses=refusals,
        openapi_extra={"parameters": session},
        dependencies=guards,
    )
    async def end(peer_id: str, request: Request) -> Response:
        """End the connection, and its session if POST /v1/whip opened it."""
        return await endpoint.end(endpoint.peer(peer_id, request, role))


class _Endpoint:
    """Handles the requests. Keeps the sessions that WHIP opened, by peer id."""

    def __init__(self, context: ApiContext, peers: Peers) -> None:
        self.context = context
        self._peers = peers
        self._opened: dict[str, Session] = {}

    async def open_session(self, request: Request) -> Response:
        """Open a session with its first peer; the session is closed if the peer fails."""
        offer = await self._offer(request)
        session = await off_loop(self.context, lambda: self.context.table.open(prompt_only=False))
        try:
            response = await self._answer(session, ROLES["whip"], offer, f"{self.context.root_path}/v1/whip")
        except BaseException:  # including a disconnected client: nobody else would close the session
            await off_loop(self.context, session.close)
            raise
        self._opened = {key: value for key, value in self._opened.items() if not value.over}
        self._opened[response.headers["location"].rpartition("/")[2]] = session
        response.headers["Zoetrope-Session"] = session.id
        response.headers["Zoetrope-Token"] = session.token
        return response

    async def join(self, request: Request, session: Session, role: Role) -> Response:
        """Add a peer to an existing session."""
        path = session_path(self.context, session.id, role.name)
        return await self._answer(session, role, await self._offer(request), path)

    def describe(self, *, trusted: bool) -> Response:
        """Response to OPTIONS. trusted: include the ICE servers and their credentials."""
        response = Response(status_code=204, headers={"Accept-Post": SDP})
        self._link(response, trusted=trusted)
        return response

    def peer(self, peer_id: str, request: Request, role: Role | None) -> Peer:
        """The peer with that id. role: None for resources created by POST /v1/whip. Raises 404.

        Below a session's path, the session's token is required too.
        """
        peer = self._peers.get(peer_id)
        if role is None:
            peer = peer if peer_id in self._opened else None
        else:
            session = session_of(self.context, str(request.path_params["session_id"]), request)
            if peer is not None and (peer.session is not session or peer.role is not role):
                peer = None
        if peer is None:
            raise HTTPException(404, "There is no such connection; it may have ended.")
        return peer

    async def trickle(self, request: Request, peer: Peer) -> Response:
        """RFC 9725, section 4.3.1."""
        _check_content_type(request, TRICKLE)
        match = request.headers.get("if-match")
        if match is None:
            raise HTTPException(428, "Send If-Match with the ETag of the connection.")
        if match == "*":
            raise HTTPException(422, "ICE restarts are not supported; open a new connection.")
        if re.match(_ETAG_FORM, match) is None:
            raise HTTPException(400, "If-Match is no ETag: send that of the connection, in quotation marks.")
        if match != peer.etag:
            raise HTTPException(412, "If-Match does not match the ETag of this connection.")
        fragment = await self._body(request)
        try:
            await peer.add_candidates(fragment)
        except NoRestartError as error:
            raise HTTPException(422, f"{error.message} {error.remedy}") from error
        return Response(status_code=204)

    async def end(self, peer: Peer) -> Response:
        """Close the peer, and its session if WHIP opened it."""
        await peer.close()
        session = self._opened.pop(peer.id, None)
        if session is not None:
            await off_loop(self.context, session.close)
        return Response(status_code=200)

    async def _offer(self, request: Request) -> str:
        _check_content_type(request, SDP)
        accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "*/*").split(",")]
        if not {SDP, "application/*", "*/*"} & set(accepted):
            raise HTTPException(406, f"The response is {SDP}; accept that.")
        return await self._body(request)

    async def _body(self, request: Request) -> str:
        maximum = self._peers.options.sdp_bytes
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > maximum:
                raise TooLargeError(f"The description has more than {maximum} bytes.", "Offer fewer codecs and media.")
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise HTTPException(400, "The description is not UTF-8 text.") from error

    async def _answer(self, session: Session, role: Role, offer: str, path: str) -> Response:
        peer, answer = await self._peers.join(session, role, offer)
        headers = {"Location": f"{path}/{peer.id}", "ETag": peer.etag, "Access-Control-Expose-Headers": _EXPOSED}
        response = Response(answer, 201, headers, SDP)
        self._link(response, trusted=True)
        return response

    def _link(self, response: Response, *, trusted: bool) -> None:
        for link in ice_links(self._peers.options.ice_servers) if trusted else ():
            response.headers.append("Link", link)


def _check_content_type(request: Request, expected: str) -> None:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != expected:
        raise HTTPException(415, f"Send it as {expected}.")
