"""What a search looks through: genes, the models that they stand for, and their tensors."""

from __future__ import annotations

import abc
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from search.evaluation import Evaluation

Recipe = Mapping[str, Any]  # plain values, as they can be written to a manifest


@dataclass(frozen=True)
class Gene:
    """One number of a genome.

    Attributes:
        group: What it belongs to: ``layer 0``, ``layers 0-3``, ``rest``; a module kind may follow.
        parameter: What it sets: ``weights``, ``density``, ``t`` ...
        expert: Whose number it is; empty for a parameter that has one value for all.
        start: Where the search begins.
        bounds: Lowest and highest value.
    """

    group: str
    parameter: str
    expert: str
    start: float
    bounds: tuple[float, float]

    @property
    def name(self) -> str:
        """A short unique name for tables."""
        return " ".join(part for part in (self.parameter, self.expert, self.group) if part)


def reflect(value: float, low: float, high: float) -> float:
    """Fold the real line into [low, high], as a path between two mirrors.

    A strategy without bounds may then draw where it likes: no draw is repeated and none is moved
    to an end, where all of a population would meet. Values within the bounds stay as they are.

    """
    if low <= value <= high:
        return value
    width = high - low
    place = (value - low) % (2 * width)
    return min(max(low + min(place, 2 * width - place), low), high)


class Space(abc.ABC):
    """A set of models that can be searched.

    Attributes:
        genes: The numbers of a genome, in order.
    """

    genes: tuple[Gene, ...] = ()

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return its settings, without the models: plain values for the record."""

    @abc.abstractmethod
    def decode(self, values: Sequence[float]) -> Recipe:
        """Turn a genome into what it stands for.

        Args:
            values: One number within its bounds for each gene.

        Returns:
            The recipe; it determines the tensors, and goes into the winner's manifest.

        Raises:
            UserError: The genome stands for no model; the candidate then scores worst.
        """

    @abc.abstractmethod
    def tensors(self, recipe: Recipe) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Make a candidate's model from its recipe.

        Returns:
            Every parameter by its name in the checkpoint, in the type in which it is stored; and
            what differs from the base's config.json, such as ``{"num_hidden_layers": 9}``.

        Raises:
            UserError: The model cannot be made; the candidate then scores worst.
        """

    def named(self, values: Sequence[float]) -> dict[str, Any]:
        """Return a genome's numbers by their names in the table of candidates."""
        return {gene.name: value for gene, value in zip(self.genes, values, strict=True)}

    def config(self, recipe: Recipe) -> dict[str, Any]:
        """Return what differs from the base's config.json; nothing where a space keeps it."""
        return {}

    def settings(self, recipe: Recipe) -> dict[str, Hashable] | None:
        """Say what determines each parameter, so that what two candidates share is kept.

        Returns:
            For every parameter of the candidate a value that is equal for two candidates only
            where their parameters are; None to have all overwritten.
        """
        return None

    def overwrite(
        self, recipe: Recipe, parameters: Mapping[str, torch.Tensor], names: Collection[str]
    ) -> Mapping[str, float]:
        """Write a candidate's values into an allocated model.

        Args:
            recipe: The candidate.
            parameters: The model's parameters by name, in the type of the evaluation.
            names: Those to overwrite; the others hold the candidate's values already.

        Returns:
            Amounts for the cost, without time and memory.

        Raises:
            UserError: As `tensors`.
        """
        tensors, _ = self.tensors(recipe)
        for name in names:
            parameters[name].copy_(tensors[name])
        return {}

    def replaces(self, new: Evaluation, best: Evaluation) -> bool:
        """Return whether a candidate that was scored later replaces the best so far."""
        return new.rank > best.rank

    def keep(self, recipe: Recipe) -> None:  # noqa: B027
        """Take note that the candidate that was made last is the best so far."""

    def finish(self, folder: Path, recipe: Recipe) -> None:  # noqa: B027
        """Write files next to the winner's weights, into its folder."""

    def notes(self, recipe: Recipe) -> tuple[str, ...]:
        """Return what the winner's model card says besides its recipe, in Markdown."""
        return ()
