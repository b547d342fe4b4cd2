"""Reads the runs of the DAM study, item by item."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import MALFORMED, read_json, read_jsonl
from common.manifest import check_recorded, read_manifest
from common.worlds import seeds_of
from report.experiment import Column
from report.paired import Stratum
from studies.dam.settings import world_of


@dataclass(frozen=True)
class Run:
    """One setting in one world."""

    items: Mapping[str, Mapping[str, float]]  # scores of the test items, by task and item
    dev: float | None = None  # its dev average, None where it was not recorded
    # What was chosen on dev, such as the learning rate; empty where nothing was
    candidate: Mapping[str, Any] = field(default_factory=dict)

    def mean(self, task: str) -> float:
        """Return a task's mean over its items."""
        scores = self.items[task].values()
        return math.fsum(scores) / len(scores)

    def column(self, column: Column) -> float:
        """Return the mean over a column's tasks."""
        return math.fsum(self.mean(task) for task in column.tasks) / len(column.tasks)

    def average(self, columns: Sequence[Column]) -> float:
        """Return the mean over columns."""
        return math.fsum(self.column(column) for column in columns) / len(columns)


@dataclass(frozen=True)
class Study:
    """All runs of the study."""

    config: Mapping[str, Any]  # the block ``studies.dam`` of the resolved configuration
    title: str  # the case study's title
    columns: tuple[Column, ...]  # the averaged columns, then the others
    held_out: tuple[str, ...]  # labels of the columns with a task that is in no expert's domain
    # By setting and seed; one that is lacking has not been run or has failed
    runs: Mapping[str, Mapping[int, Run]]
    # By seed, task and item: what the item says, which is the same in all worlds that ask it
    contents: Mapping[int, Mapping[str, Mapping[str, str]]]
    files: Mapping[str, Path]  # the score files that were read, by a name

    @property
    def averaged(self) -> list[Column]:
        """The columns that the average is made of."""
        return [column for column in self.columns if column.in_average]

    @property
    def apart(self) -> list[Column]:
        """The columns that tables show on their own: held-out ones and those not averaged."""
        return [c for c in self.columns if c.label in self.held_out or not c.in_average]

    @property
    def seeds(self) -> list[int]:
        """The worlds' seeds."""
        return list(self.config["seeds"])

    def complete(self, setting: str) -> bool:
        """Return whether a setting has been run in every world."""
        return set(self.runs.get(setting, {})) == set(self.seeds)


def read_items(path: Path) -> dict[str, dict[str, float]]:
    """Read the items' records of a score file."""
    check_recorded(path)
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
        found: dict[str, dict[str, float]] = {}
        for line in filter(None, lines):
            record = json.loads(line)
            found.setdefault(record["task"], {})[record["id"]] = float(record["score"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; evaluate the model again") from None
    except (OSError, EOFError, LookupError, TypeError, *MALFORMED, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error!r}); evaluate the model again") from None
    return found


def _run(folder: Path, tasks: Sequence[str]) -> Run | None:
    scores = folder / "test.json"
    if not scores.exists():
        return None
    check_recorded(scores)
    stated = read_json(scores)["tasks"]
    items = read_items(folder / "test.items.jsonl.gz")
    for task in tasks:
        if task not in items:
            raise UserError(f"{scores}: no items of {task}; evaluate the model again")
        mean = math.fsum(items[task].values()) / len(items[task])
        if abs(mean - stated[task]["value"]) > 1e-6:
            raise UserError(
                f"{scores}: the score of {task} is no mean over items, so that no paired test "
                "over items suits it; take it out of the case's columns"
            )
    path = folder / "model" / "manifest.json"
    parameters = read_manifest(path)["parameters"] if path.exists() else {}
    search = parameters.get("search", {})
    candidates = search.get("space", {}).get("candidates", [])
    candidate = candidates[search["chosen"]] if len(candidates) > 1 else {}
    return Run({task: items[task] for task in tasks}, search.get("dev_average"), candidate)


def _contents(data: Path, tasks: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read what each test item says: its prompt and its right answer, whatever its choices."""
    found: dict[str, dict[str, str]] = {}
    for task in tasks:
        path = data / "test" / f"{task}.jsonl"
        check_recorded(path)
        for row in read_jsonl(path) if path.exists() else []:
            answer = row["choices"][row["gold"]] if "choices" in row else row.get("target", "")
            found.setdefault(task, {})[row["id"]] = row["prompt"] + answer
    return found


def load(config: Mapping[str, Any], results: Path) -> Study:
    """Read the study's runs, as far as they have been scored.

    Raises:
        UserError: Nothing has been run, or a file is damaged.
    """
    study = config["studies"]["dam"]
    case = config["cases"][study["case"]]
    columns = [Column(c["label"], tuple(c["tasks"]), True) for c in case["columns"]]
    columns += [Column(c["label"], tuple(c["tasks"]), False) for c in case.get("beside", [])]
    owned = {task for expert in case["experts"].values() for task in expert["domain"]}
    tasks = list(dict.fromkeys(task for column in columns for task in column.tasks))
    runs: dict[str, dict[int, Run]] = {}
    files = {}
    for setting in study["settings"]:
        for seed in study["seeds"]:
            folder = results / "studies/dam" / setting / f"seed{seed}"
            run = _run(folder, tasks)
            if run is not None:  # the study can be read before all runs are finished
                runs.setdefault(setting, {})[seed] = run
                files[f"{setting}/seed{seed}"] = folder / "test.json"
    if not runs:
        raise UserError(
            f"no scores in {results / 'studies/dam'}: run `python -m workflow study dam` first"
        )
    contents = {}
    for seed in study["seeds"]:
        world = world_of(study["case"], seed, seeds_of(config))
        contents[seed] = _contents(results / world / "data", tasks)
    return Study(
        config=study,
        title=case["title"],
        columns=tuple(columns),
        held_out=tuple(c.label for c in columns if not owned.issuperset(c.tasks)),
        runs=runs,
        contents=contents,
        files=files,
    )


def strata_of(study: Study, pairs: Sequence[tuple[str, str]]) -> list[Stratum]:
    """Line up the items of pairs of settings, over all worlds.

    Args:
        study: The study.
        pairs: Setting and reference, both run in every world; at least one pair.

    Returns:
        A stratum for each averaged task. A cluster holds the items of all worlds that say the
        same; without the worlds' data every item is a cluster.

    Raises:
        UserError: Two settings answered different items in a world.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    lined = []
    for task, weight in _weights(study.averaged).items():
        answered = {seed: sorted(study.runs[names[0]][seed].items[task]) for seed in study.seeds}
        for name in names:
            for seed, items in answered.items():
                if sorted(study.runs[name][seed].items[task]) != items:
                    raise UserError(
                        f"{name}, seed {seed}: other items of {task} than {names[0]} answered; "
                        "evaluate it again"
                    )
        keys = [(seed, item) for seed, items in answered.items() for item in items]
        scores = {n: np.array([study.runs[n][s].items[task][i] for s, i in keys]) for n in names}
        # The mean over all items becomes the mean over worlds of their means.
        share = np.array([len(keys) / len(answered) / len(answered[seed]) for seed, _ in keys])
        said = [study.contents[s].get(task, {}).get(i, f"{s}/{i}") for s, i in keys]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(said))}
        lined.append(
            Stratum(
                np.stack([share * (scores[name] - scores[other]) for name, other in pairs]),
                np.array([numbers[text] for text in said]),
                weight,
            )
        )
    return lined


def _weights(columns: Sequence[Column]) -> dict[str, float]:
    """Say how much each task's mean counts in the mean over columns."""
    weights: dict[str, float] = {}
    for column in columns:
        for task in column.tasks:
            weights[task] = weights.get(task, 0.0) + 1 / len(columns) / len(column.tasks)
    return weights
