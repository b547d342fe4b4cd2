"""Statistics without a model: given by hand, or drawn for any tensor."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from merges.engine import registry


class Given:
    """Statistics of one kind, by parameter and by what they are."""

    def __init__(self, kind: str, found: Mapping[tuple[str, str], torch.Tensor]) -> None:
        self.path, self.kind, self.model, self.tokens = Path("given"), kind, "", 1 << 20
        self._found = dict(found)

    def _get(self, parameter: str, what: str) -> torch.Tensor | None:
        return self._found.get((parameter, what))

    def widths(self) -> dict[str, int]:
        return {}

    def has(self, parameter: str, what: str) -> bool:
        return self._get(parameter, what) is not None

    def read(self, parameter: str, what: str, start: int = 0, stop: int | None = None):
        return self._get(parameter, what).flatten()[start:stop].clone()

    def matrix(self, parameter: str, what: str) -> torch.Tensor:
        return self._get(parameter, what).clone()

    def mean(self, parameter: str) -> float:
        return float(self._get(parameter, "values").double().mean())

    @property
    def norm(self) -> float:
        squares = [float(v.double().square().sum()) for v in self._found.values()]
        return sum(squares) ** 0.5


# Methods that tests of the engine run on models on disk; to those with statistics, which these
# models lack, the tests of `test_data_informed.py` and the properties apply.
PLAIN = [
    name
    for name, info in registry.describe().items()
    if not info.whole_model and not info.statistics
]


def drawn(
    method: str, experts: Iterable[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Given]:
    """Statistics that a method asks for, of tensors of any shape; a model's name is the seed."""
    found = {}
    for whose, kind in registry.info(method).statistics.items():
        for model in experts if whose == "experts" else [whose]:
            rng = np.random.default_rng(zlib.crc32(model.encode()))
            made = {}
            for name, shape in shapes.items():
                made[name, "values"] = torch.tensor(rng.exponential(size=shape)).float()
                if len(shape) == 2:
                    x, y = (rng.normal(size=(40, n)) for n in (shape[1], shape[0]))
                    made[name, "gram"] = torch.tensor(x.T @ x / 40).float()
                    made[name, "output_gram"] = torch.tensor(y.T @ y / 40).float()
                    made[name, "mean_abs"] = torch.tensor(abs(x).mean(0)).float()
            found[model] = Given(kind, made)
    return found
