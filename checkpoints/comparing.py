"""Two models of one base compared before they are merged: `python -m checkpoints compare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from checkpoints.differences import differences, not_finite, opened
from checkpoints.likeness import MEASURES, WITH_TEXTS, Likeness, linear_cka
from checkpoints.loading import load_causal, load_tokenizer
from checkpoints.names import is_linear
from common.errors import UserError
from common.files import read_json, read_jsonl

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from checkpoints.reading import Model

# What the study of scale found: `predictors.json` of a complete run, under this name.
WORTH = Path(__file__).with_name("worth.json")
_ROWS = 200  # of the file of texts


def worth_of() -> dict[str, Any] | None:
    """Return what each measure is worth; None while that is not known.

    Returns:
        By measure, its mean rank correlation `rho` with a merge's outcome in a world that was left
        out, its interval `low` to `high`, the same among `equal` numbers of experts, whether
        `higher` values are better, whether it `earned` its place, and the number of `worlds`.
    """
    return dict(read_json(WORTH)) if WORTH.exists() else None


def shown(worth: Mapping[str, Any] | None) -> list[str]:
    """Return the measures that earned their place; all where that is not known."""
    if worth is None:
        return list(MEASURES)
    return [name for name in MEASURES if name in worth and worth[name]["earned"]]


def _of_weights(base: Model, models: Mapping[str, Model], ranks: bool) -> dict[str, float]:
    """Read all weights once, and measure the two models' task vectors."""

    def is_layer(name: str) -> bool:
        return ranks and len(base.shape(name)) == 2 and is_linear(name)

    found = Likeness(len(models))
    for name, origin, deltas in differences(base, models, is_layer):
        if not_finite(deltas, models):
            raise UserError(f"tensor {name}: a model holds NaN or infinity; repair it first")
        found.add(origin, deltas)
        if is_layer(name):
            found.add_layer(deltas.reshape(len(deltas), *base.shape(name)))
    return {name: float(values[0, 1]) for name, values in found.pairs().items()}


def _tokenised(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], int]]:
    """Yield each row's tokens, and how many of them are before its answer."""
    rows = read_jsonl(path)[:_ROWS]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), str) for key in ("prompt", "answer")
        ):
            raise UserError(
                f'{path}, line {number}: no "prompt" and "answer"; a row is '
                '{"prompt": text, "answer": text}'
            )
        encoded = tokenizer(
            row["prompt"] + row["answer"], add_special_tokens=False, return_offsets_mapping=True
        )
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        before = sum(end <= len(row["prompt"]) for _, end in encoded["offset_mapping"])
        ids = [*begin, *encoded["input_ids"]]
        if len(begin) + before >= len(ids) or len(ids) < 2:
            raise UserError(f"{path}, line {number}: the row has no answer to predict; remove it")
        yield ids, max(len(begin) + before, 1)


def _answers(
    model: PreTrainedModel, rows: Sequence[tuple[list[int], int]]
) -> tuple[np.ndarray, float]:
    """Return final hidden states [tokens, hidden] that predict the answers, and the mean loss."""
    import torch

    states, losses = [], []
    with torch.inference_mode():
        for ids, before in rows:
            output = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
            states.append(output.hidden_states[-1][0, before - 1 : -1].double().numpy())
            chances = output.logits[0, before - 1 : -1].double().log_softmax(-1)
            losses.append(-chances.gather(1, torch.tensor(ids[before:])[:, None])[:, 0].numpy())
    return np.concatenate(states), float(np.concatenate(losses).mean())


def _of_texts(one: Path, two: Path, rows: Path) -> dict[str, float]:
    """Have both models and the one half-way read texts."""
    import torch

    texts = list(_tokenised(rows, load_tokenizer(one)))
    if not texts:
        raise UserError(f"{rows}: no rows; give texts that both models are meant for")
    first = load_causal(one, dtype="float32").eval()
    second = load_causal(two, dtype="float32").eval()
    (states, loss), (others, other) = _answers(first, texts), _answers(second, texts)
    with torch.no_grad():
        values: Mapping[str, torch.Tensor] = dict(second.named_parameters())
        for name, parameter in first.named_parameters():
            parameter.lerp_(values[name], 0.5)
    half = _answers(first, texts)[1]
    return {"cka": linear_cka(states, others), "midpoint": half - (loss + other) / 2}


def compare(one: Path, two: Path, base: Path, rows: Path | None = None) -> dict[str, float]:
    """Measure how alike two models of one base are.

    Args:
        one: A model, or an adapter of the base.
        two: Another one.
        base: What both were fine-tuned from.
        rows: JSON lines with ``prompt`` and ``answer``, for the measures that read texts; the first
            200 are read, by the two models, which are then no adapters.

    Returns:
        The measures that earned their place, or all; see `checkpoints.likeness.MEASURES`. NaN
        where a model has not moved.

    Raises:
        UserError: A folder is no model or has other parameters than the base, or rows are bad.
    """
    wanted = shown(worth_of())
    origin, models = opened(base, {"A": one, "B": two})
    found: dict[str, float] = {}
    if any(name not in WITH_TEXTS for name in wanted):
        found |= _of_weights(origin, models, "rank" in wanted)
    if rows is not None and any(name in WITH_TEXTS for name in wanted):
        found |= _of_texts(one, two, rows)
    return {name: found[name] for name in wanted if name in found}


def lines(found: Mapping[str, float], worth: Mapping[str, Any] | None) -> list[str]:
    """Write measures as lines, each with what it is worth."""
    made = [f"{'measure':<11}{'value':>9}   {'better':<7} {'worth':<22} what it is"]
    for name, value in found.items():
        better, known = "", "unknown"
        if worth is not None:
            better = "higher" if worth[name]["higher"] else "lower"
            own = worth[name]["equal"] or worth[name]
            known = f"{own['rho']:+.2f} [{own['low']:+.2f}, {own['high']:+.2f}]"
        made.append(f"{name:<11}{value:>9.4f}   {better:<7} {known:<22} {MEASURES[name]}")
    if worth is None:
        made.append("worth: not known until the study of scale has run to its end")
    else:
        worlds = max(own["worlds"] for own in worth.values())
        made.append(
            "worth: rank correlation with the outcome of merging equally many experts, in small "
            f"worlds that were left out [95 %, {worlds} worlds of several bases]; better: which "
            "values came with better merges"
        )
    return made
