"""Owns mini-video's vocabulary: a Unigram tokenizer in T5's layout in which every word of the world is one token.

Texts are lower-cased by the tokenizer itself, with a SentencePiece replacement table, the only kind of normaliser that
transformers' T5TokenizerFast keeps when it reads a tokenizer.json.
"""

from __future__ import annotations

import json
import string
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.normalizers import Precompiled
from tokenizers.pre_tokenizers import Metaspace, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as Steps
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipelines.video.wan.umt5 import clean_text
from train.captions import words_of
from train.clips.captions import clip_words

from .networks import TEXT_TOKENS

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
PAD_ID, EOS_ID = 0, 1
_SPACE = "▁"
_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation
_WORD_SCORE, _SPACE_SCORE, _CHARACTER_SCORE = -3.0, -6.0, -8.0


def build_tokenizer(phrases: Iterable[str] | None = None) -> Any:
    """A PreTrainedTokenizerFast in which every word of phrases is one token; other ASCII words are split into
    characters, everything else is <unk>.

    phrases: None takes every word that a clip's caption can contain. Ids: <pad> 0, </s> 1, <unk> 2, the space before
    a word, the characters, the words in alphabetical order. Its layers are those of transformers' T5Tokenizer, which
    loads equally from the saved files.
    """
    if phrases is None:
        phrases = clip_words()
    words = sorted({word for phrase in phrases for word in words_of(phrase)})
    pieces = [(PAD, 0.0), (EOS, 0.0), (UNKNOWN, 0.0), (_SPACE, _SPACE_SCORE)]
    pieces += [(character, _CHARACTER_SCORE) for character in _CHARACTERS]
    pieces += [(_SPACE + word, _WORD_SCORE) for word in words]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = Precompiled(lower_case_table())
    tokenizer.pre_tokenizer = Steps(
        [WhitespaceSplit(), Metaspace(replacement=_SPACE, prepend_scheme="always", split=True)]
    )
    tokenizer.decoder = MetaspaceDecoder(replacement=_SPACE, prepend_scheme="always", split=True)
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, EOS_ID)]
    )
    tokenizer.add_special_tokens([PAD, EOS, UNKNOWN])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=TEXT_TOKENS,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
    )


def lower_case_table() -> bytes:
    """SentencePiece's precompiled character map that replaces A..Z by a..z.

    Layout (SentencePiece, normalizer.cc, DecodePrecompiledCharsMap): the trie's size in bytes, the trie, and the
    replacements, each ended by a zero byte. The trie is darts-clone's double array: the transition from unit p with
    offset o is to p ^ o ^ byte; a unit holds label (bits 0-7), whether a value follows (bit 8) and its offset (from bit
    10); the value's unit has bit 31 set.
    """
    nodes, leaves, units = 256, 512, [0] * 1024
    units[0] = nodes << 10
    for index, capital in enumerate(string.ascii_uppercase.encode()):
        node, leaf = nodes ^ capital, leaves + index
        units[node] = (node ^ leaf) << 10 | 1 << 8 | capital
        units[leaf] = 1 << 31 | 2 * index
    trie = struct.pack(f"<{len(units)}I", *units)
    replacements = b"".join(bytes([letter, 0]) for letter in string.ascii_lowercase.encode())
    return struct.pack("<I", len(trie)) + trie + replacements


def token_ids(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """int64 [n, 32] on the CPU: ids of captions, cleaned, padded and truncated exactly as in diffusers' WanPipeline."""
    cleaned = [clean_text(caption) for caption in captions]
    encoded = tokenizer(cleaned, padding="max_length", max_length=TEXT_TOKENS, truncation=True)
    return torch.tensor(encoded["input_ids"], dtype=torch.int64)


def text_mask(ids: Tensor) -> Tensor:
    """bool, shaped as ids: True for the text and its </s>, False for padding."""
    return ids != PAD_ID


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json, as T5TokenizerFast reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": EOS, "pad_token": PAD, "unk_token": UNKNOWN}
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": TEXT_TOKENS, "extra_ids": 0, **special}
    for name, content in (("special_tokens_map.json", special), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
