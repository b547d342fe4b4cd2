"""Training of a base from random weights, and of an expert from a base."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bottle.cases import BASE, get_case, get_role
from bottle.flops import forward_flops
from bottle.tokenizer import load_tokenizer
from checkpoints.loading import load_causal
from checkpoints.names import kind
from checkpoints.reading import Checkpoint
from checkpoints.writing import write_model
from common.cost import measure
from common.errors import UserError, nearest
from common.files import read_jsonl, staged_directory
from common.manifest import check_recorded, write_manifest
from common.progress import Progress

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

ARCHITECTURES = ("mistral", "llama")
_PAD, _BOS, _EOS = 0, 1, 2
_MAX_POSITIONS = 256
_BUCKETED_BATCHES = 16  # batches sorted by length together
_WARM_UP = 0.05
_FINAL_RATE = 0.1
_BETAS = (0.9, 0.98)
_CLIP = 1.0


@dataclass(frozen=True)
class Shape:
    """A model's architecture; see `python -m bottle train --help`."""

    architecture: str
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 384


@dataclass(frozen=True)
class Recipe:
    """How a role is trained; see `python -m bottle train --help`."""

    steps: int
    learning_rate: float
    embedding_learning_rate: float
    prompt_weight: float
    weight_decay: float
    batch_size: int = 32
    base_decay: float = 0.0


def recipe_of(role: str, **given: float | None) -> Recipe:
    """Complete given fields of a recipe by the usual ones of a base or of an expert."""
    usual: dict[str, Any] = {
        "steps": 600,
        "learning_rate": 2e-3,
        "prompt_weight": 0.03,
        "weight_decay": 0.0,
    }
    if role == BASE:
        usual = {"steps": 1100, "learning_rate": 3e-3, "prompt_weight": 0.3, "weight_decay": 0.01}
    chosen: dict[str, Any] = usual | {
        name: value for name, value in given.items() if value is not None
    }
    rate = chosen["learning_rate"] if role == BASE else 0.0
    return Recipe(**{"embedding_learning_rate": rate, **chosen})


@dataclass(frozen=True)
class Text:
    """A tokenised training row.

    Attributes:
        ids: Token ids from the bos on.
        prompt_length: Number of ids before the answer, the bos included.
    """

    ids: list[int]
    prompt_length: int


def build_model(shape: Shape, vocabulary: int, seed: int) -> PreTrainedModel:
    """Build a model with random weights: fp32, input and output embeddings apart.

    Args:
        shape: The architecture.
        vocabulary: Number of tokens.
        seed: Seed of the initial weights.

    Raises:
        UserError: The architecture is unknown or its sizes do not fit each other.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    if shape.architecture not in ARCHITECTURES:
        raise UserError(
            f"no architecture {shape.architecture!r}{nearest(shape.architecture, ARCHITECTURES)}; "
            "correct --architecture"
        )
    if min(dataclasses.astuple(shape)[1:]) < 1:
        raise UserError("a model's sizes are at least 1; correct --hidden-size, --layers ...")
    if shape.hidden_size % shape.heads or shape.heads % shape.kv_heads:
        raise UserError(
            f"hidden size {shape.hidden_size}, {shape.heads} heads and {shape.kv_heads} "
            "key-value heads do not divide; make each a multiple of the next"
        )
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden_size // shape.heads,
        "max_position_embeddings": _MAX_POSITIONS,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "pad_token_id": _PAD,
        "bos_token_id": _BOS,
        "eos_token_id": _EOS,
    }
    torch.manual_seed(seed)  # the weights are drawn where the model is made
    if shape.architecture == "mistral":
        return MistralForCausalLM(MistralConfig(**settings, sliding_window=None))
    return LlamaForCausalLM(LlamaConfig(**settings))


def tokenise(rows: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> list[Text]:
    """Encode training rows, prompt and answer apart."""

    def encode(texts: list[str]) -> list[list[int]]:
        return [item.ids for item in tokenizer.encode_batch(texts, add_special_tokens=False)]

    prompts = encode([row["prompt"] for row in rows])
    answers = encode([row["answer"] for row in rows])
    return [
        Text([_BOS, *prompt, *answer, *([_EOS] if row["eos"] else [])], 1 + len(prompt))
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
    ]


def batches(
    texts: Sequence[Text], batch_size: int, prompt_weight: float, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches for ever, epoch after epoch, each in its own random order.

    Args:
        texts: The training texts, at least one.
        batch_size: Texts in a batch.
        prompt_weight: Weight of a prompt's tokens in the loss; an answer's tokens weigh 1.
        seed: Seed of the order.

    Yields:
        Ids (batch x length, int64), padded at the right, and the weight of each position's
        prediction, that of the next token (batch x (length - 1), float32, 0 on padding). Causal
        attention makes a mask unnecessary.
    """
    import torch

    order = random.Random(seed)
    pending: list[Text] = []
    while True:
        # Texts of like length share a batch, and the batches are shuffled: little padding.
        while len(pending) < batch_size * _BUCKETED_BATCHES:
            pending += order.sample(texts, len(texts))
        pool = pending[: batch_size * _BUCKETED_BATCHES]
        pending = pending[len(pool) :]
        pool.sort(key=lambda text: len(text.ids))
        starts = list(range(0, len(pool), batch_size))
        order.shuffle(starts)
        for start in starts:
            batch = pool[start : start + batch_size]
            length = len(batch[-1].ids)
            ids = torch.full((len(batch), length), _PAD)
            weights = torch.zeros(len(batch), length - 1)
            for row, text in enumerate(batch):
                ids[row, : len(text.ids)] = torch.tensor(text.ids)
                weights[row, : text.prompt_length - 1] = prompt_weight
                weights[row, text.prompt_length - 1 : len(text.ids) - 1] = 1.0
            yield ids, weights


def learning_rate_at(step: int, steps: int) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine to a tenth."""
    warm_up = min(1.0, (step + 1) / (_WARM_UP * steps + 1))
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warm_up * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)


def parameter_groups(model: PreTrainedModel, recipe: Recipe) -> list[dict[str, Any]]:
    """Sort the parameters into the optimizer's groups, and freeze those whose rate is 0.

    Embeddings and norms have a separate rate, because merges that keep the base's are only
    meaningful where the experts' have hardly moved.
    """
    groups = []
    for rate, kinds in (
        (recipe.learning_rate, ("linear", "other")),
        (recipe.embedding_learning_rate, ("embedding", "norm")),
    ):
        parameters = [p for name, p in model.named_parameters() if kind(name) in kinds]
        for parameter in parameters:
            parameter.requires_grad_(rate > 0)
        if rate > 0:
            groups.append({"params": parameters, "lr": rate, "peak": rate})
    return groups


def fit(
    model: PreTrainedModel,
    texts: Sequence[Text],
    recipe: Recipe,
    seed: int,
    what: str,
    stop_after: int | None = None,
    watch: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Train a model in place.

    Args:
        model: The model.
        texts: The training texts.
        recipe: How to train.
        seed: Seed of the data's order.
        what: What the progress line says is being trained.
        stop_after: Steps after which training ends, in the middle of the recipe's schedule: the
            model is then that of the full training at this step. None for all.
        watch: Called after every step with the number of steps done.

    Returns:
        `first_loss` and `last_loss` (means over the first and last tenth of the steps), and the
        counts `forward_tokens`, `backward_tokens` and `flops`, padding included.

    Raises:
        UserError: The loss is no longer finite.
    """
    import torch
    from torch.nn.functional import cross_entropy

    groups = parameter_groups(model, recipe)
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(
        groups, betas=_BETAS, weight_decay=recipe.weight_decay, fused=True
    )
    # Decay towards the base (L2-SP, arXiv:1802.01483), decoupled as AdamW's decay towards 0 is.
    start = [parameter.detach().clone() for parameter in trained] if recipe.base_decay else []
    stream = batches(texts, recipe.batch_size, recipe.prompt_weight, seed)
    count = recipe.steps if stop_after is None else stop_after
    progress = Progress(count, what)
    model.train()
    losses: list[float] = []
    tokens, flops = 0, 0.0
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_at(step, recipe.steps)
        ids, weights = next(stream)
        predicted = weights > 0
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[predicted])  # a prompt that weighs 0 asks nothing
        each = cross_entropy(logits, ids[:, 1:][predicted], reduction="none")
        loss = (each * weights[predicted]).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, _CLIP)
        optimizer.step()
        if start:
            share = recipe.learning_rate * learning_rate_at(step, recipe.steps) * recipe.base_decay
            torch._foreach_lerp_([p.data for p in trained], start, share)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise UserError(f"{what}: the loss at step {step} is {losses[-1]}; lower the rate")
        tokens += weights.numel()
        # A backward pass is two forward ones.
        flops += 3 * forward_flops(model, weights.shape[1], weights.numel(), len(logits))
        progress.step(note=f"loss {losses[-1]:.3f}")
        if watch is not None:
            watch(step + 1)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.eval()
    tenth = max(1, count // 10)  # a single step's loss is mostly its batch's
    return {
        "first_loss": sum(losses[:tenth]) / tenth,
        "last_loss": sum(losses[-tenth:]) / tenth,
        "forward_tokens": tokens,
        "backward_tokens": tokens,
        "flops": flops,
    }


def _load_base(folder: Path, tokenizer: Tokenizer) -> PreTrainedModel:
    vocabulary = Checkpoint(folder).config["vocab_size"]
    if vocabulary != tokenizer.get_vocab_size():
        raise UserError(
            f"{folder}: the base has {vocabulary} tokens, the data's tokenizer "
            f"{tokenizer.get_vocab_size()}; give the base that was trained on this data"
        )
    return load_causal(folder, dtype="float32")


def train_role(
    out: Path,
    case_name: str,
    role: str,
    data: Path,
    *,
    base: Path | None,
    shape: Shape | None,
    recipe: Recipe,
    seed: int,
    threads: int,
    stop_after: int | None = None,
) -> dict[str, float]:
    """Train one role of a case and write the model.

    Args:
        out: Folder to make or replace.
        case_name: ``case1`` or ``case2``.
        role: ``base`` or an expert's name.
        data: What `python -m bottle data` wrote.
        base: The model to start from; None for a base, and only for it.
        shape: Architecture of a base; None for an expert, which has its base's.
        recipe: How to train.
        seed: Seed of initial weights and data order.
        threads: CPU threads.
        stop_after: See `fit`.

    Returns:
        What `fit` returns.

    Raises:
        UserError: Unknown case or role, missing data or base, or a number out of range.
    """
    import torch

    get_role(case_name, role)
    if (role == BASE) != (base is None):
        raise UserError(
            f"role {role!r} starts from "
            + ("random weights; leave --init out" if role == BASE else "a base; give --init DIR")
        )
    if recipe.steps < 1 or recipe.batch_size < 1:
        raise UserError("training needs at least 1 step and 1 text a batch; raise --steps")
    if stop_after is not None and not 1 <= stop_after <= recipe.steps:
        raise UserError(
            f"--stop-after is {stop_after}; give 1 to {recipe.steps}, the steps of the schedule"
        )
    if base is None and recipe.base_decay:
        raise UserError("a base starts from random weights; leave --base-decay out")
    if not 0 <= recipe.base_decay * recipe.learning_rate < 1:
        raise UserError(
            f"--base-decay is {recipe.base_decay:g}: times the learning rate, it is the "
            "share of the way back in a step; give 0 to less than 1 / learning rate"
        )
    torch.set_num_threads(threads)
    rows_path = data / "train" / f"{role}.jsonl"
    check_recorded(rows_path)
    check_recorded(data / "tokenizer/tokenizer.json")
    rows = read_jsonl(rows_path)
    if not rows:
        raise UserError(f"{rows_path}: no rows; make the data again (python -m bottle data)")
    tokenizer = load_tokenizer(data / "tokenizer")
    if base is None:
        shape = shape or Shape(get_case(case_name).architecture)
        model = build_model(shape, tokenizer.get_vocab_size(), seed)
    else:
        model = _load_base(base, tokenizer)
    parameters = {
        "case": case_name,
        "role": role,
        "recipe": dataclasses.asdict(recipe),
        "model": dataclasses.asdict(shape) if base is None and shape else None,
        **({} if stop_after is None else {"stop_after": stop_after}),
    }
    with staged_directory(out) as folder:
        with measure(folder / "cost.json") as cost:
            # Roles that share a seed still see their data in different orders.
            order = random.Random(f"{case_name} {role} {seed}").getrandbits(32)
            texts, what = tokenise(rows, tokenizer), f"{case_name}/{role}"
            result = fit(model, texts, recipe, order, what, stop_after)
            counts = ("forward_tokens", "backward_tokens", "flops")
            cost.count(**{name: result[name] for name in counts})
        write_model(folder, model, data / "tokenizer")
        write_manifest(
            folder / "manifest.json",
            kind="base" if base is None else "expert",
            parameters=parameters,
            inputs={"data": data, **({} if base is None else {"base": base})},
            outputs={path.name: path for path in folder.iterdir() if path.name != "cost.json"},
            seed=seed,
            code=("bottle/training.py", f"bottle/{case_name}.py"),
            extra={"first_loss": result["first_loss"], "last_loss": result["last_loss"]},
        )
    return result
