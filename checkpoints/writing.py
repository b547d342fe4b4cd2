"""Writing a complete Hugging Face model folder."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from checkpoints.companions import copy_companions, copy_tokenizer
from checkpoints.dtypes import BYTES, name_of
from checkpoints.layout import INDEX, SINGLE
from common.errors import UserError
from common.files import write_json
from common.hashes import BLAKE3, Digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SHARD_BYTES = 5_000_000_000  # what transformers has long written
Found = TypeVar("Found")
_BLOCK = 1 << 22  # bytes that are hashed at a time
_FLUSH = 1 << 28  # bytes after which the disk is made to begin, so that the end need not wait


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a parameter before its values are.

    Attributes:
        dtype: Stored type by its safetensors name, such as ``BF16``.
        shape: Its shape.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The size of its values in bytes."""
        return BYTES[self.dtype] * math.prod(self.shape)


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """Describe a tensor as it would be stored.

    Raises:
        UserError: Its type is none that is stored here.
    """
    if (name := name_of(tensor.dtype)) is None:
        raise UserError(f"tensors of type {tensor.dtype} cannot be stored; convert to bfloat16")
    return TensorSpec(name, tuple(tensor.shape))


def divided(tensors: Mapping[str, TensorSpec], shard_bytes: int) -> list[dict[str, TensorSpec]]:
    """Divide parameters between weight files.

    Args:
        tensors: Every parameter by name.
        shard_bytes: Most bytes of values in a file, unless a single parameter has more.

    Returns:
        The parameters of each file in the order of their places; at least one file.
    """
    groups: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    # Wider types first: then every parameter begins at a multiple of its type's size.
    for name in sorted(tensors, key=lambda name: (-BYTES[tensors[name].dtype], name)):
        if groups[-1] and filled + tensors[name].bytes > shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = tensors[name]
        filled += tensors[name].bytes
    return groups


class _Shard:
    """One preallocated safetensors file with the places of its parameters."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorSpec]) -> None:
        self.path = path
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        places, size = {}, 0
        for name, spec in tensors.items():
            places[name], end = size, size + spec.bytes
            about = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [size, end]}
            header[name], size = about, end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # values begin at a multiple of eight bytes
        self.beginning = len(text) + 8
        self.ends = {
            name: self.beginning + place + tensors[name].bytes for name, place in places.items()
        }
        self.places = {name: self.beginning + place for name, place in places.items()}
        self.stream: IO[bytes] = open(path, "xb+", buffering=0)  # noqa: SIM115
        os.posix_fallocate(self.stream.fileno(), 0, self.beginning + size)
        os.pwrite(self.stream.fileno(), len(text).to_bytes(8, "little") + text, 0)


def _bytes(values: torch.Tensor | np.ndarray) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values.view(np.uint8)
    import torch

    return values.contiguous().flatten().view(torch.uint8).numpy()


class StreamedWeights:
    """A model's weight files, written in any order and by several threads, hashed meanwhile.

    The files are allocated at the start, so that a full disk is an error before any work. A
    thread hashes what is complete from the beginning of each file on. Used as a context; leaving
    it without an error waits for the hashes and writes the index of several shards.

    Args:
        folder: An existing folder, staged by the caller (`common.files.staged_directory`).
        tensors: Every parameter by name.
        shard_bytes: Most bytes of values in a file, unless a single parameter has more.

    Attributes:
        hashes: Hash of each weight file by its name, when the context is left.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, TensorSpec], shard_bytes: int = SHARD_BYTES
    ) -> None:
        self._folder = folder
        self._specs = dict(tensors)
        groups = divided(tensors, shard_bytes)
        count = len(groups)
        self._shards = [
            _Shard(
                folder / (SINGLE if count == 1 else f"model-{n:05}-of-{count:05}.safetensors"),
                group,
            )
            for n, group in enumerate(groups, 1)
        ]
        self._shard_of = {name: shard for shard in self._shards for name in shard.places}
        self._complete = {name: threading.Event() for name in tensors}
        self._stopped = False
        self._failure: BaseException | None = None
        self._hasher = threading.Thread(target=self._hash, name="hashing", daemon=True)
        self.hashes: dict[str, str] = {}

    def names(self) -> list[str]:
        """Return the parameters in the order of their places in the files."""
        return list(self._shard_of)

    def write(self, name: str, start: int, values: torch.Tensor | np.ndarray) -> None:
        """Write some consecutive values of a parameter.

        Args:
            name: The parameter.
            start: Row-major position of the first value.
            values: On the CPU, in the parameter's stored type, any shape; an array is flat.
        """
        shard, size = self._shard_of[name], BYTES[self._specs[name].dtype]
        buffer = _bytes(values).data
        place = shard.places[name] + start * size
        while buffer:
            written = os.pwrite(shard.stream.fileno(), buffer, place)
            buffer, place = buffer[written:], place + written

    def done(self, name: str) -> None:
        """Note that all values of a parameter are written."""
        self._complete[name].set()

    def _hash(self) -> None:
        try:
            for shard in self._shards:
                self.hashes[shard.path.name] = self._hash_shard(shard)
        except BaseException as error:
            self._failure = error

    def _hash_shard(self, shard: _Shard) -> str:
        digest = Digest(BLAKE3)
        block = bytearray(_BLOCK)
        descriptor, place, flushed = shard.stream.fileno(), 0, 0
        for name, end in [("", shard.beginning), *shard.ends.items()]:
            if name:
                self._complete[name].wait()
            if self._stopped:
                return ""
            while place < end:
                got = os.preadv(descriptor, [memoryview(block)[: end - place]], place)
                if not got:
                    raise OSError(f"{shard.path} was cut while it was written")
                digest.update(memoryview(block)[:got])
                place += got
            if place - flushed > _FLUSH:
                os.fdatasync(descriptor)
                flushed = place
        return digest.text()

    def __enter__(self) -> StreamedWeights:
        self._hasher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and (missing := [n for n, e in self._complete.items() if not e.is_set()]):
            error = RuntimeError(f"tensor {missing[0]} was not written")
        if error is not None:
            self._stopped = True
            for event in self._complete.values():
                event.set()
        self._hasher.join()
        for shard in self._shards:
            shard.stream.close()
        failure = error or self._failure
        if kind is None and failure:
            raise failure
        if kind is None and len(self._shards) > 1:
            write_json(
                self._folder / INDEX,
                {
                    "metadata": {"total_size": sum(s.bytes for s in self._specs.values())},
                    "weight_map": {name: shard.path.name for name, shard in self._shard_of.items()},
                },
            )


class Sink(Protocol):
    """Where values go, in any order."""

    def write(self, name: str, start: int, values: Any) -> None:
        """Take some consecutive values of a parameter."""

    def done(self, name: str) -> None:
        """Note that all values of a parameter are written."""


def with_copies(found: Mapping[str, Found], copies: Mapping[str, str]) -> dict[str, Found]:
    """Add to what is known by parameter the same of their copies (see `WithCopies`)."""
    return {**found, **{copy: found[of] for copy, of in copies.items()}}


class WithCopies:
    """Writes what is tied to a parameter together with it.

    Args:
        sink: Takes the values, of the copies too.
        copies: The copies with the parameter that each equals.
    """

    def __init__(self, sink: Sink, copies: Mapping[str, str]) -> None:
        self._sink, self._copies = sink, copies

    def _all(self, name: str) -> list[str]:
        return [name, *(copy for copy, of in self._copies.items() if of == name)]

    def write(self, name: str, start: int, values: Any) -> None:
        """Write values of a parameter and of its copies."""
        for each in self._all(name):
            self._sink.write(each, start, values)

    def done(self, name: str) -> None:
        """Note that a parameter and its copies are written."""
        for each in self._all(name):
            self._sink.done(each)


def write_weights(
    folder: Path, tensors: Mapping[str, torch.Tensor], shard_bytes: int = SHARD_BYTES
) -> dict[str, str]:
    """Write weights that are in memory; return the hash of each weight file by its name.

    Args:
        folder: An existing folder, staged by the caller.
        tensors: Parameters by name, on the CPU, in the type in which they are to be stored.
        shard_bytes: See `StreamedWeights`.
    """
    specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
    with StreamedWeights(folder, specs, shard_bytes) as weights:
        for name in weights.names():
            weights.write(name, 0, tensors[name])
            weights.done(name)
    return weights.hashes


def write_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor], donor: Path) -> Path:
    """Write weights with the configuration and the tokenizer of a donor's folder.

    Args: as `write_weights`.

    Returns:
        The weight file, or the index of several.
    """
    copy_companions([donor], folder)
    hashes = write_weights(folder, tensors)
    return folder / (SINGLE if len(hashes) == 1 else INDEX)


def write_model(folder: Path, model: PreTrainedModel, tokenizer: Path) -> Path:
    """Write a freshly trained transformers model with its tokenizer.

    Args:
        folder: An existing folder, staged by the caller.
        model: The model; its parameters are stored in the type that they have.
        tokenizer: A folder with the tokenizer's files.

    Returns:
        The weight file, or the index of several.
    """
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)
    hashes = write_weights(
        folder, {name: tensor.detach() for name, tensor in model.state_dict().items()}
    )
    return folder / (SINGLE if len(hashes) == 1 else INDEX)
