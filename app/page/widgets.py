"""The page's widgets, made from the control table: one for each control that a running stream can change.

Knows Gradio and the table; knows no session. What a change does is the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import gradio as gr

from pipelines.core.control_table import CONTROLS, ControlSpec, Propagation

_MAX_SLIDER = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A group of controls on the page."""

    title: str
    names: tuple[str, ...]
    open: bool = False


_TITLES = ("Look", "Prompt changes", "Guidance", "Engine", "Video")
"""Of the sections, from top to bottom. Which controls are in each is a column of the control table."""

SECTIONS = tuple(
    Section(
        title=title,
        names=tuple(name for name, spec in CONTROLS.items() if spec.section == title),
        open=title == _TITLES[0],
    )
    for title in _TITLES
)
ELSEWHERE = tuple(name for name, spec in CONTROLS.items() if spec.section == "stage")
"""The prompt, and what is steered by keys, gamepad and the stage's pad: they have places of their own on the page."""


def section_id(section: Section) -> str:
    """Of its element on the page."""
    return "zt-section-" + section.title.lower().replace(" ", "-")


def foreign_elements(engine: str) -> list[str]:
    """Ids of the widgets that mean nothing to a kind of engine, and of the sections that have no others."""
    foreign = {name for name, spec in CONTROLS.items() if engine not in spec.engines}
    sections = [section_id(section) for section in SECTIONS if foreign.issuperset(section.names)]
    return [*(f"zt-{spec.name}" for spec in stream_controls() if spec.name in foreign), *sections]


def propagation_text(spec: ControlSpec) -> str:
    """When a change is felt, in the page's words."""
    if spec.cut_propagation is not None:
        return f"{spec.propagation.value}, on a cut {spec.cut_propagation.value}"
    return spec.propagation.value


def label_of(spec: ControlSpec) -> str:
    """'Strength · next slot', 'Noise walk (degrees a frame) · next slot'."""
    name = spec.name.removesuffix("_deg").replace("_", " ")
    unit = f" ({spec.unit})" if spec.unit and spec.unit not in name else ""
    return f"{name.capitalize()}{unit} · {propagation_text(spec)}"


def make_widget(spec: ControlSpec, value: object) -> gr.components.Component:
    """The widget that fits `spec`, showing `value`."""
    return _MAKERS[spec.kind](spec, value)


def send_changes(widgets: Mapping[str, gr.components.Component]) -> None:
    """Let the stage's script send a widget's value when the user moves it: no request to Gradio."""
    for name, widget in widgets.items():
        script = f"(value) => {{ if (value !== null) window.zoetrope.setControl({json.dumps(name)}, value); }}"
        for event in _events(widget):
            event(None, [widget], None, js=script, queue=False, show_progress="hidden", api_visibility="private")


def stream_controls() -> list[ControlSpec]:
    """Controls that do not need a new stream."""
    return [spec for spec in CONTROLS.values() if spec.propagation is not Propagation.REOPEN]


def _slider(spec: ControlSpec, value: object) -> gr.components.Component:
    assert spec.minimum is not None
    assert spec.maximum is not None
    whole = spec.kind == "int"
    if whole and spec.maximum > _MAX_SLIDER:
        return gr.Number(
            value=value,
            precision=0,
            minimum=spec.minimum,
            maximum=spec.maximum,
            label=label_of(spec),
            info=spec.help,
            elem_id=f"zt-{spec.name}",
        )
    return gr.Slider(
        minimum=spec.minimum,
        maximum=spec.maximum,
        step=1 if whole else 0.01,
        value=value,
        label=label_of(spec),
        info=spec.help,
        elem_id=f"zt-{spec.name}",
    )


def _checkbox(spec: ControlSpec, value: object) -> gr.components.Component:
    return gr.Checkbox(value=bool(value), label=label_of(spec), info=spec.help, elem_id=f"zt-{spec.name}")


def _radio(spec: ControlSpec, value: object) -> gr.components.Component:
    return gr.Radio(list(spec.choices), value=value, label=label_of(spec), info=spec.help, elem_id=f"zt-{spec.name}")


def _textbox(spec: ControlSpec, value: object) -> gr.components.Component:
    return gr.Textbox(value=str(value), label=label_of(spec), info=spec.help, max_lines=2, elem_id=f"zt-{spec.name}")


_MAKERS: Mapping[str, Callable[[ControlSpec, object], gr.components.Component]] = {
    "float": _slider,
    "int": _slider,
    "bool": _checkbox,
    "choice": _radio,
    "text": _textbox,
}


def _events(widget: gr.components.Component) -> tuple[Callable[..., object], ...]:
    if isinstance(widget, gr.Textbox | gr.Number):
        return widget.submit, widget.blur  # not at every key
    return (widget.input,)
