"""Where a model folder keeps its configuration, index and weights; nothing in it is trusted."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLE_INDEX = "pytorch_model.bin.index.json"
PICKLE_SINGLE = "pytorch_model.bin"
REMADE = "fetch or build the checkpoint again"


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file, which may come from anybody and must hold an object.

    Raises:
        UserError: The file is missing, cannot be read, is not JSON, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {REMADE}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {REMADE}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid JSON (nested too deeply); {REMADE}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {REMADE}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; {REMADE}")
    return value


def check_name(name: object, where: Path) -> None:
    """Refuse a parameter's name, found in the file `where`, that could break a message or a file.

    Raises:
        UserError: The name is no text, is empty or holds unprintable characters.
    """
    if not isinstance(name, str) or not name or not name.isprintable():
        raise UserError(f"{where}: {name!a} is no name of a tensor; {REMADE}")


def _is_plain(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.isprintable()
        and 0 < len(name.encode()) < 256
        and name not in (".", "..")
        and "/" not in name
    )


def read_index(path: Path) -> dict[str, Path]:
    """Read an index: the weight file next to it that holds each parameter.

    Raises:
        UserError: The index is malformed, or names a file that is missing or elsewhere.
    """
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path}: the index has no weight_map; {REMADE}")
    found: dict[object, Path] = {}
    for name, shard in weight_map.items():
        check_name(name, path)
        if not _is_plain(shard):
            raise UserError(f"{path}: {shard!a} is no file next to the index; {REMADE}")
        if shard not in found:
            found[shard] = path.parent / shard
            if not found[shard].is_file():
                raise UserError(f"{found[shard]}: this shard is missing; {REMADE}")
    return {name: found[shard] for name, shard in weight_map.items()}


def check_index(index: Mapping[str, Path], held: Mapping[Path, Collection[str]]) -> None:
    """Compare what the weight files hold with what their index says.

    Args:
        index: The file of each parameter, by the index.
        held: The parameters in each file, by the file.

    Raises:
        UserError: A parameter is missing, is in two files, or is not in the index.
    """
    for name, shard in index.items():
        if name not in held[shard]:
            raise UserError(
                f"{shard}: tensor {name} is missing from the shard that the index names; {REMADE}"
            )
    for shard, names in held.items():
        for name in names:
            if name not in index:
                raise UserError(f"{shard}: tensor {name} is not in the index; {REMADE}")
            if index[name] != shard:
                raise UserError(
                    f"{shard}: tensor {name} is in this shard and in {index[name].name}, which "
                    f"the index names; {REMADE}"
                )


def check_folder(path: Path) -> None:
    """Refuse a path that is no model folder, and say what it is instead.

    Raises:
        UserError: There is no folder, or it has no config.json.
    """
    if path.is_file():
        raise UserError(f"{path}: not a model folder but a file; name the folder that holds it")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; fetch the model first, or correct the path")
    if (path / "config.json").is_file():
        return
    if (path / "adapter_config.json").is_file():
        raise UserError(
            f"{path}: not a model folder (no config.json) but an adapter; "
            "it can only be an expert with its base"
        )
    raise UserError(f"{path}: not a model folder (no config.json); correct the path")


def weight_file(path: Path, single: str, index: str) -> Path | None:
    """Find a folder's only weight file, or the index of several; None where there is neither.

    Raises:
        UserError: Both exist, and they may be two models.
    """
    found = [path / name for name in (single, index) if (path / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{path}: holds both {single} and {index}; remove the one that is stale")
    return found[0] if found else None
