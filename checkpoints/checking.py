"""Checks that come before a merge: do these checkpoints belong together, are they sound?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.files import sha256_file

if TYPE_CHECKING:
    import torch

_TOKENIZER = "tokenizer.json"


def check_compatible(base: Checkpoint, experts: Mapping[str, Checkpoint]) -> None:
    """Refuse experts whose parameters or tokenizer differ from the base's.

    Args:
        base: The common ancestor.
        experts: The fine-tuned checkpoints by name.

    Raises:
        UserError: An expert lacks a parameter, has one too many, has one of another shape, or has
            another tokenizer.
    """
    for name, expert in experts.items():
        where = f"expert {name} ({expert.path})"
        missing = sorted(set(base.names()) - set(expert.names()))
        surplus = sorted(set(expert.names()) - set(base.names()))
        if missing:
            raise UserError(
                f"{where} lacks the base's tensor {missing[0]}"
                f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}; "
                "merge only checkpoints fine-tuned from the same base"
            )
        if surplus:
            raise UserError(
                f"{where} has tensor {surplus[0]}, which the base ({base.path}) lacks; "
                "merge only checkpoints fine-tuned from the same base"
            )
        for tensor in base.names():
            if expert.shape(tensor) != base.shape(tensor):
                raise UserError(
                    f"{where}: tensor {tensor} has shape {list(expert.shape(tensor))}, the base's "
                    f"has {list(base.shape(tensor))}; "
                    "merge only checkpoints fine-tuned from the same base"
                )
        _check_tokenizer(base.path, expert.path, where)


def _check_tokenizer(base: Path, expert: Path, where: str) -> None:
    ours, theirs = base / _TOKENIZER, expert / _TOKENIZER
    if ours.exists() and theirs.exists() and sha256_file(ours) != sha256_file(theirs):
        raise UserError(
            f"{where} has another {_TOKENIZER} than the base ({base}), so the same text would "
            "mean other token ids; bring them to one vocabulary first"
        )


def check_finite(tensor: torch.Tensor, name: str, source: Path | str) -> None:
    """Refuse a tensor that holds NaN or infinity.

    Args:
        tensor: Any shape, any floating type.
        name: The parameter's name, for the message.
        source: The checkpoint it was read from, for the message.

    Raises:
        UserError: A value is not finite.
    """
    # The sum of a tensor with NaN or infinity is not finite, and needs no mask of its size;
    # a finite sum that overflows is told apart by the exact test.
    if tensor.is_floating_point() and not tensor.sum().isfinite():
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise UserError(
                f"{source}: tensor {name} holds {bad} NaN or infinite "
                f"value{'s' if bad > 1 else ''}; "
                "fetch or train this checkpoint again"
            )
