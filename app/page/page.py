"""The page: a dark stage with the stream, and the control table's widgets beside it. Built with Gradio.

Owns the layout. The page is an ordinary API client: web/*.js opens a session, streams over WebSocket or WebRTC and
sends control changes; frames and changes never pass through Gradio's queue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from app.outputs.kinds import OUTPUT_KINDS
from app.outputs.output_kind import OutputKind
from app.worker.pool import Workers
from pipelines.core.control_table import CONTROLS
from pipelines.core.controls import Controls

from .prompts import Prompts
from .widgets import SECTIONS, label_of, make_widget, section_id, send_changes

_PARTS = Path(__file__).parent / "web"
_STAGE_SCRIPTS = (
    *("pictures.js", "link.js", "peer.js", "coder.js", "sources.js", "kept.js", "tools.js", "actions.js"),
    *("timeline.js", "first_picture.js", "messages.js", "stage.js", "widgets.js"),
)
_STYLES = ("style.css", "pad.css", "outputs.css")
_FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
_MONO_FONTS = ("ui-monospace", "Consolas", "monospace")
_IN_THE_BROWSER: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_STAGE = "(await window.zoetropeReady)"
HEAD = """<meta name='theme-color' content='#0b0c0f'><meta name='color-scheme' content='dark'>
<script>window.zoetropeReady = new Promise((done) => { window.zoetropeStarted = done; });</script>"""
DARK_SCRIPT = "() => document.body.classList.add('dark')"


def page_style() -> str:
    """The page's own CSS."""
    return "\n".join((_PARTS / name).read_text(encoding="utf-8") for name in _STYLES)


def stage_script() -> str:
    """The stage's scripts, in dependency order."""
    return "\n".join((_PARTS / name).read_text(encoding="utf-8") for name in _STAGE_SCRIPTS)


def outputs_script(kinds: Sequence[OutputKind[Any]]) -> str:
    """The script of the panel of outputs, with the titles of these kinds and the schemes of their addresses."""
    titles = {kind.name: kind.title for kind in kinds}
    schemes = {scheme: kind.name for kind in kinds for scheme in kind.schemes}
    table = json.dumps({"titles": titles, "schemes": schemes})
    return f"const OUTPUT_KINDS = {table};\n" + (_PARTS / "outputs.js").read_text(encoding="utf-8")


def page_theme() -> gr.themes.Base:
    """Dark, with system fonts: nothing is downloaded."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.amber, neutral_hue=gr.themes.colors.zinc, font=_FONTS, font_mono=_MONO_FONTS
    )


class Page:
    """Builds the Blocks. workers: read only for the initial control values. outputs: kinds that can be started."""

    def __init__(self, workers: Workers, prompts: Prompts, outputs: Sequence[OutputKind[Any]] = OUTPUT_KINDS) -> None:
        self._workers = workers
        self._prompts = prompts
        self._outputs = outputs

    def build(self) -> gr.Blocks:
        """The whole page."""
        with gr.Blocks(title="Zoetrope", analytics_enabled=False, fill_width=True) as blocks:
            gr.HTML("<header class='zt-head'><b>Zoetrope</b><span>live generated video</span></header>")
            with gr.Row(elem_classes="zt-main"):
                with gr.Column(scale=7, min_width=320, elem_classes="zt-left"):
                    stage = _part("stage.html", stage_script(), "zt-stage")
                    prompt, notice, examples = self._prompt_box()
                with gr.Column(scale=4, min_width=300, elem_classes="zt-right"):
                    _part("source.html", (_PARTS / "source.js").read_text(encoding="utf-8"), "zt-sources")
                    _part("outputs.html", outputs_script(self._outputs), "zt-outputs")
                    widgets = self._control_boxes()
            self._connect(stage, prompt, notice, examples, widgets)
            load = f"async (prompt) => {_STAGE}.firstValues({json.dumps([*widgets])}, prompt)"
            blocks.load(None, [prompt], [*widgets.values()], js=load, **_IN_THE_BROWSER)
        return blocks

    def _connect(
        self,
        stage: gr.HTML,
        prompt: gr.Textbox,
        notice: gr.HTML,
        examples: list[gr.Button],
        widgets: Mapping[str, gr.components.Component],
    ) -> None:
        """Connect the events, all handled in the browser: no requests to Gradio's server."""
        shown = [prompt, *widgets.values()]
        names = json.dumps(["prompt", *widgets])
        adopt = f"async (preset, ...values) => {_STAGE}.presetValues({names}, values, preset)"
        stage.change(None, [stage, *shown], shown, js=adopt, **_IN_THE_BROWSER)
        for event in (prompt.submit, prompt.blur):
            event(None, [prompt], [notice], js=f"async (text) => {_STAGE}.sendPrompt(text)", **_IN_THE_BROWSER)
        example = f"async (text) => [text, await {_STAGE}.sendPrompt(text)]"
        for button in examples:
            button.click(None, [button], [prompt, notice], js=example, **_IN_THE_BROWSER)
        send_changes(widgets)

    # ---- layout ----

    def _prompt_box(self) -> tuple[gr.Textbox, gr.HTML, list[gr.Button]]:
        prompt = gr.Textbox(
            value=self._prompts.examples[0] if self._prompts.examples else "",
            label=label_of(Controls.prompt),
            placeholder="What to show. Blend several: a cat:2 | a robot:1",
            max_lines=3,
            elem_id="zt-prompt",
        )
        notice = gr.HTML("", elem_id="zt-notice")
        with gr.Row(elem_classes="zt-examples"):
            examples = [gr.Button(text, size="sm", min_width=60) for text in self._prompts.examples]
        return prompt, notice, examples

    def _control_boxes(self) -> dict[str, gr.components.Component]:
        values, widgets = self._values(), {}
        for section in SECTIONS:
            with gr.Accordion(section.title, open=section.open, elem_id=section_id(section)):
                for name in section.names:
                    widgets[name] = make_widget(CONTROLS[name], values[name])
        return widgets

    def _values(self) -> dict[str, object]:
        ready = self._workers.status.ready
        return {name: spec.default for name, spec in CONTROLS.items()} | (ready.controls if ready else {})


def _part(name: str, script: str, identity: str) -> gr.HTML:
    """A custom element of the page: markup and script."""
    return gr.HTML(
        value="{}",
        html_template=(_PARTS / name).read_text(encoding="utf-8"),
        js_on_load=script,
        apply_default_css=False,
        elem_id=identity,
    )
