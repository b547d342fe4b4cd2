"""From a command line to a finished search with another algorithm than CMA-ES.

What does not depend on the algorithm is that of `search.searches`.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from checkpoints.checking import check_compatible
from checkpoints.devices import check_device
from checkpoints.reading import Checkpoint
from checkpoints.settling import check_allocatable
from checkpoints.vocabulary import align
from common import manifest, sources
from common.cli import pairs
from common.cost import measure
from common.errors import UserError
from common.files import staged_directory
from merges.cli import open_statistics
from merges.engine.checks import check_config, check_origin, check_output
from merges.engine.config import MergeConfig
from merges.engine.merger import load_libraries
from search import result, searches
from search.goals.informed import Informed
from search.loop import Search, agreement, spread
from search.overlap import check_no_overlap
from search.record import table, winner_of
from search.searches import Plan
from search.sources import search_files
from search.state import StateFile
from search.workbench import Workbench


def _plan(given: argparse.Namespace, merging: MergeConfig, goals: list[list[str]]) -> Plan:
    """Choose the strategy; space, budget and their checks are those of CMA-ES."""
    plan = searches._evolve(given, merging)
    genes, strategy = plan.space.genes, plan.strategy
    settings: dict[str, Any] = {"seed": given.seed}
    if given.population is not None:
        settings["population"] = given.population
    if given.algorithm == "nsga2":
        from search.goals.nsga2 import Nsga2

        strategy = Nsga2(genes, goals, sigma=plan.about["sigma"], **settings)
    elif given.algorithm == "map":
        from search.goals.surrogate import Surrogate

        strategy = Surrogate(genes, goals, budget=given.budget, **settings)
    about = plan.about | {"algorithm": given.algorithm, "goals": goals}
    about["population"] = getattr(strategy, "population", about["population"])
    return replace(plan, strategy=strategy, about=about)


def _code(given: argparse.Namespace) -> tuple[str, ...]:
    return search_files(
        given.command,
        given.method,
        searches._asked(given),
        given.engine,
        given.space,
        given.algorithm,
    )


def _merging(given: argparse.Namespace) -> tuple[dict[str, Checkpoint], MergeConfig, Sequence[str]]:
    """Open the models; return them as given, how they merge, and what was done to align them."""
    base = Checkpoint(given.base, mapped=True)
    found = pairs(given.experts, "--experts")
    experts = {name: Checkpoint(path, mapped=True) for name, path in found.items()}
    check_output(given.out, [base.path, *(expert.path for expert in experts.values())])
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
        statistics=open_statistics(given.statistics),
        threads=given.threads,
    )
    check_config(merging)
    check_origin(merging)
    return {"base": base, **experts}, merging, aligned.notes


def search(given: argparse.Namespace) -> str:
    """Search, and write the best model by its average, with the table of all candidates.

    Args:
        given: The command line, as `search.cli` has checked it.

    Raises:
        UserError: As `search.searches.search`.
    """
    check_device(given.device)
    models, merging, notes = _merging(given)
    base = models["base"]
    parents = {name if name == "base" else f"experts.{name}": m for name, m in models.items()}
    columns = searches._columns(given)
    goals = columns if given.average else [[task] for task in columns[0]]
    plan = _plan(given, merging, goals)
    if not (given.data / manifest.NAME).is_file():
        raise UserError(f"{given.data}: no {manifest.NAME} in this folder; make the data first")
    configuration = searches._configuration(given, plan, parents, columns)
    configuration["program"] = sources.version(_code(given))
    file = StateFile(given.out, configuration)
    load_libraries(merging)
    with staged_directory(given.out) as folder:
        with measure(folder / "cost.json") as cost, contextlib.ExitStack() as stack:
            suites = given.suites.split(",")
            how = {name: getattr(given, name) for name in ("dtype", "device", "engine")}
            size = (given.batch_size, given.seed, given.fitness_items)
            bench = Workbench(plan.space, base, given.data, suites, columns, *size, **how)
            stack.enter_context(contextlib.closing(bench))
            check_no_overlap(given.data, suites, base.path)
            what = f"{given.algorithm} ({plan.space.describe().get('method', given.space)})"
            run = Search(plan.space, plan.strategy, bench, plan.budget, file, what)
            if isinstance(plan.strategy, Informed):
                plan.strategy.history = lambda: run.history
            history = run.run()
            if all(evaluation.average is None for evaluation in history):
                file.remove()  # what failed for good or for once is tried again
            winner = winner_of(plan.space, history)
            about = {"kind": given.command, **plan.about, "space": plan.space.describe()}
            about |= {"average": columns, "evaluations": len(history)}
            about |= {"chosen": winner.index, "dev_average": winner.average}
            if given.fitness_items is not None:
                chosen = spread(history, given.rescored)
                chosen += [] if winner in chosen else [winner]
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
                **{f"{found.kind}.{n}": found.path for n, found in merging.statistics.items()},
                "data": given.data,
                **searches._own_inputs(given),
            },
            seed=given.seed,
            code=_code(given),
        )
    file.remove()
    return (
        f"{given.algorithm}: candidate {winner.index} of {len(history)} has the best dev average, "
        f"{winner.average:.3f}; its model is in {given.out}"
    )
