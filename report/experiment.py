"""What the report shows: case studies, models, columns and the ablation, in memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report.averages import Score, mean

if TYPE_CHECKING:
    import numpy as np

SEARCHES = ("tune", "evolve", "greedy")  # keys of a row that is chosen by its score on dev items


def searched(row: Mapping[str, Any]) -> bool:
    """Return whether a row of the configuration was chosen by its score on dev items."""
    return any(kind in row for kind in SEARCHES)


def is_generated(task: str) -> bool:
    """Return whether each world draws a task's items anew; those of benchmarks are the same."""
    return task.startswith("bottle_")


@dataclass(frozen=True)
class Column:
    """A column of a table: the mean over its tasks."""

    label: str
    tasks: tuple[str, ...]  # full task names (suite/task)
    in_average: bool  # False for a column that is shown but not averaged


@dataclass(frozen=True)
class Answers:
    """A model's answers to a world's test items.

    Attributes:
        ids: By task, a hash of the items' names in their order.
        scores: By task, the score of every item.
        facts: By task whose items ask some facts repeatedly, the number of each item's fact.
        top: By task, the share of items with the most frequent answer, and of those whose gold
            answer is the most frequent one.
        same: By expert, the share of all items with the same answer.
        faults: What is wrong with the file.
    """

    ids: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    facts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    top: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    same: Mapping[str, float] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    @functools.cached_property
    def arrays(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By task the items' scores, float64, and the numbers of their facts, integers."""
        import numpy as np

        return {
            task: (np.array(scores), np.asarray(self.facts.get(task) or range(len(scores))))
            for task, scores in self.scores.items()
        }


@dataclass(frozen=True, eq=False)  # comparisons of rows are recalled, so that it has a hash
class Model:
    """A row of a table."""

    id: str  # name of its score file and folder
    label: str
    kind: str  # base, expert or merge
    method: str = ""  # the merge method, empty for base and experts
    data: str = ""  # what data the merge saw
    # Where these weights come from: own, base, merged; ``of ja`` where a path through layers has
    # that expert's embedding and final norm; ``as published``
    embeddings_and_norms: str = "own"
    best_of: bool = False  # whether the row takes part in the marks for the best merge
    status: str = "ok"  # ``ok``, ``not run``, or ``failed: REASON``
    seed: int | None = None  # seed of its evaluation and merge, None without scores
    tasks: Mapping[str, Score] = field(default_factory=dict)  # test scores by full task name
    # Deterministic amounts of making it: tokens, FLOPs, evaluations
    counted: Mapping[str, float] = field(default_factory=dict)
    # Its manifest, empty where there is none
    manifest: Mapping[str, Any] = field(default_factory=dict)
    # What the smoke check found: perplexity, bits_per_byte, not_finite; empty where it has not run
    smoke: Mapping[str, Any] = field(default_factory=dict)
    edited: bool = False  # whether its scores were changed by hand and accepted
    # By task of the table, why it has no score although the model has been evaluated
    lacking: Mapping[str, str] = field(default_factory=dict)
    # How it was evaluated; see `report.scores.Outcome`
    evaluated: Mapping[str, Any] = field(default_factory=dict)
    answers: Answers | None = None  # what it answered, item by item; None where not known
    backend: str = ""  # what evaluated it, empty where that is not recorded
    # By task and role (items, fewshot), what its rows are instead of the benchmark's
    stand_ins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    # Of several worlds: the row in each world that has it, by seed; empty where there is one world
    worlds: Mapping[int, Model] = field(default_factory=dict)
    # Then its means over them, by the columns that are averaged
    means: Mapping[tuple[Column, ...], Score] = field(default_factory=dict)

    @property
    def edits(self) -> list[str]:
        """The worlds in which its scores were changed by hand; None for a single one."""
        return [f"seed {seed}" for seed, model in self.each.items() if model.edited]

    @property
    def each(self) -> dict[int | None, Model]:
        """The row in each world that has it, by seed; itself where there is one world."""
        found: dict[int | None, Model] = dict(self.worlds.items())
        return found or {None: self}

    def column(self, column: Column) -> Score | None:
        """Return the score of a column, None where a task of it has none."""
        if self.worlds:
            return self.means.get((column,))
        if column.tasks not in self._columns:
            self._columns[column.tasks] = mean([self.tasks.get(task) for task in column.tasks])
        return self._columns[column.tasks]

    @functools.cached_property
    def _columns(self) -> dict[tuple[str, ...], Score | None]:
        """Means of tasks that were asked for: every test and table asks for all again."""
        return {}

    def average(self, columns: Sequence[Column]) -> Score | None:
        """Return the mean over columns, None where one is missing."""
        if self.worlds:
            return self.means.get(tuple(columns))
        return mean([self.column(column) for column in columns])


@dataclass(frozen=True)
class Case:
    """A case study: what Table 1 or Table 2 shows."""

    id: str  # its name in the configuration and its folder
    table: str  # name of its table
    title: str
    columns: tuple[Column, ...]  # the averaged columns, then the others
    models: tuple[Model, ...]  # base, experts, merges, in the configuration's order
    experts: Mapping[str, Mapping[str, Any]]  # by expert: label and domain, from the configuration
    # What the gate found on dev data; empty where it has not run
    gate: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()  # sentences of the configuration that are printed under its tables
    more: tuple[Model, ...] = ()  # merges beyond the paper's, which have a separate table
    failed: Mapping[str, str] = field(default_factory=dict)  # by expert, why the gate failed
    # How far experts moved and what merges kept of them: what `python -m merges inspect` wrote;
    # empty where it has not run
    inspection: Mapping[str, Any] = field(default_factory=dict)
    own_base: bool = True  # whether each world trains its base; a cask's is the same in all
    # Lines on files that are damaged or are not what they should be
    faults: tuple[str, ...] = ()
    # Of several worlds: the case in each, by seed; the models above are then means over them
    worlds: Mapping[int, Case] = field(default_factory=dict)
    # The worlds that take no part in the means, each with the reason
    left_out: Mapping[int, tuple[Case, str]] = field(default_factory=dict)

    @property
    def inspected(self) -> bool:
        """Whether merges were compared with their base in a world at least."""
        return any(world.inspection.get("merges") for world in self.each.values())

    @property
    def each(self) -> dict[int | None, Case]:
        """The case in each of its worlds, by seed; itself where there is one."""
        found: dict[int | None, Case] = dict(self.worlds.items())
        found |= {seed: world for seed, (world, _) in self.left_out.items()}
        return found or {None: self}

    @property
    def several(self) -> bool:
        """Whether the scores are means over two worlds at least, so that these have an error."""
        return len(self.worlds) > 1

    @property
    def errors(self) -> str:
        """What the standard errors of the case's scores are over."""
        return "worlds and test items together" if self.several else "test items only; one world"

    @property
    def all_models(self) -> tuple[Model, ...]:
        """The models of all the case's tables."""
        return self.models + self.more

    def beyond(self) -> Case:
        """Return the case as the table of the merges beyond the paper's shows it."""
        parents = tuple(model for model in self.models if model.kind != "merge")
        return dataclasses.replace(self, models=parents + self.more, more=())

    @property
    def averaged(self) -> list[Column]:
        """The columns that the average is made of."""
        return [column for column in self.columns if column.in_average]

    def average(self, model: Model) -> Score | None:
        """Return a model's average over the averaged columns, None where one is missing."""
        return model.average(self.averaged)

    def score(self, model: Model, column: str) -> Score | None:
        """Return a model's score by its column's title; `Avg` is the average."""
        if column == "Avg":
            return self.average(model)
        found = [entry for entry in self.columns if entry.label == column]
        return model.column(found[0]) if found else None

    def by_average(self, models: Sequence[Model]) -> list[Model]:
        """Sort models by their average, the highest first; those without one are last, as given."""
        averages = {model.id: score.value for model in models if (score := self.average(model))}
        return sorted(models, key=lambda model: -averages.get(model.id, -1.0))

    def ranked(self, kind: str, models: Sequence[Model] | None = None) -> list[tuple[Model, Score]]:
        """Return the models of a kind that are compared, the highest average first.

        Args:
            kind: base, expert or merge.
            models: Of these; None takes the paper's table.
        """
        found = [
            (model, score)
            for model in (self.models if models is None else models)
            if model.kind == kind and (model.best_of or kind != "merge")
            if (score := self.average(model))
        ]
        return sorted(found, key=lambda pair: (-pair[1].value, -pair[1].stderr, pair[0].label))

    @property
    def tasks(self) -> list[str]:
        """All tasks in the order of the columns."""
        return list(dict.fromkeys(task for column in self.columns for task in column.tasks))

    def task_label(self, task: str) -> str:
        """Return a task's title: its column's, with the task's own name where several share it."""
        column = next(column for column in self.columns if task in column.tasks)
        if len(column.tasks) == 1:
            return column.label
        return f"{column.label}: {task.split('/')[1]}"

    def not_learned(self) -> dict[str, list[str]]:
        """Return, by task, the labels of experts that did not learn it although they should."""
        missed: dict[str, list[str]] = {}
        if self.worlds:
            return self._not_learned_in_worlds()
        for expert, judged in self.gate.items():
            for task, result in judged["tasks"].items():
                # A gate's verdict may be older than the configuration's columns.
                if not result["learned"] and task in self.tasks:
                    label = self.experts.get(expert, {}).get("label", expert)
                    missed.setdefault(task, []).append(label)
        return missed

    def _not_learned_in_worlds(self) -> dict[str, list[str]]:
        found = [world.not_learned() for world in self.worlds.values()]
        pairs = [(task, label) for each in found for task in each for label in each[task]]
        missed: dict[str, list[str]] = {}
        for task, label in dict.fromkeys(pairs):
            count = pairs.count((task, label))
            where = f" in {count} of {len(found)} worlds" if count < len(found) else ""
            missed.setdefault(task, []).append(label + where)
        return missed

    def held_out(self) -> list[str]:
        """Return the tasks that are in no expert's domain."""
        owned = {task for expert in self.experts.values() for task in expert["domain"]}
        return [task for task in self.tasks if task not in owned]

    def stand_ins(self) -> dict[str, Mapping[str, str]]:
        """Return, by task and role, the rows that only stand in for the benchmark's own."""
        return {task: roles for model in self.all_models for task, roles in model.stand_ins.items()}

    def chance(self) -> Model:
        """Return the row of a uniform random choice, as far as scores give the chance levels."""
        known: dict[str, Score] = {}
        for model in self.models:
            for task, score in model.tasks.items():
                known.setdefault(task, Score(score.chance, 0.0, score.items, score.chance))
        return Model("chance", "Random choice", "chance", tasks=known, embeddings_and_norms="")


def worlds_of(cases: Sequence[Case]) -> list[tuple[int | None, Case]]:
    """List every world of cases with its seed; a case of one world as it is, without a seed."""
    return [pair for case in cases for pair in case.each.items()]


@dataclass(frozen=True)
class Objective:
    """A row of Table 3."""

    id: str  # its name in the configuration and its folder
    label: str
    runs: tuple[Model, ...]  # one model a seed, in the order of the seeds
    extra: bool = False  # whether the paper's table has no such row


@dataclass(frozen=True)
class Ablation:
    """The objective's ablation, what Table 3 shows."""

    case: Case  # the case study whose models and columns it uses
    seeds: tuple[int, ...]  # seeds of the runs
    objectives: tuple[Objective, ...]
    faults: tuple[str, ...] = ()  # lines on damaged files


@dataclass(frozen=True, eq=False)  # its costs are recalled, so that it has a hash
class Experiment:
    """Everything that the report shows."""

    name: str
    seed: int  # of the first world
    results: Path
    cases: tuple[Case, ...]  # case studies in the configuration's order
    ablation: Ablation | None  # the objective's ablation, None where there is none
    config: Mapping[str, Any]  # the resolved configuration
    faults: tuple[str, ...] = ()  # lines on files that are damaged or are not what they should be
