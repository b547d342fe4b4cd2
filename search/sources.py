"""The entry points of searches, found without torch."""

from __future__ import annotations

from collections.abc import Iterable

from evaluation.sources import evaluation_files
from evaluation.suites import Task
from merges.engine import registry

_GOALS = {"search/goals/searching.py", "search/evolutionary.py"}
# What an evolutionary search can do, each with its own entry points.
ALGORITHMS = {
    "cma-es": set[str](),
    "nsga2": _GOALS | {"search/goals/nsga2.py"},
    "map": _GOALS | {"search/goals/surrogate.py"},
    "m2n2": _GOALS | {"search/goals/m2n2.py", "search/goals/items.py"},
    "merge3": _GOALS | {"search/goals/merge3.py"},
}
PARAMETER_SPACE_ONLY = ("map", "m2n2", "merge3")  # they search for weights of experts


def search_files(
    command: str,
    method: str,
    tasks: Iterable[Task],
    engine: str = "sqlite",
    space: str = "parameter",
    algorithm: str | None = None,
) -> tuple[str, ...]:
    """Name the entry points of a search; see `common.sources.reachable`.

    Args:
        command: tune, evolve or greedy.
        method: What its candidates are merged with.
        tasks: What guides it.
        engine: sqlite or postgres, for the suites that run SQL on either.
        space: parameter or data-flow.
        algorithm: One of `ALGORITHMS`; None for the command's only one, or CMA-ES.
    """
    own = {"search/searches.py"} | ALGORITHMS.get(algorithm or "cma-es", set())
    own |= {"search/evolutionary.py"} if command == "evolve" else set()
    own |= {"search/dataflow.py"} if space == "data-flow" else set()
    scored = evaluation_files(tasks, engine=engine)
    return tuple(sorted({*own, *registry.sources(method), *scored}))
