"""One merge, parameter by parameter, from the models to where the result goes."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.checking import check_finite
from checkpoints.dtypes import FLOATS, stored_type, torch_type
from checkpoints.reading import Model
from checkpoints.writing import Sink, TensorSpec, spec_of
from common.errors import UserError
from common.progress import Progress
from merges.engine.config import MergeConfig
from merges.engine.merger import Merger, rounded, rounded_array, takes_arrays
from merges.engine.pieces import ArrayPieces, Part
from merges.engine.requests import TensorContext

if TYPE_CHECKING:
    import torch

_COPIED_AT_ONCE = 1 << 22  # values


class InMemory(Model):
    """Tensors by name, to be read as a checkpoint is.

    Args:
        tensors: The parameters; they are not copied.
        name: What to call the model in messages.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], name: str) -> None:
        self.path, self.config = Path(name), {}
        # Flattened once: every piece of a transposed tensor would copy all of it.
        self._tensors = {name: tensor.detach().flatten() for name, tensor in tensors.items()}
        self._specs = {name: spec_of(tensor) for name, tensor in tensors.items()}

    def names(self) -> list[str]:
        """Return the names in the order given."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape."""
        return self._specs[name].shape

    def dtype(self, name: str) -> str:
        """Return a parameter's type as safetensors writes it."""
        return self._specs[name].dtype

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._tensors[name][start:stop]

    def ahead(self, name: str) -> None:
        """Do nothing: all is in memory."""

    @property
    def shards(self) -> list[Path]:
        """No file is read."""
        return []

    def fingerprint_of(self, kind: str) -> str:
        """Not known: what is in memory has no file to hash."""
        raise NotImplementedError


class Collected:
    """Merged values in memory."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        import torch

        self.tensors = {
            name: torch.empty(spec.shape, dtype=torch_type(spec.dtype))
            for name, spec in specs.items()
        }

    def write(self, name: str, start: int, values: Any) -> None:
        values = values.flatten()
        self.tensors[name].view(-1)[start : start + len(values)] = values

    def done(self, name: str) -> None:
        pass


class Merge:
    """One merge of models, parameter by parameter, into a sink.

    Args:
        config: What to merge, with a method that is not a whole-model one.
        arrays: Whether to do without torch where that is possible: the sink is then given flat
            arrays, bfloat16 as its patterns in uint16. Every bit of the result is the same.

    Attributes:
        specs: Type and shape of each parameter of the result.

    Raises:
        UserError: Unknown method or parameter, a value out of range, a rule that matches nothing.
    """

    def __init__(self, config: MergeConfig, arrays: bool = False) -> None:
        self._config = config
        self._base, self._reference = config.base, config.reference
        names = self._reference.names()
        self.specs = {
            name: TensorSpec(self._stored(name), self._reference.shape(name)) for name in names
        }
        types = {model.dtype(name) for model in config.models.values() for name in names}
        types |= {spec.dtype for spec in self.specs.values()}
        self._arrays = arrays and takes_arrays(config, types)
        self._merger = Merger(config, self._arrays)
        self._stopped = False
        self._experts = [config.experts[name] for name in self._merger.order]
        self._models = [*self._experts, *([] if self._base is None else [self._base])]
        if config.parameters_for is not None:
            config.parameters_for.check_used(names)
        for name in names:
            self._merger.parameters_of(name)

    def _stored(self, name: str) -> str:
        own = self._reference.stored(name)
        if self._config.dtype is None or own not in FLOATS:
            return own
        return stored_type(self._config.dtype)

    def _copied(self, name: str) -> bool:
        return self._merger.copies(name, self._reference.dtype(name))

    def _double(self, name: str) -> bool:
        return any(model.dtype(name) == "F64" for model in self._models)

    def _part(self, name: str) -> Part:
        return Part(
            TensorContext(
                name,
                self._merger.order,
                self._config.seed,
                self.specs[name].shape,
                statistics=self._config.statistics,
            ),
            functools.partial(self._read, self._base, name)
            if self._base is not None and self._merger.reads_base
            else None,
            [functools.partial(self._read, expert, name) for expert in self._experts],
            self._sources(name),
        )

    def _sources(self, name: str) -> list[str]:
        return [str(model.path_of(name)) for model in self._models]

    def _read(self, model: Model, name: str, start: int, stop: int) -> Any:
        if self._stopped:  # a large parameter would keep a failed merge waiting
            raise RuntimeError("the merge has been stopped")
        return (model.read_array if self._arrays else model.read)(name, start, stop)

    def _copy(self, name: str) -> Iterator[tuple[int, Any]]:
        """Copy a parameter of the base. The experts' must be sound, and integers equal."""
        count, floating = math.prod(self.specs[name].shape), self._reference.dtype(name) in FLOATS
        for start in range(0, count, _COPIED_AT_ONCE):
            stop = min(start + _COPIED_AT_ONCE, count)
            values = self._read(self._reference, name, start, stop)
            for model, source in zip(self._models, self._sources(name), strict=True):
                others = self._read(model, name, start, stop)
                if floating:
                    check_finite(self._wide(others), name, source)
                elif not bool((values == others).all()):
                    raise UserError(
                        f"tensor {name} holds integers and differs between the models; "
                        "it cannot be merged"
                    )
            yield start, self._rounded(values, name) if floating else values

    def _wide(self, values: Any) -> Any:
        return ArrayPieces.widened(values)[0] if self._arrays else values

    def _rounded(self, values: Any, name: str) -> Any:
        stored = self.specs[name].dtype
        if self._arrays:
            return rounded_array(self._wide(values), stored, name)
        return rounded(values, torch_type(stored), name)

    def _one(self, name: str, sink: Sink, upcoming: str | None) -> None:
        if upcoming:
            for model in self._models:
                model.ahead(upcoming)
        values = (
            self._copy(name)
            if self._copied(name)
            else self._merger.merge(self._part(name), self.specs[name].dtype, self._double(name))
        )
        for start, piece in values:
            sink.write(name, start, piece)
        sink.done(name)

    def run(self, sink: Sink, order: Sequence[str], progress: str | None = None) -> None:
        """Merge every parameter.

        Args:
            sink: Takes the values.
            order: The parameters in the order in which to begin them.
            progress: What to call this work in progress lines; None for none.
        """
        merged = sorted(name for name in order if not self._copied(name))
        self._merger.prepare([self._part(name) for name in merged], any(map(self._double, merged)))
        counter = Progress(len(order), progress or "")
        threads = self._config.threads
        # Each job prefetches the parameter that is `threads` places behind its own.
        upcoming = [*order[threads:], *[None] * min(threads, len(order))]
        jobs = zip(order, upcoming, strict=True)
        if threads == 1:
            for name, later in jobs:
                self._one(name, sink, later)
                if progress:
                    counter.step()
            return
        with ThreadPoolExecutor(threads, initializer=self.work_alone) as pool:
            futures: list[Future] = [pool.submit(self._one, n, sink, later) for n, later in jobs]
            try:
                for future in as_completed(futures):
                    future.result()
                    if progress:
                        counter.step()
            except BaseException:
                self._stopped = True
                for future in futures:
                    future.cancel()
                raise

    def work_alone(self) -> None:
        """Keep torch in this thread from sharing pieces, too small for that, with others."""
        if not self._arrays:
            import torch

            torch.set_num_threads(1)

    def counted(self) -> dict[str, float]:
        """Return amounts for the cost: parameters of the result, bytes of values read and written.

        Bytes read count each input once, however often a method goes through it.
        """
        return {
            "parameters": sum(math.prod(spec.shape) for spec in self.specs.values()),
            "bytes_read": sum(
                TensorSpec(model.dtype(name), spec.shape).bytes
                for model in self._models
                for name, spec in self.specs.items()
            ),
            "bytes_written": sum(spec.bytes for spec in self.specs.values()),
        }
