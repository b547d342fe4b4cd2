"""Types of values by the names that safetensors, torch and numpy give them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from common.errors import UserError, nearest

if TYPE_CHECKING:
    import torch

_TORCH = {
    "F64": "float64",
    "I64": "int64",
    "F32": "float32",
    "I32": "int32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

_NUMPY = {"bfloat16": "uint16"}  # numpy has no bfloat16


@functools.cache
def torch_types() -> dict[str, torch.dtype]:
    """Return torch's types by their safetensors names."""
    import torch

    return {name: getattr(torch, kind) for name, kind in _TORCH.items()}


def torch_type(dtype: str) -> torch.dtype:
    """Return torch's type for a safetensors name such as ``BF16``."""
    return torch_types()[dtype]


def numpy_type(dtype: str) -> np.dtype:
    """Return numpy's type for a safetensors name; for ``BF16`` that of its patterns, uint16."""
    return np.dtype(_NUMPY.get(_TORCH[dtype], _TORCH[dtype]))


def torch_name(dtype: str) -> str:
    """Return torch's name, such as ``bfloat16``, of a type by its safetensors name."""
    return _TORCH[dtype]


def stored_type(dtype: str) -> str:
    """Return the safetensors name, such as ``BF16``, of a type by torch's name.

    Raises:
        UserError: There is no such type.
    """
    for name, known in _TORCH.items():
        if known == dtype:
            return name
    raise UserError(f"type {dtype!r} is unknown{nearest(dtype, _TORCH.values())}")
