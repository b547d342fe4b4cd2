"""The score of mergelens, where that package is installed: a candidate measure, run as it is."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

NAME = "mergelens"
PLACE = "BOTTLE_MERGELENS"  # names a folder that holds the package, if it is not installed


def installed() -> bool:
    """Return whether the package can be imported; the project does not depend on it."""
    place = os.environ.get(PLACE)
    if place and place not in sys.path:
        sys.path.append(place)  # behind all else, so that it brings no other library's version
    return importlib.util.find_spec(NAME) is not None


def pairs(
    config: PretrainedConfig,
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
) -> np.ndarray | None:
    """Return its aggregate score of every two experts, float64 [N, N]; None without the package.

    The score is `mci` of mergelens 2.0.3, which its authors call a heuristic that was never
    validated. NaN where it gives none. The package reads folders, which are written and removed.

    Args:
        config: The models' configuration.
        base: The base's weights by parameter name.
        experts: The experts' by name.
    """
    if not installed():
        return None
    from safetensors.torch import save_file

    compare = importlib.import_module(NAME).compare_models
    found = np.full((len(experts), len(experts)), np.nan)
    with tempfile.TemporaryDirectory() as scratch:
        folders = []
        for name, weights in {"base": base, **experts}.items():
            folder = Path(scratch, name)
            config.save_pretrained(folder)
            save_file(dict(weights), folder / "model.safetensors", {"format": "pt"})
            folders.append(str(folder))
        origin, *others = folders
        for one in range(len(others)):
            for two in range(one):
                result = compare(
                    [others[one], others[two]],
                    base_model=origin,
                    show_progress=False,
                    include_strategy=False,
                )
                score = result.mci.score
                found[one, two] = found[two, one] = np.nan if score is None else score
    return found
