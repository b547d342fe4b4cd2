"""lm-eval's `hf` model class, made quick for many models that answer the same items.

What is asked and how it is scored stays lm-eval's. Three things are done otherwise, with the same
result: texts are encoded once and kept; the choices of an item share the computation of their
common beginning; greedy decoding runs without transformers' general generation loop.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.loading import load_causal
from checkpoints.reading import Checkpoint
from common.cost import count_mapped
from evaluation.backends import trees
from evaluation.backends.base import Backend, NotFinite, Pair, Prompt
from evaluation.backends.stops import Ending, Endings, end_tokens
from evaluation.backends.tokenisation import CORRECTED, Rule

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Implementations of attention that accept a mask of any shape; flash attention does not.
_TAKES_MASKS = ("sdpa", "eager")
_LAYERS = {"full_attention", "sliding_attention"}


def load_model(
    folder: Path | str, dtype: str = "float32", device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """Load a model for evaluation, its weights as float32, bfloat16 or float16.

    Raises:
        UserError: As `load_causal`.
    """
    # transformers maps the shards into memory.
    count_mapped(sum(shard.stat().st_size for shard in Checkpoint(folder).shards))
    return load_causal(folder, dtype=DTYPES[dtype]).to(device).eval()


class HFBackend(Backend, HFLM):
    """An `hf` model that can change its weights while its items stay.

    Args:
        model: The first model to serve, or its folder.
        tokenizer: The tokenizer that all models share.
        batch_size: The most rows a forward pass.
        rule: How contexts and continuations are tokenised.
        max_length: The most tokens that the model reads at once; None for what it was made for.
        dtype, device: Of models that are given as folders.
        name: The first model's name in messages.
    """

    def __init__(
        self,
        model: PreTrainedModel | Path | str,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        rule: Rule = CORRECTED,
        max_length: int | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        name: str = "model",
    ) -> None:
        self._as_given = (dtype, device)
        # lm-eval's cache of one-token answers misreads contexts that are another context plus
        # its answer.
        HFLM.__init__(
            self,
            pretrained=self._loaded(model),
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            logits_cache=False,
        )
        self._endings = Endings(tokenizer)
        self._prepare(rule, name)

    def _loaded(self, model: PreTrainedModel | Path | str) -> PreTrainedModel:
        return model if isinstance(model, PreTrainedModel) else load_model(model, *self._as_given)

    def serve(self, model: PreTrainedModel | Path | str, name: str) -> None:
        """Answer with another model of the same tokenizer; see `Backend.serve`."""
        if not isinstance(model, PreTrainedModel):
            self.close()  # two models at once may not fit
        self._model = self._loaded(model).eval()
        self._config = self._model.config
        self._device = self._model.device
        self._begin(name)

    def close(self) -> None:
        """Release the model."""
        self._model = None

    @property
    def window(self) -> int:
        """The most tokens that the model reads at once."""
        return self.max_length

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model knows."""
        return self.model.config.get_text_config().vocab_size

    @property
    def parameters(self) -> int:
        """Number of the model's parameters."""
        return self.model.num_parameters()

    @property
    def dtype(self) -> str:
        """The type that the model computes with, such as ``float32``."""
        return str(self.model.dtype).removeprefix("torch.")

    def _grows_trees(self) -> bool:
        """Say whether the model obeys any mask and any positions that it is given."""
        config = self.model.config
        return (
            config._attn_implementation in _TAKES_MASKS
            and set(getattr(config, "layer_types", None) or ()) <= _LAYERS
            and not getattr(config, "alibi", False)
            and "position_ids" in inspect.signature(self.model.forward).parameters
        )

    def _layout(self) -> bool:
        return self._grows_trees()

    def _arrange(self, pairs: Sequence[Pair]) -> Any:
        if not self._grows_trees():
            return list(pairs)
        return trees.plan(pairs, self.batch_size, self.vocabulary)

    def _score(self, arranged: Any, count: int) -> list[tuple[float, bool]]:
        if self._grows_trees():
            return self._run(arranged, count)
        requests = [(None, pair.before, pair.after) for pair in arranged]
        self.counted["tokens"] += sum(len(b) + len(a) - 1 for _, b, a in requests)
        answers = self._loglikelihood_tokens(requests, disable_tqdm=True)
        self.on_progress(count)
        return answers

    def _masks(self, batch: trees.Batch) -> torch.Tensor | dict[str, torch.Tensor]:
        """Make the attention masks that a model's layers need: 0 where a token is seen."""
        config = self.model.config.get_text_config()
        dtype, span = self.model.dtype, getattr(config, "sliding_window", None)

        def mask(span: int | None) -> torch.Tensor:
            seen = batch.seen(self.device, span)
            empty = torch.zeros(seen.shape, dtype=dtype, device=self.device)
            return empty.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)

        kinds = set(getattr(config, "layer_types", None) or ())
        if "sliding_attention" not in kinds:
            return mask(None if kinds else span)
        return {kind: mask(span if kind == "sliding_attention" else None) for kind in kinds}

    @torch.inference_mode()
    def _run(self, plan: Sequence[trees.Batch], count: int) -> list[tuple[float, bool]]:
        total = torch.zeros(count, dtype=torch.float64)
        greedy = torch.ones(count, dtype=torch.bool)
        for batch in plan:
            logits = self.model(
                input_ids=batch.tokens.to(self.device, torch.int64),
                attention_mask=self._masks(batch),
                position_ids=batch.depths.to(self.device, torch.int64),
                use_cache=False,
                logits_to_keep=batch.kept.to(self.device),
            ).logits
            picked = logits[batch.rows, batch.columns].float()
            targets = batch.targets.to(picked.device)
            logprobs = picked.gather(1, targets[:, None])[:, 0] - picked.logsumexp(1)
            total.index_add_(0, batch.owners, logprobs.double().cpu())
            missed = (picked.argmax(1) != targets).cpu()
            greedy[batch.owners[missed]] = False
            self.counted["tokens"] += batch.count
            self.on_progress(len(batch.owners.unique()))
        return list(zip(total.tolist(), greedy.tolist(), strict=True))

    def _write(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].tokens), i))
        written: list[list[int]] = [[] for _ in prompts]
        for at in range(0, len(order), self.batch_size):
            chosen = order[at : at + self.batch_size]
            try:
                answers = self._decode([prompts[i] for i in chosen])
            except NotFinite as error:
                raise NotFinite(chosen[error.index]) from None
            for index, answer in zip(chosen, answers, strict=True):
                written[index] = answer
            self.on_progress(len(chosen))
        return written

    @torch.inference_mode()
    def _decode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Continue greedily, all rows together; a row leaves when its answer is complete."""
        device, length = self.device, max(len(prompt.tokens) for prompt in prompts)
        tokens = torch.zeros(len(prompts), length, dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        # Padding comes first, so that every row's next token is in the last column.
        for row, prompt in enumerate(prompts):
            tokens[row, length - len(prompt.tokens) :] = torch.from_numpy(prompt.tokens)
            mask[row, length - len(prompt.tokens) :] = 1
        tokens, mask = tokens.to(device), mask.to(device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        kinds = {(prompt.stops, prompt.past_end) for prompt in prompts}
        ends = end_tokens(self.model.generation_config.eos_token_id)
        endings = {kind: self._endings.ending(*kind, ends) for kind in kinds}
        cache = DynamicCache(config=self.model.config)
        answers: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))
        count = int(mask.sum())
        while True:
            self.counted["tokens"] += count
            logits = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            finite = torch.isfinite(logits).all(1)
            if not finite.all():
                raise NotFinite(min(rows[i] for i in (~finite).nonzero()[:, 0].tolist()))
            chosen = logits.argmax(1)
            left = []
            for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
                answers[row].append(token)
                prompt = prompts[row]
                ending = endings[prompt.stops, prompt.past_end]
                if not self._complete(answers[row], prompt, ending):
                    left.append(place)
            if not left:
                return answers
            if len(left) < len(rows):
                rows = [rows[place] for place in left]
                places = torch.tensor(left, device=device)
                chosen, mask, positions = chosen[places], mask[places], positions[places]
                cache.batch_select_indices(places)
            tokens, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            count = len(rows)

    def _complete(self, answer: list[int], prompt: Prompt, ending: Ending) -> bool:
        if len(answer) >= prompt.limit or answer[-1] in ending.tokens:
            return True
        if answer[-1] not in ending.holding:
            return False
        return self._endings.said(answer, ending.strings)
