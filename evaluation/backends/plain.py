"""Small models on the CPU: all requests in few passes, without transformers' forward pass.

What is asked and how answers are scored is the same as in `evaluation.backends.hf`, which serves
all other models. Beginnings that items share are computed once, whichever items they are.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from checkpoints.reading import Checkpoint
from common.files import read_json
from evaluation.backends.base import Backend, NotFinite, Pair, Prompt
from evaluation.backends.decoder import Caches, Decoder, knows, shapes
from evaluation.backends.packing import Pass, pack
from evaluation.backends.stops import Endings, end_tokens, table
from evaluation.backends.tokenisation import CORRECTED, Rule

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NODES = 2048  # tokens of a pass: more would not fit the processor's caches
_ROWS = 256  # answers that are written together: a step costs more than its arithmetic below this
_KEPT = 0.75  # finished rows are dropped once this share is left: dropping copies the others


def _stored(model: PreTrainedModel | Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a model's configuration, and its parameters' shapes by name."""
    if isinstance(model, str | Path):
        checkpoint = Checkpoint(model)
        named = {name: checkpoint.shape(name) for name in checkpoint.names()}
        return dict(checkpoint.config), named
    config = model.config.to_dict()
    if not type(model).__name__.endswith("ForCausalLM"):
        return {}, {}
    parameters = model.state_dict()
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in parameters.values()):
        return {}, {}
    return config, {name: parameter.shape for name, parameter in parameters.items()}


def serves(model: PreTrainedModel | Path | str, dtype: str, device: str) -> bool:
    """Say whether `PlainBackend` can serve a model as this type on this device."""
    try:
        return dtype == "float32" and device == "cpu" and knows(*_stored(model))
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return False  # a configuration that makes no sense: transformers says what is wrong


@dataclass(frozen=True)
class _Scoring:
    """Continuations, packed.

    Attributes:
        passes: By pass: what is read, then of each scored token its index in `read`, the token,
            and the pair that it belongs to, int64.
        requests: By pass, how many requests it finishes.
        tokens: What each item by itself would read; the counts do not depend on other items.
    """

    passes: list[tuple[Pass, Tensor, Tensor, Tensor]]
    requests: list[int]
    tokens: int


def _own_tokens(pairs: Sequence[Pair]) -> int:
    """Count the tokens of every item's tree of choices, without the last ones."""
    items: dict[Hashable, list[list[int]]] = defaultdict(list)
    for pair in pairs:
        items[pair.item].append([*pair.before, *pair.after][:-1])
    total = 0
    for sequences in items.values():
        before: list[int] = []
        for sequence in sorted(sequences):
            same = itertools.takewhile(
                lambda two: two[0] == two[1], zip(before, sequence, strict=False)
            )
            total += len(sequence) - sum(1 for _ in same)
            before = sequence
    return total


class PlainBackend(Backend):
    """Answers for one small model after another.

    Args:
        model: The first model to serve, or its folder; `serves` must accept each.
        tokenizer: The tokenizer that all models share.
        batch_size: Not needed here: passes have the size that suits the processor.
        rule: How contexts and continuations are tokenised.
        max_length: The most tokens that the model reads at once; None for what it was made for.
        dtype, device: float32, cpu.
        name: The first model's name in messages.
    """

    max_gen_toks = 256  # as in lm-eval

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
        self.tokenizer = tokenizer
        self._max_length = max_length
        self._endings = Endings(tokenizer)
        self.serve(model, name)
        self._prepare(rule, name)

    def serve(self, model: PreTrainedModel | Path | str, name: str) -> None:
        """Answer with another model of the same tokenizer; see `Backend.serve`."""
        if isinstance(model, str | Path):
            checkpoint = Checkpoint(model)
            self._config = dict(checkpoint.config)
            tensors = {n: checkpoint.load(n).float() for n in checkpoint.names()}
            settings = checkpoint.path / "generation_config.json"
            given = read_json(settings) if settings.is_file() else self._config
            ends = given.get("eos_token_id")
        else:
            self._config, tensors = model.config.to_dict(), model.state_dict()
            ends = model.generation_config.eos_token_id
        self._ends = end_tokens(ends)
        self._decoder = Decoder(tensors, self._config)
        self._begin(name)

    def close(self) -> None:
        """Release the model."""
        del self._decoder

    @property
    def window(self) -> int:
        """The most tokens that the model reads at once."""
        return self._max_length or self._config["max_position_embeddings"]

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model knows."""
        return self._config["vocab_size"]

    @property
    def parameters(self) -> int:
        """Number of the model's parameters."""
        return sum(math.prod(shape) for shape in shapes(self._config).values())

    @property
    def dtype(self) -> str:
        """The type that the model computes with, such as ``float32``."""
        return "float32"

    def _layout(self) -> Hashable:
        return None

    def _arrange(self, pairs: Sequence[Pair]) -> _Scoring:
        sequences = [[*pair.before, *pair.after][:-1] for pair in pairs]
        first = [len(pair.before) - 1 for pair in pairs]
        passes, requests = [], []
        for part in pack(sequences, first, _NODES):
            read, targets, owners = [], [], []
            for row, owner in enumerate(part.chosen.tolist()):
                after = pairs[owner].after
                read.append(part.rows[row, first[owner] : first[owner] + len(after)])
                targets += after
                owners += [owner] * len(after)
            read_at = torch.searchsorted(part.read, torch.cat(read))
            passes.append((part, read_at, torch.tensor(targets), torch.tensor(owners)))
            requests.append(len(part.chosen))
        return _Scoring(passes, requests, _own_tokens(pairs))

    @torch.inference_mode()
    def _score(self, arranged: _Scoring, count: int) -> list[tuple[float, bool]]:
        total = torch.zeros(count, dtype=torch.float64)
        greedy = torch.ones(count, dtype=torch.bool)
        for (part, read, targets, owners), done in zip(
            arranged.passes, arranged.requests, strict=True
        ):
            logits, _ = self._decoder.read(part)
            values = logits[read, targets] - logits.logsumexp(1)[read]
            total.index_add_(0, owners, values.double())
            greedy[owners[logits.argmax(1)[read] != targets]] = False
            self.on_progress(done)
        self.counted["tokens"] += arranged.tokens
        return list(zip(total.tolist(), greedy.tolist(), strict=True))

    def _arrange_prompts(self, prompts: Sequence[Prompt]) -> Any:
        sequences = [prompt.tokens.tolist() for prompt in prompts]
        last = [len(sequence) - 1 for sequence in sequences]
        return prompts, list(pack(sequences, last, 2 * _NODES, _ROWS))

    @torch.inference_mode()
    def _write(self, arranged: tuple[Sequence[Prompt], list[Pass]]) -> list[list[int]]:
        prompts, passes = arranged
        written: list[list[int]] = [[] for _ in prompts]
        for part in passes:
            _Writing(self, part, [prompts[n] for n in part.chosen]).run(written)
            self.on_progress(len(part.chosen))
        self.counted["tokens"] += sum(
            len(prompt.tokens) + len(answer) - 1
            for prompt, answer in zip(prompts, written, strict=True)
        )
        return written


class _Writing:
    """Answers of one pass, written token by token, all rows together.

    Args:
        backend: Whose model writes.
        part: The prompts, packed.
        prompts: In the order of `part.chosen`.
    """

    def __init__(self, backend: PlainBackend, part: Pass, prompts: Sequence[Prompt]) -> None:
        self._decoder, self._part, self._endings = backend._decoder, part, backend._endings
        kinds = list(dict.fromkeys(prompt.kind for prompt in prompts))
        self._found = [self._endings.ending(kind, backend._ends) for kind in kinds]
        words = backend.vocabulary
        self._ends = torch.stack([table(ending.tokens, words) for ending in self._found])
        self._holds = torch.stack([table(ending.holding, words) for ending in self._found])
        self._kind = torch.tensor([kinds.index(p.kind) for p in prompts])
        self._limits = torch.tensor([prompt.limit for prompt in prompts])

    def _checked(self, logits: Tensor, live: Tensor, going: Tensor) -> Tensor:
        """Choose the next tokens; [rows], int64."""
        finite = torch.isfinite(logits).all(1) | ~going
        if not finite.all():
            raise NotFinite(int(self._part.chosen[live[~finite].numpy()].min()))
        return logits.argmax(1)

    def _caches(self, found: Caches) -> Caches:
        """Give every row its own keys and values, with room for the answer."""
        rows, longest = self._part.rows, int(self._limits.max())

        def own(nodes: Tensor) -> Tensor:
            length, (_, heads, size) = rows.shape[1], nodes.shape
            held = nodes.new_zeros(len(rows), heads, length + longest, size)
            held[:, :, :length] = nodes[rows].transpose(1, 2)
            return held

        return [(own(keys), own(values)) for keys, values in found]

    def run(self, written: list[list[int]]) -> None:
        """Write the answers into the list of all answers."""
        part = self._part
        logits, found = self._decoder.read(part)
        last = part.rows.gather(1, part.lengths[:, None] - 1)[:, 0]
        logits, caches = logits[torch.searchsorted(part.read, last)], self._caches(found)
        # `live` are the rows that the caches hold, `going` those of them that still write.
        live = torch.arange(len(part.chosen))
        going = torch.ones(len(live), dtype=torch.bool)
        for number in itertools.count(1):
            tokens = self._checked(logits, live, going)
            owners = part.chosen[live[going].numpy()].tolist()
            for owner, token in zip(owners, tokens[going].tolist(), strict=True):
                written[owner].append(token)
            going &= ~self._finished(tokens, live, going, number, written)
            left = int(going.sum())
            if not left:
                return
            if left < _KEPT * len(live):
                tokens, live = tokens[going], live[going]
                caches = [(keys[going], values[going]) for keys, values in caches]
                going = going[going]
            # A finished row goes no further than the others need.
            places = (part.lengths + torch.minimum(self._limits, torch.tensor(number)) - 1)[live]
            logits = self._decoder.step(tokens, places, caches)

    def _finished(
        self, tokens: Tensor, live: Tensor, going: Tensor, number: int, written: list[list[int]]
    ) -> Tensor:
        """Say which rows end with the token that each has just written."""
        kind = self._kind[live]
        done = self._ends[kind, tokens] | (self._limits[live] <= number)
        for place in (self._holds[kind, tokens] & going & ~done).nonzero()[:, 0].tolist():
            row = int(live[place])
            ending = self._found[int(self._kind[row])]
            done[place] = self._endings.said(written[self._part.chosen[row]], ending)
        return done
