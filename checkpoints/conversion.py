"""A checkpoint of pickles, or of many small files, as safetensors; the values stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from checkpoints.companions import companions_of
from checkpoints.reading import Checkpoint, Model
from checkpoints.writing import (
    SHARD_BYTES,
    StreamedWeights,
    TensorSpec,
    WithCopies,
    with_copies,
)
from common.errors import UserError
from common.files import staged_directory
from common.manifest import NAME, write_manifest
from common.progress import Progress

_PIECE = 1 << 24  # values that are held at a time


def convert(
    source: Path,
    out: Path,
    shard_bytes: int = SHARD_BYTES,
    note: Callable[[str], object] = lambda text: None,
) -> int:
    """Write a model folder's weights as safetensors to another; return the number of values.

    Pickles are read as tensors alone: nothing in them is run.

    Args:
        source: The folder to read.
        out: The folder to make.
        shard_bytes: Most bytes of values in a weight file.
        note: Is called with what is copied with the weights, and what is left out.

    Raises:
        UserError: The folder is no checkpoint, the output exists, or the disk is full.
    """
    if out.exists() and (out.is_file() or any(out.iterdir())) and not (out / NAME).exists():
        raise UserError(f"{out} holds something else; give another folder, or empty it")
    model = Checkpoint(source, allow_pickle=True)
    write_as(out, model, "converted", {"source": model.fingerprint}, shard_bytes, note)
    return sum(map(model.count, model.names()))


def write_as(
    out: Path,
    model: Model,
    kind: str,
    inputs: Mapping[str, Path | str],
    shard_bytes: int = SHARD_BYTES,
    note: Callable[[str], object] = lambda text: None,
    code: tuple[str, ...] = ("checkpoints/conversion.py",),
    **recorded: Any,
) -> None:
    """Write a model, as it is read, to a folder of safetensors with all files of a loader.

    Args:
        out: The folder to make.
        model: The model.
        kind: What the manifest calls the result.
        inputs: What it was made from, for the manifest.
        shard_bytes: Most bytes of values in a weight file.
        note: Is called with what is copied with the weights, and what is left out.
        code: The entry points that made it.
        recorded: What else the manifest holds: parameters, seed, extra.

    Raises:
        UserError: The disk is full.
    """
    companions = companions_of([model.path])
    note(companions.note())
    for text in model.notes:
        note(text)
    specs = {name: TensorSpec(model.stored(name), model.shape(name)) for name in model.names()}
    progress = Progress(sum(map(model.count, specs)), f"writing {out.name}: values")
    with staged_directory(out) as folder:
        with StreamedWeights(folder, with_copies(specs, model.copies), shard_bytes) as weights:
            sink = WithCopies(weights, model.copies)
            for name in specs:  # in pieces: a parameter may not fit into memory twice
                for start in range(0, model.count(name), _PIECE):
                    stop = min(start + _PIECE, model.count(name))
                    sink.write(name, start, model.read(name, start, stop))
                    progress.step(stop - start, name)
                sink.done(name)
        companions.copy(folder)
        write_manifest(
            folder / NAME,
            kind=kind,
            **{"parameters": {}, **recorded},
            inputs=inputs,
            outputs={
                str(path.relative_to(folder)): weights.hashes.get(path.name, path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
            code=code,
        )
