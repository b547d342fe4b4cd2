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
from search.evolutionary import CmaEs
from search.goals.informed import Informed
from search.loop import Search, agreement, spread
from search.overlap import check_no_overlap
from search.record import table, winner_of
from search.searches import Plan
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


def _plan(given: argparse.Namespace, merging: MergeConfig, goals: list[list[str]]) -> Plan:
    """Choose the strategy; space, budget and their checks are those of CMA-ES."""
    plan = searches._evolve(given, merging)
    strategy = _strategy(given, plan, goals)
    about = plan.about | {"algorithm": given.algorithm, "goals": goals}
    # The samples follow from the budget, which must then stay as it is.
    about |= {k: getattr(strategy, k) for k in ("population", "samples") if hasattr(strategy, k)}
    return replace(plan, strategy=strategy, about=about)


def _bench(
    given: argparse.Namespace, plan: Plan, base: Checkpoint, columns: Any, file: StateFile
) -> Workbench:
    """Make what scores candidates, with the items' scores where the algorithm asks for them."""
    how = {name: getattr(given, name) for name in ("dtype", "device", "engine")}
    few = None if given.algorithm == "merge3" else given.fitness_items
    options = (given.data, given.suites.split(","), columns, given.batch_size, given.seed, few)
    if given.algorithm not in ("m2n2", "merge3"):
        return Workbench(plan.space, base, *options, **how)
    from search.goals.items import ItemScores, ItemWorkbench

    kept = ItemScores(file.folder / "items")
    if file.load() is None:
        kept.clear()
    bench: ItemWorkbench
    if given.algorithm == "merge3":
        from search.goals.merge3 import Calibrated, EstimatingWorkbench

        assert isinstance(plan.strategy, Calibrated)
        bench = EstimatingWorkbench(plan.space, base, *options, **how)
        bench.calibration, bench.experts = plan.strategy.calibration, plan.strategy.experts
        bench.anchors = given.fitness_items
    else:
        from search.goals.m2n2 import M2n2

        assert isinstance(plan.strategy, M2n2)
        plan.strategy.items = kept.flat
        bench = ItemWorkbench(plan.space, base, *options, **how)
    bench.kept = kept
    return bench


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
    if given.algorithm == "merge3" and given.fitness_items is None:
        given.fitness_items = ANCHORS
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
            bench = _bench(given, plan, base, columns, file)
            stack.enter_context(contextlib.closing(bench))
            check_no_overlap(given.data, given.suites.split(","), base.path)
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
