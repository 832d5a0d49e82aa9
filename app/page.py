"""The page: a dark stage, the picture first, and the controls of the table beside it. Built with Gradio.

Owns layout. The page is a client of the API like any other: page_parts/*.js opens a session, streams over its
WebSocket and sends control changes; no frame and no change passes through Gradio's queue.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from pipelines.control_table import CONTROLS
from pipelines.errors import ZoetropeError

from .page_controls import SECTIONS, label_of, make_widget, send_changes
from .prompts import Prompts
from .worker_client import Phase, WorkerClient

_PARTS = Path(__file__).parent / "page_parts"
_STAGE_SCRIPTS = ("link.js", "peer.js", "coder.js", "sources.js", "tools.js", "stage.js")
_STYLES = ("style.css", "outputs.css")
_FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
_MONO_FONTS = ("ui-monospace", "Consolas", "monospace")
_HIDDEN = {"show_progress": "hidden", "api_visibility": "private"}
_SEND_PROMPT = "(text) => { window.zoetrope.setControl('prompt', text); return text; }"
HEAD = "<meta name='theme-color' content='#0b0c0f'><meta name='color-scheme' content='dark'>"
DARK_SCRIPT = "() => document.body.classList.add('dark')"


def page_style() -> str:
    """The page's own CSS."""
    return "\n".join((_PARTS / name).read_text(encoding="utf-8") for name in _STYLES)


def stage_script() -> str:
    """The stage's scripts in the order in which they build on each other."""
    return "\n".join((_PARTS / name).read_text(encoding="utf-8") for name in _STAGE_SCRIPTS)


def page_theme() -> gr.themes.Base:
    """Dark, quiet, with the fonts that the machine has: nothing is fetched."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.amber, neutral_hue=gr.themes.colors.zinc, font=_FONTS, font_mono=_MONO_FONTS
    )


class Page:
    """Builds the Blocks. client: only asked how the worker stands and which values its controls begin with."""

    def __init__(self, client: WorkerClient, prompts: Prompts) -> None:
        self._client = client
        self._prompts = prompts

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
                    _part("outputs.html", (_PARTS / "outputs.js").read_text(encoding="utf-8"), "zt-outputs")
                    widgets = self._control_boxes()
            waiting = gr.Timer(0.5, active=False)
            shown: Sequence[gr.components.Component] = [*widgets.values()]
            blocks.load(self._refresh, None, [waiting, *shown], **_HIDDEN)
            blocks.load(None, [prompt], None, js=_WAIT_FOR_STAGE, **_HIDDEN)
            waiting.tick(self._refresh, None, [waiting, *shown], **_HIDDEN)
            stage.change(self._adopt, [stage], [prompt, *shown], **_HIDDEN)
            for event in (prompt.submit, prompt.blur):
                event(self._prompts.notice, [prompt], [notice], js=_SEND_PROMPT, queue=False, **_HIDDEN)
            for button in examples:
                button.click(self._example, [button], [prompt, notice], js=_SEND_PROMPT, queue=False, **_HIDDEN)
            send_changes(widgets)
        return blocks

    # ---- layout ----

    def _prompt_box(self) -> tuple[gr.Textbox, gr.HTML, list[gr.Button]]:
        prompt = gr.Textbox(
            value=self._prompts.examples[0] if self._prompts.examples else "",
            label=label_of(CONTROLS["prompt"]),
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
            with gr.Accordion(section.title, open=section.open):
                for name in section.names:
                    widgets[name] = make_widget(CONTROLS[name], values[name])
        return widgets

    # ---- callbacks ----

    def _refresh(self) -> list[object]:
        """The controls' values once the worker knows them; until then ask again."""
        values = self._values()
        names = [name for section in SECTIONS for name in section.names]
        loading = self._client.status.phase is Phase.LOADING
        return [gr.Timer(active=loading), *(values[name] for name in names)]

    def _adopt(self, settings: str) -> list[object]:
        """What a preset or a snapshot holds, into the widgets; the stage has sent it to the session already."""
        try:
            controls = json.loads(settings)
        except json.JSONDecodeError as error:
            raise ZoetropeError("These settings are not JSON.") from error
        names = ["prompt", *(name for section in SECTIONS for name in section.names)]
        return [gr.update(value=controls[name]) if name in controls else gr.update() for name in names]

    def _example(self, text: str) -> list[object]:
        return [text, self._prompts.notice(text)]

    def _values(self) -> dict[str, object]:
        ready = self._client.status.ready
        return {name: spec.default for name, spec in CONTROLS.items()} | (ready.controls if ready else {})


_WAIT_FOR_STAGE = """async (text) => {
  while (!window.zoetrope) await new Promise((done) => setTimeout(done, 50));
  if (text) window.zoetrope.setControl('prompt', text);
}"""


def _part(name: str, script: str, identity: str) -> gr.HTML:
    """One of the page's own elements: its markup and its script."""
    return gr.HTML(
        value="{}",
        html_template=(_PARTS / name).read_text(encoding="utf-8"),
        js_on_load=script,
        apply_default_css=False,
        elem_id=identity,
    )
