"""Comparison of Japanese texts: normal form, words, exact match and F1 over words."""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fugashi import Tagger

_PICTURES = (
    (0x1F600, 0x1F64F),
    (0x1F300, 0x1F5FF),
    (0x1F680, 0x1F6FF),
    (0x1F1E0, 0x1F1FF),
    (0x2702, 0x27B0),
)
_RANGE_MARK = "∶"  # neologdn leaves it as it is, and answers do not hold it
_TILDES = "~～〜∼˜⁓"
_NUMERALS = "0-9０-９〇一二三四五六七八九十百千万億"
_KANA = "ぁ-ゖァ-ヺー"
_RANGE = re.compile(
    rf"\s*[{_TILDES}]+\s*(?=[-+約第¥$￥＄]?[{_NUMERALS}])|(?<=[^\s{_KANA}])\s*[{_TILDES}]\s*(?=\w)"
)
_WIDE_SIGN = re.compile(r"[－−‐‑‒–—](?=[0-9０-９])|(?<=[0-9０-９])ー(?=[0-9０-９])")
_THOUSANDS = re.compile(r"(?<=[0-9０-９])[,，](?=[0-9０-９]{3}(?![0-9０-９]))")
_PUNCTUATION = frozenset(
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰"
    "〾〿–—‘’‛“”„‟…‧﹏." + _RANGE_MARK + string.punctuation
)


def normal(text: str) -> str:
    """Bring a text into the form in which answers are compared.

    Returns:
        The text without emoji, in neologdn's normal form (widths, long vowels, dashes), each run
        of whitespace one space, none at the ends. Upper and lower case stay.

    Source: the metric JaSQuAD of the JP Language Model Evaluation Harness.
    """
    import emoji
    import neologdn

    def is_picture(character: str) -> bool:
        code = ord(character)
        return emoji.is_emoji(character) or any(low <= code <= high for low, high in _PICTURES)

    kept = "".join(character for character in text if not is_picture(character))
    return " ".join(neologdn.normalize(kept).split())


def with_numbers(text: str) -> str:
    """Write ranges, signs and thousands so that `normal` neither deletes nor changes them.

    `normal` deletes every tilde, which makes 23 of 2~3, and takes a full-width minus for a long
    vowel. A tilde that lengthens a vowel (すご〜い) or ends a text is left to it.

    Returns:
        The text with ∶ for the tilde of a range, ASCII signs in front of digits, and thousands
        without commas.
    """
    text = _WIDE_SIGN.sub("-", text)
    text = _THOUSANDS.sub("", text)
    return _RANGE.sub(_RANGE_MARK, text)


@functools.cache
def _tagger() -> Tagger:
    from fugashi import Tagger

    return Tagger("-Owakati")


def words(text: str) -> list[str]:
    """Split a text's normal form into MeCab's words, by the dictionary unidic-lite."""
    return _tagger().parse(normal(text)).split()


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """Return 1.0 if an answer equals any of the right ones in normal form, else 0.0."""
    return float(normal(answer) in {normal(gold) for gold in golds})


def f1(answer: str, golds: Sequence[str]) -> float:
    """Measure how many words an answer shares with the right ones.

    Returns:
        The highest F1 over the golds, in [0, 1], of the bags of words without punctuation.

    Source: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text".
    """
    written = _bag(answer)
    return max(_f1(written, _bag(gold)) for gold in golds)


def _bag(text: str) -> Counter[str]:
    return Counter(word for word in words(text) if word not in _PUNCTUATION)


def _f1(written: Counter[str], expected: Counter[str]) -> float:
    shared = (written & expected).total()
    return 2 * shared / (written.total() + expected.total()) if shared else 0.0
