"""Assumptions of training: plain forwards equal the stock ones, the grid is LCM's, one word is one token."""

from __future__ import annotations

import pytest
import torch

from train.captions import template_words
from train.diffusion import Schedule, denoising_loss
from train.muon import orthogonalised
from train.networks import make_scheduler, make_text_encoder, make_unet, signal_and_noise, text_forward, unet_forward
from train.sampling import lcm_steps
from train.tokenizer import build_tokenizer, split_words, token_ids


def test_unet_forward_equals_the_stock_forward() -> None:
    """The compiled graph trains the very function that diffusers runs."""
    torch.manual_seed(0)
    unet, x, t, text = make_unet(), torch.randn(2, 4, 16, 16), torch.tensor([3, 500]), torch.randn(2, 32, 128)
    with torch.no_grad():
        v, middle = unet_forward(unet, x, t, text)
        stock = unet(x, t, encoder_hidden_states=text).sample
    assert torch.equal(v, stock)
    assert middle.shape == (2, 144, 4, 4)


def test_text_forward_equals_the_stock_forward() -> None:
    """The text states of training equal the pipeline's."""
    tokenizer = build_tokenizer(template_words())
    text_encoder = make_text_encoder(tokenizer)
    ids = torch.tensor(token_ids(tokenizer, ["a robot on the beach at sunset, pencil sketch", ""]))
    with torch.no_grad():
        torch.testing.assert_close(text_forward(text_encoder, ids), text_encoder(ids).last_hidden_state)


def test_every_word_of_the_world_is_one_token_and_others_fall_back_to_pieces() -> None:
    """Start, word, end: three ids; an unknown word is spelled in pieces."""
    tokenizer = build_tokenizer(template_words())
    assert all(len(tokenizer(word)["input_ids"]) == 3 for word in split_words(template_words()))
    assert len(tokenizer("qzxv")["input_ids"]) > 3


@pytest.mark.parametrize("strength", [1.0, 0.75, 0.5, 0.3])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_grid_is_that_of_the_lcm_scheduler(count: int, strength: float) -> None:
    """The student is trained at the timesteps that the shipped scheduler visits."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(count, strength=strength, original_inference_steps=50)
    assert scheduler.timesteps.tolist() == lcm_steps(count, strength)


def test_v_and_x0_and_the_loss_agree() -> None:
    """The v of clean data reproduces x0, with zero loss."""
    schedule = Schedule(*signal_and_noise(torch.device("cpu")))
    x0, eps, t = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.tensor([0, 259, 499, 999])
    a, b = schedule.at(t)
    x = schedule.noised(x0, eps, t)
    torch.testing.assert_close(schedule.clean(x, a * eps - b * x0, t), x0, atol=1e-5, rtol=0)
    assert float(denoising_loss(schedule, x, a * eps - b * x0, t, x0)) < 1e-9


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    """Five Newton-Schulz iterations, wide and tall."""
    torch.manual_seed(0)
    for shape in ((3, 32, 96), (3, 96, 32)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert 0.5 < float(values.min()) < float(values.max()) < 1.3
