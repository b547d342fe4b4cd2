"""Measure how a merge's CPU seconds and memory grow, and estimate those of 7B to 405B models.

    python benchmarks/merge_growth.py --json docs/data/merge-scaling.json

Makes its own models (Llama shape, bfloat16, random) in --work, which takes 23 GB at a time. Each
figure is the least of the repeats, one thread, the output's hash included. The model of growth has
three terms with coefficients above zero (least squares of relative errors): CPU seconds are a
start, a share of the experts' parameters and one of the output's; peak memory is a start, a share
for each expert and one of the values of the largest matrix. It is fitted without the largest size,
and its error there is recorded; what it estimates comes from a fit of all sizes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.merge import (  # noqa: E402
    SIZES,
    VOCABULARY,
    Cost,
    Records,
    least,
    models_apart,
    our_command,
    run,
    shapes,
)

METHODS = ("linear", "ties")
# Parameters, values of the largest matrix: Llama 2 7B, Llama 3 70B, Llama 3.1 405B, of their
# published configurations.
PUBLISHED = {
    "7B": (6_738_415_616, 32_000 * 4096),
    "70B": (70_553_706_496, 128_256 * 8192),
    "405B": (405_853_388_800, 128_256 * 16_384),
}
EXPERTS = 8  # of the models whose merge is estimated


@dataclass(frozen=True)
class Case:
    """A merge: parameters of a model, values of its largest matrix, number of experts."""

    parameters: int
    largest: int
    experts: int

    def terms(self, figure: str) -> list[float]:
        """Return what a figure (`cpu` or `rss`) is a sum of, parameters and values in billions."""
        size = self.parameters / 1e9
        if figure == "cpu":
            return [1.0, size * self.experts, size]
        return [1.0, self.experts, self.largest / 1e9]


def fit(cases: Sequence[Case], values: Sequence[float], figure: str) -> np.ndarray:
    """Return the coefficients, none below zero, of least squares of relative errors."""
    from scipy.optimize import nnls

    rows = np.array([case.terms(figure) for case in cases]) / np.array(values)[:, None]
    return np.asarray(nnls(rows, np.ones(len(values)))[0])


def estimated(case: Case, coefficients: np.ndarray, figure: str) -> float:
    """Return what the model of growth gives for a merge."""
    return float(np.dot(case.terms(figure), coefficients))


def grow(work: Path, repeats: int, records: Records) -> None:
    """Measure growth with parameters, experts and shards, fit the model and record both."""
    ways = [("0.1B", experts, 2) for experts in (2, 4, 8)]
    ways += [("0.1B", 3, shards) for shards in (1, 8, 32)]
    ways += [(size, 3, 2) for size in SIZES if size != "tiny"]  # the largest is the last
    cases: list[Case] = []
    costs: dict[str, list[Cost]] = {method: [] for method in METHODS}
    out, cache = work / "out", work / "hashes.json"
    for size, experts, shards in ways:
        models = models_apart(work, size, experts, shards)
        count = sum(map(math.prod, shapes(size).values()))
        cases.append(Case(count, VOCABULARY * SIZES[size][0], experts))
        for method in METHODS:
            command = our_command(method, models, out)
            run(command, out, cache)
            costs[method].append(least([run(command, out, cache) for _ in range(repeats)]))
            name = f"{method}, {count / 1e9:.2f}B, {experts} experts, {shards} shards"
            records.add(name, "CPU s", costs[method][-1].cpu, None)
            records.add(name, "peak MB", costs[method][-1].rss, None)
        if size != "0.1B":
            for folder in {path.parent for path in models.values()}:
                shutil.rmtree(folder, ignore_errors=True)
    for method in METHODS:
        for figure, title in (("cpu", "CPU s"), ("rss", "peak MB")):
            values = [float(getattr(cost, figure)) for cost in costs[method]]
            before = estimated(cases[-1], fit(cases[:-1], values[:-1], figure), figure)
            size = f"{cases[-1].parameters / 1e9:.2f}B"
            name = f"{method}, {size} estimated from smaller models (other: measured)"
            records.add(name, title, before, values[-1], None)
            coefficients = fit(cases, values, figure)
            for label, (parameters, largest) in PUBLISHED.items():
                value = estimated(Case(parameters, largest, EXPERTS), coefficients, figure)
                records.add(f"{method}, {label}, {EXPERTS} experts, estimated", title, value, None)


def main() -> None:
    """Measure, print a table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("/tmp/merge-benchmark"), metavar="DIR")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="of each merge")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    records = Records()
    grow(given.work, given.repeats, records)
    if given.json:
        given.json.write_text(json.dumps(records.rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
