"""Owns the byte-pair vocabulary of mini-image: which words become one token."""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Iterable
from typing import Any

from transformers.models.clip.tokenization_clip import CLIPTokenizer

MAX_LENGTH_TOKENS = 32
BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
_ALPHABET = string.ascii_lowercase + string.digits + string.punctuation
_END = "</w>"


def byte_pair_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016, algorithm 1) trained until every word is a single token.

    words: lower-case ASCII words. The merges are in order of priority; a word not in the list falls back to pieces and
    characters. Ties are broken by the pair itself, so that the result does not depend on the order.
    """
    splits = {word: [*word[:-1], word[-1] + _END] for word in sorted(set(words))}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for parts in splits.values():
            pairs.update(itertools.pairwise(parts))
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word, parts in splits.items():
            splits[word] = _merge(parts, best)


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    index = 0
    while index < len(parts):
        if tuple(parts[index : index + 2]) == pair:
            merged.append(parts[index] + parts[index + 1])
            index += 2
        else:
            merged.append(parts[index])
            index += 1
    return merged


def split_words(phrases: Iterable[str]) -> list[str]:
    """The distinct lower-case letter runs of phrases, sorted: the words that CLIP's pre-tokenizer produces."""
    letters = set(string.ascii_lowercase)
    cleaned = ("".join(c if c in letters else " " for c in phrase.lower()) for phrase in phrases)
    return sorted({word for phrase in cleaned for word in phrase.split()})


def build_tokenizer(phrases: Iterable[str]) -> Any:
    """A CLIPTokenizer in which every word of phrases is one token and other ASCII text is split into characters.

    Ids: the alphabet, the alphabet at word ends, the merges, then the start token and the end token (also padding).
    """
    merges = byte_pair_merges(split_words(phrases))
    symbols = [*_ALPHABET, *(c + _END for c in _ALPHABET), *(a + b for a, b in merges), BOS, EOS]
    vocab = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(
        vocab=vocab,
        merges=list(merges),
        model_max_length=MAX_LENGTH_TOKENS,
        unk_token=EOS,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
    )


def token_ids(tokenizer: Any, captions: list[str]) -> list[list[int]]:
    """Ids of captions, each padded or truncated to MAX_LENGTH_TOKENS, exactly as in the Stable Diffusion pipeline."""
    encoded = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH_TOKENS, truncation=True)
    rows: list[list[int]] = encoded["input_ids"]
    return rows
