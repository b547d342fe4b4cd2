"""Which quick ways of scoring and writing are right for a model: tried once, on itself.

Sharing beginnings and decoding in batches trust that a model obeys masks, positions and caches, and
not every architecture does. Each way is compared with single plain passes of the model: no cache,
no mask, no batch. The quickest way that agrees is taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError, reason_of
from evaluation.backends import rows
from evaluation.backends.base import NotFinite, Pair, Prompt
from evaluation.backends.rows import Forward
from evaluation.backends.writing import Writer

# Quickest first. The last of each is a plain pass itself, and right by definition.
SCORE_WAYS = {
    "trees": "choices share their item's text",
    "rows": "a padded row for each choice",
    "alone": "a pass for each choice",
}
WRITE_WAYS = {
    "batch": "a batch with a cache",
    "kept": "a batch with a cache, in which complete answers stay",
    "own": "one answer at a time, with the model's own cache",
    "anew": "a batch that is read again for each token",
    "alone": "one answer at a time, read again for each token",
}
# Types whose long-range features (windows, chunks) the walk of tests/evaluation/test_walk.py tried
# with texts beyond them, and found right by the quickest ways: they need no long probe.
WALKED = frozenset(
    (
        *("cohere2", "exaone4", "gemma2", "gemma3_text", "gpt_oss"),
        *("ministral", "mistral", "mixtral", "olmo3", "phi3", "qwen2", "qwen2_moe", "qwen3"),
        *("qwen3_moe", "starcoder2"),
    )
)
_LENGTH = 72  # tokens of a probe's text; some recurrent layers work in chunks of 64
_LONGEST = 1100  # how far a probe goes beyond a feature that the config.json names
_FEATURES = re.compile(r"window|chunk|local|block_size|index_topk")
# By type of the weights: how far logits may be from those of a plain pass, as a share of their
# standard deviation. Rounding makes a tenth of that, wrong positions a multiple.
_TOLERANCE = {torch.float32: 3e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}
_ROUNDING = 1e-5  # nats; of a log-probability of about 10 in float32


@dataclass(frozen=True)
class Ways:
    """How a model is read.

    Attributes:
        score: One of `SCORE_WAYS`.
        write: One of `WRITE_WAYS`.
        most: The longest text, in tokens, for which this holds; a longer one is read by the plain
            ways. None: any.
    """

    score: str = "trees"
    write: str = "batch"
    most: int | None = None

    def beyond(self, length: int) -> bool:
        """Say whether a text of this many tokens is too long for these ways."""
        return self.most is not None and length > self.most

    def note(self, name: str, kind: str) -> str | None:
        """Say in a line what is slower than usual, and why."""
        slower = []
        if self.score != "trees":
            slower.append(f"log-likelihoods take {SCORE_WAYS[self.score]}")
        if self.write != "batch":
            slower.append(f"answers are written as {WRITE_WAYS[self.write]}")
        said = " and ".join(slower)
        if self.most is not None:
            beyond = f"texts of more than {self.most} tokens are read one at a time without a cache"
            said = f"{said}; {beyond}" if said else beyond
        if not said:
            return None
        return (
            f"model {name!r} ({kind}): the quicker ways differ from its plain forward pass: {said}"
        )


def _integers(config: Any, wanted: re.Pattern[str]) -> set[int]:
    """Collect the numbers that a configuration gives under names with a word."""
    found: set[int] = set()
    if isinstance(config, dict):
        for key, value in config.items():
            if type(value) is int and wanted.search(str(key)):
                found.add(value)
            found |= _integers(value, wanted)
    return found


def _switch(config: dict[str, Any]) -> int | None:
    """Return the length from which positions are encoded otherwise, for all rows of a batch."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else None
    if kind not in ("longrope", "dynamic"):
        return None
    return (
        rope.get("original_max_position_embeddings")
        or config.get("original_max_position_embeddings")
        or config.get("max_position_embeddings")
    )


class _Text:
    """Tokens to try a model with, the same at every call; no special ones."""

    def __init__(self, config: dict[str, Any], vocabulary: int) -> None:
        special = _integers(config, re.compile("token"))
        known = [token for token in range(min(vocabulary, 30000)) if token not in special]
        self._known = torch.tensor(known or [0])
        self._draw = torch.Generator().manual_seed(0)

    def tokens(self, count: int) -> list[int]:
        """Draw tokens."""
        places = torch.randint(len(self._known), (count,), generator=self._draw)
        return self._known[places].tolist()


def _pairs(text: _Text, lengths: Sequence[int], room: int, most: int) -> list[Pair]:
    """Make items of three choices of unlike lengths behind texts of these lengths.

    `room` is the length of ordinary choices, `most` of a text with its choice.
    """
    pairs = []
    for item, length in enumerate(lengths):
        before, shared = text.tokens(length), text.tokens(1)
        # A long choice moves those that are laid out behind it away from their text, by half a
        # window where the text passes one. Where attention is sharp, few tokens meet what the
        # move hides: the last choice is long too.
        far = max(1, min(length // 2, most - length))
        for count in (far, 1, far) if length > _LENGTH else (min(3, room), 1, min(5, room)):
            after = (shared * (count > 1) + text.tokens(count))[:count]
            pairs.append(Pair(item, before, after))
    return pairs


def _prompts(text: _Text, lengths: Sequence[int], room: int) -> list[Prompt]:
    """Make prompts of these lengths whose answers end at different times."""
    limits = (8, 3, 6, 1)
    return [
        Prompt(np.array(text.tokens(length), np.int32), (), min(limits[n % 4], room))
        for n, length in enumerate(lengths)
    ]


class Probe:
    """Finds the ways for one model.

    Args:
        forward: The model.
        window: The most tokens that it reads.
        vocabulary: How many tokens it knows.
        trees: Scores pairs by `trees`; None where the model does not take what that needs.

    Raises:
        UserError: Not even a plain pass works, or what the model predicts at a place depends on
            what follows: it is no left-to-right language model.
    """

    def __init__(
        self,
        forward: Forward,
        window: int,
        vocabulary: int,
        trees: Callable[[Sequence[Pair]], list[tuple[float, bool]]] | None,
    ) -> None:
        self._forward, self._vocabulary, self._trees = forward, vocabulary, trees
        self._config = forward.model.config.get_text_config().to_dict()
        self.kind = forward.model.config.model_type
        self._text = _Text(forward.model.config.to_dict(), vocabulary)
        room = max(1, min(8, window // 4))
        base = max(1, min(_LENGTH, window - room - 1))
        features = {n for n in _integers(self._config, _FEATURES) if base < n < window}
        features = set() if self._config.get("model_type") in WALKED else features
        tried = sorted(n for n in features if n <= min(_LONGEST, window - 2 * room))[-3:]
        far = [n for n in features if n > _LONGEST]
        switch = _switch(self._config)
        far += [switch] if switch and switch < window else []
        self._most = min(far) if far else None
        short = [max(1, base // 3), base, max(1, base // 9), max(1, base // 2)]
        self._pairs = _pairs(self._text, [n + room for n in tried] + short[:3], room, window)
        # Half of the answers begin before a feature's length and end behind it.
        across = [m for n in tried for m in (n + room, max(1, n - room // 2))]
        self._prompts = _prompts(self._text, across + short, room)

    def find(self) -> Ways:
        """Return the quickest ways that agree with plain passes."""
        self._check_direction()
        with _in_float32(self._forward.model) as exact:
            scores, writes = self._agreeing(list(SCORE_WAYS), list(WRITE_WAYS), first=not exact)
        if exact:  # the quickest must also run in the model's own type
            scores, writes = self._agreeing(scores, writes, first=True)
        return Ways(scores[0], writes[0], self._most)

    def _agreeing(
        self, scores: list[str], writes: list[str], first: bool
    ) -> tuple[list[str], list[str]]:
        plain = self._plain()
        return (
            _filtered(scores, lambda way: self._scores_alike(way, plain), first),
            _filtered(writes, self._writes_alike, first),
        )

    @torch.inference_mode()
    def _logits(self, tokens: Sequence[int], keep: int) -> Tensor:
        """Return what one plain pass predicts at the last places, [keep, vocabulary], float32."""
        return self._forward(torch.tensor([list(tokens)]), keep)[0][0].float()

    def _check_direction(self) -> None:
        sequence = self._text.tokens(max(2, min(12, len(self._prompts[0].tokens))))
        half = max(1, len(sequence) * 2 // 3)
        try:
            whole = self._logits(sequence, len(sequence))[:half]
            part = self._logits(sequence[:half], half)
        except Exception as error:  # whatever an architecture makes of plain tokens
            raise UserError(
                f"transformers' forward pass of type {self.kind} fails on plain text "
                f"({reason_of(error)}); choose a model that continues text"
            ) from None
        if whole.isfinite().all() and part.isfinite().all() and not self._close(whole, part):
            raise UserError(
                f"type {self.kind} is no left-to-right language model: what it predicts at a place "
                "changes with the text behind it; choose a causal model"
            )

    def _close(self, found: Tensor, expected: Tensor) -> bool:
        """Compare logits [n, vocabulary], of which a constant for each place does not count."""
        difference = found.log_softmax(-1) - expected.log_softmax(-1)
        allowed = self._allowed(expected)
        # A single place may meet an expert that rounding chose; a wrong mask shows at most places.
        far = difference.square().mean(-1).sqrt()
        exact = self._forward.model.dtype == torch.float32
        return bool((far.max() if exact else far.median()) <= allowed)

    def _allowed(self, logits: Tensor) -> float:
        share = _TOLERANCE.get(self._forward.model.dtype, 3e-4)
        return share * float(logits.std(-1).mean()) + _ROUNDING

    def _plain(self) -> list[tuple[float, float] | None]:
        """Score the probe's pairs by single passes: log-likelihoods and how far others may be."""
        found: list[tuple[float, float] | None] = []
        for pair in self._pairs:
            logits = self._logits([*pair.before, *pair.after][:-1], len(pair.after))
            values, _ = rows.chosen_logprobs(logits, torch.tensor(pair.after, device=logits.device))
            total = float(values.sum())
            room = self._allowed(logits) * len(pair.after)
            found.append((total, room) if np.isfinite(total) else None)
        return found

    def _scores_alike(self, way: str, plain: list[tuple[float, float] | None]) -> bool:
        if way == "trees":
            if self._trees is None:
                return False
            found = self._trees(self._pairs)
        else:
            size = len(self._pairs) if way == "rows" else 1
            found = rows.score(self._forward, self._pairs, size, self._vocabulary)
        return all(
            expected is None or abs(value - expected[0]) <= expected[1]
            for (value, _), expected in zip(found, plain, strict=True)
        )

    def _writes_alike(self, way: str) -> bool:
        """Write by a way, and compare the logits of each step with one pass over the result."""
        seen: list[list[Tensor]] = [[] for _ in self._prompts]
        prompts = self._prompts
        writer = Writer(
            self._forward,
            prompts,
            lambda row, answer: len(answer) >= prompts[row].limit,
            lambda row, logits: seen[row].append(logits.float()),
        )
        try:
            answers = writer.run(way)
        except NotFinite:
            return True  # the evaluation says so itself
        for prompt, answer, logits in zip(prompts, answers, seen, strict=True):
            text = [*prompt.tokens.tolist(), *answer][:-1]
            if not self._close(torch.stack(logits), self._logits(text, len(answer))):
                return False
        return True


def _filtered(ways: list[str], agrees: Callable[[str], bool], first: bool) -> list[str]:
    """Keep the ways that agree, with `first` no more than one; the last is taken on trust."""
    kept = []
    for way in ways[:-1]:
        # A way that fails with an error does not agree either, whatever the error is.
        with contextlib.suppress(Exception):
            if agrees(way):
                kept.append(way)
                if first:
                    return kept
    return [*kept, ways[-1]]


@contextlib.contextmanager
def _in_float32(model: torch.nn.Module) -> Iterator[bool]:
    """Give a model of half precision float32 for the length of a `with` block, if memory allows.

    Half precision hides small faults behind its rounding; the way there and back loses nothing.

    Yields:
        Whether the model was of half precision and is not now.
    """
    halves = (torch.float16, torch.bfloat16)
    held = {
        id(tensor): (tensor, tensor.dtype)
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.dtype in halves
    }
    need = 4 * sum(tensor.numel() for tensor, _ in held.values())
    device = next(model.parameters()).device
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )
    if not held or need > free // 2:
        yield False
        return
    try:
        for tensor, _ in held.values():
            tensor.data = tensor.data.float()
        yield True
    finally:
        for tensor, dtype in held.values():
            tensor.data = tensor.data.to(dtype)


_known: dict[str, Ways] = {}  # by architecture: weights do not decide which ways are right


def ways_of(
    forward: Forward,
    window: int,
    vocabulary: int,
    trees: Callable[[Sequence[Pair]], list[tuple[float, bool]]] | None,
) -> Ways:
    """Return the ways for a model, which are tried once for each architecture; see `Probe`."""
    model = forward.model
    config = {k: v for k, v in model.config.to_dict().items() if not str(k).startswith("_name")}
    about = [config, str(model.dtype), str(model.device), window, trees is None]
    key = json.dumps(about, sort_keys=True, default=str)
    if key not in _known:
        _known[key] = Probe(forward, window, vocabulary, trees).find()
    return _known[key]
