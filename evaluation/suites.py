"""Which suites and tasks exist; reads their metadata without torch or lm-eval."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, nearest
from common.yaml_files import read_yaml

FOLDER = Path(__file__).parent / "tasks"
KINDS = ("multiple_choice", "generation", "sql")
# The commands that write a task's items into a data folder, by the maker that its suite names.
_MAKERS = {
    "bottle": "python -m bottle data --case {world} --out {data}",
    "benchmark": "python -m evaluation data --suite {suite} --out {data}",
    "own": "python -m evaluation tasks FILE --data {data}",
}


@dataclass(frozen=True)
class Task:
    """A task as tables and summaries need it.

    Attributes:
        suite: Name of its suite.
        id: Name within the suite.
        label: Short title for tables.
        metric: Name of the score that tables show.
        kind: multiple_choice, generation or sql.
        chance: Expected score of a uniform random choice, 0 where an answer is generated.
        shots: Solved examples in front of each item.
        scale: What the score is multiplied by where it is printed, as its publication prints it.
        fidelity: published or corrected; None where the suite knows no such difference.
        prompt: Version of the prompt; None where the suite has one.
        how, bos: See `evaluation.backends.tokenisation.Rule`.
        variant: Fidelity and prompt as names have them, empty for the suite's first ones.
        maker: What makes its items: bottle, benchmark, own; None where its user writes them.
        world: The bottle's case whose data hold its items.
        like: The benchmark whose shape a task of the bottle has.
        max_tokens: The most that a model writes, where no YAML says it.
        delimiter: What joins prompt and answer, where no YAML says it.
        folder: Where the YAML and the functions of a user's own task are; None for a shipped task.
    """

    suite: str
    id: str
    label: str
    metric: str
    kind: str
    chance: float
    shots: int = 0
    scale: float = 1.0
    fidelity: str | None = None
    prompt: str | None = None
    how: str = "joint"
    bos: bool = True
    variant: str = ""
    maker: str | None = None
    world: str | None = None
    like: str | None = None
    max_tokens: int = 0
    delimiter: str = ""
    folder: Path | None = None

    @property
    def group(self) -> str:
        """The suite with its variant: `ja8`, `ja8:corrected`."""
        return self.suite + self.variant

    @property
    def name(self) -> str:
        """The full name, suite/task, used in scores, configurations and tables."""
        return f"{self.group}/{self.id}"

    @property
    def lm_eval_name(self) -> str:
        """The name inside lm-eval, where all suites share one space of names."""
        return f"{self.group.replace(':', '_')}_{self.id}"

    @property
    def definition(self) -> Path:
        """The task's lm-eval YAML; a task that its suite.yaml describes completely has none."""
        return (self.folder or FOLDER / self.suite) / f"{self.id}.yaml"

    def remedy(self, data: Path) -> str:
        """Say how a data folder gets the task's items."""
        if self.maker is None:
            return f"write one JSON object a line to {items_file(data, 'SPLIT', self)}"
        command = _MAKERS[self.maker].format(data=data, suite=self.suite, world=self.world)
        return f"make the data with {command}"


@dataclass(frozen=True)
class Suite:
    """A named group of tasks.

    Attributes:
        name: Name as given to `--suites`.
        label: Title for tables.
        tasks: By id, in the order in which they are shown, as the suite's first variant has them.
        fidelities: Which it has, first the one meant by the plain name; empty where it has one.
        prompts: Likewise.
        content: What its `suite.yaml` says.
    """

    name: str
    label: str
    tasks: dict[str, Task]
    fidelities: tuple[str, ...]
    prompts: tuple[str, ...]
    content: Mapping[str, Any]


def names(text: str) -> list[str]:
    """Read names that commas separate."""
    return [name.strip() for name in text.split(",") if name.strip()]


def items_file(data: Path, split: str, task: Task) -> Path:
    """Return the file of a task's items."""
    return data / split / task.suite / f"{task.id}.jsonl"


def pool_file(data: Path, split: str, task: Task) -> Path:
    """Return the file of the rows from which a task's shots are drawn."""
    return data / split / task.suite / f"{task.id}.fewshot.jsonl"


def check_items(data: Path, split: str, tasks: Sequence[Task]) -> None:
    """Refuse tasks without items in `data/SPLIT`, all of them at once.

    Raises:
        UserError: A task's file is missing; the message says how to get what is missing, and
            which tasks there are data for.
    """
    here = [task.name for task in tasks if items_file(data, split, task).is_file()]
    lacking = [task for task in tasks if task.name not in here]
    if not lacking:
        return
    remedies = dict.fromkeys(task.remedy(data) for task in lacking)
    rest = f", or leave out what has none: --suites {','.join(here)}" if here else ""
    raise UserError(
        f"no items in {data / split} for {', '.join(task.name for task in lacking)}; "
        f"{'; '.join(remedies)}{rest}"
    )


def _tasks(
    name: str, content: Mapping[str, Any], fidelity: str | None, prompt: str | None
) -> dict[str, Task]:
    variant = "".join(
        f":{chosen}"
        for kind, chosen in (("fidelities", fidelity), ("prompts", prompt))
        if chosen is not None and chosen != content[kind][0]
    )
    common: dict[str, Any] = {"fidelity": fidelity, "prompt": prompt, "variant": variant}
    common |= {key: content[key] for key in ("maker", "world") if key in content}
    common |= content.get("tokenisation", {}).get(fidelity, {})
    tasks = {}
    for id, about in content["tasks"].items():
        for key, value in about.items():
            if isinstance(value, Mapping):
                about = about | {key: value[fidelity if fidelity in value else prompt]}
        tasks[id] = Task(suite=name, id=id, **about, **common)
    return tasks


@functools.cache
def load_suites() -> dict[str, Suite]:
    """Read every `tasks/<suite>/suite.yaml`: the suites by name, sorted."""
    suites = {}
    for path in sorted(FOLDER.glob("*/suite.yaml")):
        name = path.parent.name
        content = read_yaml(path)
        fidelities = tuple(content.get("fidelities", ()))
        prompts = tuple(content.get("prompts", ()))
        first = (next(iter(fidelities), None), next(iter(prompts), None))
        tasks = _tasks(name, content, *first)
        suites[name] = Suite(name, content["label"], tasks, fidelities, prompts, content)
    return suites


def _variants(suite: Suite, chosen: Mapping[str, str | None]) -> list[dict[str, Task]]:
    """Choose a suite's variants; `chosen` holds fidelity and prompt as asked for, or None."""
    if not suite.fidelities and not suite.prompts:
        return [suite.tasks]
    fidelities: Sequence[str | None] = suite.fidelities[:1] or (None,)
    if suite.fidelities and chosen["fidelity"] == "both":
        fidelities = suite.fidelities
    elif suite.fidelities and chosen["fidelity"] is not None:
        fidelities = (chosen["fidelity"],)
    prompt = (chosen["prompt"] or suite.prompts[0]) if suite.prompts else None
    for value, valid, what in (
        (fidelities[0], suite.fidelities, "fidelity"),
        (prompt, suite.prompts, "prompt version"),
    ):
        if value is not None and value not in valid:
            raise UserError(f"suite {suite.name} has no {what} {value!r}{nearest(value, valid)}")
    return [_tasks(suite.name, suite.content, fidelity, prompt) for fidelity in fidelities]


def _with_own(own: Mapping[str, Task]) -> dict[str, Suite]:
    suites = dict(load_suites())
    for name in dict.fromkeys(task.suite for task in own.values()):
        tasks = {task.id: task for task in own.values() if task.suite == name}
        suites[name] = Suite(name, name, tasks, (), (), {})
    return suites


def select(
    names: Sequence[str],
    fidelity: str | None = None,
    prompt: str | None = None,
    own: Mapping[str, Task] | None = None,
) -> list[Task]:
    """Find the tasks meant by names of suites and of tasks.

    Args:
        names: Suites (`kobest`), suites in one variant (`ja8:corrected`, `ja8:0.6`) and single
            tasks (`ja8:corrected/jnli`), in any mixture.
        fidelity: published, corrected or both, for suites that have them and whose name does not
            say; None takes each suite's first.
        prompt: Version of the prompt, likewise.
        own: The user's own tasks, by name.

    Returns:
        Each task once, in the order asked for.

    Raises:
        UserError: A name is neither, a suite lacks the variant, or there is no name.
    """
    suites = _with_own(own or {})
    chosen: dict[str, Task] = {}
    for name in names:
        group, slash, id = name.partition("/")
        base, *qualifiers = group.split(":")
        if base not in suites:
            raise UserError(f"no suite named {base!r}{nearest(base, suites)}")
        suite = suites[base]
        # What a name says itself goes before the two arguments.
        asked = {"fidelity": fidelity, "prompt": prompt}
        said: set[str] = set()
        for qualifier in qualifiers:
            if qualifier not in suite.fidelities + suite.prompts:
                valid = suite.fidelities + suite.prompts
                raise UserError(
                    f"suite {base} has no variant {qualifier!r}{nearest(qualifier, valid)}"
                )
            kind = "fidelity" if qualifier in suite.fidelities else "prompt"
            if kind in said:
                raise UserError(f"{name!r} says its {kind} twice; give both by commas")
            said.add(kind)
            asked[kind] = qualifier
        for tasks in _variants(suite, asked):
            if slash and id not in tasks:
                known = [f"{base}/{task}" for task in tasks]
                raise UserError(f"no task named {name!r}{nearest(f'{base}/{id}', known)}")
            found = [tasks[id]] if slash else tasks.values()
            chosen |= {task.name: task for task in found}
    if not chosen:
        raise UserError(f"no suite was named; give some of: {', '.join(suites)}")
    return list(chosen.values())
