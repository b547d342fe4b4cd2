"""Fine-tuning of an expert from a pretrained base: LoRA, or all weights of the linear layers.

Several rows are one sequence without padding, and the head is computed where an answer is learned,
and nowhere else: on a vocabulary of 262,144 tokens it costs more than all layers below it. A step's
rows go through the model in parts, whose gradients are added up, so that memory does not grow with
them; `cask.memory` says what else keeps it small.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.dtypes import torch_type
from checkpoints.loading import load_causal, load_tokenizer
from checkpoints.names import is_head, kind
from checkpoints.reading import Checkpoint
from checkpoints.writing import write_checkpoint
from common.cost import measure
from common.errors import UserError
from common.files import read_jsonl, staged_directory
from common.manifest import NAME, check_recorded, write_manifest
from common.progress import Progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WARM_UP = 0.05  # share of the steps
_FINAL_RATE = 0.1  # of the peak, at the end of the cosine
_CLIP = 1.0
MOST = 256  # tokens that go through the model at once; on Gemma 3 270M each takes 1.2 MB to learn


@dataclass(frozen=True)
class Recipe:
    """How an expert is trained; see `python -m cask train --help`."""

    steps: int = 400
    batch_size: int = 16
    learning_rate: float = 5e-4
    rank: int = 16
    weight_decay: float = 0.0
    max_tokens: int = 512

    def check(self) -> None:
        """Refuse numbers out of range.

        Raises:
            UserError: One line with the option.
        """
        for name, least in {"steps": 1, "batch_size": 1, "rank": 0, "max_tokens": 2}.items():
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} is below {least}; raise it")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"--learning-rate is {self.learning_rate}; give a positive number")


@dataclass(frozen=True)
class Text:
    """A tokenised row.

    Attributes:
        ids: Token ids, with what the tokenizer puts in front of a text.
        prompt_length: Number of ids before the answer.
    """

    ids: list[int]
    prompt_length: int


def tokenise(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, most: int
) -> list[Text]:
    """Encode rows as an evaluation does: prompt and answer together.

    Args:
        rows: Each with `prompt`, `answer`, and `eos`, whether the text ends after the answer.
        tokenizer: The base's.
        most: Tokens of the longest text; longer ones are left out.

    Raises:
        UserError: None is left.
    """
    texts = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["answer"])["input_ids"]
        if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
            # A token would cross the boundary, which an evaluation cuts in two as well.
            ids = prompt + tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        ids = ids + ([tokenizer.eos_token_id] if row["eos"] else [])
        if prompt and len(prompt) < len(ids) <= most:
            texts.append(Text(ids, len(prompt)))
    if not texts:
        raise UserError(
            f"none of {len(rows)} rows has a prompt, an answer and at most {most} tokens; "
            "raise --max-tokens, or look at the rows"
        )
    return texts


@dataclass(frozen=True)
class Batch:
    """Rows as one sequence: a step's, or a part of them.

    Attributes:
        ids: Token ids, (1, tokens), int64.
        positions: Position of each within its row, (1, tokens), int64. transformers keeps rows
            apart where a position is 0.
        predicting: Positions whose next token is an answer's, (answers,), int64.
        targets: These tokens, (answers,), int64.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    predicting: torch.Tensor
    targets: torch.Tensor


def pack(texts: Sequence[Text]) -> Batch:
    """Put rows one after another; the last token of a row predicts nothing, and is left out."""
    import torch

    ids: list[int] = []
    positions: list[int] = []
    predicting: list[int] = []
    targets: list[int] = []
    for text in texts:
        start, length = len(ids), len(text.ids) - 1
        predicting += range(start + text.prompt_length - 1, start + length)
        targets += text.ids[text.prompt_length :]
        ids += text.ids[:-1]
        positions += range(length)
    return Batch(
        torch.tensor([ids]),
        torch.tensor([positions]),
        torch.tensor(predicting),
        torch.tensor(targets),
    )


def parts(texts: Sequence[Text], most: int) -> list[Batch]:
    """Pack a step's rows into sequences of at most so many tokens, but of one row at least."""
    found, part, tokens = list[Batch](), list[Text](), 0
    for text in texts:
        if part and tokens + len(text.ids) - 1 > most:
            found.append(pack(part))
            part, tokens = [], 0
        part.append(text)
        tokens += len(text.ids) - 1
    return [*found, pack(part)]


def batches(texts: Sequence[Text], size: int, seed: int) -> Iterator[list[Batch]]:
    """Yield each step's parts for ever, epoch after epoch, each in its own random order."""
    order, pending = random.Random(seed), list[Text]()
    while True:
        while len(pending) < size:
            pending += order.sample(texts, len(texts))
        yield parts(pending[:size], MOST)
        pending = pending[size:]


def answers_loss(model: PreTrainedModel, batch: Batch, count: int) -> torch.Tensor:
    """Return the cross-entropy of the answers' tokens over a count, a scalar in float32.

    Args:
        model: The model.
        batch: The rows.
        count: Tokens of answers in the step.
    """
    from cask.memory import cross_entropy

    device = next(model.parameters()).device
    logits = model(
        input_ids=batch.ids.to(device),
        position_ids=batch.positions.to(device),
        logits_to_keep=batch.predicting.to(device),
        use_cache=False,
    ).logits[0]
    return cross_entropy(logits.float(), batch.targets.to(device), count)


def learn(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """Add the gradient of a step's mean loss, one part after another; return the loss."""
    count, loss = sum(len(batch.targets) for batch in batches), 0.0
    for batch in batches:
        part = answers_loss(model, batch, count)
        part.backward()
        loss += part.item()
    return loss


def _rate(step: int, steps: int) -> float:
    warm_up = min(1.0, (step + 1) / max(1.0, _WARM_UP * steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warm_up * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)


def _is_learned(name: str) -> bool:
    return kind(name) == "linear" and not is_head(name)


@dataclass(frozen=True)
class _Size:
    """What a token costs: 2 operations for a weight of a linear layer or of the head, a pass.

    Attributes:
        linear: Weights of the linear layers without the head.
        head: Weights of the head.
        passes: Forward and back to the inputs; with all weights trained, back to these too. LoRA's
            own weights are a per cent, and are left out.
    """

    linear: int
    head: int
    passes: int

    def flops(self, batch: Batch) -> float:
        """Count a step's operations; the head is not trained, and sees answers alone."""
        layers = self.passes * self.linear * batch.ids.numel()
        return 2.0 * (layers + 2 * self.head * batch.targets.numel())


def _size_of(model: PreTrainedModel, rank: int) -> _Size:
    parameters = model.named_parameters()
    linear = sum(value.numel() for name, value in parameters if _is_learned(name))
    head = model.config.vocab_size * model.config.hidden_size
    return _Size(linear, head, 2 if rank else 3)


def with_lora(model: PreTrainedModel, rank: int) -> Any:
    """Return the model with an adapter on every linear layer but the head, scaled by 2."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def fit(
    model: PreTrainedModel, texts: Sequence[Text], recipe: Recipe, seed: int, what: str
) -> tuple[PreTrainedModel, dict[str, float]]:
    """Train a model in place.

    Args:
        model: The base, in float32; its embeddings, norms and head stay as they are.
        texts: The training texts.
        recipe: How to train; a rank of 0 trains the linear layers themselves.
        seed: Seed of the data's order and of the adapter's first values.
        what: What the progress line says is being trained.

    Returns:
        The model with the adapter folded in, and `first_loss` and `last_loss` (means over the
        first and last tenth of the steps), `forward_tokens`, `backward_tokens`, `flops`.

    Raises:
        UserError: The loss is no longer finite.
    """
    import torch

    torch.manual_seed(seed)
    size = _size_of(model, recipe.rank)
    if recipe.rank:
        trained: Any = with_lora(model, recipe.rank)
    else:
        trained = model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(_is_learned(name))
    learned = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, weight_decay=recipe.weight_decay, fused=True)
    trained.train()
    progress, losses = Progress(recipe.steps, what), list[float]()
    tokens, flops, stream = 0, 0.0, batches(texts, recipe.batch_size, seed)
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _rate(step, recipe.steps)
        step_parts = next(stream)
        optimizer.zero_grad()
        losses.append(learn(trained, step_parts))
        torch.nn.utils.clip_grad_norm_(learned, _CLIP)
        optimizer.step()
        if not math.isfinite(losses[-1]):
            raise UserError(f"{what}: the loss at step {step} is {losses[-1]}; lower the rate")
        tokens += sum(batch.ids.numel() for batch in step_parts)
        flops += sum(map(size.flops, step_parts))
        progress.step(note=f"loss {losses[-1]:.3f}")
    folded = trained.merge_and_unload() if recipe.rank else model
    tenth = max(1, recipe.steps // 10)  # a single step's loss is mostly its batch's
    return folded.eval(), {
        "first_loss": sum(losses[:tenth]) / tenth,
        "last_loss": sum(losses[-tenth:]) / tenth,
        "forward_tokens": tokens,
        "backward_tokens": tokens,
        "flops": flops,
    }


def read_texts(rows: Path, base: Path, most: int) -> tuple[list[Text], int]:
    """Encode a file of rows by a base's tokenizer, whose memory is then given back.

    Args:
        rows: JSON lines, as for `tokenise`.
        base: The base's folder.
        most: Tokens of the longest text.

    Returns:
        The texts, and how many rows there were.

    Raises:
        UserError: As `tokenise`.
    """
    from cask.memory import give_back

    content = read_jsonl(rows)
    texts = tokenise(content, load_tokenizer(base), most)
    give_back()
    return texts, len(content)


def load_base(base: Checkpoint) -> PreTrainedModel:
    """Load a base for training: float32 but for embeddings and head, which stay as stored."""
    import torch

    from cask.memory import narrow_tables

    model = load_causal(base.path, dtype=torch.float32)
    names = [name for name in base.names() if kind(name) == "embedding" or is_head(name)]
    types = {torch_type(base.stored(name)) for name in names}
    if len(types) == 1:
        narrow_tables(model, *types)
    return model


def _as_stored(model: PreTrainedModel, base: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the weights that the base's files hold, each in the type that it has there."""
    state = model.state_dict()
    return {
        name: state[name].detach().to("cpu", torch_type(base.stored(name))) for name in base.names()
    }


def train_expert(
    out: Path,
    base: Path,
    rows: Path,
    *,
    recipe: Recipe,
    seed: int,
    threads: int = 1,
    device: str = "cpu",
) -> dict[str, float]:
    """Fine-tune a base on rows and write the expert, with the base's tokenizer and type.

    Args:
        out: Folder to make or replace.
        base: The pretrained model's folder.
        rows: JSON lines with `prompt`, `answer`, `eos`.
        recipe: How to train.
        seed: Seed of the data's order and of the adapter's first values.
        threads: CPU threads.
        device: cpu, or a GPU such as cuda.

    Returns:
        What `fit` returns with the model.

    Raises:
        UserError: The base or the rows cannot be used, or a number is out of range.
    """
    import torch

    recipe.check()
    torch.set_num_threads(threads)
    check_recorded(rows)
    texts, count = read_texts(rows, base, recipe.max_tokens)
    stored = Checkpoint(base)
    model = load_base(stored).to(device)
    # One folder that appears whole: weights, what they cost, and what they were made from.
    with staged_directory(out) as folder:
        with measure(folder / "cost.json") as cost:
            model, result = fit(model, texts, recipe, seed, out.name)
            cost.count(**{k: result[k] for k in ("forward_tokens", "backward_tokens", "flops")})
        write_checkpoint(folder, _as_stored(model, stored), base)
        write_manifest(
            folder / NAME,
            kind="expert",
            parameters={"recipe": dataclasses.asdict(recipe), "rows": len(texts)},
            inputs={"base": stored.fingerprint, "rows": rows},
            outputs={path.name: path for path in folder.iterdir() if path.name != "cost.json"},
            seed=seed,
            code=("cask/training.py",),
            extra={
                "first_loss": result["first_loss"],
                "last_loss": result["last_loss"],
                "left_out": count - len(texts),
            },
        )
    return result
