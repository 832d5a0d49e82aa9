"""Attention backends: chosen by name or "auto", refused with a reason, equal results; and the text cache."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from pipelines.core.errors import ModelError
from pipelines.video.wan.attention import (
    ATTENTION_BACKENDS,
    block_causal,
    block_frame_mask,
    choose_attention,
    dense_frame_mask,
)
from pipelines.video.wan.config import WanConfig
from pipelines.video.wan.text_cache import TextKVCache
from pipelines.video.wan.transformer import CausalWanTransformer

CPU = torch.device("cpu")
SMALL = WanConfig(num_attention_heads=2, attention_head_dim=16, ffn_dim=32, num_layers=2, text_dim=8, freq_dim=16)


def _choose(name: str, *, masked: bool = False) -> str:
    return choose_attention(name, device=CPU, dtype=torch.float32, head_dim=16, masked=masked).reason


def _tokens(*counts: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn((2, count, 2, 16), generator=generator) for count in counts]


def test_auto_says_what_it_took_and_what_it_passed_over() -> None:
    assert _choose("auto") == "flash: PyTorch's cudnn kernel needs a CUDA device, not the CPU."
    assert _choose("auto", masked=True).startswith(
        "math: The cudnn-parts backend takes no mask. The cudnn backend takes no"
    )
    assert _choose("math") == "math as asked"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cudnn", "cudnn' cannot run here. .* needs a CUDA device, not the CPU. Use auto or flash, math, torch"),
        ("efficient", "efficient' cannot run here"),
        ("fastest", "no attention backend named 'fastest'. Use auto, cudnn, cudnn-parts, flash"),
    ],
)
def test_what_is_not_there_is_an_error(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        _choose(name)


def test_a_package_that_is_not_installed_is_named() -> None:
    if importlib.util.find_spec("xformers") is not None:
        pytest.skip("xformers is installed here")
    with pytest.raises(ModelError, match=r"pip install 'zoetrope\[xformers\]'"):
        _choose("xformers")


def test_a_backend_without_masks_refuses_one() -> None:
    with pytest.raises(ModelError, match="flash backend takes no mask"):
        _choose("flash", masked=True)
    queries, keys, values = _tokens(6, 6, 6)
    with pytest.raises(ModelError, match="flash attention backend takes no mask"):
        ATTENTION_BACKENDS["flash"](queries, keys, values, torch.ones((6, 6), dtype=torch.bool))


@pytest.mark.parametrize("name", ["flash", "math", "torch"])
def test_backends_agree_with_the_formula(name: str) -> None:
    queries, keys, values = _tokens(6, 10, 10)
    scores = torch.einsum("bnhd,bmhd->bhnm", queries, keys) / 4
    expected = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), values)
    torch.testing.assert_close(ATTENTION_BACKENDS[name](queries, keys, values), expected, rtol=0, atol=1e-6)


def test_a_masked_backend_agrees_with_the_formula() -> None:
    queries, keys, values = _tokens(6, 6, 6)
    mask = dense_frame_mask(block_causal(3, 2), 2)
    scores = torch.einsum("bnhd,bmhd->bhnm", queries, keys) / 4
    expected = torch.einsum("bhnm,bmhd->bnhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), values)
    for name in ("math", "torch"):
        torch.testing.assert_close(ATTENTION_BACKENDS[name](queries, keys, values, mask), expected, rtol=0, atol=1e-6)


def test_block_causal_by_hand() -> None:
    """Frames 0 1 | 2 3 | 4: each attends to its whole chunk and all earlier ones."""
    assert block_causal(5, 2).int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


def test_the_mask_of_flex_is_the_dense_one() -> None:
    allowed = block_causal(5, 2)
    blocks, dense = block_frame_mask(allowed, 7), dense_frame_mask(allowed, 7)
    row, column = torch.meshgrid(torch.arange(35), torch.arange(35), indexing="ij")
    assert torch.equal(blocks.mask_mod(torch.tensor(0), torch.tensor(0), row, column), dense)
    assert blocks.shape[-2:] == (35, 35)


@pytest.fixture
def transformer() -> CausalWanTransformer:
    torch.manual_seed(0)
    return CausalWanTransformer(SMALL).eval().requires_grad_(False)


def test_a_version_that_stands_is_not_computed_again(
    transformer: CausalWanTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[torch.Tensor] = []
    original = transformer.embed_text
    monkeypatch.setattr(transformer, "embed_text", lambda e: computed.append(e) or original(e))
    cache, one, two = TextKVCache(transformer, rows=2, tokens=4), torch.ones(3, 8), torch.zeros(4, 8)
    assert (cache.version(0), cache.version(1)) == (0, 0)
    assert cache.write(0, one, version=7) == 7
    assert cache.write(0, one, version=7) == 7
    assert len(computed) == 1
    assert cache.write(1, two, version=7) == 7  # versions are of a row
    assert cache.write(0, two) == 9  # counts on, past every version seen
    assert cache.write(0, two) == 10
    assert len(computed) == 4
    cache.invalidate()
    assert cache.write(0, two, version=10) == 10
    assert len(computed) == 5
    assert computed[0].shape == (1, 4, 8)
    assert computed[0][0, 3].count_nonzero() == 0  # padded with zero rows, which are computed like the others


def test_rows_are_rewritten_in_place(transformer: CausalWanTransformer) -> None:
    cache = TextKVCache(transformer, rows=3, tokens=4)
    view = cache.view([1])

    def seen() -> tuple[torch.Tensor, torch.Tensor]:
        return view.exchange(1, transformer.blocks[1].attn2.keys_values)

    cache.write(1, torch.ones(4, 8))
    keys, values = (part.clone() for part in seen())
    address = seen()[0].data_ptr()
    cache.write(1, -torch.ones(2, 8))
    cache.write(2, torch.ones(4, 8))
    assert seen()[0].data_ptr() == address
    assert not torch.equal(seen()[0], keys)
    cache.write(1, torch.ones(4, 8))
    assert torch.equal(seen()[0], keys)
    assert torch.equal(seen()[1], values)
    assert cache.bytes == 2 * 2 * 3 * 4 * 2 * 16 * 4  # keys and values, layers, rows, tokens, heads, width, bytes


def test_a_view_by_a_tensor_follows_it(transformer: CausalWanTransformer) -> None:
    """As a captured graph requires: row indices are data."""
    cache, rows = TextKVCache(transformer, rows=2, tokens=4), torch.tensor([0, 0])
    cache.write(0, torch.ones(4, 8))
    cache.write(1, -torch.ones(4, 8))
    view = cache.view(rows)
    compute = transformer.blocks[0].attn2.keys_values
    before = view.exchange(0, compute)[0]
    assert torch.equal(before[0], before[1])
    rows.copy_(torch.tensor([0, 1]))
    after = view.exchange(0, compute)[0]
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_too_long_a_text_is_refused(transformer: CausalWanTransformer) -> None:
    with pytest.raises(AssertionError, match="5 text tokens, the cache holds 4"):
        TextKVCache(transformer, rows=1, tokens=4).write(0, torch.ones(5, 8))
