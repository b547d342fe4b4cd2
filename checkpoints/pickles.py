"""Weights in PyTorch's own files, for those who ask: only tensors are unpickled, nothing is run."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.dtypes import name_of
from checkpoints.headers import Stored
from checkpoints.layout import REMADE, check_index, check_name, read_index
from common.errors import UserError, reason_of

if TYPE_CHECKING:
    import torch


def _load(shard: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        held = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a hostile or damaged file makes of the reader
        raise UserError(
            f"{shard}: cannot be read as weights alone ({reason_of(error)}); convert it to "
            "safetensors where you trust it"
        ) from None
    if not isinstance(held, dict) or not held:
        raise UserError(f"{shard}: holds no tensors by name; {REMADE}")
    for name, tensor in held.items():
        check_name(name, shard)
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            raise UserError(f"{shard}: {name} is no ordinary tensor; {REMADE}")
    return held


class PickledWeights:
    """The weights of a model folder in ``pytorch_model.bin`` or several such files.

    Args:
        source: The only file, or the index of several.

    Attributes:
        stored: What is known of each parameter by its name.
        files: The file that holds each parameter.

    Raises:
        UserError: A file is missing, damaged, holds more than tensors, or contradicts the index.
    """

    def __init__(self, source: Path) -> None:
        self.stored: dict[str, Stored] = {}
        self.files: dict[str, Path] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._flat = functools.lru_cache(maxsize=2)(self._flatten)
        index = read_index(source) if source.suffix == ".json" else None
        shards = sorted(set(index.values())) if index else [source]
        held = {shard: _load(shard) for shard in shards}
        if index is not None:
            check_index(index, held)
        for shard, tensors in held.items():
            for name, tensor in tensors.items():
                kind = name_of(tensor.dtype)
                if kind is None:
                    raise UserError(
                        f"{shard}: tensor {name} has type {tensor.dtype}, which is not known here; "
                        "convert the checkpoint to BF16"
                    )
                size = tensor.numel() * tensor.element_size()
                self.stored[name] = Stored(kind, tuple(tensor.shape), 0, size)
                self.files[name] = shard
                self._tensors[name] = tensor

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Copy values [start, stop) of a flattened parameter."""
        return self._flat(name)[start:stop].clone()

    def _flatten(self, name: str) -> torch.Tensor:
        # A transposed tensor has to be copied for this; the cache has it done once, not per piece.
        return self._tensors[name].reshape(-1)

    def ahead(self, name: str) -> None:
        """Do nothing: the file is mapped, and the system fetches it as it is touched."""
