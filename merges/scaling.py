"""What the coefficients of DAM do to all models' weights in common, apart from how they mix them.

W = sum_i W_i diag(c_i) = (sum_j c_j) * sum_i W_i diag(c_i / sum_j c_j), for each column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.manifest import NAME, check_recorded, read_manifest

# What merges.engine.output writes; an import would put the engine in the key of an inspection.
FILE = Path("extra") / "coefficients.safetensors"


@dataclass(frozen=True)
class Learned:
    """The coefficients of a merge: names of the M models, and by tensor float64 [M, columns]."""

    models: tuple[str, ...]
    tensors: Mapping[str, np.ndarray]


def learned(folder: Path) -> Learned | None:
    """Read the coefficients of complete weights that DAM left in a merge's folder.

    Args:
        folder: The merge's.

    Returns:
        Them without those of biases; None where the folder has none, or only coefficients of task
        vectors, which do not rescale what the models share.

    Raises:
        UserError: The file is damaged, or is not of the models that the manifest names.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / FILE
    if not (path.is_file() and (folder / NAME).is_file()):
        return None
    about = read_manifest(folder / NAME).get("parameters", {})
    given = about.get("set", {})
    if about.get("method") != "dam" or given.get("task_vectors"):
        return None
    check_recorded(path)
    models = (*(["base"] if given.get("base_source") else []), *about["experts"])
    try:
        read = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: {error}; make the merge again") from None
    tensors = {name: each.astype(np.float64) for name, each in read.items() if each.ndim == 2}
    for name, each in tensors.items():
        if len(each) != len(models) or not np.isfinite(each).all():
            raise UserError(
                f"{path}: {name} has not {len(models)} rows of finite numbers, one row for each "
                f"model ({', '.join(models)}); make the merge again"
            )
    return Learned(models, tensors)


def scaling(models: Sequence[str], tensors: Sequence[np.ndarray]) -> dict[str, Any]:
    """Describe the coefficients of a group of tensors, each column as much as any other.

    Args:
        models: Names of the M models.
        tensors: Each float64 [M, columns].

    Returns:
        `sum`, the mean over columns of the sum over models: 1 leaves the weights' scale as it is;
        `spread`, that sum's standard deviation over columns; `shares`, by model, the mean of its
        coefficients in parts of `sum`, None where that is 0.
    """
    columns = np.concatenate(tensors, axis=1)
    sums = columns.sum(axis=0)
    mean = float(sums.mean())
    shares = [float(value) / mean if mean else None for value in columns.mean(axis=1)]
    return {
        "sum": mean,
        "spread": float(sums.std()),
        "shares": dict(zip(models, shares, strict=True)),
    }
