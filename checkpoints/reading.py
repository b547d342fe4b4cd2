"""Reading a Hugging Face model folder parameter by parameter, refusing a damaged one."""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import read_json, sha256_file

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_REMADE = "fetch or build the checkpoint again"


def _header(shard: Path) -> dict[str, Any]:
    """Read a safetensors header and check the file against it.

    A length check catches what a cut download leaves behind before any merge has begun.
    """
    if not shard.exists():
        raise UserError(f"{shard}: this shard is missing; {_REMADE}")
    size = shard.stat().st_size
    try:
        with open(shard, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise UserError(f"{shard}: the shard is truncated in its header; {_REMADE}")
            header = json.loads(stream.read(length))
    except (struct.error, ValueError):
        raise UserError(f"{shard}: not a safetensors file; {_REMADE}") from None
    header.pop("__metadata__", None)
    needed = 8 + length + max((item["data_offsets"][1] for item in header.values()), default=0)
    if size < needed:
        raise UserError(f"{shard}: the shard is truncated ({size} of {needed} bytes); {_REMADE}")
    return header


class Checkpoint:
    """A model folder with safetensors weights, read lazily.

    Args:
        path: The folder, with config.json and one weight file or an index of shards.

    Raises:
        UserError: The folder is not a model, or a shard is missing, truncated, or lacks a tensor
            that the index names.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise UserError(f"{path}: not a model folder (no config.json); correct the path")
        self.config: dict[str, Any] = read_json(self.path / "config.json")
        self._shard_of: dict[str, Path] = {}
        self._headers: dict[str, dict[str, Any]] = {}
        if (self.path / INDEX).is_file():
            index = read_json(self.path / INDEX)["weight_map"]
            for shard in sorted(set(index.values())):
                header = _header(self.path / shard)
                for name in (name for name, where in index.items() if where == shard):
                    if name not in header:
                        raise UserError(
                            f"{self.path / shard}: tensor {name} is missing from the shard that "
                            f"the index names; {_REMADE}"
                        )
                    self._shard_of[name] = self.path / shard
                    self._headers[name] = header[name]
        elif (self.path / SINGLE).is_file():
            self._headers = _header(self.path / SINGLE)
            self._shard_of = dict.fromkeys(self._headers, self.path / SINGLE)
        else:
            raise UserError(f"{path}: no {SINGLE} and no {INDEX} in this folder; {_REMADE}")

    def names(self) -> list[str]:
        """Return the names of all parameters, sorted."""
        return sorted(self._headers)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape without reading its values."""
        return tuple(self._headers[name]["shape"])

    def dtype(self, name: str) -> str:
        """Return a parameter's stored type as safetensors writes it: F32, BF16 ..."""
        return self._headers[name]["dtype"]

    def load(self, name: str) -> torch.Tensor:
        """Read one parameter in its stored type, onto the CPU."""
        from safetensors import safe_open

        with safe_open(self._shard_of[name], framework="pt") as shard:
            return shard.get_tensor(name)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Read all parameters."""
        return {name: self.load(name) for name in self.names()}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sha256 over the weight files' hashes, in the order of their names."""
        digest = hashlib.sha256()
        for shard in sorted(set(self._shard_of.values())):
            digest.update(f"{shard.name} {sha256_file(shard)}\n".encode())
        return digest.hexdigest()
