"""The page: a dark stage, the picture first, and the controls of the table beside it. Built with Gradio.

Owns layout and callbacks; every callback is a few lines onto `tabs.py`. The stage itself is page_stage.html and .js: it
asks the server function `poll` for the newest frame, so that frames never become files or queue events.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import gradio as gr

from pipelines.control_table import CONTROLS
from pipelines.errors import ZoetropeError

from .page_controls import SECTIONS, connect, label_of, make_widget
from .prompts import Prompts
from .tabs import Source, Tabs
from .worker_client import Phase

_HERE = Path(__file__).parent
_FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
_MONO_FONTS = ("ui-monospace", "Consolas", "monospace")
_HIDDEN = {"show_progress": "hidden", "api_visibility": "private"}
HEAD = "<meta name='theme-color' content='#0b0c0f'><meta name='color-scheme' content='dark'>"
DARK_SCRIPT = "() => document.body.classList.add('dark')"


def page_style() -> str:
    """The page's own CSS."""
    return (_HERE / "page_style.css").read_text()


def page_theme() -> gr.themes.Base:
    """Dark, quiet, with the fonts that the machine has: nothing is fetched."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.amber, neutral_hue=gr.themes.colors.zinc, font=_FONTS, font_mono=_MONO_FONTS
    )


class Page:
    """Builds the Blocks for one `Tabs`."""

    def __init__(self, tabs: Tabs, prompts: Prompts) -> None:
        self._tabs = tabs
        self._prompts = prompts

    def build(self) -> gr.Blocks:
        """The whole page. Frames are no files here; uploads older than an hour are deleted."""
        with gr.Blocks(title="Zoetrope", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as blocks:
            tab = gr.State(None, delete_callback=self._tabs.close)
            gr.HTML("<header class='zt-head'><b>Zoetrope</b><span>live generated video</span></header>")
            with gr.Row(elem_classes="zt-main"):
                with gr.Column(scale=7, min_width=320, elem_classes="zt-left"):
                    stage = self._stage()
                    prompt, notice, examples = self._prompt_box()
                with gr.Column(scale=4, min_width=300, elem_classes="zt-right"):
                    source, video, start, stop = self._source_box()
                    widgets = self._control_boxes()
            waiting = gr.Timer(0.5, active=False)
            shown = [*widgets.values()]
            blocks.load(self._arrive, None, [tab, stage, waiting, *shown], **_HIDDEN)
            waiting.tick(self._refresh, None, [waiting, *shown], **_HIDDEN)
            start.click(self._start, [tab, prompt], [stage, notice], **_HIDDEN)
            stop.click(self._stop, [tab], [stage], **_HIDDEN)
            for event in (source.input, video.upload, video.clear):
                event(self._choose, [tab, source, video], [video, stage], **_HIDDEN)
            for event in (prompt.submit, prompt.blur):
                event(self._say, [tab, prompt], [notice], queue=False, trigger_mode="always_last", **_HIDDEN)
            for button in examples:
                button.click(self._example, [tab, button], [prompt, notice], queue=False, **_HIDDEN)
            connect(widgets, tab, self._change)
        return blocks

    # ---- layout ----

    def _stage(self) -> gr.HTML:
        def poll(order: Mapping[str, object]) -> dict[str, object]:
            return self._tabs.get(order["tab"]).poll(str(order.get("session", "")), int(str(order.get("after", 0))))

        def camera(order: Mapping[str, object]) -> None:
            at_ms = float(str(order.get("at_ms", 0.0)))
            self._tabs.get(order["tab"]).camera(str(order.get("jpeg", "")), at_ms)

        def camera_failed(order: Mapping[str, object]) -> None:
            self._tabs.get(order["tab"]).camera_failed(str(order.get("reason", ""))[:200])

        return gr.HTML(
            value="{}",
            html_template=(_HERE / "page_stage.html").read_text(),
            js_on_load=(_HERE / "page_stage.js").read_text(),
            server_functions=[poll, camera, camera_failed],
            apply_default_css=False,
            elem_id="zt-stage",
        )

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

    def _source_box(self) -> tuple[gr.Radio, gr.File, gr.Button, gr.Button]:
        source = gr.Radio(
            [choice.value for choice in Source], value=Source.PROMPT.value, label="Source", elem_id="zt-source"
        )
        video = gr.File(
            file_types=["video"],
            label="Video, played as a camera would be",
            visible=False,
            height=110,
            elem_id="zt-video",
        )
        with gr.Row(elem_classes="zt-buttons"):
            start = gr.Button("Start", variant="primary", elem_id="zt-start", min_width=100)
            stop = gr.Button("Stop", elem_id="zt-stop", min_width=100)
        return source, video, start, stop

    def _control_boxes(self) -> dict[str, gr.components.Component]:
        values, widgets = self._values(), {}
        for section in SECTIONS:
            with gr.Accordion(section.title, open=section.open):
                for name in section.names:
                    widgets[name] = make_widget(CONTROLS[name], values[name])
        return widgets

    # ---- callbacks ----

    def _arrive(self) -> list[object]:
        """A browser tab has opened the page."""
        tab = self._tabs.open()
        return [tab.name, self._order(tab.name), *self._refresh()]

    def _refresh(self) -> list[object]:
        """Show the model's own values as soon as they are known."""
        ready = self._tabs.client.status.phase is not Phase.LOADING
        values = self._values()
        shown = [gr.update(value=values[name]) if ready else gr.skip() for s in SECTIONS for name in s.names]
        return [gr.Timer(active=not ready), *shown]

    def _start(self, tab_name: str, prompt: str) -> list[object]:
        notice = self._say(tab_name, prompt)
        self._attempt(lambda: self._tabs.get(tab_name).start())
        return [self._order(tab_name), notice]

    def _stop(self, tab_name: str) -> str:
        self._attempt(lambda: self._tabs.get(tab_name).stop())
        return self._order(tab_name)

    def _choose(self, tab_name: str, label: str, video: str | None) -> list[object]:
        source = Source(label)
        self._attempt(lambda: self._tabs.get(tab_name).choose(source, Path(video) if video else None))
        return [gr.update(visible=source is Source.VIDEO), self._order(tab_name)]

    def _change(self, tab_name: str, name: str, value: object) -> None:
        if value is not None:
            self._attempt(lambda: self._tabs.get(tab_name).change({name: value}))

    def _say(self, tab_name: str, prompt: str) -> str:
        self._attempt(lambda: self._tabs.get(tab_name).change({"prompt": prompt}))
        return self._prompts.notice(prompt)

    def _example(self, tab_name: str, text: str) -> list[object]:
        return [text, self._say(tab_name, text)]

    def _attempt(self, step: Callable[[], None]) -> None:
        """Run `step`; a mistake becomes a notice on the page."""
        try:
            step()
        except ZoetropeError as error:
            gr.Warning(str(error))

    def _order(self, tab_name: str) -> str:
        """What the stage should do, as the JSON that page_stage.js reads."""
        return json.dumps(self._tabs.get(tab_name).order())

    def _values(self) -> dict[str, object]:
        ready = self._tabs.client.status.ready
        return {name: spec.default for name, spec in CONTROLS.items()} | (ready.controls if ready else {})
