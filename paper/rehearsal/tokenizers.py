"""Small tokenizers of the two kinds that the published models have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MISTRAL = 700  # tokens: 256 bytes, the rest pieces of the text
_LLAMA3 = 700
_BOS, _EOS = "<|begin_of_text|>", "<|end_of_text|>"
_LLAMA3_SPECIAL = [_BOS, _EOS, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def mistral_tokenizer(text: Sequence[str], extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Train a tokenizer as SentencePiece makes Mistral's: pieces with ▁, bytes for unknown text.

    Args:
        text: What the pieces are learned from.
        extra: Tokens that only an expert has, appended after the base's.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = (decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), *steps])
    special = ["<unk>", "<s>", "</s>", *bytes_]
    inner.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=_MISTRAL, special_tokens=special, show_progress=False)
    )
    # Bytes are ordinary tokens: as special ones they would vanish from decoded text.
    state = json.loads(inner.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in bytes_]
    inner = Tokenizer.from_str(json.dumps(state))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    if extra:
        tokenizer.add_tokens(list(extra))
    return tokenizer


def llama3_tokenizer(text: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer as Llama 3 has, its special tokens at the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_LLAMA3, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(text, trainer)
    inner.add_special_tokens(_LLAMA3_SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=_BOS, eos_token=_EOS)
