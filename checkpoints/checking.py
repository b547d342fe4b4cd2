"""Checks that come before a merge: do these checkpoints belong together, are they sound?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from checkpoints.architecture import says_quantised
from checkpoints.configs import config_differences, says, usual
from checkpoints.dtypes import FLOATS
from checkpoints.names import text_part
from checkpoints.reading import Model
from common.errors import UserError

if TYPE_CHECKING:
    import torch

_SAME_BASE = "merge only checkpoints fine-tuned from the same base"
# What makes an architecture. Heads show in no shape: other heads mean another function.
_ARCHITECTURE = (
    *("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "hidden_act"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
    *("num_local_experts", "num_experts", "num_experts_per_tok"),
)


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with those of its text model, where it has one inside, on top."""
    return {**config, **text_part(config)}


def check_architecture(base: Model, expert: Model, where: str) -> None:
    """Refuse an expert, called `where`, whose configuration is of another architecture.

    Raises:
        UserError: A field that both configurations have differs.
    """
    for model, name in ((expert, where), (base, f"the base ({base.path})")):
        check_full_precision(model, name)
    ours, theirs = flat_config(base.config), flat_config(expert.config)
    pairs = {field: (ours.get(field), theirs.get(field)) for field in _ARCHITECTURE}
    built = {} if pairs["model_type"][0] != pairs["model_type"][1] else _built(base, expert)
    for field, (own, other) in {**pairs, **built}.items():
        if own is None or other is None or own == other or _alike(own, other):
            continue
        raise UserError(
            f"{where} is of another architecture: {field} is {other!a}, the base's is {own!a}; "
            f"{_SAME_BASE}"
        )


def _built(base: Model, expert: Model) -> dict[str, Any]:
    """Return what makes an architecture, differs as transformers builds it, and is said by both.

    What only one says, tensors show; and it is noted.
    """
    found = config_differences(base.config, expert.config)
    return {
        key: pair
        for key, pair in found.items()
        if (field := key.rsplit(".", 1)[-1]) in _ARCHITECTURE
        and says(base.config, field)
        and says(expert.config, field)
    }


def _alike(one: object, other: object) -> bool:
    """Return whether two values are names of nearly the same activation, which is only noted."""
    names = {str(usual(one)), str(usual(other))}
    return len(names) == 1 or any(all(word in name for name in names) for word in ("gelu", "relu"))


def check_full_precision(model: Model, where: str) -> None:
    """Raise a UserError if a model, called `where`, is quantised by its configuration."""
    if says_quantised(model.config):
        raise UserError(
            f"{where} is quantised, as its config.json and its tensors say; merge the models in "
            "full precision instead"
        )


def _check_tensors(base: Model, expert: Model, where: str) -> None:
    missing = sorted(set(base.names()) - set(expert.names()))
    surplus = sorted(set(expert.names()) - set(base.names()))
    if missing:
        raise UserError(
            f"{where} lacks the base's tensor {missing[0]}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}{_why(missing)}; "
            f"{_SAME_BASE}"
        )
    if surplus:
        raise UserError(
            f"{where} has tensor {surplus[0]}, which the base ({base.path}) lacks{_why(surplus)}; "
            f"{_SAME_BASE}"
        )
    for tensor in base.names():
        if expert.shape(tensor) != base.shape(tensor):
            raise UserError(
                f"{where}: tensor {tensor} has shape {list(expert.shape(tensor))}, the base's "
                f"has {list(base.shape(tensor))}; {_SAME_BASE}"
            )
        if (expert.dtype(tensor) in FLOATS) != (base.dtype(tensor) in FLOATS):
            raise UserError(
                f"{where}: tensor {tensor} is of type {expert.dtype(tensor)}, the base's of "
                f"{base.dtype(tensor)}; {_SAME_BASE}"
            )


def _why(names: list[str]) -> str:
    if all(name.endswith("lm_head.weight") for name in names):
        return " (one of them ties its output head to the embedding)"
    if all(name.endswith(".bias") for name in names):
        return " (one of them has biases)"
    return ""


def check_compatible(
    base: Model, experts: Mapping[str, Model], *, same_tokenizer: bool = True
) -> None:
    """Refuse experts whose architecture, parameters or tokenizer differ from the base's.

    Args:
        base: The common ancestor.
        experts: The fine-tuned checkpoints by name.
        same_tokenizer: Whether the tokenizers must be the same; not so for models that have been
            brought to one vocabulary (`checkpoints.vocabulary.align`).

    Raises:
        UserError: An expert is of another architecture, lacks a parameter, has one too many, has
            one of another shape, or has another tokenizer.
    """
    from checkpoints.vocabulary import check_tokenizer

    for name, expert in experts.items():
        where = f"expert {name} ({expert.path})"
        check_architecture(base, expert, where)
        # Before the shapes: of rows too many, the tokenizer knows the reason and the remedy.
        if same_tokenizer:
            check_tokenizer(base, expert, where)
        _check_tensors(base, expert, where)


def check_finite(tensor: torch.Tensor | np.ndarray, name: str, source: Path | str) -> None:
    """Refuse a tensor that holds NaN or infinity.

    Args:
        tensor: Any shape, any type.
        name: The parameter's name, for the message.
        source: The checkpoint it was read from, for the message.

    Raises:
        UserError: A value is not finite.
    """
    bad = 0
    if isinstance(tensor, np.ndarray):
        bad = int(np.count_nonzero(~np.isfinite(tensor)))
    # The sum of a tensor with NaN or infinity is not finite, and needs no mask of its size;
    # the exact test sorts out a finite sum that overflows.
    elif tensor.is_floating_point() and not tensor.sum().isfinite():
        bad = int((~tensor.isfinite()).sum())
    if bad:
        raise UserError(
            f"{source}: tensor {name} holds {bad} NaN or infinite value{'s' if bad > 1 else ''}; "
            "fetch or train this checkpoint again"
        )
