"""From a command line to a finished search: tune, evolve and greedy."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from checkpoints.checking import check_compatible
from checkpoints.devices import check_device
from checkpoints.reading import Checkpoint, Model
from checkpoints.settling import check_allocatable
from checkpoints.vocabulary import align
from common import manifest, numerics, sources
from common.cli import json_list, pairs
from common.cost import measure
from common.errors import UserError
from common.files import staged_directory
from evaluation.own_data import own_tasks
from evaluation.suites import Task, select
from merges.cli import open_statistics, read_settings
from merges.engine.checks import check_config, check_origin, check_output
from merges.engine.config import MergeConfig
from merges.engine.merger import load_libraries
from search import result
from search.greedy import Greedy
from search.loop import Budget, Search, agreement, spread
from search.merged import ListedSpace, SoupSpace
from search.overlap import check_no_overlap
from search.parameters import ParameterSpace
from search.record import check_groups, table, winner_of
from search.sources import search_files
from search.space import Space
from search.state import StateFile
from search.strategies import Listed, Strategy
from search.workbench import Workbench

Bench = TypeVar("Bench", bound=Workbench)


@dataclass
class Plan:
    """A search that could begin.

    Attributes:
        space: What is searched.
        strategy: How.
        budget: Until when.
        about: What the manifest says of it.
    """

    space: Space
    strategy: Strategy
    budget: Budget
    about: dict[str, Any]


def data_flow(base: Model, experts: dict[str, Model], **settings: Any) -> Space:
    """Make the data-flow space; settings that are None have their defaults."""
    from search.dataflow import DataFlowSpace

    given = {name: value for name, value in settings.items() if value is not None}
    return DataFlowSpace(base, experts, **given)


def _evolve(given: argparse.Namespace, merging: MergeConfig) -> Plan:
    from search.evolutionary import SIGMA, CmaEs, check_settings

    if given.space == "data-flow":
        space = data_flow(
            merging.reference,
            dict(merging.experts),
            repeats=given.repeats,
            scales=given.scales,
            max_depth=given.max_depth,
            embedding_from=given.embedding_from,
        )
    else:
        grouping = {"granularity": given.granularity, "kinds": given.kinds}
        grouping = {name: value for name, value in grouping.items() if value is not None}
        space = ParameterSpace(merging, read_settings(given.set), **grouping)
    sigma = SIGMA if given.sigma is None else given.sigma
    settings = {"population": given.population, "sigma": sigma}
    check_settings(space.genes, given.budget, **settings)
    strategy = CmaEs(space.genes, seed=given.seed, **settings)
    about = {"budget": given.budget, "seconds": given.seconds, "sigma": sigma}
    about["population"] = strategy.population
    return Plan(space, strategy, Budget(given.budget, given.seconds), about)


def _tune(given: argparse.Namespace, merging: MergeConfig) -> Plan:
    candidates = json_list(given.candidates, "--candidates")
    space = ListedSpace(merging, read_settings(given.set), candidates)
    return Plan(space, Listed(len(candidates)), Budget(len(candidates)), {})


def _greedy(given: argparse.Namespace, merging: MergeConfig) -> Plan:
    count = len(merging.experts)
    return Plan(SoupSpace(merging), Greedy(count), Budget(2 * count - 1), {})


_COMMANDS = {"tune": _tune, "evolve": _evolve, "greedy": _greedy}


def asked_tasks(given: argparse.Namespace) -> list[Task]:
    """Return the tasks of a command line's suites, the user's own among them."""
    return select(given.suites.split(","), own=own_tasks(given.data))


def _columns(given: argparse.Namespace) -> list[list[str]]:
    tasks = [task.name for task in asked_tasks(given)]
    columns = json_list(given.average, "--average") if given.average else [tasks]
    check_groups(tasks, columns)
    return columns


def _own_inputs(given: argparse.Namespace) -> dict[str, str]:
    """Hash the user's own tasks that guide a search."""
    return {task.name: manifest.hash_of(task.folder) for task in asked_tasks(given) if task.folder}


class Searching:
    """A search from its command line to its result; an algorithm replaces what is its own.

    Args:
        given: The command line, as `search.cli` has checked it.

    Attributes:
        name: What messages call the search.
        columns: The table's columns, whose mean chooses the winner.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.name: str = given.command
        self.columns = _columns(given)

    def plan(self, merging: MergeConfig) -> Plan:
        """Choose space, strategy and budget.

        Raises:
            UserError: They do not fit each other or the models.
        """
        return _COMMANDS[self.given.command](self.given, merging)

    def code(self) -> tuple[str, ...]:
        """Name the files that compute the result."""
        given = self.given
        return search_files(
            given.command, given.method, asked_tasks(given), given.engine, given.space
        )

    def bench(self, plan: Plan, base: Checkpoint, file: StateFile) -> Workbench:
        """Make what scores candidates; `file` has the state of an earlier run, if any."""
        return self.make_bench(Workbench, plan, base, self.given.fitness_items)

    def make_bench(
        self, kind: type[Bench], plan: Plan, base: Checkpoint, items: int | None
    ) -> Bench:
        """Make a workbench of a kind that asks so many items of each task, all if None."""
        given = self.given
        return kind(
            plan.space,
            base,
            given.data,
            given.suites.split(","),
            self.columns,
            given.batch_size,
            given.seed,
            items,
            dtype=given.dtype,
            device=given.device,
            engine=given.engine,
        )

    def ready(self, plan: Plan, run: Search) -> None:
        """Do what is left before the first candidate."""

    def _merging(self) -> tuple[dict[str, Checkpoint], MergeConfig, Sequence[str]]:
        """Open the models; return them, how they merge, and what was done to align them."""
        given = self.given
        base = Checkpoint(given.base, mapped=True)
        found = pairs(given.experts, "--experts")
        experts = {name: Checkpoint(path, mapped=True) for name, path in found.items()}
        check_output(given.out, [base.path, *(expert.path for expert in experts.values())])
        check_device(given.device)
        aligned = align(base, experts, given.vocabulary)
        check_allocatable(base, aligned.base)
        if given.space == "parameter":  # the other space checks its models itself
            check_compatible(aligned.base, aligned.experts, same_tokenizer=False)
        merging = MergeConfig(
            given.method,
            aligned.base,
            aligned.experts,
            seed=given.seed,
            embeddings_and_norms=given.embeddings_and_norms,
            calibration=pairs(given.calibration, "--calibration"),
            teachers=given.teachers,
            statistics=open_statistics(given.statistics),
            device=given.device,
            threads=given.threads,
        )
        check_config(merging)
        check_origin(merging)
        return {"base": base, **experts}, merging, aligned.notes

    def _configuration(self, plan: Plan, parents: dict[str, Any]) -> dict[str, Any]:
        """Return what must be unchanged for a search to resume; its budget may grow."""
        given = self.given
        return {
            "command": given.command,
            "space": plan.space.describe(),
            "settings": {k: v for k, v in plan.about.items() if k not in ("budget", "seconds")},
            "models": {name: parent.fingerprint for name, parent in parents.items()},
            "data": manifest.hash_of(given.data),
            **_own_inputs(given),
            "average": self.columns,
            "suites": given.suites,
            "vocabulary": given.vocabulary,
            "batch size": given.batch_size,
            "device": given.device,
            "dtype": given.dtype,
            "engine": given.engine,
            "fitness items": given.fitness_items,
            "seed": given.seed,
            "program": sources.version(self.code()),
            "libraries": manifest.library_versions(),
            "numerics": numerics.setting(),
        }

    def run(self) -> str:
        """Search, and write the winner's model with the table of all candidates.

        Raises:
            UserError: Bad input, every candidate failed, or the disk is full; an earlier state is
                kept.
        """
        given = self.given
        models, merging, notes = self._merging()
        base, experts = models["base"], [name for name in models if name != "base"]
        parents = {name if name == "base" else f"experts.{name}": m for name, m in models.items()}
        plan = self.plan(merging)
        if not (given.data / manifest.NAME).is_file():
            raise UserError(f"{given.data}: no {manifest.NAME} in this folder; make the data first")
        file = StateFile(given.out, self._configuration(plan, parents))
        load_libraries(merging)
        with staged_directory(given.out) as folder:
            with measure(folder / "cost.json") as cost, contextlib.ExitStack() as stack:
                bench = self.bench(plan, base, file)
                stack.enter_context(contextlib.closing(bench))
                check_no_overlap(given.data, given.suites.split(","), base.path)
                what = f"{self.name} ({plan.space.describe().get('method', given.space)})"
                run = Search(plan.space, plan.strategy, bench, plan.budget, file, what)
                self.ready(plan, run)
                history = run.run()
                if all(evaluation.average is None for evaluation in history):
                    file.remove()  # what failed for good or for once is tried again
                winner = winner_of(plan.space, history)
                about = {"kind": given.command, **plan.about, "space": plan.space.describe()}
                about |= {
                    "average": self.columns,
                    "evaluations": len(history),
                    "chosen": winner.index,
                    "dev_average": winner.average,
                }
                if isinstance(plan.strategy, Greedy):
                    about["joined"] = [experts[n] for n in plan.strategy.joined]
                if given.fitness_items is not None:
                    chosen = spread(history, given.rescored)
                    chosen += (
                        [] if winner in chosen else [winner]
                    )  # a soup no better than an expert
                    cost.count(**bench.rescore(chosen))
                    about["fitness"] = {
                        "items": given.fitness_items,
                        "rescored": len(chosen),
                        "spearman": agreement(chosen),
                        "full_average": winner.full,
                    }
                recipe = plan.space.decode(winner.genome)
                result.write_model(folder, plan.space, recipe, merging.reference)
                result.write_table(folder, table(history))
                cost.count(evaluations=len(history))
                for evaluation in history:
                    cost.count(**evaluation.counted)
                if run.earlier[0]:
                    cost.count(earlier_wall_s=run.earlier[0], earlier_cpu_s=run.earlier[1])
            result.write_record(
                folder,
                plan.space,
                recipe,
                about,
                models=models,
                vocabulary=given.vocabulary,
                notes=notes,
                inputs={
                    **{name: parent.fingerprint for name, parent in parents.items()},
                    **{f"calibration.{n}": path for n, path in merging.calibration.items()},
                    **({"teachers": given.teachers} if given.teachers else {}),
                    **{f"{found.kind}.{n}": found.path for n, found in merging.statistics.items()},
                    "data": given.data,
                    **_own_inputs(given),
                },
                seed=given.seed,
                code=self.code(),
            )
        file.remove()
        return (
            f"{self.name}: candidate {winner.index} of {len(history)} has the best dev average, "
            f"{winner.average:.3f}; its model is in {given.out}"
        )
