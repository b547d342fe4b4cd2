"""From a command line to a finished search with another algorithm than CMA-ES.

What does not depend on the algorithm is that of `search.searches`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from checkpoints.reading import Checkpoint
from merges.engine.config import MergeConfig
from search.evolutionary import CmaEs
from search.goals.informed import Informed
from search.loop import Search
from search.searches import Plan, Searching, asked_tasks
from search.sources import search_files
from search.state import StateFile
from search.strategies import Strategy
from search.workbench import Workbench

ANCHORS = 5  # of MERGE3: items of each task that estimate a candidate's score


def _strategy(given: argparse.Namespace, plan: Plan, goals: list[list[str]]) -> Strategy:
    """Make the algorithm's strategy; `plan` has that of CMA-ES."""
    genes, sigma = plan.space.genes, plan.about["sigma"]
    settings: dict[str, Any] = {"seed": given.seed}
    if given.algorithm == "merge3":
        from search.goals.merge3 import Calibrated

        assert isinstance(plan.strategy, CmaEs)
        return Calibrated(genes, plan.strategy, sigma=sigma, **settings)
    if given.population is not None:
        settings["population"] = given.population
    if given.algorithm == "nsga2":
        from search.goals.nsga2 import Nsga2

        return Nsga2(genes, goals, sigma=sigma, **settings)
    if given.algorithm == "map":
        from search.goals.surrogate import Surrogate

        return Surrogate(genes, goals, budget=given.budget, **settings)
    from search.goals.m2n2 import M2n2

    return M2n2(genes, **settings)


class SearchingGoals(Searching):
    """A search with one of the algorithms for more than one goal."""

    def __init__(self, given: argparse.Namespace) -> None:
        if given.algorithm == "merge3" and given.fitness_items is None:
            given.fitness_items = ANCHORS
        super().__init__(given)
        self.name = given.algorithm

    def plan(self, merging: MergeConfig) -> Plan:
        """Choose the strategy; space, budget and their checks are those of CMA-ES."""
        columns = self.columns
        goals = columns if self.given.average else [[task] for task in columns[0]]
        plan = super().plan(merging)
        strategy = _strategy(self.given, plan, goals)
        about = plan.about | {"algorithm": self.given.algorithm, "goals": goals}
        # The samples follow from the budget, which must then stay as it is.
        held = ("population", "samples")
        about |= {key: getattr(strategy, key) for key in held if hasattr(strategy, key)}
        return replace(plan, strategy=strategy, about=about)

    def code(self) -> tuple[str, ...]:
        """Name the files that compute the result."""
        given, asked = self.given, asked_tasks(self.given)
        chosen = given.engine, given.space, given.algorithm
        return search_files(given.command, given.method, asked, *chosen)

    def bench(self, plan: Plan, base: Checkpoint, file: StateFile) -> Workbench:
        """Make what scores candidates, with the items' scores where the algorithm asks for them."""
        given = self.given
        if given.algorithm not in ("m2n2", "merge3"):
            return super().bench(plan, base, file)
        from search.goals.items import ItemScores, ItemWorkbench

        kept = ItemScores(file.folder / "items")
        if file.load() is None:
            kept.clear()
        bench: ItemWorkbench
        if given.algorithm == "merge3":
            from search.goals.merge3 import Calibrated, EstimatingWorkbench

            assert isinstance(plan.strategy, Calibrated)
            # All items first, and its anchors later.
            bench = self.make_bench(EstimatingWorkbench, plan, base, None)
            bench.calibration, bench.experts = plan.strategy.calibration, plan.strategy.experts
            bench.anchors = given.fitness_items
        else:
            from search.goals.m2n2 import M2n2

            assert isinstance(plan.strategy, M2n2)
            plan.strategy.items = kept.flat
            bench = self.make_bench(ItemWorkbench, plan, base, given.fitness_items)
        bench.kept = kept
        return bench

    def ready(self, plan: Plan, run: Search) -> None:
        """Give the history to an algorithm that chooses by it."""
        if isinstance(plan.strategy, Informed):
            plan.strategy.history = lambda: run.history
