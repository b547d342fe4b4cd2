"""Spaces whose models a merge method makes: listed settings, and soups of some experts."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merges.engine import registry
from merges.engine.config import MergeConfig
from search.space import Recipe, Space

if TYPE_CHECKING:
    import torch

    from merges.engine.requests import WholeModelResult
    from merges.engine.streaming import Merge
    from search.evaluation import Evaluation


class _InPlace:
    """Writes merged values, as arrays or tensors, into tensors by name."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._parameters = parameters

    def write(self, name: str, start: int, values: torch.Tensor | np.ndarray) -> None:
        import torch

        if isinstance(values, np.ndarray):
            patterns = values.dtype == np.uint16  # numpy has no bfloat16
            values = torch.from_numpy(values)
            values = values.view(torch.bfloat16) if patterns else values
        values = values.flatten()
        self._parameters[name].view(-1)[start : start + len(values)] = values

    def done(self, name: str) -> None:
        pass


class MergedSpace(Space):
    """Models that one merge method makes; a recipe has ``set`` and perhaps ``set_layers``.

    The experts stay on disk: a candidate reads their values piece by piece, out of the system's
    page cache from the second one on. A whole-model method's result is kept while it is the best.

    Args:
        merging: The method and the models; each candidate has its own parameters.
    """

    def __init__(self, merging: MergeConfig) -> None:
        self.merging = merging
        self._whole = registry.info(merging.method).whole_model
        self._last: tuple[Recipe, WholeModelResult] | None = None
        self._kept: tuple[Recipe, WholeModelResult] | None = None

    def describe(self) -> dict[str, Any]:
        """Return the method and what is the same for every candidate."""
        return {
            "method": self.merging.method,
            "embeddings_and_norms": self.merging.embeddings_and_norms,
        }

    def _config(self, recipe: Recipe, device: str = "cpu") -> MergeConfig:
        from merges.engine.layer_rules import LayerRules

        of, rules = self.merging, recipe.get("set_layers")
        layers = LayerRules(of.method, rules) if rules else None
        return replace(of, parameters=recipe["set"], parameters_for=layers, device=device)

    def _merge(self, recipe: Recipe) -> Merge:
        from merges.engine.streaming import Merge

        return Merge(self._config(recipe), arrays=True)

    def _result(self, recipe: Recipe) -> WholeModelResult:
        """Run a whole-model method, unless its result is at hand."""
        from merges.engine.run import merge_checkpoints

        for made in (self._last, self._kept):
            if made is not None and made[0] == recipe:
                return made[1]
        result = merge_checkpoints(self._config(recipe, self.merging.device))
        self._last = (recipe, result)
        return result

    def settings(self, recipe: Recipe) -> dict[str, Hashable] | None:
        """Return each parameter's settings; see `Space.settings`."""
        if self._whole:
            return None
        from merges.engine.layer_rules import LayerRules

        rules = LayerRules(self.merging.method, recipe.get("set_layers") or [])
        names = self.merging.reference.names()
        rules.check_used(names)
        common = repr(recipe["set"])
        return {name: (common, repr(rules(name))) for name in names}

    def overwrite(
        self, recipe: Recipe, parameters: Mapping[str, torch.Tensor], names: Collection[str]
    ) -> Mapping[str, float]:
        """Merge into an allocated model; see `Space.overwrite`."""
        if not self._whole:
            self._merge(recipe).run(_InPlace(parameters), list(names))
            return {}
        self._last = None  # two results at once may not fit
        result = self._result(recipe)
        for name in names:
            parameters[name].copy_(result.tensors[name])
        return result.counted

    def tensors(self, recipe: Recipe) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Make a candidate's model; see `Space.tensors`."""
        if self._whole:
            return self._result(recipe).tensors, {}
        import torch

        from checkpoints.dtypes import torch_type

        merge = self._merge(recipe)
        tensors = {
            name: torch.empty(spec.shape, dtype=torch_type(spec.dtype))
            for name, spec in merge.specs.items()
        }
        merge.run(_InPlace(tensors), list(tensors))
        return tensors, {}

    def keep(self, recipe: Recipe) -> None:
        """Keep a whole-model method's result, which costs more than its memory."""
        if self._last is not None and self._last[0] == recipe:
            self._kept = self._last

    def finish(self, folder: Path, recipe: Recipe) -> None:
        """Write a whole-model method's coefficients and training log."""
        if self._whole:
            from merges.engine.output import write_extras

            write_extras(folder, self._result(recipe))


class ListedSpace(MergedSpace):
    """A method with one of several settings; a genome is a setting's number.

    Args:
        merging: The method and the models; each candidate has its own parameters.
        fixed: Parameters that all candidates share.
        candidates: The parameters in which they differ.

    Raises:
        UserError: A parameter is unknown or out of its range.
    """

    def __init__(
        self,
        merging: MergeConfig,
        fixed: Mapping[str, Any],
        candidates: Sequence[Mapping[str, Any]],
    ) -> None:
        super().__init__(merging)
        self._fixed = dict(fixed)
        self._candidates = [dict(candidate) for candidate in candidates]
        self._resolved = [
            registry.validate(merging.method, {**fixed, **candidate}) for candidate in candidates
        ]

    def describe(self) -> dict[str, Any]:
        """Return the method and the candidates."""
        return super().describe() | {"set": self._fixed, "candidates": self._candidates}

    def named(self, values: Sequence[float]) -> dict[str, Any]:
        """Return the candidate's parameters."""
        return self._candidates[int(values[0])]

    def decode(self, values: Sequence[float]) -> Recipe:
        """Return all parameters of the method."""
        return {"set": self._resolved[int(values[0])]}


class SoupSpace(MergedSpace):
    """Averages of some of the experts; a genome says for each whether it takes part, 1 or 0."""

    def named(self, values: Sequence[float]) -> dict[str, Any]:
        """Return each expert's weight."""
        return dict(zip(self.merging.experts, map(float, values), strict=True))

    def decode(self, values: Sequence[float]) -> Recipe:
        """Return the weights."""
        weights = {"weights": self.named(values)}
        return {"set": registry.validate(self.merging.method, weights)}

    def replaces(self, new: Evaluation, best: Evaluation) -> bool:
        """A soup is accepted if it is not worse than the one before, which is the best so far."""
        soup = sum(new.genes.values()) > 1
        return new.rank > best.rank or (soup and new.rank == best.rank)
