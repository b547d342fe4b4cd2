"""Scoring candidates in memory on the dev items: one model whose parameters are overwritten."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import random
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from checkpoints.names import is_embedding
from common.errors import UserError
from evaluation.backends.hf import load_model
from evaluation.harness import Harness
from search.dataflow_model import PER_LAYER
from search.evaluation import Evaluation
from search.naming import as_in_files
from search.record import average_of

if TYPE_CHECKING:
    from checkpoints.reading import Model
    from search.space import Recipe, Space

# What a candidate may fail with: what the project says in one line, and torch out of memory or
# asked for a decomposition that does not converge. Anything else is a fault of the program.
_FAILURES = (UserError, ArithmeticError, MemoryError, RuntimeError)


def choose_items(items: int, seed: int):
    """Return what `Harness` takes to ask some of each task's items, always the same ones.

    Args:
        items: How many of a task; all where it has fewer.
        seed: Of the draw, which also depends on the task's name.
    """

    def chosen(task: str, rows: list) -> list:
        draw = random.Random(f"{seed} {task}")
        return [rows[n] for n in sorted(draw.sample(range(len(rows)), min(items, len(rows))))]

    return chosen


def _kinds(config: Mapping[str, Any]) -> list[Hashable]:
    """Return what a configuration says of each layer by itself, in their order."""
    said = [config[key] for key in PER_LAYER if isinstance(config[key], list)]
    return list(zip(*said, strict=True)) if said else [()] * config["num_hidden_layers"]


class Allocated:
    """A model that becomes one candidate after another.

    It is allocated once. A candidate overwrites only the parameters that its space says differ from
    those held. Candidates of other depths use the first layers of a pool that grows to the deepest.

    Args:
        base: Its configuration is that of every candidate, but for what a space says.
        dtype: float32, bfloat16 or float16.
        device: A torch device.

    Attributes:
        model: The model.
        written: Number of parameters that the last candidate overwrote.

    Raises:
        UserError: transformers has a parameter that the base's files do not have.
    """

    def __init__(self, base: Model, dtype: str = "float32", device: str = "cpu") -> None:
        self.model = load_model(base.path, dtype, device)
        self.written = 0
        self._names = frozenset(base.names())
        # A tied matrix may be stored as the head.
        for name in sorted(self._parameters().keys() - self._names):
            if not is_embedding(name):
                raise UserError(
                    f"{base.path}: its files do not have {name} under a name that is known here, "
                    "so that candidates cannot be made in memory; merge with python -m merges"
                )
        self._config = {
            key: copy.deepcopy(getattr(self.model.config, key, None))
            for key in ("num_hidden_layers", *PER_LAYER)
        }
        # For each place, a layer of each kind that has been there.
        self._pool: list[dict[Hashable, torch.nn.Module]] = []
        self._held: dict[int, Hashable] = {}  # by where a parameter's values begin

    def _deepen(self, changes: Mapping[str, Any]) -> None:
        decoder, config = self.model.model, self._config | dict(changes)
        if not self._pool:
            pairs = zip(_kinds(self._config), decoder.layers, strict=True)
            self._pool = [{kind: layer} for kind, layer in pairs]
        layers = [self._layer(place, kind) for place, kind in enumerate(_kinds(config))]
        decoder.layers = torch.nn.ModuleList(layers)
        for key, value in config.items():
            setattr(self.model.config, key, value)

    def _layer(self, place: int, kind: Hashable) -> torch.nn.Module:
        """Return a layer for a place, a copy of the first one of its kind where there is none."""
        if place == len(self._pool):
            self._pool.append({})
        if kind not in self._pool[place]:
            layer = copy.deepcopy(next(own[kind] for own in self._pool if kind in own))
            for module in layer.modules():
                if hasattr(module, "layer_idx"):  # where its keys and values are cached
                    setattr(module, "layer_idx", place)  # noqa: B010
            self._pool[place][kind] = layer
        return self._pool[place][kind]

    def _parameters(self) -> dict[str, torch.Tensor]:
        """Return the parameters by their names in files, of tied ones only the first."""
        found: dict[int, str] = {}
        parameters = self.model.state_dict()
        for name, parameter in parameters.items():
            found.setdefault(parameter.data_ptr(), name)
        return as_in_files({name: parameters[name] for name in found.values()}, self._names)

    def become(self, space: Space, recipe: Recipe) -> Mapping[str, float]:
        """Make the model a candidate of a space; return the amounts for the cost.

        Raises:
            UserError: The candidate cannot be made; the next one can.
        """
        changes = space.config(recipe)
        if changes or self._pool:
            self._deepen(changes)
        parameters = self._parameters()
        settings = space.settings(recipe)
        names = [
            name
            for name in parameters
            if settings is None
            or parameters[name].data_ptr() not in self._held
            or self._held[parameters[name].data_ptr()] != settings[name]
        ]
        for name in names:  # what is half written belongs to no candidate
            self._held.pop(parameters[name].data_ptr(), None)
        # The parameters are detached already, and a method that learns needs its gradients.
        counted = space.overwrite(recipe, parameters, names)
        if settings is not None:
            self._held |= {parameters[name].data_ptr(): settings[name] for name in names}
        self.written = len(names)
        return counted


class Scoring(Protocol):
    """What a workbench needs of a harness to score a candidate."""

    def evaluate(self, model: Any, name: str) -> dict[str, Any]:
        """Evaluate a model in memory; see `Harness.evaluate`."""
        ...


class Workbench:
    """Scores candidates of a space in memory.

    Args:
        space: Where the candidates come from.
        base: The configuration and the tokenizer of the candidates.
        data: Folder with the dev items.
        suites: Suites to score.
        groups: The table's columns, see `average_of`.
        batch_size: Items per forward pass.
        seed: Passed to the harness; also chooses the items.
        items: Items of each task that are asked; None for all.
        dtype: The type in which candidates are scored: float32, bfloat16 or float16.
        device: The torch device on which they are.
        engine: What runs SQL: sqlite or postgres.
    """

    def __init__(
        self,
        space: Space,
        base: Model,
        data: Path,
        suites: Sequence[str],
        groups: Sequence[Sequence[str]],
        batch_size: int = 64,
        seed: int = 0,
        items: int | None = None,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        engine: str = "sqlite",
    ) -> None:
        self.space = space
        self._groups = groups
        self._all = functools.partial(
            Harness, data, suites, "dev", base.path, batch_size, seed, engine=engine
        )
        chosen = None if items is None else choose_items(items, seed)
        self._harness = self._all(chosen=chosen)
        self._allocated = Allocated(base, dtype, device)

    def close(self) -> None:
        """End what the tasks have opened, such as a database server."""
        self._harness.close()

    def evaluate(self, index: int, genome: Sequence[float]) -> Evaluation:
        """Score one candidate; a failure is recorded, not raised, and scores worst."""
        evaluation = Evaluation(index, self.space.named(genome), genome=list(genome))
        try:
            recipe = self.space.decode(genome)
            evaluation.counted = dict(self._allocated.become(self.space, recipe))
            self._score(evaluation, self._harness)
        except _FAILURES as error:
            evaluation.failure = " ".join(str(error).split()) or type(error).__name__
        return evaluation

    def _score(self, evaluation: Evaluation, harness: Scoring) -> None:
        scores = harness.evaluate(self._allocated.model, name=f"candidate {evaluation.index}")
        for name, amount in scores["counted"].items():
            evaluation.counted[f"dev_{name}"] = amount
        tasks = {name: entry["value"] for name, entry in scores["tasks"].items()}
        for name, value in tasks.items():
            if value is None:
                raise UserError(f"{name} is {scores['tasks'][name]['undefined']}")
        average = average_of(tasks, self._groups)
        if not math.isfinite(average):
            raise UserError("the dev average is not finite")
        evaluation.tasks, evaluation.average = tasks, average

    def rescore(self, evaluations: Sequence[Evaluation]) -> dict[str, float]:
        """Score candidates on all dev items, set their `full`; return the amounts for the cost."""
        harness = self._all()
        counted: dict[str, float] = {"rescored": len(evaluations)}
        with contextlib.closing(harness):
            for evaluation in evaluations:
                again = Evaluation(evaluation.index, evaluation.genes)
                recipe = self.space.decode(evaluation.genome)
                amounts = dict(self._allocated.become(self.space, recipe))
                self._score(again, harness)
                evaluation.full = again.average
                for name, amount in (amounts | again.counted).items():
                    counted[name] = counted.get(name, 0) + amount
        return counted
