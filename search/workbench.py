"""Scoring merges in memory on the dev items, and the record of what was tried."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError, nearest
from evaluation.harness import Harness, load_model

if TYPE_CHECKING:
    import torch

    from checkpoints.reading import Checkpoint


@dataclass
class Evaluation:
    """One candidate and how it did.

    Attributes:
        index: Its number in the order of evaluation, from 0.
        genes: Its parameters by name, plain values.
        average: Its dev average in [0, 1]; None where it failed.
        tasks: Scores by task (``suite/task``); empty where it failed.
        failure: Why it failed, else empty.
    """

    index: int
    genes: dict[str, Any]
    average: float | None = None
    tasks: dict[str, float] = field(default_factory=dict)
    failure: str = ""


def average_of(tasks: Mapping[str, float], groups: Sequence[Sequence[str]]) -> float:
    """Average scores as the tables do: the mean over groups of the mean over their tasks.

    Args:
        tasks: Scores by task.
        groups: The columns of the table, each a list of tasks.

    Returns:
        The average.

    Raises:
        UserError: A group names a task that was not scored.
    """
    for group in groups:
        for task in group:
            if task not in tasks:
                raise UserError(f"the average needs task {task!r}{nearest(task, tasks)}")
    means = [math.fsum(tasks[task] for task in group) / len(group) for group in groups]
    return math.fsum(means) / len(means)


class Workbench:
    """Scores candidates in memory: one model object whose parameters are overwritten.

    Args:
        base: Its configuration and tokenizer are those of every candidate.
        data: Folder with the dev items.
        suites: Suites to score.
        groups: The table's columns, see `average_of`.
        batch_size: Items per forward pass.
        seed: Passed to the harness.
    """

    def __init__(
        self,
        base: Checkpoint,
        data: Path,
        suites: Sequence[str],
        groups: Sequence[Sequence[str]],
        batch_size: int,
        seed: int,
    ) -> None:
        self._harness = Harness(data, suites, "dev", base.path, batch_size=batch_size, seed=seed)
        self._model = load_model(base.path)
        self._groups = groups
        self.history: list[Evaluation] = []
        self.counted: dict[str, float] = {}

    def evaluate(self, genes: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Evaluation:
        """Score one candidate; a failure is recorded, not raised, and scores worst.

        Args:
            genes: The candidate's parameters, for the record.
            tensors: All parameters of its model.

        Returns:
            The evaluation, also appended to `history`.
        """
        import torch

        evaluation = Evaluation(len(self.history), dict(genes))
        self.history.append(evaluation)
        with torch.no_grad():
            for name, parameter in self._model.state_dict().items():
                parameter.copy_(tensors[name])
        try:
            scores = self._harness.evaluate(self._model, name=f"candidate {evaluation.index}")
        except UserError as error:
            evaluation.failure = str(error)
            return evaluation
        for name, amount in scores["counted"].items():
            self.counted[name] = self.counted.get(name, 0) + amount
        evaluation.tasks = {name: entry["value"] for name, entry in scores["tasks"].items()}
        evaluation.average = average_of(evaluation.tasks, self._groups)
        return evaluation

    def fail(self, genes: Mapping[str, Any], reason: str) -> Evaluation:
        """Record a candidate that could not even be merged."""
        evaluation = Evaluation(len(self.history), dict(genes), failure=reason)
        self.history.append(evaluation)
        return evaluation

    def best_so_far(self) -> Evaluation | None:
        """Return the best of the candidates until now, None where all failed."""
        done = [evaluation for evaluation in self.history if evaluation.average is not None]
        return max(done, key=lambda evaluation: evaluation.average, default=None)

    def best(self) -> Evaluation:
        """Return the candidate with the highest dev average, the earliest of equals.

        Raises:
            UserError: Every candidate failed.
        """
        best = self.best_so_far()
        if best is None:
            raise UserError(
                f"all {len(self.history)} candidates failed, the first with: "
                f"{self.history[0].failure}"
            )
        return best

    def table(self) -> str:
        """Write the history as CSV: index, average, failure, then genes and tasks."""
        genes = list(dict.fromkeys(g for evaluation in self.history for g in evaluation.genes))
        tasks = list(dict.fromkeys(t for evaluation in self.history for t in evaluation.tasks))
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["evaluation", "dev_average", "failure", *genes, *tasks])
        for evaluation in self.history:
            scores = [evaluation.average, *(evaluation.tasks.get(task) for task in tasks)]
            average, *rest = ["" if s is None else f"{s:.6f}" for s in scores]
            values = [evaluation.genes.get(gene, "") for gene in genes]
            writer.writerow([evaluation.index, average, evaluation.failure, *values, *rest])
        return stream.getvalue()
