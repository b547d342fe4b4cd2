"""What the backends do alike: lm-eval's requests in, lm-eval's answers out."""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from common.errors import UserError
from evaluation.backends.tokenisation import Encoder, Rule, answer_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pair:
    """A continuation to score.

    Attributes:
        item: What the pairs of one item have in common.
        before, after: Tokens of context and continuation, each at least one, together at most
            one more than the window: the last token is only predicted, never read.
    """

    item: Hashable
    before: list[int]
    after: list[int]


@dataclass(frozen=True)
class Prompt:
    """A text to continue.

    Attributes:
        tokens: [length], int32; its tokens, at least one.
        stops: Where the answer ends.
        limit: The most tokens to write, at least one.
        past_end: Whether the end-of-sequence token ends nothing and special tokens are text, as
            the JP Language Model Evaluation Harness has it.
        ends: What else ends the answer, a name in `evaluation.ends.ENDS`; None for nothing.
    """

    tokens: np.ndarray
    stops: tuple[str, ...]
    limit: int
    past_end: bool = False
    ends: str | None = None

    @property
    def kind(self) -> tuple[tuple[str, ...], bool, str | None]:
        """What decides when the answer is complete, but for its length."""
        return self.stops, self.past_end, self.ends


class NotFinite(Exception):
    """A model's logits hold NaN or infinity; `index` is the request that met them."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class Backend(abc.ABC):
    """Answers in the place of one of lm-eval's model classes, from which a subclass also inherits.

    A subclass calls `_prepare` and defines what is abstract here. Encoded requests are kept for the
    next model.

    Attributes:
        model_name: The model's name in messages.
        counted: Requests answered and tokens that went through the model since `serve`.
        cut: Items whose prompts lost their beginning since `serve`.
        notes: What a reader of the model's scores should know.
        on_progress: Called with the number of requests answered since its last call.
    """

    tokenizer: PreTrainedTokenizerBase
    max_gen_toks: int

    def _prepare(self, rule: Rule, name: str) -> None:
        self._prepared: dict[Hashable, Any] = {}
        self._shortened: set[Hashable] = set()
        self.on_progress: Callable[[int], None] = lambda _: None
        self.set_rule(rule)
        self._begin(name)

    def _begin(self, name: str) -> None:
        self.model_name = name
        self.counted = {"requests": 0, "tokens": 0}
        self.notes: list[str] = []
        self.cut = 0

    def set_rule(self, rule: Rule) -> None:
        """Tokenise by another rule from now on."""
        self.rule = rule
        self._encoder = Encoder(self.tokenizer, rule)

    @abc.abstractmethod
    def serve(self, model: PreTrainedModel | Path | str, name: str) -> None:
        """Answer with another model of the same tokenizer from now on, `name` in messages."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the model and what runs it; only `serve` may follow."""

    @property
    @abc.abstractmethod
    def window(self) -> int:
        """The most tokens that the model reads at once."""

    @property
    @abc.abstractmethod
    def vocabulary(self) -> int:
        """Number of tokens that the model knows."""

    @property
    @abc.abstractmethod
    def parameters(self) -> int:
        """Number of the model's parameters."""

    @property
    @abc.abstractmethod
    def dtype(self) -> str:
        """The type that the model computes with, such as ``float32``."""

    @abc.abstractmethod
    def _layout(self) -> Hashable:
        """Say what `_arrange` takes from the model."""

    @abc.abstractmethod
    def _arrange(self, pairs: Sequence[Pair]) -> Any:
        """Bring continuations into the order and form in which they are scored."""

    @abc.abstractmethod
    def _score(self, arranged: Any, count: int) -> list[tuple[float, bool]]:
        """Score `count` continuations that `_arrange` returned, in their first order."""

    def _arrange_prompts(self, prompts: list[Prompt]) -> Any:
        """Bring prompts into the form in which they are continued."""
        return prompts

    @abc.abstractmethod
    def _write(self, arranged: Any) -> list[list[int]]:
        """Continue the prompts that `_arrange_prompts` was given, greedily, in their first order.

        Returns:
            The tokens up to the end or a stop string.
        """

    def _keep(self, requests: Sequence[Instance], make: Callable[[], Any]) -> Any:
        """Return what was made for the same requests before, or make it."""
        # Few-shot contexts are long: they are remembered as hashes.
        digests = (
            hash((request.task_name, request.doc_id, request.args[0], repr(request.args[1])))
            for request in requests
        )
        key = (self.rule, self.window, self.vocabulary, self._layout(), *digests)
        if key not in self._prepared:
            self._shortened = set()
            made = make()
            self._prepared[key] = (made, len(self._shortened))
        made, shortened = self._prepared[key]
        self.cut += shortened
        return made

    def _pair(self, item: Hashable, before: list[int], after: list[int]) -> Pair:
        """Cut a context on the left so that it fits the window."""
        if len(after) > self.window:
            raise UserError(
                f"an answer of {len(after)} tokens does not fit the window of {self.window} "
                "tokens; leave the item out or give a larger maximal length"
            )
        self._check_known([*before, *after])
        cut = max(0, len(before) + len(after) - self.window - 1)
        if cut:
            self._shortened.add(item)
        # Cut differently, the choices of an item have no beginning in common.
        return Pair((item, cut), before[cut:], after)

    def _check_known(self, tokens: Sequence[int]) -> None:
        """Refuse tokens that the model has no embedding for."""
        last = max(tokens)
        if last >= self.vocabulary:
            raise UserError(
                f"the tokenizer's token {last} ({self.tokenizer.convert_ids_to_tokens(last)!r}) is "
                f"beyond the model's vocabulary of {self.vocabulary}; give the model's own "
                "tokenizer (--tokenizer DIR) or build the model again with its vocabulary"
            )

    def _pairs(self, requests: Sequence[Instance]) -> list[Pair]:
        pairs = []
        with self._encoder.knowing(request.args for request in requests):
            for request in requests:
                try:
                    before, after = self._encoder.encode_pair(*request.args)
                    pairs.append(self._pair((request.task_name, request.doc_id), before, after))
                except UserError as error:
                    raise self._in_task(request.task_name, error) from None
        return pairs

    def _prompts(self, requests: Sequence[Instance]) -> list[Prompt]:
        with self._encoder.knowing((request.args[0], "") for request in requests):
            return [self._prompt(request) for request in requests]

    def _prompt(self, request: Instance) -> Prompt:
        text, given = request.args
        settings = normalize_gen_kwargs(given, self.max_gen_toks)
        limit = settings["max_gen_toks"]
        if settings["do_sample"] or settings.get("num_beams", 1) != 1:
            problem = "its answers are drawn at random or by beams; only greedy decoding"
            raise self._in_task(request.task_name, f"{problem} is offered: do_sample: false")
        if not 1 <= limit < self.window:
            problem = f"max_gen_toks {limit} does not fit the window of {self.window} tokens"
            raise self._in_task(request.task_name, f"{problem}: give 1 or more, and less")
        tokens = self._encoder.encode_prompt(text)
        if len(tokens) > self.window - limit:
            self._shortened.add((request.task_name, request.doc_id))
            tokens = tokens[-(self.window - limit) :]
        try:
            self._check_known(tokens)
        except UserError as error:
            raise self._in_task(request.task_name, error) from None
        stops, past_end = tuple(settings["until"]), bool(settings.get("ignore_eos"))
        ends = settings.get("ends")
        return Prompt(np.array(tokens, np.int32), stops, limit, past_end, ends)

    def _in_task(self, task: str | None, problem: object) -> UserError:
        return UserError(f"model {self.model_name!r}, task {task}: {problem}")

    def _not_finite(self, task: str | None) -> UserError:
        return self._in_task(
            task,
            "the model's output is not finite; its weights hold NaN or overflow: build the model "
            "again or merge with a smaller scale",
        )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Score continuations; see `TemplateLM.loglikelihood`.

        Returns:
            Per request, the continuation's log-likelihood and whether it is the greedy one.

        Raises:
            UserError: A log-likelihood is NaN or infinite, or an item cannot be scored.
        """
        self.counted["requests"] += len(requests)
        arranged = self._keep(requests, lambda: self._arrange(self._pairs(requests)))
        answers = self._score(arranged, len(requests))
        for request, (value, _) in zip(requests, answers, strict=True):
            if not abs(value) < float("inf"):
                raise self._not_finite(request.task_name)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Score whole texts, window after window; see `TemplateLM.loglikelihood_rolling`.

        Returns:
            Per request, the log-likelihood of all its tokens; BOS is read, never scored.

        Raises:
            UserError: A log-likelihood is NaN or infinite.
        """
        self.counted["requests"] += len(requests)
        pairs: list[Pair] = []
        owners: list[int] = []
        # A text longer than the window is scored in parts, whose log-likelihoods are summed.
        for owner, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self._encoder.encode(request.args[0]),
                prefix_token=self._encoder.prefix,
                max_seq_len=self.window,
                context_len=1,
            )
            for before, after in map(make_disjoint_window, windows):
                pairs.append(self._pair(len(pairs), before, after))
                owners.append(owner)
        totals = [0.0] * len(requests)
        answers = self._score(self._arrange(pairs), len(pairs))
        for owner, (value, _) in zip(owners, answers, strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            if not abs(total) < float("inf"):
                raise self._not_finite(request.task_name)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Generate answers greedily, each with its own `until` and `max_gen_toks`.

        Raises:
            UserError: A logit is NaN or infinite, or a request asks for sampling.
        """
        self.counted["requests"] += len(requests)

        def make() -> tuple[list[Prompt], Any]:
            prompts = self._prompts(requests)
            return prompts, self._arrange_prompts(prompts)

        prompts, arranged = self._keep(requests, make)
        try:
            written = self._write(arranged)
        except NotFinite as error:
            raise self._not_finite(requests[error.index].task_name) from None
        return [
            answer_text(self.tokenizer, tokens, prompt.stops, prompt.past_end)
            for tokens, prompt in zip(written, prompts, strict=True)
        ]
