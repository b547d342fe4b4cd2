"""Data-flow space: paths through the experts' layers, with scaled inputs.

The layers of all experts form one row, expert after expert, which is repeated r times: M layers
make T = M r slots. A genome says which slots the hidden state passes, in their order, and the
factors between any two layers. The layers' weights stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError, nearest
from search.dataflow_model import (
    PER_LAYER,
    Step,
    check_stackable,
    depth,
    kinds,
    load,
    path_table,
    sources,
)
from search.space import Gene, Recipe, Space

if TYPE_CHECKING:
    import torch

    from checkpoints.reading import Model

SCALES = ("network", "matrix", "none")
BASE = "base"
INCLUDE = (-1.0, 1.0)  # a slot is passed where its gene is above 0
# At a first step size of 0.3 a slot changes sides once in about twenty draws.
START = 0.5
# Positive, as a norm keeps a sign, and within [1/2, 2]: over ten steps already a factor of 1000.
LIMIT = 2.0
HIDDEN = 4
WEIGHT = (-2.0, 2.0)  # of the network: its inputs are in [-1, 1], tanh is nearly flat beyond
_INPUTS = ("from", "to", "slot", "bias")


class DataFlowSpace(Space):
    """Models whose layers are a path through the experts'.

    The search starts from one expert as it is: its layers in the first pass, all scales 1.

    Args:
        base: Its configuration is the result's, but for the number of layers.
        experts: The experts by name; their numbers of layers may differ.
        repeats: Passes r through the row of all layers; with 1, layers keep the order of the row.
        scales: ``matrix``: a gene for every ordered pair of layers, M^2 in all. ``network``: a
            small network gives the scale from both layers and the slot, with a number of genes
            that does not depend on M. ``none``: all scales are 1.
        embedding_from: The expert that embedding, final norm and output head are taken from, or
            ``base``; the search starts from its layers (for ``base``, the first expert's). None
            for the first expert.
        max_depth: Most layers of a candidate; None for M.

    Raises:
        UserError: Models whose layers do not fit each other, or a setting out of range.

    Source:
        Akiba et al., arXiv:2403.13187, section 3.2 (data flow space): indicators per slot, scales
        W_ij or a network of (i, j, t).
    """

    def __init__(
        self,
        base: Model,
        experts: Mapping[str, Model],
        *,
        repeats: int = 2,
        scales: str = "network",
        embedding_from: str | None = None,
        max_depth: int | None = None,
    ) -> None:
        if BASE in experts:
            raise UserError("no expert can be called 'base'; give it another name")
        self._models = {BASE: base, **experts}
        check_stackable(self._models)
        self._kinds = {name: kinds(model) for name, model in self._models.items()}
        self._check_kinds()
        row = [(name, layer) for name in experts for layer in range(depth(experts[name]))]
        outside = next(iter(experts)) if embedding_from is None else embedding_from
        if outside not in self._models:
            raise UserError(
                f"--embedding-from: no model {outside!r}{nearest(outside, self._models)}; "
                "name an expert, or base"
            )
        if scales not in SCALES:
            raise UserError(f"--scales: no kind {scales!r}{nearest(scales, SCALES)}")
        if repeats < 1:
            raise UserError(f"--repeats is {repeats}; give 1 or more")
        # The search starts from all layers of one expert, a model that works.
        first = next(iter(experts)) if outside == BASE else outside
        self._max_depth = len(row) if max_depth is None else max_depth
        if self._max_depth < depth(experts[first]):
            raise UserError(
                f"--max-depth is {self._max_depth}, but the search starts from the "
                f"{depth(experts[first])} layers of {first}; give at least as many"
            )
        self._row, self._repeats, self._scales = row, repeats, scales
        self._outside = outside
        self.genes = (*self._indicators(first), *self._scale_genes())

    def _check_kinds(self) -> None:
        """Refuse layers of a kind that the base, whose class is the result's, does not have."""
        own, *others = (set(zip(*said.values(), strict=True)) for said in self._kinds.values())
        for name, found in zip(list(self._kinds)[1:], others, strict=True):
            if self._kinds[name].keys() != self._kinds[BASE].keys() or not found <= own:
                raise UserError(
                    f"expert {name}: its configuration has layers of a kind that the base lacks "
                    f"({', '.join(PER_LAYER)}); give models of one architecture"
                )

    def _indicators(self, first: str) -> list[Gene]:
        return [
            Gene(
                f"layer {layer} pass {number}",
                "include",
                name,
                START if number == 0 and name == first else -START,
                INCLUDE,
            )
            for number in range(self._repeats)
            for name, layer in self._row
        ]

    def _scale_genes(self) -> list[Gene]:
        if self._scales == "matrix":
            names = [f"{name} {layer}" for name, layer in self._row]
            # The exponent of LIMIT: a factor and its inverse are equally far from 1.
            return [
                Gene(f"{before} to {after}", "scale", "", 0.0, (-1.0, 1.0))
                for before in names
                for after in names
            ]
        if self._scales == "network":
            hidden = [f"{what} {unit}" for unit in range(HIDDEN) for what in (*_INPUTS, "out")]
            return [Gene(name, "network", "", 0.0, WEIGHT) for name in (*hidden, "out bias")]
        return []

    def _scale(self, values: np.ndarray, before: int, after: int, slot: int) -> float:
        """Return the scale on the way between two layers of the row into a slot."""
        count = len(self._row)
        if self._scales == "matrix":
            return LIMIT ** float(values[before * count + after])
        if self._scales == "none":
            return 1.0
        units = values[:-1].reshape(HIDDEN, len(_INPUTS) + 1)
        places = [(before, count), (after, count), (slot, count * self._repeats)]
        inputs = [(2 * place + 1) / total - 1 for place, total in places]
        # Sums in Python: an optimised product may round differently on another machine.
        out = float(values[-1])
        for *weights, bias, outward in units.tolist():
            total = math.fsum([bias, *(w * x for w, x in zip(weights, inputs, strict=True))])
            out += outward * math.tanh(total)
        return LIMIT ** math.tanh(out)

    def describe(self) -> dict[str, Any]:
        """Return what the space was made with."""
        return {
            "space": "data-flow",
            "repeats": self._repeats,
            "scales": self._scales,
            "embedding_from": self._outside,
            "max_depth": self._max_depth,
        }

    def decode(self, values: Sequence[float]) -> Recipe:
        """Turn a genome into a path; see `search.space.Space.decode`.

        Returns:
            ``path`` (a list of ``expert``, ``layer`` and ``scale``, the factor on the way in) and
            ``embedding_from``.

        Raises:
            UserError: The path is empty or too deep.
        """
        genome = np.asarray(values, dtype=float)
        slots = len(self._row) * self._repeats
        passed = [slot for slot in range(slots) if genome[slot] > 0]
        if not passed:
            raise UserError("the path is empty: no layer is included")
        if len(passed) > self._max_depth:
            raise UserError(f"the path has {len(passed)} layers, more than {self._max_depth}")
        path, before = [], None
        for slot in passed:
            place = slot % len(self._row)
            # What the embedding gives enters unscaled: only pairs of layers have a factor.
            scale = 1.0 if before is None else self._scale(genome[slots:], before, place, slot)
            expert, layer = self._row[place]
            path.append({"expert": expert, "layer": layer, "scale": scale})
            before = place
        return {"path": path, "embedding_from": self._outside}

    def _sources(self, recipe: Recipe) -> dict:
        return sources(_steps(recipe), recipe["embedding_from"], self._models)

    def tensors(self, recipe: Recipe) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Make a path's model; see `search.space.Space.tensors`."""
        tensors = {n: load(n, source, self._models) for n, source in self._sources(recipe).items()}
        return tensors, self.config(recipe)

    def config(self, recipe: Recipe) -> dict[str, Any]:
        """Return the number of layers, and what is said of each by itself."""
        path = recipe["path"]
        said = {
            key: [self._kinds[step["expert"]][key][step["layer"]] for step in path]
            for key in self._kinds[BASE]
        }
        return {"num_hidden_layers": len(path), **said}

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        """Say where each parameter comes from; see `search.space.Space.settings`."""
        return self._sources(recipe)

    def overwrite(
        self, recipe: Recipe, parameters: Mapping[str, torch.Tensor], names: Collection[str]
    ) -> dict[str, float]:
        """Read only what changed; see `search.space.Space.overwrite`."""
        found = self._sources(recipe)
        for name in names:
            parameters[name].copy_(load(name, found[name], self._models))
        return {}

    def notes(self, recipe: Recipe) -> tuple[str, ...]:
        """Return what the model card says of a path: its layers as a table."""
        return (
            f"Embedding, final norm and output head are those of `{recipe['embedding_from']}`; the "
            "scales are folded into what ends each branch of a layer. The layers:\n\n"
            f"{path_table(_steps(recipe))}",
        )


def _steps(recipe: Recipe) -> list[Step]:
    return [Step(**step) for step in recipe["path"]]
