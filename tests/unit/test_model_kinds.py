"""The table of model kinds: which kind accepts which model, kinds without torch, and a family added by one row."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.core.errors import ControlError, InputError, ModelError, ModelNotFoundError
from pipelines.files.hub import BUNDLED_FOLDER
from pipelines.files.loader_options import LoaderOptions, VideoChoices
from pipelines.files.lora_files import LoraFile
from pipelines.image.engine import ImageEngine
from pipelines.kinds import MODEL_KINDS, built_in_names, kind_of
from pipelines.load import load_engine
from pipelines.video.loading.engine import loading_options, running_options
from tests.fakes.tiny_video_model import tiny_video_model

ROOT = Path(__file__).resolve().parents[2]


def without_torch(code: str) -> bool:
    """Return whether a separate process runs the code without importing the tensor library."""
    ends = f"{code}\nimport sys\nsys.exit(3 if 'torch' in sys.modules else 0)"
    return subprocess.run([sys.executable, "-c", ends], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("identity", "identity"),
        ("mini-image", "image"),
        ("mini-video", "video"),
        ("self-forcing", "video"),
        ("stabilityai/sd-turbo", "image"),
        ("no such model", "image"),
    ],
)
def test_each_model_has_one_kind(model: str, kind: str) -> None:
    assert kind_of(model).name == kind


def test_a_table_without_a_general_kind_says_who_was_asked() -> None:
    with pytest.raises(ModelNotFoundError, match=r"'mini-image' is not a model of any known kind\..*: identity, video"):
        kind_of("mini-image", MODEL_KINDS[:-1])


def test_only_the_identity_is_built_in() -> None:
    assert built_in_names() == ("identity",)
    with pytest.raises(ModelError, match="identity cannot be downloaded: it is built in"):
        kind_of("identity").download("identity", allow_pickle=False, notice=print)


def test_a_worker_opens_the_identity_without_the_tensor_library() -> None:
    assert without_torch(
        "from app.takes.machine import describe_machine\n"
        "from app.worker.engine import WorkerOptions, describe, open_engine\n"
        "options = WorkerOptions(model='identity', threads=2)\n"
        "engine, threads = open_engine(options, print)\n"
        "assert threads == 1\n"
        "machine = describe_machine(options.model, options.engine, describe(engine, threads, options).info, threads)\n"
        "assert machine['weights'] == 'none'"
    )


def test_models_are_recognised_without_the_tensor_library() -> None:
    names = ("mini-image", "mini-video", "krea", "owner/name", "identity")
    assert without_torch(f"from pipelines.kinds import kind_of\nfor name in {names}: kind_of(name)")
    assert not without_torch("import torch")


def test_weight_files_are_those_that_are_loaded(tmp_path: Path) -> None:
    parts = kind_of("mini-image").weight_files("mini-image", LoaderOptions())
    assert [part for part, _ in parts] == ["unet", "vae", "text_encoder"]
    assert {file for _, file in parts} == set((BUNDLED_FOLDER / "mini-image").rglob("*.safetensors"))
    lora = tmp_path / "style.safetensors"
    lora.write_bytes(b"-")
    options = LoaderOptions(loras=(LoraFile(source=str(lora)),))
    assert kind_of("mini-image").weight_files("mini-image", options) == [*parts, ("lora", lora)]
    video = tiny_video_model(tmp_path / "video")
    found = kind_of(str(video)).weight_files(str(video), LoaderOptions())
    assert {part for part, _ in found} >= {"transformer", "vae", "text_encoder"}
    assert {file for _, file in found} == set(video.rglob("*.safetensors"))


def test_options_and_keywords_load_the_same() -> None:
    options = LoaderOptions(device="cpu", dtype="float32", width=64, height=64, max_slots=2)
    for engine in (
        load_engine("mini-image", options),
        load_engine("mini-image", options=replace(options, width=128), width=64),
        load_engine("mini-image", device="cpu", dtype="float32", width=64, height=64, max_slots=2, loras=[]),
    ):
        assert isinstance(engine, ImageEngine)
        assert (engine.core.width, engine.core.height, engine.core.max_slots) == (64, 64, 2)
        engine.close()
    with pytest.raises(TypeError, match="wdith"):
        load_engine("mini-image", wdith=64)


def test_every_choice_of_a_video_model_reaches_its_place() -> None:
    """With values that differ from each other and from every default."""
    video = VideoChoices(
        kv_policy="sink",
        policy_options={"a": 1},
        window_frames=9,
        sink_frames=2,
        chunk_frames=4,
        stream="rolling",
        family="krea",
        base="wan",
        max_streams=7,
        guidance=True,
        storage="int8",
        attention="math",
        text_encoder="drop",
        rewind_bytes=11,
    )
    assert len(video.chosen()) == 14
    assert VideoChoices.of(video.chosen()) == video
    options = LoaderOptions(
        device="cpu",
        dtype="float32",
        width=64,
        height=32,
        backend="compiled",
        loras=(LoraFile(source="a/b"),),
        autoencoder="tiny",
        video=video,
    )
    said: list[str] = []
    loading, running = loading_options(options, said.append), running_options(options)
    assert (loading.device, loading.dtype, loading.family, loading.base) == ("cpu", "float32", "krea", "wan")
    assert (loading.autoencoder, loading.loras, loading.text_encoder) == ("tiny", options.loras, "drop")
    loading.notice("heard")
    assert said == ["heard"]
    assert (running.width, running.height, running.stream, running.policy) == (64, 32, "rolling", "sink")
    assert (running.policy_options, running.window_frames, running.sink_frames) == ({"a": 1}, 9, 2)
    assert (running.chunk_frames, running.max_streams, running.guidance) == (4, 7, True)
    assert (running.storage, loading.attention) == ("int8", "math")
    assert running.rewind_bytes == 11


def test_options_travel_to_a_worker() -> None:
    options = LoaderOptions(
        width=64, loras=(LoraFile(source="a/b", weight=0.5),), video=VideoChoices(policy_options={"a": (1, 2)})
    )
    assert pickle.loads(pickle.dumps(options)) == options


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"frames_per_slot": 17}, ControlError, "frames_per_slot cannot be 17. Give a value from 1 to 16."),
        ({"max_slots": 0}, InputError, "max_slots cannot be 0. Give a value from 1 to 64."),
        ({"width": 1.5}, InputError, "width cannot be 1.5. Give a whole number."),
        ({"device": 0}, InputError, "device cannot be 0. Give a name as text."),
        ({"safety": "no"}, InputError, "safety cannot be 'no'. Give true or false."),
        ({"video": 3}, InputError, "video cannot be 3. Give choices by name."),
        ({"video": {"window_frames": -1}}, ControlError, "window_frames cannot be -1. Give 1 or more, or 0"),
        ({"video": {"rewind_bytes": -1}}, InputError, "rewind_bytes cannot be -1. Give 0 for none, or more."),
        ({"video": {"guidance": 1}}, InputError, "guidance cannot be 1. Give true or false."),
        ({"video": {"policy_options": "sink"}}, InputError, "policy_options cannot be 'sink'."),
        ({"video": {"speed": 2}}, InputError, "A video model has no option 'speed'. It has: attention, base, "),
    ],
)
def test_choices_that_cannot_be_are_refused_at_once(
    choices: dict[str, object], error: type[InputError], message: str
) -> None:
    with pytest.raises(error) as caught:
        LoaderOptions().changed(choices)
    assert type(caught.value) is error
    assert message in str(caught.value)


def test_the_policy_has_the_engine_s_name_too() -> None:
    assert VideoChoices.of({"policy": "sink"}) == VideoChoices(kv_policy="sink")


def test_a_family_is_added_by_one_file_and_one_row(tmp_path: Path) -> None:
    """Run the example as a program and compare with a plain computation."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "in.png"), image)
    command = [sys.executable, "examples/add_a_model_family.py", str(tmp_path / "in.png"), str(tmp_path / "out.png")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "posterise:2"], cwd=ROOT, env=environment, check=True)
    picture = cv2.imread(str(tmp_path / "out.png")).astype(float)
    tones = np.where(image > 127.5, 255.0, 0.0)
    assert np.abs(picture - (image + tones) / 2).max() <= 0.5  # strength 0.5, the table's default
