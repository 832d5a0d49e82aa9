"""mini-video's networks are the stock ones, its tokenizer is transformers' own, and training uses inference's text
states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from transformers import T5TokenizerFast

from pipelines.video.wan.umt5 import Umt5TextEncoder, read_tokenizer
from train.captions import words_of
from train.clips.captions import clip_words
from train.video.networks import (
    encode_text,
    make_stock_transformer,
    make_text_encoder,
    make_tiny_autoencoder,
    make_transformer,
    make_wan_autoencoder,
    parameters_of,
    set_latent_moments,
)
from train.video.tokenizer import EOS_ID, PAD_ID, build_tokenizer, save_tokenizer, text_mask, token_ids

CAPTIONS = (
    "a robot bouncing on the beach at sunset, pencil sketch",
    "A Robot On The BEACH",
    "",
    "qzxv  Ünïcode 東京 robots!",
    "a robot " * 40,
    "T-Rex &amp; a cat's hat\n\t42",
)


def test_the_stock_transformer_has_the_same_weights() -> None:
    with torch.device("meta"):
        ours, stock = make_transformer().state_dict(), make_stock_transformer().state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in stock.items()}


def test_parameters_fit_into_32_mib_at_16_bits() -> None:
    with torch.device("meta"):
        sizes = {
            "transformer": parameters_of(make_transformer()),
            "vae": parameters_of(make_wan_autoencoder()),
            "tiny": parameters_of(make_tiny_autoencoder()),
            "text": parameters_of(make_text_encoder(500)),
        }
    assert sizes["vae"] <= 3_300_000
    assert sizes["tiny"] <= 2_000_000
    assert sizes["text"] <= 600_000
    assert 2 * (sum(sizes.values()) + 70_000) < 31.9 * 2**20


def test_moments_go_into_the_configuration() -> None:
    vae = make_wan_autoencoder(base_dim=8, decoder_base_dim=8)
    set_latent_moments(vae, [0.5] * 16, [2.0] * 16)
    assert vae.config.latents_mean == [0.5] * 16
    assert vae.config.latents_std == [2.0] * 16


def test_every_word_of_a_caption_is_one_token_and_others_are_spelt() -> None:
    tokenizer = build_tokenizer()
    assert all(len(tokenizer(word)["input_ids"]) == 2 for word in clip_words())
    spelt = tokenizer("qzxv")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(spelt) == ["▁", "q", "z", "x", "v", "</s>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("東")["input_ids"])[-2:] == ["<unk>", "</s>"]
    assert set(words_of("a robot, bouncing")) <= set(clip_words())


def test_rows_have_32_tokens_and_keep_their_end() -> None:
    ids = token_ids(build_tokenizer(), CAPTIONS)
    assert ids.shape == (len(CAPTIONS), 32)
    assert ids[2].tolist() == [EOS_ID] + [PAD_ID] * 31
    assert ids[4, -1] == EOS_ID
    assert text_mask(ids).sum(1).tolist()[:3] == [12, 6, 1]


def test_transformers_and_the_engine_read_the_same_tokenizer(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    save_tokenizer(tokenizer, tmp_path)
    stock, plain = T5TokenizerFast.from_pretrained(tmp_path), read_tokenizer(tmp_path)
    ids = token_ids(tokenizer, CAPTIONS)
    cleaned = [prompt_clean(caption) for caption in CAPTIONS]
    encoded = stock(cleaned, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    assert torch.equal(encoded["input_ids"], ids)
    assert torch.equal(encoded["attention_mask"].bool(), text_mask(ids))
    assert plain.encode(cleaned[1]).ids == [token for token in ids[1].tolist() if token]


def test_text_in_training_is_that_of_inference_and_of_transformers(tmp_path: Path) -> None:
    """The largest difference seen is 1.3e-6, in float32."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    save_tokenizer(tokenizer, tmp_path)
    network = make_text_encoder(len(tokenizer)).eval()
    encoder = Umt5TextEncoder(
        read_tokenizer(tmp_path), lambda: network, text_dim=128, device=torch.device("cpu"), tokens=32
    )
    ids = token_ids(tokenizer, CAPTIONS)
    with torch.no_grad():
        states = encode_text(network, ids, text_mask(ids))
        stock = network(ids, attention_mask=text_mask(ids).long()).last_hidden_state
    for caption, row in zip(CAPTIONS, states, strict=True):
        torch.testing.assert_close(row, encoder.encode(caption), atol=5e-6, rtol=0)
    torch.testing.assert_close(states, stock * text_mask(ids)[..., None], atol=5e-6, rtol=0)
    assert torch.equal(states[0, 12:], torch.zeros(20, 128))


@pytest.mark.parametrize("padding", [1, 9])
def test_padding_changes_no_state(padding: int) -> None:
    torch.manual_seed(0)
    network = make_text_encoder(50)
    ids = torch.randint(3, 50, (2, 8))
    longer = torch.cat([ids, torch.zeros(2, padding, dtype=torch.int64)], 1)
    with torch.no_grad():
        short, long = (encode_text(network, rows, text_mask(rows)) for rows in (ids, longer))
    torch.testing.assert_close(long[:, :8], short, atol=5e-6, rtol=0)
