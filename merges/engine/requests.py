"""What the engine hands to a merge method, and what a whole-model method hands back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

    from checkpoints.reading import Model

EmbeddingsAndNorms = Literal["merged", "base"]
Values = TypeVar("Values", "torch.Tensor", np.ndarray)  # what a method is given is all of one kind


class Readable(Protocol):
    """Statistics of which values can be read; see `merges.statistics.files.Statistics`."""

    def has(self, parameter: str, what: str) -> bool: ...
    def read(
        self, parameter: str, what: str, start: int = 0, stop: int | None = None
    ) -> torch.Tensor: ...


class Statistic(Readable, Protocol):
    """All that a method and the engine ask of a model's statistics."""

    path: Path
    kind: str
    model: str
    tokens: int

    def widths(self) -> Mapping[str, int]: ...
    @property
    def norm(self) -> float: ...
    def matrix(self, parameter: str, what: str) -> torch.Tensor: ...
    def mean(self, parameter: str) -> float: ...


@dataclass(frozen=True)
class TensorContext:
    """What a method may know about the values that it merges, besides the values.

    Attributes:
        tensor: The parameter's name in the checkpoint.
        experts: The experts' names, in the order of the tensors that the method is given.
        seed: Seed of the merge; only stochastic methods look at it.
        shape: The whole parameter's shape.
        start: Row-major position, in the parameter, of the first value given.
        place: Position of the first value given in all that `prepare` saw: `start`, or for a
            preparation over the whole model also the values of the parameters before this one.
        prepared: What the method's `prepare` function returned, None without one.
        statistics: Statistics by the model's name, for methods that ask for them.
    """

    tensor: str
    experts: tuple[str, ...]
    seed: int
    shape: tuple[int, ...] = ()
    start: int = 0
    place: int = 0
    prepared: Any = None
    statistics: Mapping[str, Statistic] = field(default_factory=dict)

    def at(self, start: int, place: int, prepared: Any = None) -> TensorContext:
        """Return the same for values that begin elsewhere."""
        # Made for every piece: dataclasses.replace takes several times as long.
        return TensorContext(
            self.tensor,
            self.experts,
            self.seed,
            self.shape,
            start,
            place,
            prepared,
            self.statistics,
        )

    def kept(self, expert: str, count: int, density: float) -> np.ndarray:
        """Draw which of an expert's `count` values are kept, bool; see `masks.keep_array`."""
        from merges.arithmetic import masks

        return masks.keep_array(self._stream(expert), self.start, count, density)

    def keep_mask(self, expert: str, like: Values, density: float) -> Values:
        """Draw the Bernoulli mask of one expert's values; see `merges.arithmetic.masks.keep_mask`.

        Args:
            expert: The expert's name.
            like: The values that the mask is for.
            density: Probability of 1.

        Returns:
            Ones and zeros in the shape and type and on the device of `like`.
        """
        from merges.arithmetic import masks

        if isinstance(like, np.ndarray):
            return self.kept(expert, like.size, density).astype(like.dtype).reshape(like.shape)
        mask = masks.keep_mask(self._stream(expert), self.start, like.numel(), density)
        import torch

        # Torch turns bytes into floats several times as fast as truth values.
        return mask.view(torch.uint8).to(like.device, like.dtype).view(like.shape)

    def uniform(self, expert: str, like: torch.Tensor) -> torch.Tensor:
        """Draw numbers of [0, 1) for one expert's values; see `merges.arithmetic.masks.uniform`."""
        from merges.arithmetic import masks

        draws = masks.uniform(self._stream(expert), self.start, like.numel())
        return draws.to(like.device, like.dtype).view(like.shape)

    def statistics_of(self, models: Sequence[str], *what: str) -> list[Statistic] | None:
        """Return models' statistics, None where one of them lacks something of this parameter.

        Args:
            models: Their names.
            what: What each must have, such as ``values`` or ``gram``.
        """
        found = [self.statistics[name] for name in models]
        complete = all(own.has(self.tensor, part) for own in found for part in what)
        return found if complete else None

    def values_of(self, found: Statistic, like: torch.Tensor) -> torch.Tensor:
        """Read the statistics' values at these places, in the shape and type of `like`."""
        values = found.read(self.tensor, "values", self.start, self.start + like.numel())
        return values.to(like).view_as(like)

    def _stream(self, expert: str) -> tuple[int, str, str]:
        return (self.seed, expert, self.tensor)


@dataclass(frozen=True)
class Resuming:
    """Where a long method records its state, so that it can resume after a kill.

    Attributes:
        path: The file; a state of the same merge is resumed, and removed at the end.
        every: Steps between two records.
    """

    path: Path
    every: int = 100


@dataclass(frozen=True)
class WholeModelRequest:
    """The order to a method that needs whole models, and data, at once.

    Attributes:
        base: The common ancestor; configuration and tokenizer of the result come from it.
        experts: The fine-tuned checkpoints by name, in the order given; all compatible with the
            base (the engine has checked names, shapes and tokenizers).
        calibration: Files of JSON lines by expert name, each drawn from that expert's own
            training distribution.
        teachers: Folder of precomputed teacher signals, None to compute what is needed.
        embeddings_and_norms: ``base``: the result has the base's; ``merged``: the average of the
            experts'.
        seed: As for `merges.engine.config.MergeConfig`, as are threads, device and resuming.
    """

    base: Model
    experts: dict[str, Model]
    calibration: dict[str, Path]
    teachers: Path | None
    seed: int
    embeddings_and_norms: EmbeddingsAndNorms
    threads: int
    device: str = "cpu"
    resuming: Resuming | None = None


@dataclass(frozen=True)
class WholeModelResult:
    """A merged model in memory.

    Attributes:
        tensors: Every parameter of the base by name, in the base's shapes and stored types.
        extra_tensors: What else the method learnt, such as merge coefficients; saved as
            ``extra/coefficients.safetensors`` in the model's folder.
        log: One row per training step with the same keys in each, saved as ``training.csv``;
            deterministic, so without measured times.
        counted: Amounts for the cost: tokens forward and backward, FLOPs, optimiser steps.
    """

    tensors: dict[str, torch.Tensor]
    extra_tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    log: list[Mapping[str, Any]] = field(default_factory=list)
    counted: dict[str, float] = field(default_factory=dict)
