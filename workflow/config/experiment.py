"""An experiment: its cases and rows, and what steps ask of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from cask import packages
from common import numerics
from common.errors import UserError, nearest
from common.worlds import folder_of, seeds_of
from evaluation import own_data
from evaluation.own_tasks import OwnTask, parse
from merges.engine import registry
from paper.hub.lock import lock_of
from workflow.config import hub
from workflow.config.ablation import Ablation
from workflow.config.cases import Case
from workflow.config.entry import Backend, Distinct, Entry, Name, Seed, TaskName, known
from workflow.config.evaluation import ROOT, CalibrationRows, Evaluation, Gate, Tuning
from workflow.config.hub import Hub
from workflow.config.methods import Row, check_experts


def _own_tasks(given: Any) -> dict[str, OwnTask]:
    return parse(given) if given else {}


class Experiment(Entry):
    """An experiment without its studies."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = Field(
        description="Outputs go to `results/NAME`."
    )
    seeds: Distinct[Seed] | None = Field(
        None,
        description="Seeds of the worlds: each case is made once from every seed (data, base, "
        "experts, merges, scores), and Tables 1 and 2 are means over them.",
    )
    seed: Seed | None = Field(None, description="The seed of the only world, in place of `seeds`.")
    numerics: Literal["fast", "portable"] = Field(
        "fast",
        description="What the libraries may use of a processor: all of it, or what gives the same "
        "bytes on every x86-64 processor with AVX2.",
    )
    scores_from: str | None = Field(
        None,
        description="A results folder from whose scores tables and figures are made; nothing runs.",
    )
    evaluation: Evaluation = Field(Evaluation(), description="How models are scored.")
    tuning: Tuning = Field(Tuning(), description="The effort that every tunable method gets.")
    gate: Gate = Field(Gate(), description="What an expert has to pass.")
    calibration: CalibrationRows = Field(
        CalibrationRows(), description="The data that data-driven merges learn from."
    )
    accept_terms: list[Name] = Field(
        [],
        description="Terms of pretrained models that you have read and accept, by the names in "
        "`python -m cask base --list`.",
    )
    hub: Hub = Field(Hub(), description="Where published models and data sets come from.")
    tasks: Annotated[dict[TaskName, OwnTask], BeforeValidator(_own_tasks)] = Field(
        {}, description="The user's own tasks, by name SUITE/TASK."
    )
    cases: Annotated[dict[Name, Case], Field(min_length=1)] = Field(
        description="The case studies, by name."
    )
    methods: dict[Name, Row] = Field(
        description="The rows of the tables, by name, in the order of the tables."
    )
    ablation: Ablation | None = Field(None, description="The ablation of the objective.")

    @property
    def world_seeds(self) -> list[int]:
        """The seeds of the worlds, of which there is at least one."""
        return seeds_of({"seeds": self.seeds, "seed": self.seed})

    def worlds_of(self, case: str) -> dict[str, int]:
        """Return the worlds of a case: by folder, the seed."""
        seeds = self.world_seeds
        return {folder_of(case, seed, seeds): seed for seed in seeds}

    def rows_of(self, case: str) -> list[str]:
        """Return the method rows of a case, in the order of the configuration."""
        return [name for name, row in self.methods.items() if row.is_in(case)]

    def cases_of(self, row: Row) -> dict[str, Case]:
        """Return the cases that have a row, by name."""
        return {name: self.cases[name] for name in row.cases or self.cases}

    def backend_of(self, case: Case, model: str) -> Backend:
        """Return the backend of a case's base, expert or row: its own, else the experiment's."""
        entries: Mapping[str, Any] = {**self.methods, **case.parents}
        return entries[model].backend or self.evaluation.backend

    @property
    def hub_lock(self) -> Path:
        """The lock of the fetched files; that of a mirror is in the results."""
        if self.hub.mirror is not None:
            return Path("results") / self.name / "hub.lock.json"
        return lock_of(ROOT / self.hub.table)

    def fetch_options(self) -> dict[str, Any]:
        """Return the options of `python -m paper fetch` that the configuration decides."""
        given: dict[str, Any] = {"table": ROOT / self.hub.table, "lock": self.hub_lock}
        return given if self.hub.mirror is None else given | {"mirror": self.hub.mirror}

    def dev_options(self, case: str) -> dict[str, Any]:
        """Return the options of `python -m evaluation data` for the dev items of a case's searches.

        They are empty where no row of the case is searched.
        """
        if not any(self.methods[row].search for row in self.rows_of(case)):
            return {}
        tasks = [task for task in self.cases[case].searched_tasks if task not in self.tasks]
        return {
            "dev": ",".join(map(hub.without_variant, tasks)),
            "dev_items": self.evaluation.dev_items,
        }

    def pickled(self) -> set[str]:
        """Name the parents, of all published cases, whose weights the table allows as pickles."""
        references = self.hub.references
        return {
            name
            for case in self.cases.values()
            for name, parent in case.parents.items()
            if parent.hub is not None and references[parent.hub].pickle
        }

    def resolve(self, method: str, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return a method's parameters with its defaults.

        Args:
            method: A method of the registry.
            given: The parameters that a configuration gives.
            where: The place in the configuration, for messages.

        Raises:
            UserError: One is wrong, or asks for more rows than there are.
        """
        try:
            resolved = registry.validate(method, given)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        rows, samples = self.calibration.rows, resolved.get("samples", 0)
        if "data" in registry.info(method).needs and samples > rows:
            raise UserError(
                f"{where}: {samples} samples per expert, but calibration.rows makes only {rows}"
            )
        return resolved

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UserError: One line with the place and, where there is one, the nearest valid name.
        """
        self._check_seeds()
        own = own_data.known(self.tasks, with_rows=self.scores_from is None)
        for name, case in self.cases.items():
            for other, entry in self.cases.items():
                if other != name and entry.table == case.table:
                    raise UserError(
                        f"cases.{name} and cases.{other} both write {case.table}; rename one"
                    )
            case.check(f"cases.{name}", own)
        for name, row in self.methods.items():
            self._check_row(name, row, f"methods.{name}")
        if self.ablation:
            self.ablation.check(self.cases, self.methods, self.resolve)
        if self.scores_from is None:
            self.evaluation.check()
            self._check_numerics()
            for case in self.cases.values():
                if case.in_cask:
                    packages.chosen(case.base.package, self.accept_terms)
        hub.check(self.hub, self.cases, self.methods)

    def _check_seeds(self) -> None:
        if (self.seeds is None) == (self.seed is None):
            what = "the top level lacks the key 'seeds'" if self.seed is None else "seed and seeds"
            raise UserError(f"{what}: give one of seeds: [1, 2, 3] and seed: 1")
        for name, case in self.cases.items():
            if case.fetched and len(self.world_seeds) > 1:
                raise UserError(
                    f"seeds: cases.{name} has published checkpoints, which no seed makes anew, so "
                    "that there is one world; give one seed"
                )

    def _check_numerics(self) -> None:
        """Refuse portable numerics where something other than transformers on the CPU computes."""
        if self.numerics == numerics.FAST:
            return
        backends = {self.backend_of(c, m) for c in self.cases.values() for m in c.parents}
        backends |= {row.backend or self.evaluation.backend for row in self.methods.values()}
        other = [self.evaluation.device, *backends, self.evaluation.dtype]
        if wrong := [name for name in other if name not in ("cpu", "hf", "float32")]:
            raise UserError(
                f"numerics: portable holds for float32 on the CPU with the backend hf, and "
                f"evaluation has {wrong[0]!r}; set numerics: fast, or change it"
            )

    def _check_merged(self, row: Row, merged: Row, where: str, case: str) -> None:
        """Refuse a row among a row's experts that the method cannot have."""
        if registry.info(row.merge_method).experts != 1:
            raise UserError(
                f"{where} is a row; only a method of one expert works on a merged model"
            )
        if not merged.is_in(case) or any(name in self.methods for name in merged.experts or ()):
            raise UserError(f"{where} is no row of {case}'s own experts; choose another")

    def _check_row(self, name: str, row: Row, where: str) -> None:
        for chosen in row.cases or ():
            if chosen not in self.cases:
                raise UserError(
                    f"{where}: unknown case {chosen!r}{nearest(chosen, self.cases)}; correct it, "
                    f"or remove the row of a case that was removed ({name}: null)"
                )
        row.check(where)
        if row.method is None:
            return
        cases = self.cases_of(row)
        for id, case in cases.items():
            if name in case.parents:
                raise UserError(f"{where}: {name!r} is the name of a model of {id}; choose another")
            for expert in row.experts or ():
                if expert in self.methods and expert != name and expert not in case.experts:
                    self._check_merged(row, self.methods[expert], f"{where}: {expert}", id)
                else:
                    known(expert, case.experts, where, "expert", id)
        if row.tune and len(row.tune) != self.tuning.evaluations:
            raise UserError(
                f"{where}: {len(row.tune)} candidates under 'tune', but tuning.evaluations gives "
                f"every method {self.tuning.evaluations}"
            )
        for candidate in row.tune or [{}]:
            resolved = self.resolve(row.method, {**row.set, **candidate}, where)
            for id, case in cases.items():
                experts = row.experts_of(case.experts)
                check_experts(row.method, resolved, experts, f"{where} in {id}")
