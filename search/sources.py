"""The entry points of searches, found without torch."""

from __future__ import annotations

from collections.abc import Iterable

from evaluation.sources import evaluation_files
from evaluation.suites import Task
from merges.engine import registry


def search_files(
    command: str,
    method: str,
    tasks: Iterable[Task],
    engine: str = "sqlite",
    space: str = "parameter",
) -> tuple[str, ...]:
    """Name the entry points of a search; see `common.sources.reachable`.

    Args:
        command: tune, evolve or greedy.
        method: What its candidates are merged with.
        tasks: What guides it.
        engine: sqlite or postgres, for the suites that run SQL on either.
        space: parameter or data-flow.
    """
    own = {"search/searches.py"}
    own |= {"search/evolutionary.py"} if command == "evolve" else set()
    own |= {"search/dataflow.py"} if space == "data-flow" else set()
    scored = evaluation_files(tasks, engine=engine)
    return tuple(sorted({*own, *registry.sources(method), *scored}))
