"""Text messages: what is accepted and refused, and the schemas and AsyncAPI document generated from the models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from app.api.asyncapi import asyncapi_document
from app.api.schema import StageView
from app.api.stream.connection import RateLimit, StreamLimits
from app.api.stream.messages import (
    CLIENT_MESSAGES,
    SERVER_MESSAGES,
    Applied,
    CloseCode,
    ControlMessage,
    Ended,
    Hello,
    MessageError,
    Stats,
    StreamCounts,
    checked_changes,
    dump,
    parse_client,
    parse_server,
)
from pipelines.core.control_table import CONTROLS, STREAM_CONTROLS
from pipelines.core.errors import ControlError

STATS = Stats(
    accounting=StreamCounts(taken=6, out=2, dropped=3, skipped=0, in_flight=1),
    frame_rate=29.5,
    latency_ms=None,
    stages={"pack": StageView(p50_ms=1.5, p95_ms=2.5)},
    tick_ms=3.0,
    missed=4,
)


def test_the_documented_hello_is_read_and_hides_its_token() -> None:
    hello = parse_client('{"type":"hello","version":1,"token":"secret","format":"webp","quality":70}')
    assert isinstance(hello, Hello)
    assert (hello.token, hello.format, hello.quality, hello.send_stats_ms) == ("secret", "webp", 70, 500)
    assert "secret" not in repr(hello)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Invalid JSON"),
        ("[]", "should be an object"),
        ("{}", "Unable to extract tag"),
        ('{"type":"applied","id":1}', "does not match any of the expected tags"),
        ('{"type":"ack","seq":-1}', "ack.seq"),
        ('{"type":"ack","seq":4294967296}', "ack.seq"),
        ('{"type":"ack","seq":"1"}', "ack.seq"),
        ('{"type":"ack","seq":true}', "ack.seq"),
        ('{"type":"ack","seq":1,"more":0}', "ack.more"),
        ('{"type":"hello","token":"x","format":"png"}', "hello.format"),
        ('{"type":"hello","token":"x","quality":101}', "hello.quality"),
        ('{"type":"hello","token":"x","send_stats_ms":5}', "hello.send_stats_ms"),
        ('{"type":"control","id":1,"changes":[]}', "control.changes"),
        ('{"type":"source","id":1,"prompt_only":1}', "source.prompt_only"),
        ('{"type":"ping","id":1,"at_ms":NaN}', "ping.at_ms"),
        ("[" * 50_000, "recursion limit"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        parse_client(text)


def test_a_refusal_does_not_repeat_a_token() -> None:
    with pytest.raises(MessageError) as caught:
        parse_client('{"type":"hello","token":"secret","version":3}')
    assert "secret" not in str(caught.value)


def test_the_names_of_the_count_are_the_documented_ones() -> None:
    assert json.loads(dump(STATS))["accounting"] == {"in": 6, "out": 2, "dropped": 3, "skipped": 0, "in_flight": 1}


@pytest.mark.parametrize("message", [STATS, Applied(id=3), Ended(message="over", remedy="")])
def test_a_message_survives_the_way(message: Stats | Applied | Ended) -> None:
    assert parse_server(dump(message)) == message
    jsonschema.validate(json.loads(dump(message)), SERVER_MESSAGES.json_schema())


def test_any_object_of_changes_is_read_and_the_schema_is_the_control_tables() -> None:
    """An invalid value is a refused change and does not end the connection."""
    message = parse_client('{"type":"control","id":1,"changes":{"strength":7,"nonsense":[{}]}}')
    assert isinstance(message, ControlMessage)
    schema = CLIENT_MESSAGES.json_schema()
    changes = schema["$defs"]["ControlMessage"]["properties"]["changes"]
    assert tuple(changes["properties"]) == STREAM_CONTROLS
    assert changes["properties"]["strength"]["maximum"] == CONTROLS["strength"].maximum
    jsonschema.validate({"type": "control", "id": 1, "changes": {"strength": 0.5, "prompt": "a cat"}}, schema)
    for changes in ({"strength": 7}, {"nonsense": 1}, {"width": 64}, {"strength": None}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"type": "control", "id": 1, "changes": changes}, schema)


def test_what_needs_a_new_engine_is_refused() -> None:
    assert checked_changes({"strength": 0.5}) == {"strength": 0.5}
    with pytest.raises(ControlError, match=r"model cannot be changed .* --model"):
        checked_changes({"strength": 0.5, "model": "other"})


def test_messages_are_counted_over_time() -> None:
    rate = RateLimit(10.0, now_s=100.0)
    assert [rate.take(100.0) for _ in range(21)] == [True] * 20 + [False]
    rate = RateLimit(10.0, now_s=0.0)
    assert all(rate.take(turn / 10) for turn in range(1000))  # sustained
    rate = RateLimit(10.0, now_s=0.0)
    assert not all(rate.take(turn / 11) for turn in range(1000))


def test_limits_are_above_0() -> None:
    with pytest.raises(ValueError, match="ack_s is 0"):
        StreamLimits(ack_s=0)


# ---- the AsyncAPI document ----


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(asyncapi_document(4 << 20)))
    return found


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from references(part)


def test_every_reference_of_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert len(found) > 30
    for reference in found:
        node: Any = document
        assert reference.startswith("#/")
        for part in reference[2:].split("/"):
            node = node[part]


def test_the_document_has_every_message_once_and_in_one_direction(document: dict[str, Any]) -> None:
    assert document["asyncapi"] == "3.0.0"
    said = {"hello", "control", "source", "ack", "ping", "close", "input_picture"}
    heard = {"ready", "taken", "applied", "error", "pong", "stats", "notice", "restarting", "ended", "frame"}
    names = {
        action["action"]: {reference.rpartition("/")[2] for reference in references(action["messages"])}
        for action in document["operations"].values()
    }
    assert names == {"receive": said, "send": heard}
    assert set(document["channels"]["stream"]["messages"]) == said | heard == set(document["components"]["messages"])
    assert all(str(code.value) in document["info"]["description"] for code in CloseCode)


def test_the_documents_schemas_judge_as_the_server_does(document: dict[str, Any]) -> None:
    schema = {"$ref": "#/components/schemas/Stats", "components": document["components"]}
    jsonschema.validate(json.loads(dump(STATS)), schema)
    schema = {"$ref": "#/components/schemas/Hello", "components": document["components"]}
    jsonschema.validate({"type": "hello", "token": "x"}, schema)
    for wrong in ({"type": "hello", "token": "x", "more": 1}, {"token": "x"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
