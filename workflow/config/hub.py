"""Where published models and data sets come from, and which of them cases and rows may name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from cask.packages import packages
from common.errors import UserError
from evaluation.data.sources import load_sources
from evaluation.suites import load_suites, select
from paper.hub.table import Reference, read_table
from workflow.config.cases import Case
from workflow.config.entry import Entry, known
from workflow.config.evaluation import ROOT
from workflow.config.methods import Row

References = Mapping[str, Reference]


class Hub(Entry):
    """Where published models and data sets come from."""

    table: str = Field(
        "paper/hub.tsv",
        description="Repositories, revisions and licences; relative to the project's folder.",
    )
    mirror: str | None = Field(None, description="Folder with copies that are used in their place.")
    benchmarks: str | None = Field(None, description="Folder with local copies of benchmarks.")
    stand_ins: str | None = Field(
        None,
        description="Table of files below `benchmarks` that replace a benchmark's missing ones.",
    )

    @property
    def references(self) -> dict[str, Reference]:
        """The rows of the table, by name."""
        return read_table(ROOT / self.table)

    def benchmark_options(self) -> dict[str, str]:
        """Return the options of `python -m evaluation data` that say where benchmarks come from."""
        given = {"source": self.benchmarks, "stand_ins": self.stand_ins}
        return {option: value for option, value in given.items() if value is not None}


def has_dev(task: str) -> bool:
    """Say whether a published task has dev items: a training split whose rows no table shows."""
    plain = without_variant(task)
    if plain.partition("/")[0] not in load_suites():
        return True  # every task of a user's own has dev items
    source = load_sources().get(plain)
    # The rows that a variant shows as examples are known for the suite's first number of them.
    same = select([task])[0].shots == select([plain])[0].shots
    return source is not None and source.dev is not None and same


def without_variant(task: str) -> str:
    """Return a task's name without fidelity and prompt: ``ja8:corrected/jnli`` is ``ja8/jnli``."""
    suite, _, name = task.partition("/")
    return f"{suite.partition(':')[0]}/{name}"


def check(hub: Hub, cases: Mapping[str, Case], rows: Mapping[str, Row]) -> None:
    """Refuse cases that are of no kind, or of several, and unknown references.

    Raises:
        UserError: One line with the place and, where there is one, the nearest valid name.
    """
    if hub.stand_ins is not None and hub.benchmarks is None:
        raise UserError("hub.stand_ins names files below hub.benchmarks, which is not given")
    fetched = any(case.fetched for case in cases.values()) or any(row.hub for row in rows.values())
    references = hub.references if fetched else {}
    for name, case in cases.items():
        if case.fetched:
            _check_fetched(case, f"cases.{name}", references, hub.table)
        elif case.in_cask:
            _check_cask(case, f"cases.{name}")
        else:
            _check_made(case, f"cases.{name}")
    for name, row in rows.items():
        if row.hub is not None:
            _referred(references, row.hub, "model", f"methods.{name}", hub.table)
        for id in row.cases or cases:
            _check_row(row, f"methods.{name}", cases[id], id)


def _referred(references: References, name: str, kind: str, where: str, table: str) -> None:
    known(name, references, where, "reference", table)
    if references[name].kind != kind:
        raise UserError(f"{where}: {name} is a {references[name].kind} in {table}, not a {kind}")


def _check_cask(case: Case, where: str) -> None:
    known(str(case.base.package), packages(), f"{where}.base", "package", "the cask")
    if case.size is None:
        raise UserError(f"{where} lacks the key 'size', from which steps ask for memory and time")
    for key in ("world", "model"):
        if getattr(case, key) is not None:
            raise UserError(f"{where}: {key!r} is of a bottle's case, and the base is of a package")
    for name, expert in case.experts.items():
        if expert.finetune is None:
            raise UserError(f"{where}: {name} lacks the key 'finetune'; the base is of a package")
        if lacking := _without_dev(case, expert.domain):
            raise UserError(
                f"{where}: the gate judges {name} on dev items, and none are published for "
                f"{', '.join(lacking)}; leave them out of its domain"
            )


def _check_made(case: Case, where: str) -> None:
    for key in ("world", "model"):
        if getattr(case, key) is None:
            raise UserError(f"{where} lacks the key {key!r}; or give its base and experts as hub")
    for name, parent in case.parents.items():
        if parent.hub is not None:
            raise UserError(f"{where}: {name} is of the hub and the base is not; give all or none")
        if parent.train is None:
            raise UserError(f"{where}: {name} lacks the key 'train'")


def _check_fetched(case: Case, where: str, references: References, table: str) -> None:
    for key in ("world", "model"):
        if getattr(case, key) is not None:
            raise UserError(f"{where}: {key!r} is of a bottle's case, and the base is of the hub")
    if case.size is None:
        raise UserError(f"{where} lacks the key 'size', from which steps ask for memory and time")
    for name, parent in case.parents.items():
        if parent.train is not None:
            raise UserError(f"{where}: {name} cannot be trained, the base is of the hub")
        if parent.hub is None:
            raise UserError(f"{where}: {name} lacks the key 'hub'")
        _referred(references, parent.hub, "model", f"{where}: {name}", table)
    for name, expert in case.experts.items():
        if expert.calibration is not None:
            about = f"{where}: {name}.calibration"
            _referred(references, expert.calibration.hub, "dataset", about, table)


def _check_row(row: Row, where: str, case: Case, id: str) -> None:
    if not case.fetched and row.hub is not None:
        raise UserError(f"{where}: {id} is of the bottle; a published merge is not of it")
    if row.search and (case.fetched or case.in_cask):
        _check_dev(case, id, where)
    if not case.fetched:
        return
    for expert in row.experts_of(case.experts) if row.learns else ():
        if case.experts[expert].calibration is None:
            raise UserError(f"{where}: {id}.experts.{expert} has no calibration data to learn")


def _without_dev(case: Case, tasks: Sequence[str]) -> list[str]:
    """Return the tasks without dev items; a cask draws those of the bottle's tasks."""
    shipped = [task for task in tasks if task.partition("/")[0] in load_suites()]
    made = {task.name for task in select(shipped) if task.maker == "bottle"}
    drawn = made if case.in_cask else set()
    return [task for task in tasks if task not in drawn and not has_dev(task)]


def _check_dev(case: Case, id: str, where: str) -> None:
    tasks = case.searched_tasks
    if lacking := _without_dev(case, tasks):
        left = [task for task in tasks if task not in lacking]
        rest = f", or name the others under cases.{id}.dev_tasks" if left else ""
        raise UserError(
            f"{where}: a searched row needs dev items, and none are published for "
            f"{', '.join(lacking)} of {id}; leave the case out under 'cases'{rest}"
        )
