"""A video model's folder becomes a video engine; options of image models are errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.takes.machine import describe_machine
from pipelines.core.control_table import CONTROLS
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError, InputError, ModelError
from pipelines.files.loader_options import LoaderOptions, VideoChoices
from pipelines.load import load_engine
from pipelines.video.engine import VideoEngine
from tests.fakes.tiny_video_model import tiny_video_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_video_model(tmp_path_factory.mktemp("models") / "tiny")


def test_a_folder_becomes_an_engine_with_the_choices_of_its_user(folder: Path) -> None:
    said: list[str] = []
    video = {"kv_policy": "sink", "window_frames": 9, "sink_frames": 2, "stream": "chunk", "max_streams": 1}
    engine = load_engine(str(folder), device="cpu", dtype="float32", video=video, notice=said.append)
    assert isinstance(engine, VideoEngine)
    with engine.open(Control.of({"prompt": "a cat"})) as stream:
        values = stream.controls.values
        assert (values["kv_policy"], values["window_frames"], values["sink_frames"]) == ("sink", 9, 2)
        assert set(values) == set(CONTROLS)
        assert stream.generate(9)
        assert len(stream.flush()) == 9
        info = stream.info
    assert any("81 frames" in sentence for sentence in said)
    options = LoaderOptions(device="cpu", video=VideoChoices.of(video))
    machine = describe_machine(str(folder), options, info, 1)
    usual = {"width": 0, "height": 0, "frames_per_slot": 1, "autoencoder": "auto", "safety": True}
    assert machine["loader"] == {**usual, "video": video}
    weights = machine["weights"]
    with next((folder / "transformer").glob("*.safetensors")).open("ab") as weights_file:
        weights_file.write(b"x")
    assert describe_machine(str(folder), options, info, 1)["weights"] != weights
    engine.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames_per_slot": 4}, "frames_per_slot cannot be 4 for a video model. Use chunk_frames"),
        ({"video": {"speed": 2}}, "A video model has no option 'speed'. It has: "),
        ({"backend": "tensorrt"}, "The backend tensorrt does not run video models"),
        ({"backend": "cuda-graph"}, "needs a CUDA device"),
        ({"video": {"attention": "psychic"}}, "There is no attention backend named 'psychic'"),
        ({"height": 30}, "height cannot be 30 pixels. It must be a multiple of 16: try 32."),
    ],
)
def test_choices_that_cannot_be(tmp_path: Path, options: dict[str, object], message: str) -> None:
    model = tiny_video_model(tmp_path / "whole")
    with pytest.raises((ControlError, InputError, ModelError)) as caught:
        load_engine(str(model), device="cpu", **options)
    assert message in str(caught.value)


def test_an_image_model_has_no_memory_to_choose() -> None:
    with pytest.raises(ModelError, match="mini-image is not a video model: kv_policy does not apply to it"):
        load_engine("mini-image", video={"kv_policy": "sink"})
