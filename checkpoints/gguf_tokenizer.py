"""The tokenizer that a GGUF file describes.

transformers 5.19 also makes one from the file. It adds special tokens that its classes are used to
and the file lacks, leaves out the BOS in front of a text, and splits text for many vocabularies as
GPT-2 does; so the tokenizer is built here from what the file says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.companions import copy_tokenizer
from checkpoints.loading import load_tokenizer
from common.errors import UserError, reason_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_OWN = "tokenizer.ggml."
_REMEDY = "give a folder with the model's own tokenizer: --tokenizer DIR"
# How llama.cpp splits text before byte-level merges, by `tokenizer.ggml.pre`, and which
# transformers lacks: by GPT-2's pattern, and by the same with every digit cut off before.
_PLAIN = ("gpt-2", "mpt", "olmo")
_DIGITS = ("smollm", "starcoder", "refact", "command-r")
# Of these, a file that does not say whether a text begins with the BOS means that it does.
_BEGINS = ("llama-bpe", "llama3", "llama-v3")
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_CONTROL, _USER = 3, 4  # types of tokens that are matched whole, before anything else
_BLANK = "▁"


def _bytes(said: Mapping[str, Any], where: Path) -> Tokenizer:
    """Build a byte-level vocabulary with the file's merges."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    kind = str(said.get(f"{_OWN}pre", "default"))
    split: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if kind in _DIGITS:
        split.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif kind in GGUF_PRE_TOKENIZER_SPLITS:
        pattern = Regex(GGUF_PRE_TOKENIZER_SPLITS[kind])
        split = [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    elif kind not in _PLAIN:
        raise UserError(
            f"{where}: how text is split for {_OWN}pre {kind!r} is not known here; {_REMEDY}"
        )
    words = {word: number for number, word in enumerate(said[f"{_OWN}tokens"])}
    merges = [tuple(merge.split(" ")) for merge in said[f"{_OWN}merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pieces(said: Mapping[str, Any], where: Path) -> Tokenizer:
    """Build a SentencePiece vocabulary: the pair of the best score is merged first."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers.tokenization_utils_base import generate_merges

    tokens, types = _spelt(said), said[f"{_OWN}token_type"]
    words = {word: number for number, word in enumerate(tokens)}
    scores = dict(zip(tokens, said[f"{_OWN}scores"], strict=True))
    first = max(scores.values()) + 1
    control = set()
    for word, kind in zip(tokens, types, strict=True):
        if kind == _CONTROL:
            control.add(word)
        elif kind == _USER:  # whatever its score, it is found before any other piece
            scores[word] = first
    merges = generate_merges(words, scores, control)
    unknown = said.get(f"{_OWN}unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=words,
            merges=merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    before: list[Any] = [normalizers.Replace(" ", _BLANK)]
    after: list[Any] = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if said.get(f"{_OWN}add_space_prefix", True):
        before.insert(0, normalizers.Prepend(_BLANK))
        after.append(decoders.Strip(content=" ", left=1))
    tokenizer.normalizer = normalizers.Sequence(before)
    tokenizer.decoder = decoders.Sequence(after)
    return tokenizer


def _spelt(said: Mapping[str, Any]) -> list[str]:
    """Spell the file's tokens as the vocabulary does: Gemma's runs of blanks are stored as such."""
    tokens = said[f"{_OWN}tokens"]
    if said[f"{_OWN}model"] != "llama":
        return list(tokens)
    return [_BLANK * len(word) if word and not word.strip(" ") else word for word in tokens]


_BUILDERS = {"gpt2": _bytes, "llama": _pieces}


def _add_whole(tokenizer: Tokenizer, said: Mapping[str, Any]) -> None:
    """Have control and user-defined tokens matched whole in a text."""
    from tokenizers import AddedToken

    types = said.get(f"{_OWN}token_type") or ()
    for word, kind in zip(_spelt(said), types, strict=False):
        # A run of blanks is merged like any other piece.
        if kind in (_CONTROL, _USER) and word.strip(_BLANK):
            special = kind == _CONTROL
            tokenizer.add_tokens([AddedToken(word, normalized=False, special=special)])


def _begins(said: Mapping[str, Any]) -> bool:
    """Say whether a text begins with the BOS: as the file says, or as llama.cpp reads its silence.

    SentencePiece vocabularies begin with it, byte-level ones do not, but for Llama 3's.
    """
    usual = said[f"{_OWN}model"] == "llama" or said.get(f"{_OWN}pre") in _BEGINS
    return bool(said.get(f"{_OWN}add_bos_token", usual))


def _surround(tokenizer: Tokenizer, said: Mapping[str, Any]) -> list[str]:
    """Put the tokens around a text that the file asks for; return how a text then reads."""
    from tokenizers import processors

    tokens = said[f"{_OWN}tokens"]
    bos, eos = said.get(f"{_OWN}bos_token_id"), said.get(f"{_OWN}eos_token_id")
    before = [tokens[bos]] if bos is not None and _begins(said) else []
    after = [tokens[eos]] if eos is not None and said.get(f"{_OWN}add_eos_token", False) else []
    second = [f"{part}:1" for part in (*before, "$B", *after)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *second],
        special_tokens=[(tokens[number], number) for number in {bos, eos} - {None}],
    )
    return [*before, "text", *after]


def _check_tokens(tokenizer: Tokenizer, said: Mapping[str, Any], where: Path, remedy: str) -> None:
    """Refuse a tokenizer that has another number for one of the file's tokens."""
    tokens: Sequence[str] = _spelt(said)
    if (count := tokenizer.get_vocab_size(with_added_tokens=True)) != len(tokens):
        raise UserError(f"{where}: the file has {len(tokens):,} tokens, not {count:,}; {remedy}")
    for number, token in enumerate(tokens):
        if (found := tokenizer.id_to_token(number)) != token:
            raise UserError(
                f"{where}: token {number} is {found!r}, in the file {token!r}; {remedy}"
            )


def write_tokenizer(
    source: Path, said: Mapping[str, Any], folder: Path, given: Path | None = None
) -> str:
    """Write the tokenizer of a GGUF file into a folder.

    Args:
        source: The file, for messages.
        said: Its keys with their values.
        folder: An existing folder.
        given: A folder whose tokenizer is taken instead, if it has the file's tokens.

    Returns:
        What to say of it: which tokens it puts around a text.

    Raises:
        UserError: It cannot be written as the file means it.
    """
    from transformers import PreTrainedTokenizerFast

    if (kind := said.get(f"{_OWN}model")) is None or f"{_OWN}tokens" not in said:
        raise UserError(f"{source}: the file has no tokenizer; {_REMEDY}")
    if given is not None:
        own = load_tokenizer(given).backend_tokenizer
        _check_tokens(own, said, given, "give the tokenizer of the file's own model")
        copy_tokenizer(given, folder)
        return f"the tokenizer is that of {given}"
    if kind not in _BUILDERS:
        raise UserError(f"{source}: a tokenizer of the kind {kind!r} is not known here; {_REMEDY}")
    try:
        tokenizer = _BUILDERS[kind](said, source)
        _add_whole(tokenizer, said)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged vocabulary makes of it
        raise UserError(
            f"{source}: its tokenizer is damaged ({reason_of(error)}); {_REMEDY}"
        ) from None
    _check_tokens(tokenizer, said, source, _REMEDY)
    around = _surround(tokenizer, said)
    ids = {name: said.get(f"{_OWN}{key}_token_id") for name, key in _SPECIAL.items()}
    tokens = said[f"{_OWN}tokens"]
    named = {f"{name}_token": tokens[number] for name, number in ids.items() if number is not None}
    written = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named
    )
    written.chat_template = said.get("tokenizer.chat_template")
    written.save_pretrained(folder)
    return f"the tokenizer reads a text as {' '.join(around)}"
