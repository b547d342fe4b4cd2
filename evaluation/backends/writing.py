"""Greedy decoding, by ways from the quickest to the one that needs nothing but a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from evaluation.backends.base import NotFinite, Prompt
from evaluation.backends.rows import Forward, padded

# How models call what they remember of the tokens that they have read.
_MEMORIES = ("past_key_values", "cache_params", "state", "mems")


class Writer:
    """Continues prompts until each answer is complete.

    Args:
        forward: The model.
        prompts: What to continue.
        complete: Says from a prompt's index and its answer whether the answer is complete.
        watch: Called with a prompt's index and the logits [vocabulary] that gave its next token.

    Attributes:
        answers: Tokens by prompt.
        read: Tokens that went through the model, without padding.
    """

    def __init__(
        self,
        forward: Forward,
        prompts: Sequence[Prompt],
        complete: Callable[[int, list[int]], bool],
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        self._forward = forward
        self._prompts = prompts
        self._complete = complete
        self._watch = watch
        self._done = [False] * len(prompts)
        self.answers: list[list[int]] = [[] for _ in prompts]
        self.read = 0

    @torch.inference_mode()
    def run(self, way: str) -> list[list[int]]:
        """Write by one of `WRITE_WAYS`; returns the answers.

        Raises:
            NotFinite: A logit of a row that is still writing is NaN or infinite.
        """
        if way in ("batch", "kept"):
            self._together(leave=way == "batch")
        elif way == "own":
            for row in range(len(self._prompts)):
                self._remembering(row)
        else:
            rows = list(range(len(self._prompts)))
            for group in [rows] if way == "anew" else [[row] for row in rows]:
                self._anew(group)
        return self.answers

    def _choose(self, rows: Sequence[int], logits: Tensor) -> tuple[Tensor, list[int]]:
        """Choose every row's next token.

        Returns:
            [rows], int64; and the places of rows that are not complete.
        """
        finite = torch.isfinite(logits).all(1).tolist()
        bad = [row for row, fine in zip(rows, finite, strict=True) if not fine]
        if bad := [row for row in bad if not self._done[row]]:
            raise NotFinite(min(bad))
        chosen = logits.argmax(1)
        going = []
        for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if self._done[row]:
                continue
            self.answers[row].append(token)
            if self._watch is not None:
                self._watch(row, logits[place])
            self._done[row] = self._complete(row, self.answers[row])
            if not self._done[row]:
                going.append(place)
        return chosen, going

    def _begun(self) -> tuple[Tensor, Tensor]:
        """Lay prompts out, padding first: every row's next token is in the last column."""
        length = max(len(prompt.tokens) for prompt in self._prompts)
        tokens = torch.zeros(len(self._prompts), length, dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(self._prompts):
            tokens[row, length - len(prompt.tokens) :] = torch.from_numpy(prompt.tokens)
            mask[row, length - len(prompt.tokens) :] = 1
        device = self._forward.model.device
        return tokens.to(device), mask.to(device)

    def _together(self, leave: bool) -> None:
        """Write all rows at once with a cache, which complete rows may leave."""
        tokens, mask = self._begun()
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        cache = DynamicCache(config=self._forward.model.config)
        rows = list(range(len(self._prompts)))
        self.read += int(mask.sum())
        while True:
            logits, _ = self._forward(
                tokens,
                1,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            chosen, going = self._choose(rows, logits[:, -1])
            if not going:
                return
            if leave and len(going) < len(rows):
                rows = [rows[place] for place in going]
                places = torch.tensor(going, device=mask.device)
                chosen, mask, positions = chosen[places], mask[places], positions[places]
                cache.batch_select_indices(places)
            tokens, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            self.read += len(going)

    def _remembering(self, row: int) -> None:
        """Write one row with the cache that the model itself makes."""
        tokens = torch.from_numpy(self._prompts[row].tokens)[None]
        memory: dict[str, Any] = {}
        while True:
            self.read += tokens.shape[1]
            logits, found = self._forward(tokens, 1, use_cache=True, **memory)
            chosen, going = self._choose([row], logits[:, -1])
            if not going:
                return
            name = next(n for n in _MEMORIES if getattr(found, n, None) is not None)
            memory = {name: getattr(found, name)}
            tokens = chosen[:, None]

    def _anew(self, rows: list[int]) -> None:
        """Write rows with no cache: everything is read again for each token."""
        while rows:
            sequences = [[*self._prompts[row].tokens.tolist(), *self.answers[row]] for row in rows]
            lengths = torch.tensor([len(sequence) for sequence in sequences])
            self.read += int(lengths.sum())
            keep, columns = (lengths - 1).unique(return_inverse=True)
            device = self._forward.model.device
            logits, _ = self._forward(padded(sequences), keep.to(device))
            picked = logits[torch.arange(len(rows), device=device), columns.to(device)]
            _, going = self._choose(rows, picked)
            rows = [rows[place] for place in going]
