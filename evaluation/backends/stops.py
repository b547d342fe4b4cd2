"""When an answer is complete: tokens that end it, and strings looked for in its text."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evaluation.backends.tokenisation import stop_tokens
from evaluation.ends import ENDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Ending:
    """What ends an answer: a token, or a text, looked at after the tokens in `holding` alone.

    A text ends that holds one of the strings, or that `ends` (of `ENDS`) takes for complete.
    """

    tokens: frozenset[int]
    holding: frozenset[int]
    strings: tuple[str, ...]
    ends: str | None = None


class Endings:
    """Knows, for a tokenizer, which answers are complete."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens_with = functools.cache(self._list_tokens_with)
        self.ending = functools.cache(self._ending)

    @functools.cached_property
    def _texts(self) -> list[str]:
        """Each token's text, as it is behind another."""
        tokenizer = self._tokenizer
        # A token's text depends on whether another one precedes it.
        front = tokenizer.encode("a", add_special_tokens=False)[-1:]
        length = len(tokenizer.decode(front))
        pairs = [[*front, token] for token in range(len(tokenizer))]
        return [text[length:] for text in tokenizer.batch_decode(pairs)]

    def _list_tokens_with(self, character: str) -> frozenset[int]:
        """List the tokens that may bring a character into a text."""
        # Characters beyond ASCII may be put together from tokens of single bytes.
        parts = (character,) if character.isascii() else (character, "\ufffd")
        texts = enumerate(self._texts)
        return frozenset(token for token, text in texts if any(part in text for part in parts))

    def _ending(
        self,
        kind: tuple[tuple[str, ...], bool, str | None],
        last: tuple[int, ...],
    ) -> Ending:
        stops, past_end, ends = kind
        tokens, strings = stop_tokens(self._tokenizer, stops, past_end)
        tokens |= set() if past_end else set(last)
        marks = [*strings, *(ENDS[ends][0] if ends else ())]
        holding = frozenset().union(*(self._tokens_with(mark[-1]) for mark in marks))
        return Ending(frozenset(tokens), holding, tuple(strings), ends)

    def said(self, answer: Sequence[int], ending: Ending) -> bool:
        """Say whether an answer's text is complete."""
        text = self._tokenizer.decode(list(answer), skip_special_tokens=True)
        if any(string in text for string in ending.strings):
            return True
        return ending.ends is not None and ENDS[ending.ends][1](text)


def end_tokens(given: int | list[int] | None) -> tuple[int, ...]:
    """Return the end tokens of a model's settings as a tuple."""
    return tuple(given if isinstance(given, list) else [] if given is None else [given])


def table(tokens: frozenset[int], vocabulary: int) -> torch.Tensor:
    """Return [vocabulary], bool: which tokens are among these."""
    found = torch.zeros(vocabulary, dtype=torch.bool)
    found[[token for token in tokens if token < vocabulary]] = True
    return found
