"""Types of values by the names that safetensors, torch and numpy give them."""

from __future__ import annotations

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

_STORED = {kind: name for name, kind in _TORCH.items()}
_NUMPY = {"bfloat16": "uint16"}  # numpy has no bfloat16


def torch_type(dtype: str) -> torch.dtype:
    """Return torch's type for a safetensors name such as ``BF16``."""
    import torch

    return getattr(torch, _TORCH[dtype])


def name_of(dtype: torch.dtype) -> str | None:
    """Return the safetensors name of a type of torch, None where it has none here."""
    return _STORED.get(str(dtype).removeprefix("torch."))


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
    if dtype not in _STORED:
        raise UserError(f"type {dtype!r} is unknown{nearest(dtype, _STORED)}")
    return _STORED[dtype]


# Of a value of each type, by safetensors' names.
BYTES = {name: numpy_type(name).itemsize for name in _TORCH}
FLOATS = ("F64", "F32", "F16", "BF16")
