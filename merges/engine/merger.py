"""A method with its parameters, applied to one parameter of the models after another."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from checkpoints.devices import check_device
from checkpoints.dtypes import FLOATS, torch_name, torch_type
from checkpoints.names import kind
from common.errors import UserError
from merges.engine import registry
from merges.engine.checks import numbers_by_expert
from merges.engine.pieces import ArrayPieces, Later, Part, Piece, Pieces

if TYPE_CHECKING:
    import torch

    from merges.engine.config import MergeConfig
    from merges.engine.requests import TensorContext


def _overflow(name: str, stored: str) -> UserError:
    return UserError(
        f"tensor {name}: the merge overflows {stored}; "
        "use smaller weights or scale, or store another type"
    )


def rounded(values: torch.Tensor, stored: torch.dtype, name: str) -> torch.Tensor:
    """Round a parameter's values to the type in which they are stored.

    Args:
        values: Finite ones, floating.
        stored: A floating type.
        name: The parameter's name, for the message.

    Returns:
        The values on the CPU.

    Raises:
        UserError: One is too large for the type.
    """
    import torch

    # A comparison with NaN fails too.
    if values.numel() and not values.abs().amax() <= torch.finfo(stored).max:
        raise _overflow(name, str(stored).removeprefix("torch."))
    return values.to("cpu", stored)


def rounded_array(values: np.ndarray, stored: str, name: str) -> np.ndarray:
    """Round float32 values as `rounded` does, to BF16, F16 or F32.

    Returns:
        The values, flat; bfloat16 as its patterns in uint16.
    """
    from merges.arithmetic import kernels

    found = kernels.narrow(values.reshape(-1), stored)
    if found is None:
        raise _overflow(name, torch_name(stored))
    return found


def takes_arrays(config: MergeConfig, types: Collection[str]) -> bool:
    """Return whether a merge can do without torch.

    Args:
        config: The merge.
        types: The types, by their safetensors names, of the parameters read and stored.
    """
    return (
        config.info.arrays
        and config.device == "cpu"
        and config.compute_dtype == "float32"
        and "F64" not in types
    )


def _keep_freed_memory() -> None:
    """Have glibc reuse the memory of arrays that come and go with every piece.

    It would return half a megabyte to the system each time, which clears it for the next array:
    that takes longer than the arithmetic.
    """
    trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(trim_threshold, 1 << 28)
        library.mallopt(mmap_threshold, 1 << 26)


def load_libraries(config: MergeConfig) -> None:
    """Load what computes a merge: a process's first use of it is no part of the merge's price."""
    if takes_arrays(config, ()):
        from merges.arithmetic import kernels, patterns

        kernels.KERNELS.load()
        patterns.KERNELS.load()
        _keep_freed_memory()
    else:
        import torch  # noqa: F401


class Merger:
    """Merges parameters one by one; several threads may use it at once.

    Args:
        config: The merge, of a method that is not a whole-model one.
        arrays: Whether the parts' readers give arrays, and `merge` is to; see `takes_arrays`.

    Attributes:
        order: The experts' names in the order in which the method is given them.
        reads_base: Whether the method looks at the base at all.

    Raises:
        UserError: Unknown method, parameter or device, a value out of range, or rules by layer
            together with a preparation over the whole model.
    """

    def __init__(self, config: MergeConfig, arrays: bool = False) -> None:
        self._config = config
        self._arrays = arrays
        self._info = config.info
        self._given = tuple(config.experts)
        # Sums in another order round differently: one order makes the order given immaterial.
        self.order = self._given if self._info.ordered else tuple(sorted(self._given))
        self._parameters = self._per_expert(config.resolved)
        # A method with a parameter `origin` looks at the base only where that is the base.
        self.reads_base = "base" in self._info.needs or (
            "origin" in self._parameters
            and (self._parameters["origin"] == "base" or config.parameters_for is not None)
        )
        self._function = registry.load(config.method)
        self._prepare = registry.load_prepare(config.method) or (lambda pieces: None)
        self._patterns = registry.load_patterns(config.method) if arrays else None
        self._whole = self._parameters.get("scope") == "model" and self._info.prepare is not None
        self._places: dict[str, int] = {}
        self._prepared: Any = None
        self._prepared_double = False
        check_device(config.device)
        if self._whole and config.parameters_for is not None:
            raise UserError(
                f"method {config.method}: scope=model looks at the whole model at once and "
                "takes no parameters by layer; use scope=tensor or leave the rules out"
            )

    def _per_expert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return numbers_by_expert(self._info, values, self._given)

    def parameters_of(self, tensor: str) -> dict[str, Any]:
        """Return the method's parameters for a tensor, numbers per expert in `order`.

        Raises:
            UserError: A rule sets what does not fit the experts.
        """
        values = self._parameters
        rules = self._config.parameters_for
        if rules is not None and (own := rules(tensor)):
            values = {**values, **self._per_expert(registry.check(self._info.name, own))}
        return {
            name: [value[expert] for expert in self.order]
            if value is not None and self._info.parameters[name].kind.per_expert
            else value
            for name, value in values.items()
        }

    def copies(self, name: str, dtype: str) -> bool:
        """Return whether a parameter is taken from the base (or the first expert) as it is.

        Args:
            name: The parameter.
            dtype: Its type by its safetensors name.
        """
        policy = self._config.embeddings_and_norms
        return (policy == "base" and kind(name) in ("embedding", "norm")) or dtype not in FLOATS

    def _pieces(self, parts: Sequence[Part], double: bool) -> Pieces:
        if self._arrays:
            return ArrayPieces(parts, self._info.unit)
        import torch

        wide = double or self._config.compute_dtype == "float64"
        dtype = torch.float64 if wide else torch.float32
        later = self._info.one_by_one
        return Pieces(parts, self._info.unit, dtype, self._config.device, later=later)

    def _run_prepare(self, pieces: Pieces, parameters: Mapping[str, Any]) -> Any:
        wanted = inspect.signature(self._prepare).parameters.values()
        names = [item.name for item in wanted if item.kind is item.KEYWORD_ONLY]
        with np.errstate(all="ignore"):  # what overflows is refused when it is rounded
            return self._prepare(pieces, **{name: parameters[name] for name in names})

    def prepare(self, parts: Sequence[Part], double: bool = False) -> None:
        """Look through the whole model first, where the method's scope is the model.

        Args:
            parts: Every parameter that is merged, in the order of their names.
            double: Whether any of them is stored in float64.
        """
        if not self._whole or not any(part.count for part in parts):
            return
        place = 0
        for part in parts:
            self._places[part.context.tensor] = place
            place += part.count
        self._prepared_double = double
        pieces = self._pieces(parts, double)
        self._prepared = self._run_prepare(pieces, self.parameters_of(""))

    def merge(
        self, part: Part, stored: str, double: bool = False
    ) -> Iterator[tuple[int, torch.Tensor | np.ndarray]]:
        """Merge one parameter, piece by piece, and round it once.

        Args:
            part: The parameter.
            stored: Floating type of the result by its safetensors name.
            double: Whether an input is stored in float64.

        Yields:
            Row-major position of a piece's first value, and its values on the CPU, as they are
            stored: a tensor, or with `arrays` a flat array.

        Raises:
            UserError: NaN or infinity in a model or in the result.
        """
        if not part.count:
            return
        name = part.context.tensor
        parameters = self.parameters_of(name)
        # What was prepared over the whole model holds for values of the same type alone.
        pieces = self._pieces([part], double or self._prepared_double)
        prepared = self._prepared if self._whole else self._run_prepare(pieces, parameters)
        offset = self._places.get(name, 0)
        if self._patterns and stored == "BF16" and pieces.bfloat16:
            for piece in pieces.stored():
                start = piece.context.start
                context = piece.context.at(start, start + offset, prepared)
                found = self._patterns(piece.base, piece.experts, context, **parameters)
                if found is None:
                    break
                yield start, found
            else:
                return
        # What cannot be merged on patterns, such as what is not finite, is merged or refused here.
        for piece in pieces:
            start = piece.context.start
            context = piece.context.at(start, start + offset, prepared)
            merged = self._call(piece, context, parameters)
            if self._arrays:
                yield start, rounded_array(merged, stored, name)
            else:
                yield start, rounded(merged, torch_type(stored), name)

    def _call(self, piece: Piece, context: TensorContext, parameters: Mapping[str, Any]) -> Any:
        experts = piece.experts
        shape = experts.shape if isinstance(experts, Later) else experts[0].shape
        with np.errstate(all="ignore"):
            merged = self._function(piece.base, piece.experts, context, **parameters)
        if merged.shape != shape:
            raise RuntimeError(f"method {self._info.name} returned another shape than it was given")
        return merged
