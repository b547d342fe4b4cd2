"""Steps of a long part that are kept as files, so that a part that was stopped resumes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import read_json, write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor

_KEY, _SPENT = "key.json", "spent.json"


class Kept:
    """A folder of finished steps.

    Args:
        folder: The folder; made, and emptied where it holds the steps of something else.
        key: What the steps depend on: settings and code.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self._folder = folder
        try:
            if folder.exists() and read_json(folder / _KEY) != key:
                shutil.rmtree(folder)
        except UserError:  # a folder without its key
            shutil.rmtree(folder)
        write_json(folder / _KEY, key)

    def spent(self) -> float:
        """Return the CPU seconds of all steps, in earlier processes too."""
        path = self._folder / _SPENT
        return float(read_json(path)) if path.exists() else 0.0

    def spend(self, seconds: float) -> None:
        """Add CPU seconds to those spent."""
        write_json(self._folder / _SPENT, self.spent() + seconds)

    def has(self, name: str) -> bool:
        """Return whether a step is finished."""
        return any((self._folder / f"{name}{end}").exists() for end in (".json", ".safetensors"))

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a step's result, JSON, made unless it is kept."""
        path = self._folder / f"{name}.json"
        if not path.exists():
            write_json(path, make())
        return read_json(path)

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a model."""
        from safetensors.torch import save

        write_bytes(self._folder / f"{name}.safetensors", save(dict(tensors)))

    def model(self, name: str) -> dict[str, Tensor]:
        """Read a model that is kept."""
        from safetensors.torch import load_file

        return dict(load_file(self._folder / f"{name}.safetensors"))

    def remove(self) -> None:
        """Remove the folder, once all is in the part's result."""
        shutil.rmtree(self._folder, ignore_errors=True)
