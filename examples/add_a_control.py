"""Every place where a control appears, to check a new one: each line is the answer of the code that users reach.

    python examples/add_a_control.py strength

A control is one row of `ControlTable` in pipelines/core/control_table.py, for example

    film_grain = _float(
        0.0, 0.0, 1.0, propagation=_TICK, section="Look",
        help="Grain on every frame; 0 is none.",
    )

and nothing else; an engine or a conditioner that uses it reads the attribute `controls.film_grain`. A control that
chooses the engine (`Propagation.REOPEN`) cannot change in a stream; it is also a field in files/loader_options.py.
"""

import argparse
import json
import queue
import sys
from collections.abc import Mapping
from typing import Any

from pythonosc.udp_client import SimpleUDPClient

from app.api.schema import ChangeRequest, ControlChanges
from app.cli.options import add_control_options, control_from_options
from app.controllers.mapping import live_control
from app.controllers.osc import PREFIX, OscInput, OscOptions
from app.page.widgets import SECTIONS, make_widget
from app.render.timeline import Timeline
from pipelines.core.control_table import ControlSpec
from pipelines.core.controls import Control
from pipelines.identity import IdentityEngine


def another_value(spec: ControlSpec) -> object:
    """As JSON has it, and not the default."""
    match spec.kind:
        case "float" | "int":
            return spec.minimum if spec.default == spec.maximum else spec.maximum
        case "bool":
            return not spec.default
        case "choice":
            return next(choice for choice in reversed(spec.choices) if choice != spec.default)
    return "a red ball"


def on_the_command_line(spec: ControlSpec, value: object) -> tuple[str, Control]:
    """The option that `zoetrope render` and `live` take, and what they make of it."""
    flag = "--" + spec.name.replace("_", "-")
    given = [flag if value else flag.replace("--", "--no-", 1)] if spec.kind == "bool" else [flag, f"{value}"]
    parser = argparse.ArgumentParser()
    add_control_options(parser)
    return " ".join(given), control_from_options(parser.parse_args(given))


def on_the_page(spec: ControlSpec) -> str:
    """Its section, widget and label."""
    titles = [section.title for section in SECTIONS if spec.name in section.names]
    if not titles:
        return "on the stage itself" if spec.section == "stage" else "nowhere"
    widget = make_widget(spec, spec.default)
    return f"{titles[0]}: {type(widget).__name__} '{widget.label}'"


def in_the_api(spec: ControlSpec, value: object) -> tuple[str, Control]:
    """Its type in the OpenAPI document, and what a PATCH of a session makes of it."""
    schema = ControlChanges.model_json_schema()["properties"][spec.name]
    shown = {key: part for key, part in schema.items() if key not in ("title", "description")}
    request = ChangeRequest.model_validate({"controls": {spec.name: value}})
    return json.dumps(shown), Control.of(request.controls.changes())


def over_osc(spec: ControlSpec, value: Any) -> tuple[str, Control]:
    """Its address, and what a message to it changes."""
    applied: queue.Queue[Mapping[str, object]] = queue.Queue()
    listener = OscInput(OscOptions(port=0), applied.put)
    sender = SimpleUDPClient(listener.host, listener.port)
    try:
        sender.send_message(PREFIX + spec.name, value)
        return PREFIX + spec.name, Control(**applied.get(timeout=10))
    finally:
        sender.close()
        listener.stop()


def in_a_timeline(spec: ControlSpec, value: object) -> tuple[str, Control]:
    """Its key in a story."""
    entry = {"at_s": 2, spec.name: value}
    (cue,) = Timeline.parse(json.dumps([entry]), "example").cues
    return json.dumps(entry), cue.control


def in_a_stream(control: Control) -> Control:
    """What an engine then reads of `stream.controls`."""
    engine = IdentityEngine()
    with engine.open() as stream:
        stream.apply(control)
        return Control(**{name: stream.controls.value_of(name) for name in control.changes()})


def main(name: str) -> None:
    """Raises ControlError for a control that does not exist or that needs a new stream."""
    spec = live_control(name)
    value = another_value(spec)
    expected = Control.of({name: value})
    ways = {
        "command line": on_the_command_line(spec, value),
        "page": (on_the_page(spec), expected),
        "API": in_the_api(spec, value),
        "OSC": over_osc(spec, value),
        "timeline": in_a_timeline(spec, value),
        "in code": (f"controls.{name}", in_a_stream(expected)),
    }
    sys.stdout.write(f"{name}\n")
    for way, (shown, found) in ways.items():
        assert found == expected, (way, found, expected)
        sys.stdout.write(f"  {way}: {shown}\n")


if __name__ == "__main__":
    for given in sys.argv[1:]:
        main(given)
