"""lm-eval's `hf` model class, made quick for many small models that answer the same items.

What is asked and how it is scored stays lm-eval's. Three things are done otherwise, with the same
result: texts are encoded once and kept; the choices of an item share the computation of their
common beginning; greedy decoding runs without transformers' general generation loop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError

# Implementations of attention that accept a mask of any shape; flash attention does not.
_TAKES_MASKS = ("sdpa", "eager")


@dataclass
class _Batch:
    """Prompts with all their continuations, each prompt's in one row as a tree.

    Attributes:
        tokens: [rows, length], int64; each row holds every distinct token of a prompt's tree.
        depths: [rows, length], int64; a token's position in its own sequence.
        mask: [rows, 1, length, length], float32; 0 where a token sees another, which is where
            that one lies on its path to the root, else the lowest float.
        rows, columns: [scored], int64; where the prediction of each scored token is read.
        targets: [scored], int64; the scored tokens.
        owners: [scored], int64; the index of the request that each belongs to.
        count: Tokens that are not padding.
    """

    tokens: torch.Tensor
    depths: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    count: int


class _Tree:
    """The sequences of one prompt, merged where they begin alike."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.scored: list[tuple[int, int, int]] = []  # column, target, owner
        self._children: dict[tuple[int, int], int] = {}

    def add(self, context: Sequence[int], continuation: Sequence[int], owner: int) -> None:
        """Insert a sequence, whose last token needs no place because nothing follows it."""
        node = -1
        sequence = [*context, *continuation]
        for depth, token in enumerate(sequence):
            if depth >= len(context):
                self.scored.append((node, token, owner))
            if depth == len(sequence) - 1:
                break
            child = self._children.get((node, token))
            if child is None:
                child = self._children[node, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(depth)
            node = child


def _batch(trees: Sequence[_Tree]) -> _Batch:
    length = max(len(tree.tokens) for tree in trees)
    tokens = torch.zeros(len(trees), length, dtype=torch.int64)
    depths = torch.zeros(len(trees), length, dtype=torch.int64)
    seen = torch.zeros(len(trees), length, length, dtype=torch.bool)
    # Padding sees the first token: a softmax over nothing would be NaN, and NaN spreads.
    seen[:, :, 0] = True
    scored = []
    for row, tree in enumerate(trees):
        size = len(tree.tokens)
        tokens[row, :size] = torch.tensor(tree.tokens)
        depths[row, :size] = torch.tensor(tree.depths)
        for column, parent in enumerate(tree.parents):
            if parent >= 0:
                seen[row, column] = seen[row, parent]
            seen[row, column, column] = True
        scored += [(row, *item) for item in tree.scored]
    rows, columns, targets, owners = torch.tensor(scored).T.contiguous()
    mask = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
    count = sum(len(tree.tokens) for tree in trees)
    return _Batch(tokens, depths, mask.unsqueeze(1), rows, columns, targets, owners, count)


class _NotFinite(Exception):
    """A model's logits hold NaN or infinity."""


class BottleLM(HFLM):
    """An `hf` model that can change its weights while its items stay.

    Args:
        model: The first model to serve.
        tokenizer: The tokenizer that all models share; its begin-of-sequence token is put in
            front of every prompt once.
        batch_size: Rows a forward pass.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self._encoded: dict[tuple[str, bool], list[int]] = {}
        self._plans: dict[tuple, list[_Batch]] = {}
        self._ends: dict[str, torch.Tensor] = {}
        self.model_name = ""
        self.counted = {"requests": 0, "tokens": 0}

    def serve(self, model: PreTrainedModel, name: str) -> None:
        """Answer with another model of the same tokenizer from now on.

        Args:
            model: The model, in evaluation mode afterwards.
            name: What messages call it.
        """
        self._model = model.eval()
        self._config = model.config
        self._device = model.device
        self.model_name = name
        self.counted = {"requests": 0, "tokens": 0}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Encode a text once and remember it; see `TemplateLM.tok_encode`."""
        start = add_special_tokens is not False
        key = (string, start)
        if key not in self._encoded:
            ids = self.tokenizer.encode(string, add_special_tokens=False)
            self._encoded[key] = [self.prefix_token_id, *ids] if start else ids
        return self._encoded[key]

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode and pad from what is remembered; see `HFLM.tok_batch_encode`."""
        rows = [self.tok_encode(string)[-(left_truncate_len or 0) :] for string in strings]
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(rows), length, dtype=torch.int64)
        for index, row in enumerate(rows):
            place = slice(length - len(row), length) if padding_side == "left" else slice(len(row))
            ids[index, place] = torch.tensor(row)
            mask[index, place] = 1
        return ids, mask

    def _plan(self, requests: Sequence[Instance]) -> list[_Batch] | None:
        """Arrange requests in batches, or return None where lm-eval's own way must do it."""
        config = self.model.config
        if config._attn_implementation not in _TAKES_MASKS:
            return None
        window = min(self.max_length, getattr(config, "sliding_window", None) or self.max_length)
        # Items with equal prompts stay apart: one row of them all would be quadratically long.
        trees: dict[tuple, _Tree] = defaultdict(_Tree)
        for owner, request in enumerate(requests):
            context, continuation = request.args
            if context:
                before, after = self._encode_pair(context, continuation)
            else:
                before = [self.prefix_token_id]
                after = self.tok_encode(continuation, add_special_tokens=False)
            if len(before) + len(after) > window + 1:
                return None
            item = (request.task_name, request.doc_id)
            trees[item].add(before, after, owner)
        by_length = sorted(trees.values(), key=lambda tree: (-len(tree.tokens), tree.tokens))
        size = self.batch_size
        return [_batch(by_length[at : at + size]) for at in range(0, len(by_length), size)]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Score continuations; see `TemplateLM.loglikelihood`.

        Returns:
            Per request, the continuation's log-likelihood and whether it is the greedy one.

        Raises:
            UserError: A log-likelihood is NaN or infinite.
        """
        self.counted["requests"] += len(requests)
        key = tuple(request.args for request in requests)
        if key not in self._plans:
            self._plans[key] = self._plan(requests)
        plan = self._plans[key]
        answers = (
            super().loglikelihood(requests, disable_tqdm=True)
            if plan is None
            else self._run(plan, len(requests))
        )
        for request, (value, _) in zip(requests, answers, strict=True):
            if not abs(value) < float("inf"):
                raise self._not_finite(request.task_name)
        return answers

    @torch.inference_mode()
    def _run(self, plan: Sequence[_Batch], count: int) -> list[tuple[float, bool]]:
        total = torch.zeros(count, dtype=torch.float64)
        greedy = torch.ones(count, dtype=torch.bool)
        for batch in plan:
            logits = self.model(
                input_ids=batch.tokens.to(self.device),
                attention_mask=batch.mask.to(self.device, self.model.dtype),
                position_ids=batch.depths.to(self.device),
                use_cache=False,
            ).logits
            picked = logits[batch.rows, batch.columns].float()
            targets = batch.targets.to(picked.device)
            logprobs = picked.gather(1, targets[:, None])[:, 0] - picked.logsumexp(1)
            total.index_add_(0, batch.owners, logprobs.double().cpu())
            missed = (picked.argmax(1) != targets).cpu()
            greedy[batch.owners[missed]] = False
            self.counted["tokens"] += batch.count
        return list(zip(total.tolist(), greedy.tolist(), strict=True))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Generate answers, task by task; see `HFLM.generate_until`.

        Raises:
            UserError: A logit is NaN or infinite.
        """
        self.counted["requests"] += len(requests)
        by_task = defaultdict(list)
        for index, request in enumerate(requests):
            by_task[request.task_name].append(index)
        answers = [""] * len(requests)
        for task, indices in by_task.items():
            try:
                texts = super().generate_until([requests[i] for i in indices], disable_tqdm=True)
            except _NotFinite:
                raise self._not_finite(task) from None
            for index, text in zip(indices, texts, strict=True):
                answers[index] = text
        return answers

    def _not_finite(self, task: str | None) -> UserError:
        return UserError(
            f"model {self.model_name!r}, task {task}: the model's output is not finite; its "
            "weights hold NaN or overflow: build the model again or merge with a smaller scale"
        )

    def _ending_tokens(self, stop: str) -> torch.Tensor:
        """Tell which tokens of the vocabulary contain a one-character stop string."""
        if stop not in self._ends:
            tokens = ([index] for index in range(self.model.config.vocab_size))
            texts = self.tokenizer.batch_decode(list(tokens))
            self._ends[stop] = torch.tensor([stop in text for text in texts])
        return self._ends[stop]

    @torch.inference_mode()
    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation: Any
    ) -> torch.Tensor:
        end = self.tokenizer.eos_token
        strings = [string for string in stop if string != end]
        mask = generation.get("attention_mask")
        if generation.get("do_sample") or mask is None or any(len(s) != 1 for s in strings):
            return super()._model_generate(context, max_length, stop, **generation)
        ends = torch.zeros(self.model.config.vocab_size, dtype=torch.bool)
        ends[self.tokenizer.eos_token_id] = True
        for string in strings:
            ends |= self._ending_tokens(string)
        ends = ends.to(context.device)

        steps = max_length - context.shape[1]
        written = context.new_full((len(context), steps), self.tokenizer.pad_token_id)
        rows = torch.arange(len(context), device=context.device)
        tokens, positions = context, (mask.cumsum(1) - 1).clamp_min(0)
        cache = DynamicCache(config=self.model.config)
        for step in range(steps):
            self.counted["tokens"] += len(rows) if step else int(mask.sum())
            logits = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            if not torch.isfinite(logits).all():
                raise _NotFinite
            chosen = logits.argmax(1)
            written[rows, step] = chosen
            left = ~ends[chosen]
            if not left.all():
                if not left.any():
                    break
                rows, chosen, mask, positions = (x[left] for x in (rows, chosen, mask, positions))
                cache.batch_select_indices(left)
            tokens, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return torch.cat([context, written], dim=1)
