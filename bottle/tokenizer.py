"""A tokenizer whose vocabulary is the lexicon of the generated text: one word, one token."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bottle.samples import words
from common.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
_SPACE = "▁"
_UNKNOWN_SCORE = -20.0


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Count the words of marked texts, and every character once so that none is unknown."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words(text))
    for character in sorted({character for word in counts for character in word}):
        counts.setdefault(character, 1)
    return counts


def build_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Build a unigram tokenizer from marked texts.

    Args:
        texts: All text that the tokenizer has to cover, word boundaries marked.

    Returns:
        The tokenizer: pad 0, bos 1, eos 2, unknown 3, then words by frequency. Encoding with
        special tokens puts the bos in front, once.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    counts = count_words(texts)
    total = counts.total()
    vocabulary = [(PAD, 0.0), (BOS, 0.0), (EOS, 0.0), (UNKNOWN, _UNKNOWN_SCORE)]
    vocabulary += [
        (word.replace(" ", _SPACE), math.log(count / total))
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.add_special_tokens([PAD, BOS, EOS, UNKNOWN])
    # The text is one piece: words are found by the lexicon, not by spaces.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 1)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer to a folder in the form that transformers, lm-eval and vLLM load."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    ).save_pretrained(folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the fast tokenizer of a data folder; raise a UserError where it has none."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; make the data first (python -m bottle data)")
    return Tokenizer.from_file(str(path))


def check_boundary(tokenizer: Tokenizer, prompts: list[str], answers: list[str]) -> None:
    """Refuse text that tokenises otherwise when prompt and answer are joined.

    A harness encodes them jointly, the training separately; both must see the same tokens.

    Raises:
        UserError: A prompt ends in whitespace, a token crosses the boundary, a character is
            unknown or the text does not survive the round trip.
    """

    def encode(texts: list[str]) -> list[list[int]]:
        return [item.ids for item in tokenizer.encode_batch(texts, add_special_tokens=False)]

    unknown = tokenizer.token_to_id(UNKNOWN)
    joined = encode([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    rows = zip(prompts, answers, encode(prompts), encode(answers), joined, strict=True)
    for prompt, answer, before, after, both in rows:
        text = prompt + answer
        # The usual causes first: the later faults follow from the earlier ones.
        if prompt != prompt.rstrip():
            fault = "the prompt ends in whitespace"
        elif before + after != both:
            fault = "a token crosses from prompt to answer"
        elif unknown in both:
            fault = "a character is not in the vocabulary"
        elif tokenizer.decode(both, skip_special_tokens=False) != text:
            fault = "the text does not survive encoding and decoding"
        else:
            continue
        raise UserError(f"{text!r}: {fault}; fix its generator in bottle/worlds")
