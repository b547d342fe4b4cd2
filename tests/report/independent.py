"""Recomputes Tables 1 to 3 from the items' files alone; shares no code with the report.

python tests/report/independent.py RESULTS
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np


def mean(values: Sequence[float]) -> float:
    """Average numbers, rounded once."""
    return math.fsum(values) / len(values)


def scores_of(path: Path) -> dict[str, list[Fraction]]:
    """Read an items file: scores by task."""
    found: dict[str, list[Fraction]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            found.setdefault(record["task"], []).append(Fraction(record["score"]))
    return found


def means(case: dict, scores: dict) -> dict[str, tuple[float, float]]:
    """Return by column and Avg, of one model: the mean and its standard error over items."""
    parts = {}
    for task, values in scores.items():
        numbers = np.array([float(value) for value in values])
        error = numbers.std(ddof=1) / np.sqrt(len(numbers)) if len(numbers) > 1 else 0.0
        parts[task] = (float(sum(values) / len(values)), float(error))

    def over(names: list[tuple[float, float]]) -> tuple[float, float]:
        values, errors = zip(*names, strict=True)
        return mean(values), math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)

    found = {
        column["label"]: over([parts[task] for task in column["tasks"]])
        for column in case["columns"] + case.get("beside", [])
    }
    return found | {"Avg": over([found[column["label"]] for column in case["columns"]])}


def cells(config_path: Path, results: Path, name: str) -> dict:
    """Return by row and column, of one table in each world or seed: value, and error over items.

    Several worlds are columns such as ``Avg seed 2``; without them the columns are plain.
    """
    config = json.loads(config_path.read_text(encoding="utf-8"))
    found: dict[tuple[str, str], tuple[float, float | None]] = {}
    tables = [case["table"] for case in config["cases"].values()]
    if name not in [*tables, "table3" if config.get("ablation") else ""]:
        return found
    if name == "table3":
        ablation = config["ablation"]
        case = config["cases"][ablation["case"]]
        for id in ablation["objectives"]:
            runs = []
            for seed in ablation["seeds"]:
                path = results / f"ablation/{id}/seed{seed}/scores.items.jsonl.gz"
                runs.append(means(case, scores_of(path)))
                found[id, f"Avg seed {seed}"] = (runs[-1]["Avg"][0], None)
            for column in runs[0]:
                values = [run[column][0] for run in runs]
                found[id, f"{column} mean"] = (mean(values), None)
                found[id, f"{column} sd"] = (float(np.std(values, ddof=1)), None)
                errors = [run[column][1] for run in runs]
                found[id, f"{column} item stderr"] = (mean(errors), None)
        return found
    ((id, case),) = [(i, c) for i, c in config["cases"].items() if c["table"] == name]
    seeds = config.get("seeds", [None])
    each: dict[tuple[str, str], list[float]] = {}
    for place, seed in enumerate(seeds):
        folder = results / (id if place == 0 else f"{id}-seed{seed}") / "scores/test"
        for path in folder.glob("*.items.jsonl.gz"):
            row = path.name.split(".")[0]
            for column, pair in means(case, scores_of(path)).items():
                found[row, f"{column} seed {seed}" if seeds[1:] else column] = pair
                each.setdefault((row, column), []).append(pair[0])
    if seeds[1:]:  # the error between worlds is another test's
        found |= {place: (mean(values), None) for place, values in each.items()}
    return found


def check(results: Path) -> tuple[int, int]:
    """Compare a finished run's tables with its items; return cells compared and cells unequal."""
    compared = unequal = 0
    for name in ("table1", "table2", "table3"):
        rows: dict[str, dict[str, str]] = {}
        for end in ("", "_more"):
            path = results / f"tables/{name}{end}.csv"
            if path.exists():
                with path.open(encoding="utf-8", newline="") as file:
                    rows |= {row["id"]: row for row in csv.DictReader(file)}
        for (row, column), (value, error) in cells(results / "config.json", results, name).items():
            pairs = [(column, value), *([(f"{column} stderr", error)] if error is not None else [])]
            for title, number in pairs:
                compared += 1
                if rows[row][title] != f"{number:.6f}":
                    unequal += 1
                    print(name, row, title, rows[row][title], number)
    return compared, unequal


if __name__ == "__main__":
    done, wrong = check(Path(sys.argv[1]))
    print(f"{done} values recomputed, {wrong} unequal")
    sys.exit(bool(wrong))
