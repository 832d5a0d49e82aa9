"""Owns the cross-attention keys and values of prompts: computed once per prompt, stored in rows, rewritten in place.

Works on embeddings and rows; independent of streams and of how text is encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F

KeysValues: TypeAlias = tuple[torch.Tensor, torch.Tensor]


class TextView(Protocol):
    """The text that one forward pass attends to."""

    @property
    def signature(self) -> Hashable:
        """Equal for views that read the same addresses: part of a captured CUDA graph's key. None: never equal."""
        ...

    def exchange(self, layer: int, compute: Callable[[torch.Tensor], KeysValues]) -> KeysValues:
        """Return (keys, values) of a layer: each [B, L, heads, D], or [B, F, L, heads, D] if each frame has its text.

        compute: turns hidden text [B, L, dim], as returned by `TextProjector.embed_text`, into that layer's keys and
        values; not called by a view that has them stored.
        """
        ...


class TextProjector(Protocol):
    """The part of a transformer that projects prompts for cross-attention."""

    @property
    def layers(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def embed_text(self, embeddings: torch.Tensor) -> torch.Tensor:
        """[B, L, text_dim] -> [B, L, dim]: the text MLP, applied to padding rows too."""
        ...

    def text_keys_values(self, layer: int, hidden: torch.Tensor) -> KeysValues:
        """[B, L, dim] -> keys and values [B, L, heads, D]."""
        ...


class PlainText:
    """Text without a cache: every pass computes keys and values anew. For training and comparisons."""

    signature = None

    def __init__(self, transformer: TextProjector, embeddings: torch.Tensor) -> None:
        """embeddings: [B, L, text_dim], padding rows zero."""
        self._hidden = transformer.embed_text(embeddings)

    def exchange(self, layer: int, compute: Callable[[torch.Tensor], KeysValues]) -> KeysValues:
        return compute(self._hidden)


class TextKVCache:
    """Stores `rows` prompts of `tokens` tokens; keys and values of all layers are allocated once, here."""

    def __init__(self, transformer: TextProjector, *, rows: int, tokens: int = 512) -> None:
        assert rows >= 1, rows
        assert tokens >= 1, tokens
        self.rows, self.tokens = rows, tokens
        self._transformer = transformer
        shape = (transformer.layers, rows, tokens, transformer.heads, transformer.head_dim)
        self._keys = torch.zeros(shape, dtype=transformer.dtype, device=transformer.device)
        self._values = torch.zeros_like(self._keys)
        self._versions = [0] * rows
        self._latest = 0

    @property
    def bytes(self) -> int:
        """Size of the stored keys and values."""
        return 2 * self._keys.numel() * self._keys.element_size()

    def version(self, row: int) -> int:
        """Version of the prompt in a row; 0: none has been written."""
        return self._versions[row]

    def write(self, row: int, embeddings: torch.Tensor, *, version: int | None = None) -> int:
        """Write a prompt into a row, in place; views of the row read it from the next pass on.

        embeddings: [L, text_dim] with L <= tokens, padded here with zero rows, which are attended as in the published
        networks. version: the caller's number (> 0) for this prompt; if the row already has it, nothing is computed.
        None: the next unused number. Returns the row's version. Not for use inside a captured graph.
        """
        if version is not None and version == self._versions[row]:
            return version
        length = embeddings.shape[0]
        assert length <= self.tokens, f"{length} text tokens, the cache holds {self.tokens}"
        assert version is None or version > 0, version
        with torch.no_grad():
            padded = F.pad(embeddings.to(self._keys.device), (0, 0, 0, self.tokens - length))
            hidden = self._transformer.embed_text(padded.unsqueeze(0))
            for layer in range(self._transformer.layers):
                keys, values = self._transformer.text_keys_values(layer, hidden)
                self._keys[layer, row].copy_(keys[0])
                self._values[layer, row].copy_(values[0])
        self._latest = max(self._latest + 1, version or 0)
        self._versions[row] = self._latest if version is None else version
        return self._versions[row]

    def invalidate(self) -> None:
        """Recompute every prompt at its next write, because the transformer's weights have changed (a LoRA)."""
        self._versions = [0] * self.rows

    def view(self, rows: Sequence[int] | torch.Tensor) -> TextView:
        """Return the text of a batch whose entry i reads row rows[i]; a tensor [B, F] gives every frame its own row.

        Consecutive rows are read in place, others are gathered at each layer. A tensor (int64, on the device) may
        change between passes; the view, and graphs captured with it, then read the new rows.
        """
        if isinstance(rows, torch.Tensor):
            return _GatheredText(self._keys, self._values, rows, ("rows of a tensor", rows.data_ptr(), rows.shape))
        first, count = rows[0], len(rows)
        if list(rows) == list(range(first, first + count)):
            return _StoredText(self._keys[:, first : first + count], self._values[:, first : first + count])
        index = torch.tensor(list(rows), dtype=torch.int64, device=self._keys.device)
        return _GatheredText(self._keys, self._values, index, None)


class _StoredText:
    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._keys, self._values = keys, values
        self.signature: Hashable = (keys.data_ptr(), keys.shape)

    def exchange(self, layer: int, compute: Callable[[torch.Tensor], KeysValues]) -> KeysValues:
        return self._keys[layer], self._values[layer]


class _GatheredText:
    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, signature: tuple[object, ...] | None
    ) -> None:
        self._keys, self._values, self._rows = keys, values, rows
        self.signature: Hashable = None if signature is None else (keys.data_ptr(), *signature)

    def exchange(self, layer: int, compute: Callable[[torch.Tensor], KeysValues]) -> KeysValues:
        picked = self._rows.flatten()
        shape = (*self._rows.shape, *self._keys.shape[2:])
        keys = self._keys[layer].index_select(0, picked).view(shape)
        return keys, self._values[layer].index_select(0, picked).view(shape)
