"""The headers of safetensors files, read without trust: every claim is checked against the file."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints.dtypes import BYTES
from checkpoints.layout import REMADE, check_name
from common.errors import UserError

_LONGEST = 100_000_000  # bytes; the limit of the safetensors library itself
_POINTER = b"version https://git-lfs"


class Stored(NamedTuple):
    """A parameter in a file.

    Attributes:
        dtype: Its type by its safetensors name, such as ``BF16``.
        shape: Its shape.
        place: Position of its first byte in the file.
        bytes: Its size.
    """

    dtype: str
    shape: tuple[int, ...]
    place: int
    bytes: int


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


def _natural(value: object) -> bool:
    return type(value) is int and value >= 0


def _parse(shard: Path, name: str, item: object, beginning: int) -> Stored:
    check_name(name, shard)
    where = f"{shard}: tensor {name}"
    if not isinstance(item, dict):
        raise UserError(f"{where} is not described by its header; {REMADE}")
    dtype, shape, offsets = (item.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise UserError(
            f"{where} has type {dtype!a}, which is not known here; convert the checkpoint to BF16"
        )
    if not isinstance(shape, list) or not all(map(_natural, shape)):
        raise UserError(f"{where} has an impossible shape in its header; {REMADE}")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_natural, offsets))):
        raise UserError(f"{where} has impossible offsets in its header; {REMADE}")
    size = math.prod(shape) * BYTES[dtype]
    if offsets[1] - offsets[0] != size:
        raise UserError(
            f"{where}: its header gives it {offsets[1] - offsets[0]} bytes, its shape and type "
            f"make {size}; {REMADE}"
        )
    return Stored(dtype, tuple(shape), beginning + offsets[0], size)


def read_header(shard: Path) -> dict[str, Stored]:
    """Read a file's parameters by name from its header, and check the file against it.

    The values must fill the file without overlap, gap or rest, as the format demands; so a cut
    download or a false header is found before any merge has begun.

    Raises:
        UserError: The file is missing, truncated, no safetensors file, or contradicts itself.
    """
    try:
        with open(shard, "rb") as stream:
            size = stream.seek(0, 2)  # to which every claim of the header is compared
            stream.seek(0)
            first = stream.read(len(_POINTER))
            if first == _POINTER:
                raise UserError(f"{shard}: a Git LFS pointer, not the weights; run git lfs pull")
            if not first:
                raise UserError(f"{shard}: an empty file, not a safetensors file; {REMADE}")
            (length,) = struct.unpack("<Q", first[:8])
            if length > _LONGEST:
                raise UserError(
                    f"{shard}: not a safetensors file (a header of {length} bytes); {REMADE}"
                )
            if length > size - 8:
                raise UserError(f"{shard}: the shard is truncated in its header; {REMADE}")
            stream.seek(8)
            header = json.loads(stream.read(length), object_pairs_hook=_without_repeats)
    except FileNotFoundError:
        raise UserError(f"{shard}: this shard is missing; {REMADE}") from None
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror}); {REMADE}") from None
    except (struct.error, ValueError, RecursionError):
        raise UserError(f"{shard}: not a safetensors file; {REMADE}") from None
    if not isinstance(header, dict):
        raise UserError(f"{shard}: not a safetensors file; {REMADE}")
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        raise UserError(f"{shard}: its __metadata__ is no object of texts; {REMADE}")
    found = {name: _parse(shard, name, item, 8 + length) for name, item in header.items()}
    place = 8 + length
    for name, item in sorted(found.items(), key=lambda pair: (pair[1].place, pair[1].bytes)):
        if item.place != place:
            what = "overlaps another tensor" if item.place < place else "leaves a gap before it"
            raise UserError(f"{shard}: tensor {name} {what} in the file; {REMADE}")
        place += item.bytes
    if size < place:
        raise UserError(f"{shard}: the shard is truncated ({size} of {place} bytes); {REMADE}")
    if size > place:
        raise UserError(f"{shard}: {size - place} bytes belong to no tensor; {REMADE}")
    return found
