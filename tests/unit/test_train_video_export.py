"""Files written by training load unchanged: in diffusers' WanPipeline, the video engine and the render command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from safetensors.torch import load_file

from app.__main__ import main as zoetrope
from pipelines.video.engine import VideoEngine
from pipelines.video.loading.load import VideoLoadOptions, load_video_model
from pipelines.video.wan.actions import ActionEmbedder
from train.session import TINY, TrainingSession
from train.video.card import model_card
from train.video.codecs import Codecs, codecs_in_use, make_codecs
from train.video.export import export_model
from train.video.networks import encode_text, make_text_encoder, make_transformer
from train.video.tokenizer import build_tokenizer, text_mask, token_ids

CAPTION = "A robot bouncing on the beach at sunset"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mini-video with random weights."""
    place = tmp_path_factory.mktemp("mini-video")
    torch.manual_seed(3)
    tokenizer, transformer = build_tokenizer(), make_transformer()
    transformer.add_actions(ActionEmbedder(transformer.config.dim))
    session = TrainingSession(device=torch.device("cpu"), out=place, resume=place, scale=TINY)
    untrained = make_codecs(session)
    untrained.moments.mean.fill_(0.25)
    untrained.moments.std.fill_(1.5)
    codecs: Codecs = codecs_in_use(session, untrained)
    text = make_text_encoder(len(tokenizer))
    size = export_model(
        place / "model",
        codecs=codecs,
        transformer=transformer,
        text_encoder=text,
        tokenizer=tokenizer,
        card=model_card(),
    )
    assert 28 < size < 32
    return place / "model"


def test_weights_are_16_bit_and_the_autoencoder_knows_its_moments(folder: Path) -> None:
    for file in folder.glob("*/*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}, file
    config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    assert config["latents_mean"] == [0.25] * 16
    assert config["latents_std"] == [1.5] * 16


def test_diffusers_loads_the_folder_and_samples(folder: Path) -> None:
    pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    ours = load_video_model(str(folder), VideoLoadOptions(device="cpu", dtype="float32", notice=lambda text: None))
    states, _ = pipe.encode_prompt(CAPTION, do_classifier_free_guidance=False, max_sequence_length=32)
    torch.testing.assert_close(states[0], ours.text.encode(CAPTION), atol=2e-6, rtol=0)
    tokenizer = build_tokenizer()
    ids = token_ids(tokenizer, [CAPTION])
    with torch.no_grad():
        trained = encode_text(pipe.text_encoder, ids, text_mask(ids))
    torch.testing.assert_close(trained, states, atol=2e-6, rtol=0)
    result = pipe(
        CAPTION, height=128, width=128, num_frames=5, num_inference_steps=1, guidance_scale=1.0,
        max_sequence_length=32, output_type="np",
    )  # fmt: skip
    assert result.frames.shape == (1, 5, 128, 128, 3)


def test_the_engine_streams_the_folder_with_its_own_preset(folder: Path) -> None:
    said: list[str] = []
    model = load_video_model(str(folder), VideoLoadOptions(device="cpu", dtype="bfloat16", notice=said.append))
    assert model.family == "mini-video"
    assert model.licence == "Apache-2.0"
    assert (model.preset.width, model.preset.chunk_frames, model.preset.window_frames) == (128, 3, 12)
    assert model.transformer.config.text_len == 32
    assert model.text.encode(CAPTION).shape == (32, 128)
    assert model.transformer.action_embedder is not None
    assert not any("recognised as" in text for text in said)
    engine = VideoEngine(model)
    with engine.open() as stream:
        stream.generate(9)
        frames = stream.flush()
    assert [frame.image.shape for frame in frames] == [(128, 128, 3)] * 9
    engine.close()


def test_render_makes_a_second_of_video_from_the_folder(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    code = zoetrope(
        ["render", "--model", str(folder), "--prompt-only", "--seconds", "1", "--prompt", CAPTION, str(target)]
    )
    assert code in (0, None)
    assert target.stat().st_size > 1000
