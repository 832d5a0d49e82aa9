"""The bundled family: its preset, its error for missing files, and prompts of fewer rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.core.errors import ModelLayoutError, ModelNotFoundError
from pipelines.files import hub
from pipelines.video.loading.families import FAMILIES
from pipelines.video.loading.folders import read_video_folder
from pipelines.video.loading.load import VideoLoadOptions, load_video_model
from pipelines.video.loading.source import is_video_model, resolve_video
from tests.fakes.tiny_video_model import tiny_video_model

QUIET = VideoLoadOptions(device="cpu", dtype="float32", notice=lambda text: None)


def test_the_family_has_its_own_size_shift_and_licence() -> None:
    family = FAMILIES["mini-video"]
    assert (family.preset.width, family.preset.height) == (128, 128)
    assert (family.preset.chunk_frames, family.preset.window_frames, len(family.preset.steps)) == (3, 12, 4)
    assert family.preset.frame_rate == 16
    assert family.licence.summary == "Apache-2.0"


def test_a_checkout_without_the_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "BUNDLED_FOLDER", tmp_path)
    assert is_video_model("mini-video")
    assert not is_video_model("")
    with pytest.raises(ModelNotFoundError, match="comes with Zoetrope"):
        resolve_video("mini-video")


def test_the_folder_says_how_many_rows_a_prompt_has(tmp_path: Path) -> None:
    folder = tiny_video_model(tmp_path / "model", tiny_vae=True)
    assert read_video_folder(folder).text_tokens is None
    settings = json.loads((folder / "zoetrope.json").read_text(encoding="utf-8"))
    (folder / "zoetrope.json").write_text(json.dumps({**settings, "text_tokens": 7}), encoding="utf-8")
    model = load_video_model(str(folder), QUIET)
    assert model.transformer.config.text_len == 7
    assert model.text.encode("a cat on the table").shape == (7, 32)
    assert model.text.encode("a cat on the table, and much more of it").shape == (7, 32)


@pytest.mark.parametrize("tokens", [0, -1, "32", 2.5, True])
def test_rows_that_cannot_be_are_refused(tmp_path: Path, tokens: object) -> None:
    folder = tiny_video_model(tmp_path / "model")
    (folder / "zoetrope.json").write_text(json.dumps({"family": "self-forcing", "text_tokens": tokens}), "utf-8")
    with pytest.raises(ModelLayoutError, match="text_tokens is"):
        load_video_model(str(folder), QUIET)
