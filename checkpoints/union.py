"""A tokenizer that knows a base's tokens, by their ids, and other models' tokens behind them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.companions import companions_of
from checkpoints.layout import read_object
from checkpoints.tokens import CONFIG, TOKENIZER, Tokens, kind_of, merges_of
from common.errors import UserError

# Other forms of the base's vocabulary, which would contradict the new one.
_STALE = (
    *("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt"),
    *("added_tokens.json", "tekken.json"),
)
_STALE_KINDS = (".model", ".tiktoken", ".spm")
_LESS_LIKELY = 10.0  # in log probability: far below any token that words are cut into


@dataclass(frozen=True)
class NewToken:
    """A token that the base lacks.

    Attributes:
        text: The token.
        id: Its id in the result.
        source: The vocabulary that it comes from.
        name: The model of that vocabulary, for messages.
    """

    text: str
    id: int
    source: Tokens
    name: str

    @property
    def added(self) -> bool:
        """Whether the token is found in the text before words are cut."""
        return self.text in self.source.added


def _alphabet(content: dict[str, Any]) -> bool:
    """Return whether a tokenizer spells bytes by printable characters, as GPT-2's does."""
    return '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("decoder")])


def _texts(described: Sequence[dict[str, Any]]) -> set[str]:
    return {item["content"] for item in described}


def _check_kinds(base: Tokens, token: NewToken) -> None:
    ours, theirs = kind_of(base.content), kind_of(token.source.content)
    if ours != theirs or _alphabet(base.content) != _alphabet(token.source.content):
        raise UserError(
            f"expert {token.name}: its tokenizer ({theirs}) spells tokens such as {token.text!r} "
            f"in another way than the base's ({ours}), and cannot be united with it; choose the "
            "vocabulary policy base"
        )


def _extend_unigram(model: dict[str, Any], base: Tokens, new: Sequence[NewToken]) -> None:
    """Append to a list whose positions are the ids, so that it may leave none out."""
    vocabulary, texts = model["vocab"], base.by_id()
    lowest = min((score for _, score in vocabulary), default=0.0) - _LESS_LIKELY
    for place in range(len(vocabulary), new[0].id):
        if place not in texts:
            raise UserError(f"the base's tokenizer leaves id {place} out and cannot be extended")
        vocabulary.append([texts[place], lowest])
    scores = {
        id(token.source): dict(map(tuple, token.source.content["model"]["vocab"]))
        for token in {id(token.source): token for token in new if not token.added}.values()
    }
    for token in new:
        score = lowest if token.added else scores[id(token.source)][token.text]
        vocabulary.append([token.text, score])


def _extend_merges(model: dict[str, Any], ordinary: Sequence[NewToken]) -> None:
    """Append the merges that make new tokens of known ones, behind the base's: they come last."""
    wanted = {token.text for token in ordinary}
    merges = model.setdefault("merges", [])
    known, as_text = set(merges_of(model)), bool(merges) and isinstance(merges[0], str)
    for source in {id(token.source): token.source for token in ordinary}.values():
        for pair in merges_of(source.content["model"]):
            fits = "".join(pair) in wanted and all(part in model["vocab"] for part in pair)
            if fits and pair not in known:
                known.add(pair)
                merges.append(" ".join(pair) if as_text else list(pair))


def _verify(text: str, base: Tokens, new: Sequence[NewToken]) -> None:
    from tokenizers import Tokenizer

    try:
        ids = Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library has no narrower type
        reason = (str(error).splitlines() or ["?"])[0]
        raise UserError(f"the united tokenizer cannot be read ({reason}); choose base") from None
    for token, number in [*base.ids.items(), *((item.text, item.id) for item in new)]:
        if ids.get(token) != number:
            raise UserError(
                f"the united tokenizer gives token {token!r} id {ids.get(token)} instead of "
                f"{number}; choose the vocabulary policy base"
            )


def output_tokenizer(
    folders: Sequence[Path], base: Tokens, new: Sequence[NewToken]
) -> dict[str, bytes | None]:
    """Make the tokenizer files of a result whose vocabulary is a union.

    The base's ids and its way of cutting words stay. Tokens that other models had added come to
    the added ones. Their ordinary tokens come into the model of words: with the merges that lead
    to them, after all of the base's (BPE), or with their own scores (Unigram).

    Args:
        folders: The base's folder, and those of adapters on it.
        base: Its vocabulary.
        new: The tokens to append, with consecutive ids from the base's highest on.

    Returns:
        By file name, what the result must hold instead of the base's file; None for a file that
        it must not hold. Nothing where there is no new token.

    Raises:
        UserError: The tokenizers work too differently to be united.
    """
    if not new:
        return {}
    content = copy.deepcopy(base.content)
    model, ordinary = content["model"], [token for token in new if not token.added]
    for token in ordinary:
        _check_kinds(base, token)
    described = [dict(item) for item in content.get("added_tokens") or []]
    described += [item for text, item in base.added.items() if text not in _texts(described)]
    described += [
        {**token.source.added[token.text], "id": token.id} for token in new if token.added
    ]
    content["added_tokens"] = described
    if ordinary and isinstance(model["vocab"], list):
        _extend_unigram(model, base, new)
    elif ordinary:
        # Tokenizers numbers added tokens from the model's size on, which grows here: ids written
        # into the model itself stay.
        model["vocab"] |= base.ids | {token.text: token.id for token in new}
        if kind_of(content) == "BPE":
            _extend_merges(model, ordinary)
    text = json.dumps(content, ensure_ascii=False, indent=1)
    _verify(text, base, new)
    files: dict[str, bytes | None] = {TOKENIZER: text.encode()}
    held = companions_of(folders).files
    settings = read_object(held[CONFIG]) if CONFIG in held else {}
    if isinstance(settings.get("added_tokens_decoder"), dict):
        for token in (token for token in new if token.added):
            item = {k: v for k, v in token.source.added[token.text].items() if k != "id"}
            settings["added_tokens_decoder"][str(token.id)] = item
        files[CONFIG] = json.dumps(settings, ensure_ascii=False, indent=1).encode()
    stale = (name for name in held if name in _STALE or name.endswith(_STALE_KINDS))
    return files | dict.fromkeys(stale)
