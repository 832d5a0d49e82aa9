"""Owns the attention kernels, in one table, chosen by name or by "auto".

Shapes are the video engine's: queries [B, N, heads, D], keys and values [B, M, heads, D]. Independent of the cache,
rotary embeddings and the transformer. A kernel that was requested and cannot run here is refused with the reason;
there is no silent fallback.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pipelines.core.errors import ModelError

from .attention_parts import cudnn_in_parts, parts_of_keys

Mask: TypeAlias = torch.Tensor | BlockMask
_HALF = (torch.float16, torch.bfloat16)


class AttentionBackend(Protocol):
    """One way to compute softmax(Q K^T / sqrt(D)) V."""

    @property
    def name(self) -> str: ...

    @property
    def takes_mask(self) -> bool: ...

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Return why it cannot run for these, with the remedy; None if it can."""
        ...

    def frame_mask(self, allowed: torch.Tensor, tokens_per_frame: int) -> Mask:
        """[F_q, F_k] bool, whether queries of a frame attend to keys of a frame -> a mask over their tokens."""
        ...

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Mask | None = None
    ) -> torch.Tensor:
        """[B, N, heads, D], [B, M, heads, D] twice -> [B, N, heads, D]. mask: from `frame_mask`, or [N, M] bool."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionChoice:
    """The backend and why it was chosen; `reason` is shown to the user."""

    backend: AttentionBackend
    reason: str


@dataclass(frozen=True, slots=True)
class _ScaledDotProduct:
    """PyTorch's scaled_dot_product_attention restricted to one kernel; kernel None leaves the choice to PyTorch."""

    name: str
    kernel: SDPBackend | None
    takes_mask: bool
    dtypes: tuple[torch.dtype, ...] | None = None
    usable: Callable[[Any], bool] | None = None
    on_cpu: bool = True

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        if device.type == "cpu":
            return None if self.on_cpu else f"PyTorch's {self.name} kernel needs a CUDA device, not the CPU."
        if self.dtypes is not None and dtype not in self.dtypes:
            return f"PyTorch's {self.name} kernel computes in {_names(self.dtypes)}, not in {_names((dtype,))}."
        if self.usable is not None and not self.usable(_probe(device, dtype, head_dim)):
            return f"PyTorch's {self.name} kernel does not run on this device with heads of {head_dim}."
        return None

    def frame_mask(self, allowed: torch.Tensor, tokens_per_frame: int) -> Mask:
        return dense_frame_mask(allowed, tokens_per_frame)

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Mask | None = None
    ) -> torch.Tensor:
        _check_mask(self, mask)
        assert not isinstance(mask, BlockMask), f"{self.name} takes a dense mask"
        heads_first = (queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
        if self.kernel is None:
            return F.scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2)
        with sdpa_kernel(self.kernel):
            return F.scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _CudnnInParts:
    """cuDNN's kernel over several parts of the keys in parallel if that fills the device better; see attention_parts.

    unsplit: the same kernel over all keys at once, used otherwise.
    """

    unsplit: _ScaledDotProduct
    name: str = "cudnn-parts"
    takes_mask: bool = False

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        if device.type == "cuda" and importlib.util.find_spec("triton") is None:
            return "Joining the parts is compiled, which needs Triton."
        return self.unsplit.refusal(device, dtype, head_dim)

    def frame_mask(self, allowed: torch.Tensor, tokens_per_frame: int) -> Mask:
        return dense_frame_mask(allowed, tokens_per_frame)

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Mask | None = None
    ) -> torch.Tensor:
        _check_mask(self, mask)
        parts = parts_of_keys(queries, keys)
        if parts == 1:
            return self.unsplit(queries, keys, values)
        return cudnn_in_parts(queries, keys, values, parts)


@dataclass(frozen=True, slots=True)
class _Flex:
    """FlexAttention (PyTorch): masks in blocks of 128 × 128, of which empty ones cost nothing; compiled at first
    use."""

    name: str = "flex"
    takes_mask: bool = True

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        if device.type == "cuda" and head_dim < 16:
            return f"FlexAttention needs heads of at least 16 dimensions, not {head_dim}."
        return None

    def frame_mask(self, allowed: torch.Tensor, tokens_per_frame: int) -> Mask:
        return block_frame_mask(allowed, tokens_per_frame)

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Mask | None = None
    ) -> torch.Tensor:
        assert not isinstance(mask, torch.Tensor), "flex takes a block mask: use frame_mask"
        attend = _compiled_flex()
        out: torch.Tensor = attend(
            queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), block_mask=mask
        )
        return out.transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _Xformers:
    """memory_efficient_attention of the xformers package, if it is installed."""

    name: str = "xformers"
    takes_mask: bool = False

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        if importlib.util.find_spec("xformers") is None:
            return "The package xformers is not installed: `pip install 'zoetrope[xformers]'`."
        if device.type != "cuda":
            return f"xformers needs a CUDA device, not {device.type}."
        return None

    def frame_mask(self, allowed: torch.Tensor, tokens_per_frame: int) -> Mask:
        return dense_frame_mask(allowed, tokens_per_frame)

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Mask | None = None
    ) -> torch.Tensor:
        _check_mask(self, mask)
        out: torch.Tensor = importlib.import_module("xformers.ops").memory_efficient_attention(queries, keys, values)
        return out


PLAIN = _ScaledDotProduct("torch", None, takes_mask=True)
"""PyTorch chooses the kernel at each call. Runs everywhere."""

_CUDNN = _ScaledDotProduct(
    "cudnn",
    SDPBackend.CUDNN_ATTENTION,
    takes_mask=False,
    dtypes=_HALF,
    usable=torch.backends.cuda.can_use_cudnn_attention,
    on_cpu=False,
)

ATTENTION_BACKENDS: Mapping[str, AttentionBackend] = MappingProxyType(
    {
        backend.name: backend
        for backend in (
            _CUDNN,
            _CudnnInParts(_CUDNN),
            _ScaledDotProduct(
                "flash",
                SDPBackend.FLASH_ATTENTION,
                takes_mask=False,
                dtypes=_HALF,
                usable=torch.backends.cuda.can_use_flash_attention,
            ),
            _ScaledDotProduct(
                "efficient",
                SDPBackend.EFFICIENT_ATTENTION,
                takes_mask=True,
                usable=torch.backends.cuda.can_use_efficient_attention,
                on_cpu=False,
            ),
            _ScaledDotProduct("math", SDPBackend.MATH, takes_mask=True),
            PLAIN,
            _Flex(),
            _Xformers(),
        )
    }
)
"""All backends by the name that a user chooses."""

_AUTO_ORDER = ("cudnn-parts", "cudnn", "flash", "efficient", "math")
"""Fastest first, as measured on an H100 at this engine's shapes: cuDNN is 1.35 to 1.75 times as fast as flash."""


def choose_attention(
    requested: str, *, device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool = False
) -> AttentionChoice:
    """Return the named backend, or for "auto" the first that runs of cudnn-parts, cudnn, flash, efficient and math.

    masked: the backend must take masks. Raises ModelError, with the reason and the remedy, for an unknown name and for
    a backend that cannot run here.
    """
    if requested == "auto":
        return _automatic(device, dtype, head_dim, masked)
    backend = ATTENTION_BACKENDS.get(requested)
    if backend is None:
        raise ModelError(
            f"There is no attention backend named {requested!r}.", f"Use auto, {', '.join(ATTENTION_BACKENDS)}."
        )
    refusal = _refusal(backend, device, dtype, head_dim, masked)
    if refusal is not None:
        usable = [b.name for b in ATTENTION_BACKENDS.values() if _refusal(b, device, dtype, head_dim, masked) is None]
        raise ModelError(
            f"The attention backend {requested!r} cannot run here. {refusal}", f"Use auto or {', '.join(usable)}."
        )
    return AttentionChoice(backend=backend, reason=f"{requested} as asked")


def dense_frame_mask(allowed: torch.Tensor, tokens_per_frame: int) -> torch.Tensor:
    """[F_q, F_k] bool -> [F_q * tokens_per_frame, F_k * tokens_per_frame] bool."""
    return allowed.repeat_interleave(tokens_per_frame, 0).repeat_interleave(tokens_per_frame, 1)


def block_frame_mask(allowed: torch.Tensor, tokens_per_frame: int) -> BlockMask:
    """Return the same as a FlexAttention mask, built on the device of `allowed`."""

    def visible(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return allowed[query // tokens_per_frame, key // tokens_per_frame]

    frames_q, frames_k = allowed.shape
    return create_block_mask(
        visible, None, None, frames_q * tokens_per_frame, frames_k * tokens_per_frame, device=str(allowed.device)
    )


def block_causal(frames: int, chunk_frames: int, *, device: torch.device | None = None) -> torch.Tensor:
    """Return [frames, frames] bool: a frame attends to the frames of its own chunk and of earlier ones.

    The training mask of causal video models (Yin et al. 2024, CausVid, section 4.1). The last chunk may be shorter.
    """
    chunk = torch.arange(frames, device=device) // chunk_frames
    return chunk[:, None] >= chunk[None, :]


def _automatic(device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool) -> AttentionChoice:
    refusals: list[str] = []
    for name in _AUTO_ORDER:
        refusal = _refusal(ATTENTION_BACKENDS[name], device, dtype, head_dim, masked)
        if refusal is None:
            why = " ".join(refusals) or "The fastest measured."
            return AttentionChoice(backend=ATTENTION_BACKENDS[name], reason=f"{name}: {why}")
        if refusal not in refusals:
            refusals.append(refusal)
    raise AssertionError("math runs everywhere")


def _refusal(
    backend: AttentionBackend, device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool
) -> str | None:
    if masked and not backend.takes_mask:
        return f"The {backend.name} backend takes no mask."
    return backend.refusal(device, dtype, head_dim)


def _check_mask(backend: AttentionBackend, mask: Mask | None) -> None:
    if mask is not None and not backend.takes_mask:
        raise ModelError(f"The {backend.name} attention backend takes no mask.", "Use flex, efficient, math or torch.")


def _probe(device: torch.device, dtype: torch.dtype, head_dim: int) -> Any:
    """Return the argument of PyTorch's can_use_* functions, for one head of 128 tokens."""
    tokens = torch.empty((1, 1, 128, head_dim), device=device, dtype=dtype)
    return torch.backends.cuda.SDPAParams(tokens, tokens, tokens, None, 0.0, False, False)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)
