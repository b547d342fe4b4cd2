"""lm-eval's `hf` model class, made quick for many models that answer the same items.

What is asked and how it is scored stays lm-eval's. Three things are done otherwise, with the same
result: texts are encoded once and kept; the choices of an item share the computation of their
common beginning; greedy decoding runs without transformers' general generation loop. A probe tries
the last two on each architecture before they are used (`evaluation.backends.probe`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.loading import load_causal
from checkpoints.reading import Checkpoint
from common.cost import count_mapped
from common.errors import UserError
from evaluation.backends import rows, trees
from evaluation.backends.base import Backend, NotFinite, Pair, Prompt
from evaluation.backends.probe import Ways, ways_of
from evaluation.backends.rows import Forward, chosen_logprobs
from evaluation.backends.stops import Ending, Endings, end_tokens
from evaluation.backends.tokenisation import CORRECTED, Rule
from evaluation.backends.writing import Writer

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


@dataclass(frozen=True)
class _Arranged:
    """Continuations in the form in which they are scored.

    Attributes:
        plan: Batches of trees, or pairs, by the model's way.
        near: Which these are.
        far, beyond: Which are too long for that way, and these pairs.
    """

    plan: Any
    near: list[int]
    far: list[int]
    beyond: list[Pair]


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
        self._take_up()
        self._prepare(rule, name)

    def _take_up(self) -> None:
        self._forward = Forward(self._model)
        self._found: Ways | None = None

    def _loaded(self, model: PreTrainedModel | Path | str) -> PreTrainedModel:
        return model if isinstance(model, PreTrainedModel) else load_model(model, *self._as_given)

    def serve(self, model: PreTrainedModel | Path | str, name: str) -> None:
        """Answer with another model of the same tokenizer; see `Backend.serve`."""
        if not isinstance(model, PreTrainedModel):
            self.close()  # two models at once may not fit
        self._model = self._loaded(model).eval()
        self._config = self._model.config
        self._device = self._model.device
        self._take_up()
        self._begin(name)

    def close(self) -> None:
        """Release the model."""
        self._model = None
        del self._forward

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

    def _ways(self) -> Ways:
        """Return how this model is read, which its probe decides when it is first asked."""
        if self._found is None:
            takes = self._takes_trees()
            try:
                self._found = ways_of(
                    self._forward,
                    self.window,
                    self.vocabulary,
                    self._tree_scores if takes else None,
                )
            except UserError as error:
                raise UserError(f"model {self.model_name!r}: {error}") from None
            note = self._found.note(self.model_name, self.model.config.model_type)
            self.notes = [note] if note else []
            for line in self.notes:
                print(f"note: {line}", file=sys.stderr, flush=True)
        return self._found

    def _takes_trees(self) -> bool:
        """Say whether the model can be given masks of any shape, and positions."""
        config = self.model.config
        return (
            config._attn_implementation in _TAKES_MASKS
            and set(getattr(config.get_text_config(), "layer_types", None) or ()) <= _LAYERS
            and not getattr(config, "alibi", False)
            and self._forward.takes("position_ids")
        )

    def _layout(self) -> Ways:
        return self._ways()

    def _arrange(self, pairs: Sequence[Pair]) -> _Arranged:
        ways = self._ways()
        far = [n for n, p in enumerate(pairs) if ways.beyond(len(p.before) + len(p.after) - 1)]
        near = sorted(set(range(len(pairs))) - set(far))
        plan: Any = [pairs[n] for n in near]
        if ways.score == "trees":
            plan = trees.plan(plan, self.batch_size, self.vocabulary)
        return _Arranged(plan, near, far, [pairs[n] for n in far])

    def _score(self, arranged: _Arranged, count: int) -> list[tuple[float, bool]]:
        plan, near, way = arranged.plan, arranged.near, self._ways().score
        found = self._run(plan, len(near)) if way == "trees" else self._rows(plan, way)
        found += self._rows(arranged.beyond, "alone")
        answers: list[tuple[float, bool]] = [(0.0, True)] * count
        for n, answer in zip([*near, *arranged.far], found, strict=True):
            answers[n] = answer
        return answers

    def _rows(self, pairs: Sequence[Pair], way: str) -> list[tuple[float, bool]]:
        self.counted["tokens"] += sum(len(pair.before) + len(pair.after) - 1 for pair in pairs)
        size = self.batch_size if way == "rows" else 1
        return rows.score(self._forward, pairs, size, self.vocabulary, self.on_progress)

    def _tree_scores(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Score a probe's pairs by trees, uncounted."""
        found, _ = self._read_trees(trees.plan(pairs, len(pairs), self.vocabulary), len(pairs))
        return found

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

    def _run(self, plan: Sequence[trees.Batch], count: int) -> list[tuple[float, bool]]:
        found, tokens = self._read_trees(plan, count, self.on_progress)
        self.counted["tokens"] += tokens
        return found

    @torch.inference_mode()
    def _read_trees(
        self,
        plan: Sequence[trees.Batch],
        count: int,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> tuple[list[tuple[float, bool]], int]:
        """Score the pairs of a plan; returns their scores and how many tokens were read."""
        total = torch.zeros(count, dtype=torch.float64)
        greedy = torch.ones(count, dtype=torch.bool)
        for batch in plan:
            logits, _ = self._forward(
                batch.tokens,
                batch.kept.to(self.device),
                attention_mask=self._masks(batch),
                position_ids=batch.depths.to(self.device, torch.int64),
            )
            picked = logits[batch.rows, batch.columns]
            logprobs, likeliest = chosen_logprobs(picked, batch.targets.to(picked.device))
            total.index_add_(0, batch.owners, logprobs)
            greedy[batch.owners[~likeliest]] = False
            on_progress(len(batch.owners.unique()))
        answers = list(zip(total.tolist(), greedy.tolist(), strict=True))
        return answers, sum(batch.count for batch in plan)

    def _write(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].tokens), i))
        ways = self._ways()
        written: list[list[int]] = [[] for _ in prompts]
        far = [i for i in order if ways.beyond(len(prompts[i].tokens) + prompts[i].limit)]
        near = [i for i in order if i not in set(far)]
        for way, part in (("alone", far), (ways.write, near)):
            for at in range(0, len(part), self.batch_size):
                chosen = part[at : at + self.batch_size]
                try:
                    answers = self._decode([prompts[i] for i in chosen], way)
                except NotFinite as error:
                    raise NotFinite(chosen[error.index]) from None
                for index, answer in zip(chosen, answers, strict=True):
                    written[index] = answer
                self.on_progress(len(chosen))
        return written

    def _decode(self, prompts: Sequence[Prompt], way: str) -> list[list[int]]:
        """Continue greedily by one of the ways; an answer ends when it is complete."""
        kinds = {prompt.kind for prompt in prompts}
        ends = end_tokens(self.model.generation_config.eos_token_id)
        endings = {kind: self._endings.ending(kind, ends) for kind in kinds}

        def complete(row: int, answer: list[int]) -> bool:
            prompt = prompts[row]
            return self._complete(answer, prompt, endings[prompt.kind])

        writer = Writer(self._forward, prompts, complete)
        answers = writer.run(way)
        self.counted["tokens"] += writer.read
        return answers

    def _complete(self, answer: list[int], prompt: Prompt, ending: Ending) -> bool:
        if len(answer) >= prompt.limit or answer[-1] in ending.tokens:
            return True
        if answer[-1] not in ending.holding:
            return False
        return self._endings.said(answer, ending)
