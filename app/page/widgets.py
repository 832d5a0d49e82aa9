"""The page's widgets, generated from the control table: one for each control that a running stream can change.

Depends on Gradio and the table, not on sessions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import gradio as gr

from pipelines.core.control_table import CONTROLS, ControlSpec, PageSection, Propagation

_MAX_SLIDER = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A group of controls on the page."""

    title: str
    names: tuple[str, ...]
    open: bool = False


_TITLES: tuple[PageSection, ...] = ("Look", "Prompt changes", "Guidance", "Engine", "Video")
"""Section titles, top to bottom. The control table's `section` column assigns the controls."""

SECTIONS = tuple(
    Section(
        title=title,
        names=tuple(name for name, spec in CONTROLS.items() if spec.section == title),
        open=title == _TITLES[0],
    )
    for title in _TITLES
)
ELSEWHERE = tuple(name for name, spec in CONTROLS.items() if spec.section == "stage")
"""Controls placed elsewhere on the page: the prompt, and those of keys, gamepad and the stage's pad."""


def section_id(section: Section) -> str:
    """The id of the section's HTML element."""
    return "zt-section-" + section.title.lower().replace(" ", "-")


def inapplicable_elements(engine: str) -> list[str]:
    """Ids of the widgets that do not apply to a kind of engine, and of sections that have only such widgets."""
    inapplicable = {name for name, spec in CONTROLS.items() if engine not in spec.engines}
    sections = [section_id(section) for section in SECTIONS if inapplicable.issuperset(section.names)]
    return [*(f"zt-{spec.name}" for spec in stream_controls() if spec.name in inapplicable), *sections]


def propagation_text(spec: ControlSpec) -> str:
    """When a change takes effect, as shown on the page."""
    if spec.cut_propagation is not None:
        return f"{spec.propagation.value}, on a cut {spec.cut_propagation.value}"
    return spec.propagation.value


def label_of(spec: ControlSpec) -> str:
    """'Strength · next slot', 'Noise walk (degrees per frame) · next slot'."""
    name = spec.name.removesuffix("_deg").replace("_", " ")
    unit = f" ({spec.unit})" if spec.unit and spec.unit not in name else ""
    return f"{name.capitalize()}{unit} · {propagation_text(spec)}"


def make_widget(spec: ControlSpec, value: object) -> gr.components.Component:
    """The widget for `spec`, showing `value`."""
    return _MAKERS[spec.kind](spec, value)


def send_changes(widgets: Mapping[str, gr.components.Component]) -> None:
    """Make the stage's script send a widget's value when the user changes it: no request to Gradio."""
    for name, widget in widgets.items():
        script = f"(value) => {{ if (value !== null) window.zoetrope.setControl({json.dumps(name)}, value); }}"
        for event in _events(widget):
            event(None, [widget], None, js=script, queue=False, show_progress="hidden", api_visibility="private")


def stream_controls() -> list[ControlSpec]:
    """Controls that do not require a new stream."""
    return [spec for spec in CONTROLS.values() if spec.propagation is not Propagation.REOPEN]


def _slider(spec: ControlSpec, value: object) -> gr.components.Component:
    assert spec.minimum is not None
    assert spec.slider_end is not None
    integral = spec.kind == "int"
    if integral and spec.slider_end > _MAX_SLIDER:
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
        maximum=spec.slider_end,
        step=1 if integral else 0.01,
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
        return widget.submit, widget.blur  # not on every keystroke
    return (widget.input,)
