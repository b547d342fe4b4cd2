"""Small tokenizers of the two kinds that the published models have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MISTRAL = 700  # tokens: 256 bytes, the rest pieces of the text
_LLAMA3 = 700
_LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)


def mistral_tokenizer(text: Sequence[str], extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Train a tokenizer as SentencePiece makes Mistral's: pieces with ▁, bytes for what is unknown.

    Args:
        text: What the pieces are learned from.
        extra: Tokens of an expert's own, appended after the base's.

    Returns:
        The tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *bytes_]
    inner.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=_MISTRAL, special_tokens=special, show_progress=False)
    )
    # Bytes are ordinary tokens: as special ones they would vanish from decoded text.
    state = inner.to_str()
    inner = Tokenizer.from_str(_without_special(state, set(bytes_)))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    if extra:
        tokenizer.add_tokens(list(extra))
    return tokenizer


def _without_special(state: str, names: set[str]) -> str:
    import json

    content = json.loads(state)
    content["added_tokens"] = [
        token for token in content["added_tokens"] if token["content"] not in names
    ]
    return json.dumps(content)


def llama3_tokenizer(text: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer as Llama 3 has, its special tokens at the end.

    Args:
        text: What the merges are learned from.

    Returns:
        The tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=_LLAMA3,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    inner.add_special_tokens(list(_LLAMA3_SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )
