"""lm-eval's `vllm` model class with the project's tokenisation, on a GPU or by vLLM's CPU build."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from checkpoints.loading import check_weights
from checkpoints.reading import Checkpoint
from checkpoints.tokenizers_own import folder_of
from common.cost import hold_gpus
from common.errors import UserError
from evaluation.backends.base import Backend, NotFinite, Pair, Prompt
from evaluation.backends.replicas import Replica, devices_of, share, visible_gpus
from evaluation.backends.tokenisation import CORRECTED, Rule, stop_tokens
from evaluation.backends.vllm_setup import prepare
from evaluation.ends import ENDS

prepare()

from lm_eval.models.vllm_causallms import VLLM  # noqa: E402
from vllm import LLM, RequestOutput, SamplingParams, TokensPrompt  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402

# Beginnings are shared by whole blocks of tokens, which are of 128 there by default.
_ON_CPU = {"enforce_eager": True, "block_size": 32}
# vLLM answers with an object for every token that it read.
_TOKENS = 1 << 18
# For log-likelihoods vLLM reads its prefix cache only if asked to; see `_score_portion`.
_LOGLIKELIHOODS, _ANEW = (
    SamplingParams(
        temperature=0,
        max_tokens=1,
        prompt_logprobs=1,
        detokenize=False,
        skip_reading_prefix_cache=anew,
    )
    for anew in (False, True)
)


class _Forwarded(tqdm):
    """A progress bar that draws nothing and calls a function."""

    def __init__(
        self, *arguments: object, report: Callable[[int], None], **settings: object
    ) -> None:
        super().__init__(*arguments, **(settings | {"file": io.StringIO()}))
        self._report = report

    def update(self, n: int = 1) -> None:
        """Count `n` more requests as answered."""
        self._report(n)
        super().update(n)


class VLLMBackend(Backend, VLLM):
    """A `vllm` model that can be exchanged for another while its items stay.

    Args:
        model: The first model's folder.
        tokenizer: The tokenizer that all models share.
        batch_size: The most sequences that vLLM works on at once.
        rule: How contexts and continuations are tokenised.
        max_length: The most tokens that the model reads at once; None for two less than it was
            made for, because vLLM also reads the last scored token and adds one more.
        dtype: What the model computes with.
        device: Not used: vLLM takes the GPUs that are visible, its CPU build the CPU.
        name: The first model's name in messages.
        tensor_parallel: GPUs over which a model's weights are divided.
        data_parallel: Engines that each answer a share of the prompts, on separate GPUs.
        engine: Further arguments of vLLM's `LLM`.

    Raises:
        UserError: The folder is not a model, a shard is missing or truncated, or there are fewer
            GPUs than asked for.
    """

    def __init__(
        self,
        model: Path | str,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        rule: Rule = CORRECTED,
        max_length: int | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        name: str = "model",
        tensor_parallel: int = 1,
        data_parallel: int = 1,
        **engine: object,
    ) -> None:
        if current_platform.is_cpu() and "llvmlite" in sys.modules:
            # It searches all modules for kernels, and llvmlite's library answers to every name.
            raise UserError(
                "vLLM's CPU build cannot start in a process that has loaded numba; "
                "start the evaluation in a separate process"
            )
        self.model: Any
        self._checkpoint = _checked(model)
        visible = _check_gpus(tensor_parallel, data_parallel)
        # A later engine reads it too.
        self._words = contextlib.ExitStack()
        words = self._words.enter_context(folder_of(tokenizer))
        with _starting(model):
            VLLM.__init__(
                self,
                pretrained=str(model),
                tokenizer=words,
                dtype=dtype,
                batch_size="auto",
                max_batch_size=batch_size,
                max_model_len=None if max_length is None else max_length + 2,
                seed=0,
                tensor_parallel_size=tensor_parallel,
                **(_ON_CPU if current_platform.is_cpu() else {}),
                use_tqdm_on_load=False,
                disable_log_stats=False,  # they say which answers met NaN
                **engine,
            )
            self._replicas = [
                Replica(self.model_args, devices_of(number, tensor_parallel, visible))
                for number in range(1, data_parallel)
            ]
            self._order_replicas("replace", model)
        self.tokenizer = tokenizer
        if visible:
            hold_gpus(tensor_parallel * data_parallel)
        self._prepare(rule, name)

    def serve(self, model: Path | str, name: str) -> None:
        """Answer with another model of the same tokenizer; see `Backend.serve`."""
        checkpoint = _checked(model)
        if self.model is not None and _shape(checkpoint) == _shape(self._checkpoint):
            self.model.collective_rpc("reload_weights", kwargs={"weights_path": str(model)})
            self.model.reset_prefix_cache()
            self._order_replicas("reload", model)
        else:
            self._end()  # two models at once may not fit
            self.model_args["model"] = str(model)
            with _starting(model):
                self.model = LLM(**self.model_args)
                self._order_replicas("replace", model)
        self._checkpoint = checkpoint
        self._begin(name)

    def _order_replicas(self, order: str, model: Path | str) -> None:
        for replica in self._replicas:
            replica.begin(order, str(model))
        for replica in self._replicas:
            replica.finish()

    def _end(self) -> None:
        if self.model is not None:
            self.model.llm_engine.engine_core.shutdown()
            self.model = None
            gc.collect()

    def close(self) -> None:
        """End the engines; a process has one at a time."""
        self._end()
        for replica in self._replicas:
            replica.close()
        self._replicas = []
        self._words.close()

    @property
    def window(self) -> int:
        """The most tokens that the model reads at once."""
        return self.max_length - 2

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model knows."""
        return self.model.llm_engine.model_config.get_vocab_size()

    @property
    def parameters(self) -> int:
        """Number of the model's parameters."""
        return sum(self._checkpoint.count(name) for name in self._checkpoint.names())

    @property
    def dtype(self) -> str:
        """The type that the model computes with, such as ``float32``."""
        return str(self.model.llm_engine.model_config.dtype).removeprefix("torch.")

    def _layout(self) -> None:
        return None

    def _arrange(self, pairs: Sequence[Pair]) -> list[tuple[np.ndarray, int]]:
        return [
            (np.array([*pair.before, *pair.after], np.int32), len(pair.before)) for pair in pairs
        ]

    def _score(
        self, arranged: list[tuple[np.ndarray, int]], count: int
    ) -> list[tuple[float, bool]]:
        answers = []
        for at, stop in _portions([len(tokens) for tokens, _ in arranged]):
            answers += self._score_portion(arranged[at:stop])
        return answers

    def _score_portion(self, portion: list[tuple[np.ndarray, int]]) -> list[tuple[float, bool]]:
        """Score continuations; what several begin with alike is computed once.

        vLLM's log-likelihoods of tokens that it finds in its cache are missing or meaningless.
        Those of contexts are not needed; a continuation of which a part was found is asked again,
        in full.
        """
        lists = [tokens.tolist() for tokens, _ in portion]
        outputs = self._ask(lists, _LOGLIKELIHOODS)
        found = [
            at
            for at, ((_, start), output) in enumerate(zip(portion, outputs, strict=True))
            if output.num_cached_tokens >= start
        ]
        anew = self._ask([lists[at] for at in found], _ANEW, again=True) if found else []
        for at, output in zip(found, anew, strict=True):
            outputs[at] = output
        answers = []
        for tokens, (_, start), output in zip(lists, portion, outputs, strict=True):
            # From the end: a list may lack its beginning.
            logprobs = output.prompt_logprobs[start - len(tokens) :]
            answers.append(
                self._parse_logprobs(tokens[start:], SimpleNamespace(prompt_logprobs=logprobs), 0)
            )
        return answers

    def _write(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        written: list[list[int]] = [[] for _ in prompts]
        waiting, again = list(range(len(prompts))), False
        while waiting:
            lists = [[*prompts[i].tokens.tolist(), *written[i]] for i in waiting]
            settings = [self._sampling(prompts[i], len(written[i])) for i in waiting]
            outputs = self._ask(lists, settings, again)
            for i, output in zip(waiting, outputs, strict=True):
                if output.metrics.is_corrupted:
                    raise NotFinite(i)
                written[i] += output.outputs[0].token_ids
                self.counted["tokens"] += len(output.outputs[0].token_ids) - 1
            # A mark that might have ended an answer, but is quoted or opens a fence, ends nothing.
            waiting = [
                i
                for i, output in zip(waiting, outputs, strict=True)
                if prompts[i].ends is not None
                and isinstance(output.outputs[0].stop_reason, str)
                and len(written[i]) < prompts[i].limit
                and not self._is_complete(prompts[i], written[i])
            ]
            again = True
        return written

    def _sampling(self, prompt: Prompt, written: int) -> SamplingParams:
        tokens, strings = stop_tokens(self.tokenizer, prompt.stops, prompt.past_end)
        marks = ENDS[prompt.ends][0] if prompt.ends else ()
        return SamplingParams(
            temperature=0,
            max_tokens=prompt.limit - written,
            stop=[*strings, *marks],
            stop_token_ids=sorted(tokens),
            ignore_eos=prompt.past_end,
        )

    def _is_complete(self, prompt: Prompt, answer: list[int]) -> bool:
        text = self.tokenizer.decode(answer, skip_special_tokens=not prompt.past_end)
        said = any(string in text for string in prompt.stops if string)
        return said or (prompt.ends is not None and ENDS[prompt.ends][1](text))

    def _ask(
        self,
        lists: list[list[int]],
        settings: SamplingParams | list[SamplingParams],
        again: bool = False,
    ) -> list[RequestOutput]:
        """Let vLLM read sequences; `again` says that they were counted as answered before."""
        prompts = [TokensPrompt(prompt_token_ids=tokens) for tokens in lists]
        report = (lambda _: None) if again else self.on_progress
        outputs = self._generate(prompts, settings, report)
        read = zip(lists, outputs, strict=True)
        self.counted["tokens"] += sum(len(one) - output.num_cached_tokens for one, output in read)
        return outputs

    def _generate(
        self,
        prompts: list[TokensPrompt],
        settings: SamplingParams | list[SamplingParams],
        report: Callable[[int], None],
    ) -> list[RequestOutput]:
        """Divide prompts among the engines, this process's own and its replicas."""
        bar = functools.partial(_Forwarded, report=report)
        if not self._replicas:
            return self.model.generate(prompts, settings, use_tqdm=bar)
        n = 1 + len(self._replicas)
        answers: list[RequestOutput | None] = [None] * len(prompts)
        own = share(self._replicas, prompts, settings)
        each = settings[::n] if isinstance(settings, list) else settings
        answers[::n] = self.model.generate(own, each, use_tqdm=bar) if own else []
        for number, replica in enumerate(self._replicas, 1):
            answers[number::n] = replica.finish()
            report(len(answers[number::n]))
        return answers


def _checked(model: Path | str) -> Checkpoint:
    """Open a model that has all its weights and no others; vLLM drops some without a word."""
    check_weights(model)
    return Checkpoint(model)


def _check_gpus(tensor_parallel: int, data_parallel: int) -> list[str]:
    """Return the GPUs that may be used, none for vLLM's CPU build; refuse too few."""
    if current_platform.is_cpu():
        return []
    visible = visible_gpus(torch.cuda.device_count())
    wanted = tensor_parallel * data_parallel
    if len(visible) < wanted:
        raise UserError(
            f"{data_parallel} engines of {tensor_parallel} GPUs need {wanted}, and "
            f"{len(visible)} are visible; lower evaluation.data_parallel or tensor_parallel"
        )
    return visible


@contextlib.contextmanager
def _starting(model: Path | str) -> Iterator[None]:
    """Say in a line why vLLM does not take a model."""
    try:
        yield
    except (ValueError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"vLLM cannot serve {model}: {reason}; fix what it names or use --backend hf"
        ) from error


def _shape(checkpoint: Checkpoint) -> dict:
    """Return what has to be equal for a model's weights to take another's place."""
    return {
        "config": checkpoint.config,
        "shapes": {n: checkpoint.shape(n) for n in checkpoint.names()},
    }


def _portions(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Divide a list so that what vLLM answers for a part fits the memory."""
    start, tokens = 0, 0
    for at, length in enumerate(lengths):
        if tokens and tokens + length > _TOKENS:
            yield start, at
            start, tokens = at, 0
        tokens += length
    if tokens:
        yield start, len(lengths)
