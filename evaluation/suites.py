"""Which suites and tasks exist; reads their metadata without torch or lm-eval."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError, nearest

FOLDER = Path(__file__).parent / "tasks"
KINDS = ("multiple_choice", "generation", "sql")


@dataclass(frozen=True)
class Task:
    """A task as tables and summaries need it.

    Attributes:
        suite: Name of its suite.
        id: Name within the suite.
        label: Short title for tables.
        metric: Name of the score: acc, exact_match, rouge2 or execution.
        kind: multiple_choice, generation or sql.
        chance: Expected score of a uniform random choice, 0 where an answer is generated.
    """

    suite: str
    id: str
    label: str
    metric: str
    kind: str
    chance: float

    @property
    def name(self) -> str:
        """The full name, suite/task, used in scores, configurations and tables."""
        return f"{self.suite}/{self.id}"

    @property
    def lm_eval_name(self) -> str:
        """The name inside lm-eval, where all suites share one space of names."""
        return f"{self.suite}_{self.id}"

    @property
    def definition(self) -> Path:
        """The task's lm-eval definition."""
        return FOLDER / self.suite / f"{self.id}.yaml"


@dataclass(frozen=True)
class Suite:
    """A named group of tasks.

    Attributes:
        name: Name as given to `--suites`.
        label: Title for tables.
        tasks: By id, in the order in which they are shown.
    """

    name: str
    label: str
    tasks: dict[str, Task]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: The file is not valid YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        problem = str(error).replace("\n", " ")
        raise UserError(f"{path}: not valid YAML ({problem}); correct the file") from None


@functools.cache
def load_suites() -> dict[str, Suite]:
    """Read every `tasks/<suite>/suite.yaml`.

    Returns:
        The suites by name, sorted.
    """
    suites = {}
    for path in sorted(FOLDER.glob("*/suite.yaml")):
        name = path.parent.name
        content = read_yaml(path)
        tasks = {id: Task(suite=name, id=id, **about) for id, about in content["tasks"].items()}
        suites[name] = Suite(name, content["label"], tasks)
    return suites


def select(names: Sequence[str]) -> list[Task]:
    """Find the tasks meant by names of suites and of tasks.

    Args:
        names: Suites (`bottle_kobest`) and single tasks (`bottle_kobest/copa`), in any mixture.

    Returns:
        Each task once, in the order asked for.

    Raises:
        UserError: A name is neither, or there is none.
    """
    suites = load_suites()
    known = {task.name: task for suite in suites.values() for task in suite.tasks.values()}
    chosen: dict[str, Task] = {}
    for name in names:
        if name in suites:
            chosen |= {task.name: task for task in suites[name].tasks.values()}
        elif name in known:
            chosen[name] = known[name]
        elif "/" in name:
            raise UserError(f"no task named {name!r}{nearest(name, known)}")
        else:
            raise UserError(f"no suite named {name!r}{nearest(name, suites)}")
    if not chosen:
        raise UserError(f"no suite was named; give some of: {', '.join(suites)}")
    return list(chosen.values())
