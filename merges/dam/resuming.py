"""The state of a training on disk: written atomically, and refused by any other training."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common import numerics
from common.errors import UserError
from common.files import sha256_json, write_bytes
from common.hashes import kind_of

if TYPE_CHECKING:
    from merges.dam.settings import Parameters
    from merges.dam.sources import Sources
    from merges.engine.requests import WholeModelRequest


# Raise it whenever `Trainer` records other values, or gives them another meaning: an
# unfinished training of another version is then refused instead of resumed.
_FORMAT = 2
_SEAL = 64  # bytes at the file's end: the sha256 of all others, which torch does not compare


def training_key(
    request: WholeModelRequest, parameters: Parameters, sources: Sources, kind: str
) -> str:
    """Return a hash of all that determines a training: models, data, settings and seed.

    Args:
        request: The models, and the seed.
        parameters: The settings.
        sources: The data.
        kind: Of the models' fingerprints, which the key begins with; see `common.hashes`.
    """
    return kind + sha256_json(
        {
            "format": _FORMAT,
            "base": request.base.fingerprint_of(kind),
            "experts": {name: own.fingerprint_of(kind) for name, own in request.experts.items()},
            "data": [data.sha256 for data in sources.calibrations],
            "embeddings_and_norms": request.embeddings_and_norms,
            "seed": request.seed,
            "device": request.device,
            "numerics": numerics.setting(),
            "parameters": vars(parameters),
        }
    )


def write_state(path: Path, key: str, state: dict[str, Any]) -> None:
    """Write a training's state atomically.

    Args:
        path: Where.
        key: The training's, see `training_key`.
        state: Tensors and plain values.

    Raises:
        UserError: The disk is full; an earlier state stays.
    """
    content = io.BytesIO()
    torch.save({"key": key, **state}, content)
    seal = hashlib.sha256(content.getbuffer()).hexdigest()
    content.write(seal.encode())
    write_bytes(path, content.getvalue())


def read_state(path: Path, key: Callable[[str], str]) -> dict[str, Any]:
    """Read what `write_state` wrote.

    Args:
        path: The file.
        key: Gives that of the training to resume, by the kind of its fingerprints.

    Raises:
        UserError: The file is damaged, or another training's.
    """
    try:
        content = path.read_bytes()
        body, seal = content[:-_SEAL], content[-_SEAL:]
        if hashlib.sha256(body).hexdigest().encode() != seal:
            raise ValueError("other bytes than were written")
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        recorded = state.pop("key")
    except (
        *(OSError, RuntimeError, EOFError, pickle.UnpicklingError),
        *(KeyError, AttributeError, TypeError, ValueError),
    ):
        raise UserError(
            f"{path}: no state of a training, or a damaged one; remove it to start anew"
        ) from None
    if (kind := kind_of(recorded)) is None or key(kind) != recorded:
        raise UserError(
            f"{path}: the state of a training with other models, data or settings, or of another "
            "version of this program; remove it to start anew"
        )
    return state
