"""Writing a complete Hugging Face model folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.reading import SINGLE

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# All that makes text into ids and back, and what generation needs; no weights, no model card.
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def copy_companions(donor: Path, folder: Path) -> None:
    """Copy a model folder's configuration and tokenizer files, whichever of them exist."""
    for name in _COMPANIONS:
        if (donor / name).is_file():
            shutil.copyfile(donor / name, folder / name)


def write_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor], donor: Path) -> Path:
    """Write weights with the configuration and the tokenizer of a named donor.

    Args:
        folder: An existing folder, staged by the caller (`common.files.staged_directory`).
        tensors: Parameters by name, on the CPU, in the type in which they are to be stored.
        donor: The model folder that configuration and tokenizer are copied from.

    Returns:
        The weight file.
    """
    from safetensors.torch import save_file

    copy_companions(donor, folder)
    path = folder / SINGLE
    save_file(
        {name: tensor.contiguous() for name, tensor in sorted(tensors.items())},
        path,
        metadata={"format": "pt"},
    )
    return path


def write_model(folder: Path, model: PreTrainedModel, tokenizer: Path) -> Path:
    """Write a freshly trained transformers model with its tokenizer.

    Args:
        folder: An existing folder, staged by the caller.
        model: The model; its parameters are stored in the type that they have.
        tokenizer: A folder with the tokenizer's files.

    Returns:
        The weight file.
    """
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    for path in sorted(tokenizer.iterdir()):
        if path.name in _COMPANIONS and path.name != "config.json":
            shutil.copyfile(path, folder / path.name)
    from safetensors.torch import save_file

    weights = folder / SINGLE
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()},
        weights,
        metadata={"format": "pt"},
    )
    return weights
