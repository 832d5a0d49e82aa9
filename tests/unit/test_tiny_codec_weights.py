"""The tiny video autoencoder's weights: published names and shapes, configurations inferred from them, mismatches;
training."""

from __future__ import annotations

import pytest
import torch

from pipelines.core.errors import ModelLayoutError
from pipelines.video.codecs.tiny import TinyVideoAutoencoder, load_tiny_autoencoder
from pipelines.video.codecs.tiny_layers import infer_config
from tests.fakes.video_codecs import tiny_autoencoder


def published_shapes() -> dict[str, tuple[int, ...]]:
    """taew2_1: names and shapes, spelled out from madebyollin/taehv."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, outputs: int, inputs: int, *, size: int = 3, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, size, size)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def block(name: str, width: int) -> None:
        for layer, inputs in ((0, 2 * width), (2, width), (4, width)):
            conv(f"{name}.conv.{layer}", width, inputs)

    conv("encoder.0", 64, 3)
    for pool, inputs in ((2, 128), (7, 128), (12, 64)):
        conv(f"encoder.{pool}.conv", 64, inputs, size=1, bias=False)
        conv(f"encoder.{pool + 1}", 64, 64, bias=False)
        for number in range(pool + 2, pool + 5):
            block(f"encoder.{number}", 64)
    conv("encoder.17", 16, 64)
    conv("decoder.1", 256, 16)
    for first, width, grown, following in ((3, 256, 256, 128), (9, 128, 256, 64), (15, 64, 128, 64)):
        for number in range(first, first + 3):
            block(f"decoder.{number}", width)
        conv(f"decoder.{first + 4}.conv", grown, width, size=1, bias=False)
        conv(f"decoder.{first + 5}", following, width, bias=False)
    conv("decoder.22", 3, 64)
    return shapes


def test_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        state = TinyVideoAutoencoder().state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == published_shapes()
    assert sum(tensor.numel() for name, tensor in state.items() if name.startswith("decoder.")) == 9_844_611
    assert sum(tensor.numel() for name, tensor in state.items() if name.startswith("encoder.")) == 1_470_928


@pytest.mark.parametrize("options", [{}, {"blocks_per_stage": 2}, {"patch_size": 2, "latent_channels": 7}], ids=str)
def test_weights_tell_their_configuration(options: dict[str, int]) -> None:
    module = tiny_autoencoder(**options)
    assert infer_config(module.state_dict()) == module.config
    loaded = load_tiny_autoencoder(module.state_dict())
    latents = torch.randn(1, module.config.latent_channels, 2, 1, 1)
    with torch.no_grad():
        assert torch.equal(loaded.decode(latents), module.decode(latents))


def test_time_layers_that_hold_more_frames_give_their_last_ones() -> None:
    module = tiny_autoencoder()
    state = dict(module.state_dict())
    state["decoder.7.conv.weight"] = torch.cat(
        (torch.full_like(state["decoder.7.conv.weight"], 9), state["decoder.7.conv.weight"])
    )
    loaded = load_tiny_autoencoder(state)
    assert torch.equal(loaded.state_dict()["decoder.7.conv.weight"], module.state_dict()["decoder.7.conv.weight"])


def test_weights_that_do_not_fit_are_named() -> None:
    state = dict(tiny_autoencoder().state_dict())
    misshapen = {**state, "encoder.3.weight": torch.zeros(8, 5, 3, 3)}
    with pytest.raises(
        ModelLayoutError, match=r"misshapen \['encoder.3.weight \(8, 5, 3, 3\) instead of \(8, 6, 3, 3\)'\]"
    ):
        load_tiny_autoencoder(misshapen)
    with pytest.raises(ModelLayoutError, match=r"missing none, unexpected \['decoder.99.weight'\]"):
        load_tiny_autoencoder({**state, "decoder.99.weight": torch.zeros(1)})
    del state["encoder.17.bias"]
    with pytest.raises(ModelLayoutError, match=r"missing \['encoder.17.bias'\]"):
        load_tiny_autoencoder(state)
    with pytest.raises(ModelLayoutError, match="not the weights of a tiny video autoencoder"):
        load_tiny_autoencoder({"decoder.conv_in.weight": torch.zeros(1)})


def test_training_reaches_every_weight_and_lowers_the_loss() -> None:
    module = tiny_autoencoder(encoder_padding="front").train()
    pixels = torch.rand(2, 3, 9, 16, 16, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (module(pixels) - pixels).square().mean()
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
