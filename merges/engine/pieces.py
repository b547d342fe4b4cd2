"""Parameters in pieces that fit a core's cache, so that ordinary tensor code is fast and small."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from checkpoints.checking import check_finite
from merges.engine.requests import TensorContext

if TYPE_CHECKING:
    import torch

    from merges.engine.registry import Unit

Reader = Callable[[int, int], Any]


class Later(Sequence):
    """Tensors that are read anew whenever one is looked at.

    Args:
        readers: Read one each.
        shape: Their shape.
    """

    def __init__(self, readers: Sequence[Callable[[], Any]], shape: tuple[int, ...]) -> None:
        self._readers, self.shape = readers, shape

    def __len__(self) -> int:
        return len(self._readers)

    def __getitem__(self, number):
        return self._readers[number]()


# About ten float32 buffers of this many values fit a core's second-level cache of 2 MiB with room
# to spare, and the cost of calling torch (a microsecond) is spread over enough of them.
CPU_SIZE = 1 << 16
STORED = 4  # such pieces that are read at once where nothing but bfloat16 is in memory
GPU_SIZE = 1 << 24  # a GPU wants few, large launches
LARGE = 1 << 24  # where a piece costs much however small it is: 67 MB in float32
_SAMPLED = 1 << 27  # of so many values a 64th is sample enough
_FLAT = (-1,)


@dataclass(frozen=True)
class Piece:
    """Some consecutive values of one parameter, of the base and of every expert.

    They are tensors; arrays in the pieces of `ArrayPieces`.

    Attributes:
        base: Values of the base, None where the merge has none; [n] or, by rows, [rows, columns].
        experts: Values of the experts in the order of `context.experts`, shaped alike.
        context: Names, position and seed.
    """

    base: Any
    experts: list[Any]
    context: TensorContext


@dataclass(frozen=True)
class Part:
    """One parameter and how to read it.

    Attributes:
        context: Names, shape and seed.
        base: Reads values [start, stop) of the flattened parameter in their stored type, as a
            tensor, or for `ArrayPieces` as an array; None where the merge has no base.
        experts: The same for each expert, in the order of `context.experts`.
        sources: What messages call the experts and, last, the base.
    """

    context: TensorContext
    base: Reader | None
    experts: Sequence[Reader]
    sources: Sequence[str] = ()

    @property
    def readers(self) -> list[Reader]:
        """The experts' readers, then the base's, if any."""
        return [*self.experts, *([] if self.base is None else [self.base])]

    @property
    def count(self) -> int:
        """The parameter's number of values."""
        return math.prod(self.context.shape)


class Pieces:
    """The values of one or more parameters, piece by piece, as often as they are asked for.

    A value that is NaN or infinite is refused (`UserError`) when it is read. Every iteration reads
    again and yields new tensors of the working type, which the receiver may
    overwrite. Where the pieces begin and end depends on the shapes alone, so that a sum over
    pieces is the same on every machine and for any number of threads.

    Args:
        parts: The parameters.
        unit: ``values``: flat pieces of any length; ``rows``: pieces of whole rows along the last
            dimension, [rows, columns], a vector being one row; ``tensor``: each parameter at once.
        dtype: Working type, float32 or float64; None for float32.
        device: Where the values go.
        start: Position of the first part in what `prepare` sees; see `TensorContext.place`.
        later: Whether experts are read one by one, as they are looked at.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        unit: Unit,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        start: int = 0,
        later: bool = False,
    ) -> None:
        self._later = later
        self.parts = list(parts)
        self._unit = unit
        self._dtype = dtype
        self._device = device
        self._start = start

    @property
    def count(self) -> int:
        """The number of values of one model in all parts."""
        return sum(part.count for part in self.parts)

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts' names, in the order of each piece's tensors."""
        return self.parts[0].context.experts

    def _bounds(self, part: Part) -> Iterator[tuple[int, int]]:
        size = CPU_SIZE if str(self._device) == "cpu" else GPU_SIZE
        if self._later:
            size = LARGE
        if self._unit == "tensor":
            size = part.count
        elif self._unit == "rows":
            columns = part.context.shape[-1] if part.context.shape else 1
            size = max(1, size // max(1, columns)) * columns
        for start in range(0, part.count, max(1, size)):
            yield start, min(start + size, part.count)

    def _shape(self, part: Part) -> tuple[int, ...]:
        if self._unit == "tensor":
            return part.context.shape
        if self._unit == "rows":
            return (-1, part.context.shape[-1] if part.context.shape else 1)
        return _FLAT

    def _values(
        self, part: Part, number: int, start: int, stop: int, shape: tuple[int, ...]
    ) -> Any:
        """Read a model's values: an expert's by its number, or with the next number the base's."""
        values, finite = self._convert(part.readers[number](start, stop))
        if not finite:
            source = part.sources[number] if part.sources else f"model {number + 1}"
            check_finite(values, part.context.tensor, source)
        return values if shape == _FLAT else values.reshape(shape)

    def _experts(self, part: Part, start: int, stop: int, shape: tuple[int, ...]) -> Any:
        count = range(len(part.experts))
        if self._later:
            readers = [functools.partial(self._values, part, n, start, stop, shape) for n in count]
            return Later(readers, ((stop - start) // shape[1], shape[1]))
        return [self._values(part, n, start, stop, shape) for n in count]

    def _convert(self, stored: Any) -> tuple[Any, bool]:
        """Convert stored values to the working type; return whether all may be finite too."""
        import torch

        # A copy even where type and device agree: the receiver may overwrite it.
        values = stored.to(self._device, self._dtype or torch.float32, copy=True)
        # A sum with NaN or infinity is not finite; the check accepts one that overflows.
        return values, math.isfinite(values.sum().item())

    def __iter__(self) -> Iterator[Piece]:
        return self._read()

    @property
    def bfloat16(self) -> bool:
        """Whether `stored` gives patterns of bfloat16 alone."""
        return False

    @property
    def step(self) -> int:
        """Values in a flat piece on the CPU; `stored` gives more, in which such pieces begin."""
        return CPU_SIZE

    def stored(self, sample: bool = False) -> Iterator[Piece]:
        """Yield the flat values as they are stored, unchecked, in larger pieces, or a 64th of each.

        Args:
            sample: As for the method of this name.
        """
        place, number, size = self._start, -1, STORED * self.step
        every = 1 + self.count // _SAMPLED if sample else 1
        for part in self.parts:
            for start in range(0, part.count, size):
                number += 1
                if number % every:
                    continue
                stop = min(start + size, part.count)
                if sample:
                    start, stop = _some(start, stop, 1, number)
                yield Piece(
                    None if part.base is None else part.base(start, stop),
                    [reader(start, stop) for reader in part.experts],
                    part.context.at(start, place + start),
                )
            place += part.count

    def refuse(self) -> NoReturn:
        """Say which model has a value that is not finite, where a kernel has found one.

        Raises:
            UserError: One line with the model and the parameter.
        """
        for _ in self:
            pass
        raise RuntimeError("all values are finite")

    def sample(self) -> Iterator[Piece]:
        """Yield a 64th of the values (or rows) of each piece; of very many pieces, of some."""
        return self._read(sample=True)

    def at(self, place: int) -> Piece:
        """Read again the one piece whose first value is at a place."""
        return next(self._read(only=place))

    def _read(self, sample: bool = False, only: int | None = None) -> Iterator[Piece]:
        place, number = self._start, -1
        every = 1 + self.count // _SAMPLED if sample else 1
        for part in self.parts:
            # A sample of a tensor has not its shape.
            shape = _FLAT if sample and self._unit == "tensor" else self._shape(part)
            columns = shape[-1] if self._unit == "rows" else 1
            for start, stop in self._bounds(part):
                number += 1
                if number % every or (only is not None and place + start != only):
                    continue
                if sample:
                    start, stop = _some(start, stop, columns, number)
                count = len(part.experts)
                yield Piece(
                    None if part.base is None else self._values(part, count, start, stop, shape),
                    self._experts(part, start, stop, shape),
                    part.context.at(start, place + start),
                )
            place += part.count


def _some(start: int, stop: int, columns: int, number: int) -> tuple[int, int]:
    """Return a 64th of a piece's rows, as the bounds of its values."""
    # Multiples of the golden ratio: another place in each, as columns differ.
    rows = (stop - start) // columns
    some = -(-rows // 64)
    start += columns * int(number * 0.6180339887 % 1 * (rows - some + 1))
    return start, start + columns * some


class ArrayPieces(Pieces):
    """The same as numpy arrays of float32, without torch.

    Args:
        parts: The parameters, whose readers give arrays, bfloat16 as its patterns in uint16.
        unit: As for `Pieces`.
    """

    def _convert(self, stored: np.ndarray) -> tuple[np.ndarray, bool]:
        return self.widened(stored)

    @property
    def bfloat16(self) -> bool:
        readers = (reader for part in self.parts for reader in part.readers)
        return all(reader(0, 0).dtype == np.uint16 for reader in readers)

    @staticmethod
    def widened(stored: np.ndarray) -> tuple[np.ndarray, bool]:
        """Convert stored values to float32; return whether all are finite too."""
        from merges.arithmetic import kernels

        values = np.empty(stored.shape, dtype=np.float32)
        return values, kernels.widen(stored, values)
