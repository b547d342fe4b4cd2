"""How texts become tokens and tokens become answers: the same for every backend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HOW = ("separate", "joint")


@dataclass(frozen=True)
class Rule:
    """How a context and the continuation that is scored after it become tokens.

    Attributes:
        how: ``separate``: the continuation is encoded as a text by itself. ``joint``: both as one
            text, cut after as many tokens as the context has alone; whitespace at the context's
            end counts to the continuation.
        bos: Whether the begin-of-sequence token comes first, once, if the tokenizer puts one in
            front of a text. Some have one and put none: such models never saw it there.

    Raises:
        UserError: `how` is neither.

    Source: separate, without BOS: the JP Language Model Evaluation Harness; joint: lm-eval 0.4.
    """

    how: str
    bos: bool

    def __post_init__(self) -> None:
        if self.how not in _HOW:
            raise UserError(f"no tokenisation called {self.how!r}{nearest(self.how, _HOW)}")


PUBLISHED = Rule("separate", bos=False)
CORRECTED = Rule("joint", bos=True)


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether a tokenizer puts its begin-of-sequence token in front of a text."""
    begin = tokenizer.bos_token_id
    return begin is not None and list(tokenizer("a")["input_ids"])[:1] == [begin]


class Encoder:
    """Applies a rule with a tokenizer, without the special tokens that it adds by itself.

    Attributes:
        prefix: The token in the place of an empty context: BOS under a rule with BOS, else EOS;
            where the tokenizer lacks the one, the other.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rule: Rule) -> None:
        self.tokenizer = tokenizer
        self.rule = rule
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._start = [begin] if rule.bos and begins_with_bos(tokenizer) else []
        preferred = (begin, end) if rule.bos else (end, begin)
        known = [token for token in preferred if token is not None]
        if not known:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path}: it names no bos_token and no eos_token, "
                "and prompts need one; add one to its tokenizer_config.json"
            )
        self.prefix: int = known[0]
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Encode a text without special tokens."""
        if text not in self._known:
            return self.tokenizer.encode(text, add_special_tokens=False)
        return self._known[text]

    @contextlib.contextmanager
    def knowing(self, requests: Iterable[tuple[str, str]]) -> Iterator[None]:
        """Encode what requests need at once, and keep it for the length of a `with` block.

        Args:
            requests: Contexts and continuations; a prompt's continuation is empty.
        """
        texts: dict[str, None] = {}
        for context, continuation in requests:
            joint = self.rule.how == "joint" and bool(context and continuation)
            wanted = (
                (context + continuation, context.rstrip()) if joint else (context, continuation)
            )
            texts |= dict.fromkeys(wanted)
        # One by one, the calls would take longer than the work.
        batch = (
            self.tokenizer(list(texts), add_special_tokens=False) if texts else {"input_ids": []}
        )
        self._known = dict(zip(texts, batch["input_ids"], strict=True))
        try:
            yield
        finally:
            self._known = {}

    def _begun(self, text: str) -> list[int]:
        """Encode a text with BOS in front, unless the text already says it."""
        ids = self.encode(text)
        return ids if ids[:1] == self._start else self._start + ids

    def encode_prompt(self, text: str) -> list[int]:
        """Encode what an answer is generated after; at least one token."""
        return self._begun(text) or [self.prefix]

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encode a context, which may be empty, and the continuation to be scored.

        Returns:
            The tokens of both, each at least one. If the continuation melts into the context's
            last token, that token is scored.

        Raises:
            UserError: The continuation has no tokens.
        """
        if not context:
            before, after = [self.prefix], self.encode(continuation)
        elif self.rule.how == "separate":
            before, after = self.encode_prompt(context), self.encode(continuation)
        else:
            # Trailing whitespace would often be one token with the word that follows.
            stem = context.rstrip()
            whole, before = self._begun(context + continuation), self._begun(stem)
            after = whole[len(before) :]
            if not after and continuation:
                before, after = whole[:-1], whole[-1:]
            before = before or [self.prefix]
        if not after:
            raise UserError(
                f"nothing to score: the answer {continuation!r} has no tokens; leave it out or "
                "correct the item"
            )
        return before, after


def stop_tokens(
    tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], past_end: bool = False
) -> tuple[set[int], list[str]]:
    """Divide stop strings into special tokens and others.

    Returns:
        The tokens that end a text, the end-of-sequence token among them unless `past_end`, and the
        strings that have to be looked for in the text.
    """
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    tokens = {special[stop] for stop in stops if stop in special}
    if tokenizer.eos_token_id is not None and not past_end:
        tokens.add(tokenizer.eos_token_id)
    return tokens, [stop for stop in stops if stop and stop not in special]


def answer_text(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int],
    stops: Sequence[str],
    past_end: bool = False,
) -> str:
    """Turn generated tokens into the answer: the text in front of the first stop string.

    Special tokens are left out, unless `past_end` says that they are text.
    """
    text = tokenizer.decode(list(tokens), skip_special_tokens=not past_end)
    for stop in stops:
        if stop:
            text = text.split(stop, 1)[0]
    return text
