"""Reading a Hugging Face model folder parameter by parameter, refusing a damaged one."""

from __future__ import annotations

import abc
import functools
import math
import mmap
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from checkpoints.dtypes import BYTES, numpy_type, torch_type
from checkpoints.headers import Stored, read_header
from checkpoints.layout import (
    INDEX,
    PICKLE_INDEX,
    PICKLE_SINGLE,
    REMADE,
    SINGLE,
    check_folder,
    check_index,
    read_index,
    read_object,
    weight_file,
)
from checkpoints.names import has_row_per_token
from checkpoints.pickles import PickledWeights
from checkpoints.stored import reading_of
from common.cost import count_mapped
from common.errors import UserError
from common.hashes import BLAKE3, hash_files, kind_of
from common.manifest import check_recorded

if TYPE_CHECKING:
    import torch


class SafetensorsWeights:
    """The weights of one safetensors file or of several with an index; see `PickledWeights`.

    Args:
        source: The only file, or the index of several.
        mapped: Whether arrays are views of the mapped files; see `Checkpoint`.

    Attributes:
        stored: What is known of each parameter by its name.
        files: The file that holds each parameter.

    Raises:
        UserError: A file is missing, damaged, or contradicts itself or the index.
    """

    def __init__(self, source: Path, mapped: bool = False) -> None:
        self.stored: dict[str, Stored] = {}
        self.files: dict[str, Path] = {}
        self._open: dict[Path, IO[bytes]] = {}
        self._maps: dict[Path, mmap.mmap] | None = {} if mapped else None
        self._lock = threading.Lock()
        index = read_index(source) if source.suffix == ".json" else None
        shards = sorted(set(index.values())) if index else [source]
        headers = {shard: read_header(shard) for shard in shards}
        if index is not None:
            check_index(index, headers)
        for shard, header in headers.items():
            self.stored |= header
            self.files |= dict.fromkeys(header, shard)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read values [start, stop) of a flattened parameter, straight into a new tensor."""
        import torch

        values = torch.empty(stop - start, dtype=torch_type(self.stored[name].dtype))
        self._fill(name, start, values.view(torch.uint8).numpy().data)
        return values

    def read_array(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read values [start, stop) of a flattened parameter into an array, or map them."""
        item = self.stored[name]
        dtype, place = numpy_type(item.dtype), item.place + start * BYTES[item.dtype]
        if self._maps is not None and place % dtype.itemsize == 0:
            count_mapped((stop - start) * dtype.itemsize)
            shard = self._mapping(self._maps, self.files[name])
            return np.frombuffer(shard, dtype, stop - start, place)
        values = np.empty(stop - start, dtype=dtype)
        self._fill(name, start, values.view(np.uint8).data)
        return values

    def _mapping(self, maps: dict[Path, mmap.mmap], shard: Path) -> mmap.mmap:
        if shard not in maps:
            descriptor = self._descriptor(shard)
            with self._lock:
                if shard not in maps:
                    maps[shard] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        return maps[shard]

    def _fill(self, name: str, start: int, buffer: memoryview) -> None:
        item = self.stored[name]
        place = item.place + start * BYTES[item.dtype]
        descriptor = self._descriptor(self.files[name])
        while buffer:
            got = os.preadv(descriptor, [buffer], place)
            if not got:
                raise UserError(f"{self.files[name]}: the shard is truncated; {REMADE}")
            buffer, place = buffer[got:], place + got

    def _descriptor(self, shard: Path) -> int:
        if shard not in self._open:
            with self._lock:
                if shard not in self._open:
                    self._open[shard] = open(shard, "rb", buffering=0)  # noqa: SIM115
        return self._open[shard].fileno()

    def ahead(self, name: str) -> None:
        """Ask the system to fetch a parameter from the disk."""
        item = self.stored[name]
        descriptor = self._descriptor(self.files[name])
        os.posix_fadvise(descriptor, item.place, item.bytes, os.POSIX_FADV_WILLNEED)


def open_weights(
    safe: Path | None, pickled: Path | None, missing: str, allow_pickle: bool, mapped: bool = False
) -> SafetensorsWeights | PickledWeights:
    """Open safetensors, or pickles where the caller accepts them.

    Args:
        safe: The only file or the index of several; None where there is none.
        pickled: The same in PyTorch's own format.
        missing: The error where there is neither.
        allow_pickle: See `Checkpoint`, as for `mapped`.
        mapped: For safetensors alone.

    Raises:
        UserError: There is no file, a damaged one, or only pickles that are not accepted.
    """
    if safe is not None:
        return SafetensorsWeights(safe, mapped)
    if pickled is None:
        raise UserError(f"{missing} in this folder; {REMADE}")
    if not allow_pickle:
        raise UserError(
            f"{pickled}: a pickle, which can run code when it is loaded; convert it to "
            "safetensors, or ask for pickles explicitly"
        )
    return PickledWeights(pickled)


class Model(abc.ABC):
    """A model whose parameters can be read piece by piece: a folder, or something made of folders.

    Attributes:
        path: The folder that it is named after.
        config: The model's configuration.
        notes: How it is read otherwise than its files say, a sentence each without a stop.
        copies: Tensors of its files that are no separate parameters but equal one to which
            they are tied, with its name; a result like this model holds them too.
    """

    path: Path
    config: dict[str, Any]
    notes: tuple[str, ...] = ()
    copies: Mapping[str, str] = MappingProxyType({})

    @abc.abstractmethod
    def names(self) -> list[str]:
        """Return the names of all parameters, sorted."""

    @abc.abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape without reading its values."""

    @abc.abstractmethod
    def dtype(self, name: str) -> str:
        """Return the type in which a parameter is read, as safetensors writes it: F32, BF16 ..."""

    @abc.abstractmethod
    def _read(self, name: str, start: int, stop: int) -> torch.Tensor: ...

    @abc.abstractmethod
    def ahead(self, name: str) -> None:
        """Ask the system to fetch a parameter from the disk while other work is done."""

    @property
    def folders(self) -> list[Path]:
        """The folders with its configuration and tokenizer; files of later ones replace earlier."""
        return [self.path]

    @property
    @abc.abstractmethod
    def shards(self) -> list[Path]:
        """The weight files that are read, in the order of their names."""

    @abc.abstractmethod
    def fingerprint_of(self, kind: str) -> str:
        """Hash the hashes of all files that determine the parameters, all of a kind."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint that is recorded."""
        return self.fingerprint_of(BLAKE3)

    def has_fingerprint(self, recorded: object) -> bool:
        """Say whether a recorded fingerprint is this model's; earlier ones are of another kind."""
        return (kind := kind_of(recorded)) is not None and self.fingerprint_of(kind) == recorded

    def stored(self, name: str) -> str:
        """Return the type in which a parameter of a result like this model is stored."""
        return self.dtype(name)

    def path_of(self, name: str) -> Path:
        """Return the folder to name in a message about a parameter."""
        return self.path

    def count(self, name: str) -> int:
        """Return a parameter's number of values."""
        return math.prod(self.shape(name))

    def rows_per_token(self) -> dict[str, int]:
        """Return the rows of the embedding and of the output head, by name."""
        names = [name for name in self.names() if has_row_per_token(name) and self.shape(name)]
        return {name: self.shape(name)[0] for name in names}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read some consecutive values of a parameter, onto the CPU; several threads may at once.

        Args:
            name: The parameter's name.
            start: Row-major position of the first value.
            stop: Position behind the last; None for the end.

        Returns:
            A new flat tensor in the parameter's type.

        Raises:
            UserError: A weight file ends too early.
        """
        import torch

        start, stop = self._range(name, start, stop)
        if start == stop:
            return torch.empty(0, dtype=torch_type(self.dtype(name)))
        return self._read(name, start, stop)

    def read_array(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read some consecutive values of a parameter as numpy has them; see `read`.

        Returns:
            A flat array in the parameter's type, bfloat16 as its patterns in uint16; a new one, or
            of a mapped checkpoint a view that cannot be written to.
        """
        start, stop = self._range(name, start, stop)
        if start == stop:
            return np.empty(0, dtype=numpy_type(self.dtype(name)))
        return self._read_array(name, start, stop)

    def _read_array(self, name: str, start: int, stop: int) -> np.ndarray:
        import torch

        values = self._read(name, start, stop).view(torch.uint8)
        return values.numpy().view(numpy_type(self.dtype(name)))

    def _range(self, name: str, start: int, stop: int | None) -> tuple[int, int]:
        count = self.count(name)
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise ValueError(f"values {start} to {stop} of tensor {name}, which has {count}")
        return start, stop

    def load(self, name: str) -> torch.Tensor:
        """Read one parameter in its type and shape, onto the CPU."""
        return self.read(name).reshape(self.shape(name))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Read all parameters."""
        return {name: self.load(name) for name in self.names()}


class Derived(Model):
    """A model that is read through another, with other values, names or rows; as it is otherwise.

    Attributes:
        origin: The model that is read.
    """

    origin: Model

    def names(self) -> list[str]:
        """Return the names of all parameters, sorted."""
        return self.origin.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape."""
        return self.origin.shape(name)

    def dtype(self, name: str) -> str:
        """Return the type in which a parameter is read."""
        return self.origin.dtype(name)

    def stored(self, name: str) -> str:
        """Return the type in which a parameter of a result like this model is stored."""
        return self.origin.stored(name)

    def ahead(self, name: str) -> None:
        """Ask the system to fetch a parameter from the disk while other work is done."""
        self.origin.ahead(name)

    @property
    def folders(self) -> list[Path]:
        """The original's."""
        return self.origin.folders

    @property
    def shards(self) -> list[Path]:
        """The original's weight files."""
        return self.origin.shards

    def fingerprint_of(self, kind: str) -> str:
        """Return the original's: how it is read follows from the models and the settings."""
        return self.origin.fingerprint_of(kind)


class Checkpoint(Model):
    """A model folder, read lazily.

    The bytes of safetensors go straight into the tensors; no file is mapped, so that memory holds
    only the values asked for, and a file that shrinks meanwhile is an error, not a crash.
    Names are those of weights: a computed buffer, or a head that equals the embedding that it is
    tied to, is left out, and the configuration is the one that holds for the weights
    (`checkpoints.stored.reading_of`).
    With `mapped`, `read_array` copies nothing and gives views of the mapped files, which cannot be
    written to; pages of the system's cache then count as the process's own.

    Args:
        path: The folder, with config.json and one weight file or an index of shards.
        mapped: Whether `read_array` maps.
        allow_pickle: Whether weights in PyTorch's own format (``pytorch_model.bin``) are accepted
            where there are no safetensors; they are then read as tensors alone, and mapped.

    Raises:
        UserError: The folder is not a model, or not as its manifest says; a shard is missing,
            truncated or contradicts itself or the index; the weights are pickles and were not
            asked for.
    """

    def __init__(
        self, path: Path | str, *, allow_pickle: bool = False, mapped: bool = False
    ) -> None:
        self.path = Path(path)
        check_folder(self.path)
        check_recorded(self.path)
        self.config: dict[str, Any] = read_object(self.path / "config.json")
        safe = weight_file(self.path, SINGLE, INDEX)
        pickled = None if safe else weight_file(self.path, PICKLE_SINGLE, PICKLE_INDEX)
        missing = f"{self.path}: no {SINGLE} and no {INDEX}"
        self._weights = open_weights(safe, pickled, missing, allow_pickle, mapped)
        self._stored = self._weights.stored
        if not self._stored:
            raise UserError(f"{path}: the weight files hold no tensor; {REMADE}")
        found = reading_of(self)
        self.config, self.notes, self.copies = found.config, found.notes, found.copies
        self._stored = {n: item for n, item in self._stored.items() if n not in found.hidden}
        self._hashed = functools.cache(functools.partial(hash_files, self.shards))

    def names(self) -> list[str]:
        """Return the names of all parameters, sorted."""
        return sorted(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape without reading its values."""
        return self._stored[name].shape

    def dtype(self, name: str) -> str:
        """Return a parameter's stored type as safetensors writes it: F32, BF16 ..."""
        return self._stored[name].dtype

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._weights.read(name, start, stop)

    def _read_array(self, name: str, start: int, stop: int) -> np.ndarray:
        if isinstance(self._weights, PickledWeights):  # torch has read them already
            return super()._read_array(name, start, stop)
        return self._weights.read_array(name, start, stop)

    def ahead(self, name: str) -> None:
        """Ask the system to fetch a parameter from the disk while other work is done."""
        self._weights.ahead(name)

    @property
    def shards(self) -> list[Path]:
        """The weight files, in the order of their names."""
        return sorted(set(self._weights.files.values()))

    def fingerprint_of(self, kind: str) -> str:
        """Hash the weight files' hashes, in the order of their names."""
        return self._hashed(kind)
