"""What models have more than their common base, read a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from checkpoints.adapters import open_model
from checkpoints.preflight import check_merge
from checkpoints.settling import settle
from common.errors import UserError
from common.progress import Progress

if TYPE_CHECKING:
    from checkpoints.reading import Model

_PIECE = 1 << 18  # values of each model that are in memory at a time


def opened(
    base: Path, folders: Mapping[str, Path], optional: frozenset[str] = frozenset()
) -> tuple[Model, dict[str, Model]]:
    """Open a base and models or adapters of it, under one set of parameter names.

    Args:
        base: The base's folder.
        folders: The others' by name.
        optional: Names of those that are left out, with a note, where their parameters differ.

    Returns:
        The base and the others.

    Raises:
        UserError: A folder is no model, or has other parameters than the base.
    """
    root = open_model(base)
    models: dict[str, Model] = {}
    for name, path in folders.items():
        model = open_model(path, root)
        if errors := check_merge(root, {name: model}).errors:
            if name not in optional:
                raise UserError(errors[0])
            print(f"note: {name} is left out: {errors[0]}")
            continue
        models[name] = model
    settled = settle(root, models)
    return settled.base, settled.experts


def differences(
    base: Model, models: Mapping[str, Model], at_once: Callable[[str], bool] = lambda name: False
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Read all models once, and show how far that is.

    Args:
        base: The base.
        models: By name, with the base's parameters.
        at_once: Whether a tensor of this name is one piece, whatever its size.

    Yields:
        For each piece its tensor's name, the base's values, float64 [n], and what every model has
        more, float64 [models, n].
    """
    progress = Progress(sum(map(base.count, base.names())), "comparing with the base: values")
    for name in base.names():
        count = base.count(name)
        piece = count if at_once(name) else _PIECE
        for start in range(0, count, piece):
            stop = min(start + piece, count)
            origin = base.read(name, start, stop).double().numpy()
            read = [model.read(name, start, stop).double().numpy() for model in models.values()]
            yield name, origin, np.stack(read) - origin
            progress.step(stop - start, name)


def not_finite(deltas: np.ndarray, models: Mapping[str, Model]) -> list[str]:
    """Return the models of which a piece holds NaN or infinity; all, where the base does."""
    finite = np.isfinite(deltas)
    if finite.all():
        return []
    return [name for name, row in zip(models, finite, strict=True) if not row.all()]
