"""A method with its parameters, applied to one parameter of the models after another."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from checkpoints.headers import FLOATS
from checkpoints.names import kind
from checkpoints.reading import torch_name, torch_type
from common.errors import UserError
from merges.engine import registry
from merges.engine.checks import numbers_by_expert
from merges.engine.pieces import ArrayPieces, Part, Piece, Pieces
from merges.engine.requests import EmbeddingsAndNorms, Resuming

if TYPE_CHECKING:
    import torch

ParametersFor = Callable[[str], Mapping[str, Any]]


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
    """Round a parameter's values to the type in which they are stored.

    Args:
        values: Float32, any shape.
        stored: BF16, F16 or F32.
        name: The parameter's name, for the message.

    Returns:
        The values, flat; bfloat16 as its patterns in uint16.

    Raises:
        UserError: One is too large for the type, or no number.
    """
    from merges.arithmetic import kernels

    found = kernels.narrow(values.reshape(-1), stored)
    if found is None:
        raise _overflow(name, torch_name(stored))
    return found


def check_device(device: str) -> None:
    """Refuse a device that torch does not find."""
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(
            f"device {device!r}: torch finds no such device here; leave it out to merge on the CPU"
        ) from None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a merge is carried out, apart from its method and the models.

    Attributes:
        seed: Seed of random masks, or of a whole-model method's data draw and order.
        embeddings_and_norms: ``merged``, or ``base`` to take them from the base.
        parameters_for: Gives, for a tensor's name, parameters that differ for it; see
            `merges.engine.layer_rules.LayerRules`.
        compute_dtype: ``float32`` or ``float64``; where an input is stored in float64, its
            arithmetic is in float64 always.
        dtype: Type in which floating parameters are stored, by torch's name; None for the
            base's (without a base, the first expert's).
        device: Torch device on which values are merged.
        threads: Parameters that are merged at a time.
        resuming: Where a whole-model method records how far it is; None for nowhere.
    """

    seed: int = 0
    embeddings_and_norms: EmbeddingsAndNorms = "merged"
    parameters_for: ParametersFor | None = None
    compute_dtype: str = "float32"
    dtype: str | None = None
    device: str = "cpu"
    threads: int = 1
    resuming: Resuming | None = None


def takes_arrays(method: str, settings: Settings, types: Collection[str]) -> bool:
    """Tell whether a merge can do without torch.

    Args:
        method: A method's name.
        settings: How it is carried out.
        types: The types, by their safetensors names, of the parameters read and stored.
    """
    return (
        registry.info(method).arrays
        and settings.device == "cpu"
        and settings.compute_dtype == "float32"
        and "F64" not in types
    )


class Merger:
    """Merges parameters one by one; several threads may use it at once.

    Args:
        method: Name of a method that is not a whole-model one.
        experts: The experts' names in the order given.
        parameters: The method's parameters; those left out have their defaults.
        settings: All else.
        arrays: Whether the parts' readers give arrays, and `merge` is to; see `takes_arrays`.

    Attributes:
        order: The experts' names in the order in which the method is given them.
        reads_base: Whether the method looks at the base at all.

    Raises:
        UserError: Unknown method, parameter or device, a value out of range, or rules by layer
            together with a preparation over the whole model.
    """

    def __init__(
        self,
        method: str,
        experts: Sequence[str],
        parameters: Mapping[str, Any],
        settings: Settings,
        arrays: bool = False,
    ) -> None:
        self._method = method
        self._arrays = arrays
        self._info = registry.info(method)
        self._given = tuple(experts)
        # Sums in another order round differently: one order makes the order given immaterial.
        self.order = self._given if self._info.ordered else tuple(sorted(self._given))
        self._parameters = self._per_expert(registry.validate(method, parameters))
        # A method with a parameter `origin` looks at the base only where that is the base.
        self.reads_base = "base" in self._info.needs or (
            "origin" in self._parameters
            and (self._parameters["origin"] == "base" or settings.parameters_for is not None)
        )
        self._function = registry.load(method)
        self._prepare = registry.load_prepare(method)
        self._settings = settings
        self._whole = self._parameters.get("scope") == "model" and self._prepare is not None
        self._places: dict[str, int] = {}
        self._prepared: Any = None
        self._prepared_double = False
        check_device(settings.device)
        if self._whole and settings.parameters_for is not None:
            raise UserError(
                f"method {method}: scope=model looks at the whole model at once and takes no "
                "parameters by layer; use scope=tensor or leave the rules out"
            )

    def _per_expert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return numbers_by_expert(self._method, self._info, values, self._given)

    def parameters_of(self, tensor: str) -> dict[str, Any]:
        """Return the method's parameters for a tensor, numbers per expert in `order`.

        Raises:
            UserError: A rule sets what does not fit the experts.
        """
        values = self._parameters
        rules = self._settings.parameters_for
        if rules is not None and (own := rules(tensor)):
            values = {**values, **self._per_expert(registry.check(self._method, own))}
        return {
            name: [value[expert] for expert in self.order]
            if value is not None and self._info.parameters[name].kind.per_expert
            else value
            for name, value in values.items()
        }

    def copies(self, name: str, dtype: str) -> bool:
        """Tell whether a parameter is taken from the base (or the first expert) as it is.

        Args:
            name: The parameter.
            dtype: Its type by its safetensors name.
        """
        policy = self._settings.embeddings_and_norms
        return (policy == "base" and kind(name) in ("embedding", "norm")) or dtype not in FLOATS

    def _pieces(self, parts: Sequence[Part], double: bool) -> Pieces:
        if self._arrays:
            return ArrayPieces(parts, self._info.unit)
        import torch

        wide = double or self._settings.compute_dtype == "float64"
        dtype = torch.float64 if wide else torch.float32
        return Pieces(parts, self._info.unit, dtype, self._settings.device)

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
        prepared, offset = self._prepared, self._places.get(name, 0)
        if self._prepare is not None and not self._whole:
            prepared = self._run_prepare(pieces, parameters)
        for piece in pieces:
            start = piece.context.start
            context = piece.context.at(start, start + offset, prepared)
            merged = self._call(piece, context, parameters)
            if self._arrays:
                yield start, rounded_array(merged, stored, name)
            else:
                yield start, rounded(merged, torch_type(stored), name)

    def _call(
        self, piece: Piece, context: Any, parameters: Mapping[str, Any]
    ) -> torch.Tensor | np.ndarray:
        shape = piece.experts[0].shape
        with np.errstate(all="ignore"):
            merged = self._function(piece.base, piece.experts, context, **parameters)
        if merged.shape != shape:
            raise RuntimeError(f"method {self._method} returned another shape than it was given")
        return merged
