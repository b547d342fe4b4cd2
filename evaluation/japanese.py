"""Comparison of Japanese texts: normal form, words, exact match and F1 over words."""

from __future__ import annotations

import functools
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
_PUNCTUATION = frozenset(
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰"
    "〾〿–—‘’‛“”„‟…‧﹏." + string.punctuation
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
