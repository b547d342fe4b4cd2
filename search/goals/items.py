"""A workbench that also keeps how a candidate did on every item."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError
from common.files import read_json, write_json
from search.evaluation import Evaluation
from search.workbench import Workbench

if TYPE_CHECKING:
    from evaluation.harness import Harness

Scores = dict[str, list[float]]  # by task, of each item in the order of the file


class ItemScores:
    """Candidates' scores by item, a file each, next to a search's state.

    Args:
        folder: Where the files are; with the state's folder it is removed at the end.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def clear(self) -> None:
        """Remove what another search has left."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, index: int, scores: Scores) -> None:
        """Write a candidate's scores, before the state says that it was evaluated."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / f"{index}.json", scores)

    def get(self, index: int) -> Scores:
        """Read a candidate's scores.

        Raises:
            UserError: They are not there.
        """
        path = self._folder / f"{index}.json"
        try:
            return read_json(path)
        except FileNotFoundError:
            raise UserError(
                f"{path}: no such file; remove {self._folder.parent} to begin the search anew"
            ) from None

    def flat(self, index: int) -> np.ndarray:
        """Read a candidate's scores of all items, task after task, float64 [items]."""
        return np.concatenate([np.array(scores, float) for scores in self.get(index).values()])


class _Keeping:
    """A harness whose items' scores are kept."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self.scores: Scores = {}

    def evaluate(self, model: Any, name: str) -> dict[str, Any]:
        summary, items = self._harness.evaluate_with_items(model, name)
        for item in items:
            self.scores.setdefault(item["task"], []).append(float(item["score"]))
        return summary


class ItemWorkbench(Workbench):
    """Scores candidates and writes down how each did on every item; see `Workbench`.

    Attributes:
        kept: The items' scores; set it before the first candidate.
        latest: Those of the candidate that was scored last.
    """

    kept: ItemScores
    latest: Scores

    def _score(self, evaluation: Evaluation, harness: Any) -> None:
        keeping = _Keeping(harness)
        super()._score(evaluation, keeping)
        self.latest = keeping.scores
        if harness is self._harness:  # not where a candidate is scored again
            self.kept.put(evaluation.index, keeping.scores)
