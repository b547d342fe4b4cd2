"""What an experiment of the cask will fetch, store, compute and hold in memory."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cask import packages
from common.errors import UserError
from common.sources import ROOT
from common.yaml_files import read_yaml
from evaluation.suites import select
from merges.engine import registry
from paper.checks import check_disk, check_places, free_gigabytes, gigabytes_in
from paper.estimate import Step, aligned, measured
from workflow.config.cases import Case
from workflow.config.experiment import Experiment
from workflow.config.methods import Row

_HUB = ("huggingface.co", 443)
_SIGNAL_BYTES = 2 * 640  # of a token in the teachers' signal: a hidden state in bfloat16


@functools.cache
def assumptions() -> dict[str, Any]:
    """Read the assumptions, cask/costs.yaml."""
    return read_yaml(ROOT / "cask/costs.yaml")


def cask_cases(config: Experiment) -> dict[str, Case]:
    """Return the cases whose base comes from a package index."""
    return {name: case for name, case in config.cases.items() if case.in_cask}


def all_terms() -> list[str]:
    """Name the terms of all bases that packages bring."""
    return sorted({own.terms for own in packages.packages().values() if own.terms})


def _of(task: str, what: str) -> float:
    return assumptions()["tasks"].get(task, assumptions()["other"])[what]


def _mean_row(tasks: Sequence[str]) -> float:
    return sum(_of(task, "row") for task in tasks) / len(tasks)


def _single(suites: Sequence[str]) -> list[str]:
    """Name the tasks of suites and of single tasks."""
    found = []
    for name in suites:
        found += [name] if "/" in name else [f"{name}/{task.name}" for task in select([name])]
    return found


class _Costs:
    """Estimates of a case's steps, in CPU seconds of one core."""

    def __init__(self, config: Experiment, case: Case) -> None:
        self.config, self.case, self.about = config, case, assumptions()
        self.scale = case.parameters / self.about["parameters"]

    def training(self, expert: str) -> float:
        """Of fine-tuning an expert."""
        recipe = self.case.experts[expert].finetune
        assert recipe is not None  # a case of the cask was checked to have one
        tokens = recipe.steps * recipe.batch_size * _mean_row(self.case.taught[expert])
        return self.scale * self.about["trained_token"] * tokens

    def row_tokens(self) -> float:
        """Tokens of a row of every expert together."""
        return sum(_mean_row(tasks) for tasks in self.case.taught.values())

    def learning(self, row: Row, given: Mapping[str, Any]) -> float:
        """Of one run of a merge that learns."""
        run = registry.validate(row.merge_method, given)
        # What `dam` leaves out is what its preset has; all but ``best`` take rows one by one.
        batch = run.get("batch_size") or (8 if run.get("preset") == "best" else 1)
        drawn = min(run.get("samples", 1729), self.config.calibration.rows)
        token = self.about["step_token"]
        token += self.about["head_token"] if row.merge_method == "adamerging" else 0.0
        step = self.about["step"] + token * batch * self.row_tokens()
        return self.scale * step * -(-drawn // batch) * (run.get("epochs") or 1)

    def evaluation(self, tasks: Sequence[str], items: int) -> float:
        """Of one model on so many items of each task."""
        each = self.about["start"] + items * sum(_of(task, "item") for task in tasks)
        return self.scale * each

    def search(self, row: Row) -> float:
        """Of all candidates of a searched row."""
        count = row.evaluations(len(row.experts_of(self.case.experts)))
        dev = self.evaluation(self.case.searched_tasks, self.config.evaluation.dev_items)
        if not row.learns:
            return count * (dev + self.scale * self.about["merge"])
        settings = [{**row.set, **own} for own in row.tune or [{}] * count]
        return count * dev + sum(self.learning(row, own) for own in settings)


def _making(config: Experiment, name: str, world: str, out: Path) -> Iterator[Step]:
    """Estimate a world's steps in the order of the work."""
    case, about = config.cases[name], assumptions()
    costs, memory = _Costs(config, case), about["memory_gb"]
    size = case.gigabytes + about["tokenizer_gb"]
    folder = out / world

    def step(
        title: str, stored: float, seconds: float, held: float, paths: Sequence[Path] = ()
    ) -> Step:
        found = Step(world, title, stored, seconds / 3600, memory=costs.scale * held)
        return measured(found, paths, "cpu_s")

    def costs_of(stage: str, names: Sequence[str]) -> list[Path]:
        return [folder / stage / own / "cost.json" for own in names]

    # Searched rows learn, too, where their method does; each row is in one kind of step.
    yield step("the base, imported", size, costs.scale * about["import"], 2.0)
    yield step("items and rows", 0.02, about["data"], 1.0, [folder / "data" / "cost.json"])
    experts = list(case.experts)
    seconds = sum(map(costs.training, experts))
    paths = costs_of("models", experts)
    title = f"training of {len(experts)} experts"
    yield step(title, len(experts) * size, seconds, memory["training"], paths)
    rows = {row: config.methods[row] for row in config.rows_of(name)}
    searched = [row for row, entry in rows.items() if entry.search]
    learned = [row for row, entry in rows.items() if entry.learns and row not in searched]
    plain = [row for row in rows if row not in (*searched, *learned)]
    if any(entry.method == "dam" for entry in rows.values()):
        tokens = config.calibration.rows * costs.row_tokens()
        seconds = costs.scale * about["read_token"] * tokens
        path = folder / "teachers" / "cost.json"
        yield step("teachers' predictions", tokens * _SIGNAL_BYTES / 1e9, seconds, 2.9, [path])
    for title, names, each, held in (
        ("plain merges", plain, lambda _: costs.scale * about["merge"], 0.5),
        ("merges that learn", learned, lambda e: costs.learning(e, e.set), memory["learning"]),
        ("merges that are searched for", searched, costs.search, memory["search"]),
    ):
        if names:
            seconds = sum(each(rows[row]) for row in names)
            paths = costs_of("merges", names)
            yield step(f"{len(names)} {title}", len(names) * size, seconds, held, paths)
    for split, models, items in (
        ("dev", list(case.parents), config.evaluation.dev_items),
        ("test", [*case.parents, *rows], config.evaluation.limit or config.evaluation.test_items),
    ):
        seconds = len(models) * costs.evaluation(_single(case.evaluated(split)), items)
        paths = [folder / "scores" / split / f"{own}.cost.json" for own in models]
        title = f"evaluation of {len(models)} models on {split} items"
        yield step(title, 0.0, seconds, memory["evaluation"], paths)
    count = len(case.parents) + len(rows)
    yield step(f"smoke check of {count} models", 0.0, count * costs.scale * about["smoke"], 3.0)


def _fetching(config: Experiment) -> Iterator[Step]:
    about = assumptions()
    downloads = {
        str(case.base.package): about["index"].get(case.base.package, case.gigabytes / 2)
        for case in cask_cases(config).values()
    }
    if config.hub.benchmarks is None:
        downloads["the benchmarks"] = about["benchmarks_gb"]
    for what, size in downloads.items():
        hours = size * 1e9 / about["line"] / 3600
        yield Step("all", f"download of {what}", size, hours, memory=0.0)


def steps_of(config: Experiment, out: Path) -> list[Step]:
    """Estimate every kind of step of a cask's cases, world by world.

    Args:
        config: The resolved configuration.
        out: The experiment's results; CPU times measured there replace estimates.
    """
    worlds = [(name, world) for name in cask_cases(config) for world in config.worlds_of(name)]
    made = [step for name, world in worlds for step in _making(config, name, world, out)]
    return [*_fetching(config), *made]


def table_of(steps: Sequence[Step]) -> list[str]:
    """Lay steps out as lines of a table, with the sums of each world and of all."""
    rows: list[tuple[str, ...]] = [("step", "GB", "CPU h", "memory GB", "")]

    def add(name: str, of: Sequence[Step], known: str) -> None:
        size, hours = (sum(getattr(own, what) for own in of) for what in ("gigabytes", "hours"))
        held = max(own.memory for own in of)
        shown = [f"{size:.1f}", f"{hours:.2f}", f"{held:.1f}"]
        rows.append((name, *("" if float(text) == 0 else text for text in shown), known))

    parts = list(dict.fromkeys(step.part for step in steps))
    for part in parts:
        own = [step for step in steps if step.part == part]
        for step in own:
            add(f"{part}: {step.name}", [step], step.known)
        if part != "all":
            add(f"{part}: in all", own, "")
    add("all", steps, "")
    return aligned(rows)


def _machine_gigabytes() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _hub_answers() -> bool:
    try:
        socket.create_connection(_HUB, timeout=5).close()
    except OSError:
        return False
    return True


def _obstacles(
    config: Experiment,
    accepted: Sequence[str],
    missing: float,
    held: float,
    results: Path,
    has: float,
    reachable: Callable[[], bool],
) -> list[str]:
    """Say what would stop the run, a line each."""
    errors = []
    # Every obstacle is listed, so that one preflight suffices.
    names = [str(case.base.package) for case in cask_cases(config).values()]
    checks: list[Callable[[], object]] = [
        *(functools.partial(packages.chosen, name, accepted) for name in dict.fromkeys(names)),
        lambda: check_places(config),
        lambda: check_disk(missing, results),
    ]
    for check in checks:
        try:
            check()
        except UserError as error:
            errors.append(str(error))
    if held > has:
        errors.append(
            f"a step holds {held:.1f} GB of memory and this machine has {has:.1f}; use a larger "
            "one, or a smaller base (package: smollm2-135m-instruct)"
        )
    drawn = all(task.startswith("bottle_") for case in config.cases.values() for task in case.tasks)
    if config.hub.benchmarks is None and not drawn and not reachable():
        errors.append(
            f"the benchmarks' items come from {_HUB[0]}, which does not answer; name local copies "
            "under hub.benchmarks, or leave only the bottle's tasks"
        )
    return errors


def report(
    config: Experiment,
    accepted: Sequence[str],
    results: Path,
    *,
    memory: float | None = None,
    reachable: Callable[[], bool] = _hub_answers,
) -> tuple[list[str], list[str]]:
    """Report what an experiment of the cask will fetch, store, compute and hold.

    Args:
        config: The resolved configuration, as if all terms were accepted.
        accepted: The terms that are.
        results: The folder of its results; it need not exist.
        memory: This machine's, GB; None to look.
        reachable: Whether the hub answers.

    Returns:
        Lines for people, and what would stop the run, a line each.

    Raises:
        UserError: A file of measured costs is damaged.
    """
    steps = steps_of(config, results)
    cores = os.cpu_count() or 1
    hours, held = sum(step.hours for step in steps), max(step.memory for step in steps)
    stored, here = sum(step.gigabytes for step in steps), gigabytes_in(results)
    has = memory or _machine_gigabytes()
    at_a_time = max(min(cores, int(has / held)), 1) if held else cores
    lines = [
        *table_of(steps),
        "",
        "CPU h: on one core, from cask/costs.yaml where nothing is measured; "
        f"{at_a_time} at a time by memory and cores: {hours / at_a_time:.1f} hours",
        f"seeds: {', '.join(map(str, config.world_seeds))}; another seed in the configuration is "
        "another run and takes as long again",
        f"memory: at most {held:.1f} GB a step, this machine has {has:.1f}",
        f"disk: about {stored:.1f} GB, of which {here:.1f} GB are there; "
        f"{free_gigabytes(results):.0f} GB are free",
    ]
    return lines, _obstacles(config, accepted, stored - here, held, results, has, reachable)
