"""The study of quality against price: what it runs, and after how many evaluations it looks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from common.errors import UserError
from studies.study import Study
from workflow.config.entry import Count, Distinct, Name, Seed, known
from workflow.config.experiment import Experiment
from workflow.config.methods import Row


class Cost(Study):
    """Rows again under other seeds of the search and of DAM's data draw."""

    cases: Distinct[Name] = Field(description="The cases.")
    seeds: Annotated[Distinct[Seed], Field(min_length=2)] = Field(description="The seeds.")
    evaluations: Distinct[Count] = Field(
        description="After how many dev evaluations a search's best model is scored."
    )
    rows: Distinct[Name] = Field(description="The rows.")
    dam: Name = Field(description="The row of DAM that claim C2 compares.")
    search: Name = Field(description="The evolutionary search that it is compared with.")

    def evaluations_of(self, row: Row) -> list[int]:
        """List after how many dev evaluations a row is scored.

        Of a search, the study's numbers below its budget, then its budget; of another row one
        number: its candidates, 0 where nothing is chosen.
        """
        if row.evolve is None:
            return [len(row.tune or [])]
        budget = row.evolve.budget
        return [*(n for n in sorted(self.evaluations) if n < budget), budget]

    def runs(self, experiment: Experiment) -> list[tuple[str, str]]:
        """List the study's pairs of case and row, without rows that a case does not have."""
        return [
            (case, row)
            for case in self.cases
            for row in self.rows
            if experiment.methods[row].is_in(case)
        ]

    def check(self, experiment: Experiment) -> None:
        """Refuse unknown cases and rows, and rows that no seed changes; see `Study.check`."""
        where = "studies.cost"
        for case in self.cases:
            known(case, experiment.cases, f"{where}.cases", "case")
        for name in self.rows:
            known(name, experiment.methods, f"{where}.rows", "row")
            row = experiment.methods[name]
            if row.evolve and row.evolve.seconds is not None:
                raise UserError(
                    f"{where}.rows: {name} is limited in seconds, so that its number of "
                    "evaluations is not known beforehand; give it a budget alone"
                )
            if row.greedy:
                raise UserError(f"{where}.rows: {name} is a greedy soup, which no seed changes")
        for key, name in (("dam", self.dam), ("search", self.search)):
            known(name, self.rows, f"{where}.{key}", "row", f"{where}.rows")
        if experiment.methods[self.search].evolve is None:
            raise UserError(f"{where}.search: {self.search} is no evolutionary search")
