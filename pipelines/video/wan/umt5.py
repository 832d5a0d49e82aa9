"""Owns the text encoding of video models: text to UMT5 embeddings, cached by text, and where the encoder resides.

The published encoder has 5.7 billion parameters, more than the 1.3B transformer that it serves: on a GPU it occupies
device memory only while it encodes. Independent of cross-attention, streams and guidance.
"""

from __future__ import annotations

import html
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from pipelines.core.errors import ModelError, ModelLayoutError, OutOfMemoryError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXT_TOKENS = 512
_SPACES = re.compile(r"\s+")
LoadEncoder = Callable[[], nn.Module]


class TextEncoder(Protocol):
    """What the engine needs of a text encoder. encode: text -> embeddings [tokens, text_dim]."""

    @property
    def text_dim(self) -> int: ...
    def encode(self, text: str) -> torch.Tensor: ...


class Residence(Protocol):
    """Where the encoder resides between two encodings."""

    def enter(self) -> nn.Module:
        """Return the encoder on its device, loading it if necessary."""
        ...

    def leave(self) -> None:
        """Release the device after an encoding."""
        ...


class _Kept:
    """The encoder stays on its device: fastest, for devices with memory to spare and for CPUs."""

    def __init__(self, load: LoadEncoder, device: torch.device) -> None:
        self._load, self._device = load, device
        self._encoder: nn.Module | None = None

    def enter(self) -> nn.Module:
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder.to(self._device)

    def leave(self) -> None:
        """Nothing to do: the encoder stays."""


class _OnHost(_Kept):
    """The encoder waits in host memory (11 GB for UMT5-XXL in bfloat16) and is moved to the device when needed."""

    def leave(self) -> None:
        if self._encoder is not None:
            self._encoder.to("cpu")
            _release_cached_memory(self._device)


class _Dropped(_Kept):
    """The encoder is read from disk for each new text and dropped again: least memory, slowest."""

    def leave(self) -> None:
        self._encoder = None
        _release_cached_memory(self._device)


RESIDENCES: Mapping[str, Callable[[LoadEncoder, torch.device], Residence]] = {
    "keep": _Kept,
    "host": _OnHost,
    "drop": _Dropped,
}


class Umt5TextEncoder:
    """Encodes prompts to embeddings [tokens, D]; rows after the text are set to zero, as Wan was trained."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        load: LoadEncoder,
        *,
        text_dim: int,
        device: torch.device,
        residence: str = "auto",
        tokens: int = TEXT_TOKENS,
        kept_texts: int = 64,
    ) -> None:
        """load: makes the encoder, in its dtype, on any device. residence: a name of RESIDENCES, or "auto": "host" on a
        GPU, "keep" on a CPU. tokens: rows of an embedding. kept_texts: how many texts' embeddings are cached.
        """
        if residence not in ("auto", *RESIDENCES):
            raise ModelError(
                f"There is no residence {residence!r} for the text encoder.",
                f"Use auto or one of: {', '.join(RESIDENCES)}.",
            )
        if residence == "auto":
            residence = "keep" if device.type == "cpu" else "host"
        self.residence = residence
        self.text_dim = text_dim
        self.encodings = 0
        self._tokenizer = tokenizer
        self._residence = RESIDENCES[residence](load, device)
        self._device = device
        self._tokens = tokens
        self._kept_texts = kept_texts
        self._cached: OrderedDict[str, torch.Tensor] = OrderedDict()

    def encode(self, text: str) -> torch.Tensor:
        """Return embeddings [tokens, text_dim], at least float32, on the model's device. Longer texts are truncated.

        The tensor is never modified, and the same text gives the same tensor while it is cached. Raises
        OutOfMemoryError.
        """
        clean = clean_text(text)
        if clean in self._cached:
            self._cached.move_to_end(clean)
            return self._cached[clean]
        embeds = self._encode(clean)
        self._cached[clean] = embeds
        while len(self._cached) > self._kept_texts:
            self._cached.popitem(last=False)
        return embeds

    @torch.no_grad()
    def _encode(self, clean: str) -> torch.Tensor:
        ids, count = self._ids(clean)
        try:
            encoder = self._residence.enter()
            mask = (torch.arange(self._tokens, device=self._device) < count).long()[None]
            hidden = encoder(ids.to(self._device), attention_mask=mask).last_hidden_state[0]
            embeds: torch.Tensor = hidden.to(torch.promote_types(hidden.dtype, torch.float32), copy=True)
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"The text encoder does not fit into memory with the model ({str(error).split('.', 1)[0]}).",
                "Use a smaller window or size, or a GPU with more memory.",
            ) from None
        finally:
            self._residence.leave()
        embeds[count:] = 0
        self.encodings += 1
        return embeds

    def _ids(self, clean: str) -> tuple[torch.Tensor, int]:
        """Return (token ids [1, tokens] int64, padded with 0 and truncated; how many are the text and its end)."""
        ids = self._tokenizer.encode(clean).ids
        if len(ids) > self._tokens:
            ids = [*ids[: self._tokens - 1], ids[-1]]
        padded = torch.zeros(1, self._tokens, dtype=torch.int64)
        padded[0, : len(ids)] = torch.tensor(ids)
        return padded, len(ids)


def clean_text(text: str) -> str:
    """Resolve HTML entities twice and collapse white space, as Wan's prompts were prepared."""
    return _SPACES.sub(" ", html.unescape(html.unescape(text))).strip()


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json, without its padding and truncation. Raises ModelLayoutError."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelLayoutError(
            f"{file} is missing.", "The published folders have it (google/umt5-xxl): download the tokenizer again."
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001  the library raises plain Exception for a file that it cannot parse
        raise ModelLayoutError(f"{file} cannot be read: {error}.", "Download the tokenizer again.") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_encoder(folder: Path, *, dtype: torch.dtype) -> Any:
    """Load transformers' UMT5EncoderModel strictly from a folder with config.json and weights, in dtype on the CPU."""
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    from pipelines.files.layout import Component, read_json
    from pipelines.files.weights import load_component

    component = Component(
        name="text_encoder", folder=folder, class_name="UMT5EncoderModel", config=read_json(folder / "config.json")
    )
    return load_component(UMT5EncoderModel, component, dtype=dtype, device=torch.device("cpu"))


def _release_cached_memory(device: torch.device) -> None:
    """Free the memory that PyTorch keeps cached for the encoder's weights."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
