"""The entry points of evaluations and of their data, found without torch or lm-eval."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from common.sources import ROOT
from evaluation.suites import FOLDER, Task


def _there(paths: Iterable[Path]) -> list[str]:
    """Keep the files that exist, named as `common.sources` names them."""
    return [str(path.relative_to(ROOT)) for path in paths if path.is_file()]


def evaluation_files(
    tasks: Iterable[Task], backend: str = "hf", engine: str = "sqlite"
) -> tuple[str, ...]:
    """Name the entry points of an evaluation (see `common.sources.reachable`).

    They are the harness, the backend (hf or vllm), and what defines and scores the tasks, on the
    engine sqlite or postgres where they run SQL.
    """
    found = {"evaluation/harness.py", f"evaluation/backends/{backend}.py"}
    found |= {"evaluation/backends/plain.py"} if backend == "hf" else set()
    for task in tasks:
        files = [task.definition.with_name(name) for name in ("suite.yaml", "functions.py")]
        # What describes a user's own task counts with its data.
        own = [] if task.folder else _there([task.definition, *files])
        found.update(own)
        if task.kind == "sql":
            found.add(f"evaluation/sql/{engine if len(own) > 1 else 'bottle'}.py")
    return tuple(sorted(found))


def data_files(suites: Iterable[str]) -> tuple[str, ...]:
    """Name the entry points that make benchmarks' data; see `common.sources.reachable`.

    They are what reads and writes, the suites' converters, and their definitions, which say how
    rows become dev items.
    """
    found = {"evaluation/data/build.py", "evaluation/data/sources.yaml"}
    for suite in suites:
        own = FOLDER / suite
        converter = FOLDER.parent / "data" / "converters" / f"{suite}.py"
        found.update(_there([converter, own / "functions.py", *own.glob("*.yaml")]))
    return tuple(sorted(found))
