"""Prompts of video models: embeddings equal diffusers' Wan pipeline, are cached, and where the encoder is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tokenizers import Tokenizer
from transformers.models.t5.tokenization_t5 import T5Tokenizer

from pipelines.core.errors import ModelError, ModelLayoutError
from pipelines.files.precision import Precision
from pipelines.video.loading.companions import load_codec, load_text
from pipelines.video.loading.folders import read_video_folder
from pipelines.video.wan.umt5 import RESIDENCES, Umt5TextEncoder, clean_text, read_tokenizer
from tests.fakes.tiny_video_model import (
    SCHEDULER,
    tiny_autoencoder,
    tiny_taew,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_transformer,
    tiny_video_model,
)

CPU = Precision(device=torch.device("cpu"), dtype=torch.float32, reason="test")
LONG = "a cat on the table " * 120
PROMPTS = ("a cat on the table", "", "Fish &amp;amp; chips,\n\n  in  Köln", LONG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a complete tiny model folder."""
    return tiny_video_model(tmp_path_factory.mktemp("folder") / "model")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return read_tokenizer(folder / "tokenizer")


class Loader:
    """Creates the encoder, counts how often, and reports its device."""

    def __init__(self) -> None:
        self.count = 0
        self.encoder: torch.nn.Module | None = None

    def __call__(self) -> torch.nn.Module:
        self.count += 1
        self.encoder = tiny_text_encoder()
        return self.encoder


def is_cached(text: Umt5TextEncoder, prompt: str) -> bool:
    return clean_text(prompt) in text._cached


def encoder(tokenizer: Tokenizer, load: Loader, **options: object) -> Umt5TextEncoder:
    return Umt5TextEncoder(tokenizer, load, text_dim=32, device=torch.device("cpu"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", PROMPTS, ids=["plain", "empty", "entities", "long"])
def test_embeddings_are_those_of_diffusers(prompt: str, folder: Path) -> None:
    """Row by row: the rows after the text's end are exactly zero."""
    pipeline = WanPipeline(
        tokenizer=T5Tokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        text_encoder=tiny_text_encoder(),
        vae=tiny_autoencoder(),
        scheduler=UniPCMultistepScheduler.from_config(SCHEDULER),
        transformer=tiny_transformer(),
    )
    with torch.no_grad():
        expected = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=512)[0][0]
    embeds = load_text(read_video_folder(folder), CPU, "auto").encode(prompt)
    assert embeds.shape == expected.shape == (512, 32)
    rows = (expected != 0).any(1)
    assert torch.equal((embeds != 0).any(1), rows)
    assert int(rows.sum()) == {"": 1, LONG: 512}.get(prompt, int(rows.sum()))
    torch.testing.assert_close(embeds, expected, atol=2e-6, rtol=0)


def test_a_text_is_encoded_once(tokenizer: Tokenizer) -> None:
    load = Loader()
    text = encoder(tokenizer, load, kept_texts=2)
    assert not is_cached(text, "a cat")
    first = text.encode("a cat")
    assert text.encode("  a   cat ") is first
    assert is_cached(text, "a cat")
    text.encode("a dog")
    text.encode("a cat")  # used again: a dog is the one to be forgotten
    text.encode("a fish")
    assert (is_cached(text, "a cat"), is_cached(text, "a dog"), is_cached(text, "a fish")) == (True, False, True)
    assert (text.encodings, load.count) == (3, 1)


@pytest.mark.parametrize(("residence", "loads"), [("keep", 1), ("host", 1), ("drop", 2), ("auto", 1)])
def test_where_the_encoder_waits(residence: str, loads: int, tokenizer: Tokenizer) -> None:
    load = Loader()
    text = encoder(tokenizer, load, residence=residence)
    assert load.count == 0  # read when the first prompt comes
    embeds = [text.encode(prompt) for prompt in ("a cat", "a dog", "a cat")]
    assert load.count == loads
    assert embeds[0] is embeds[2]
    assert text.residence == ("keep" if residence == "auto" else residence)


def test_all_residences_give_the_same(tokenizer: Tokenizer) -> None:
    embeds = [encoder(tokenizer, Loader(), residence=name).encode("a cat") for name in RESIDENCES]
    assert all(torch.equal(embeds[0], other) for other in embeds)


def test_an_encoder_that_waits_on_the_host_leaves_its_device(tokenizer: Tokenizer) -> None:
    """The meta device replaces the GPU: whatever is moved there and not back is lost."""
    load = Loader()
    place = RESIDENCES["host"](load, torch.device("cpu"))
    module = place.enter()
    place.leave()
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}
    assert place.enter() is module


def test_unknown_residences(tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match=r"no residence 'cloud'.*keep, host, drop"):
        encoder(tokenizer, Loader(), residence="cloud")


def test_cleaning() -> None:
    assert clean_text("  Fish &amp;amp; chips,\n\n in \t Köln ") == "Fish & chips, in Köln"


def test_a_tokenizer_keeps_no_padding_of_its_file(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path)
    stored = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    stored.enable_padding(length=20)
    stored.enable_truncation(3)
    stored.save(str(tmp_path / "tokenizer.json"))
    assert len(read_tokenizer(tmp_path).encode("a cat on the table").ids) == 6


def test_damaged_tokenizers(tmp_path: Path) -> None:
    with pytest.raises(ModelLayoutError, match=r"tokenizer\.json is missing"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelLayoutError, match=r"tokenizer\.json cannot be read"):
        read_tokenizer(tmp_path)


def test_autoencoders(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    parts = read_video_folder(folder)
    stock = load_codec(parts, "auto", CPU, said.append)
    assert (type(stock).__name__, said) == ("WanCodec", [])
    with pytest.raises(ModelLayoutError, match=r"no tiny autoencoder.*taew2_1\.safetensors"):
        load_codec(parts, "tiny", CPU, said.append)
    file = tiny_taew(tmp_path / "taew2_1.safetensors")
    tiny = load_codec(parts, str(file), CPU, said.append)
    assert (type(tiny).__name__, tiny.latent_channels, tiny.dtype) == ("TinyVideoCodec", 16, torch.float32)


def test_a_folders_own_tiny_autoencoder_is_chosen_and_said(tmp_path: Path) -> None:
    own = tiny_video_model(tmp_path / "model", tiny_vae=True)
    said: list[str] = []
    parts = read_video_folder(own)
    assert type(load_codec(parts, "auto", CPU, said.append)).__name__ == "TinyVideoCodec"
    assert "tiny autoencoder tiny_vae is used" in said[0]
    assert type(load_codec(parts, "tiny", CPU, said.append)).__name__ == "TinyVideoCodec"
    assert type(load_codec(parts, "stock", CPU, said.append)).__name__ == "WanCodec"
    assert len(said) == 1
    assert load_codec(parts, "tiny", CPU, said.append).encoder_delay_frames == 3
    config = own / "tiny_vae" / "config.json"
    config.write_text('{"encoder_padding": "front"}', encoding="utf-8")
    assert load_codec(parts, "tiny", CPU, said.append).encoder_delay_frames == 0
    config.write_text('{"encoder_padding": "middle"}', encoding="utf-8")
    with pytest.raises(ModelLayoutError, match=r"encoder_padding is 'middle'"):
        load_codec(parts, "tiny", CPU, said.append)


def test_another_autoencoder_in_the_folder(tmp_path: Path) -> None:
    own = tiny_video_model(tmp_path / "model")
    (own / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}', encoding="utf-8")
    with pytest.raises(ModelLayoutError, match=r"holds a AutoencoderKL, not Wan"):
        load_codec(read_video_folder(own), "stock", CPU, print)
