"""A case again, with one expert that was fine-tuned from an ancestor of the base."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from common.errors import UserError
from studies.study import Study
from workflow.config.cases import Case, World
from workflow.config.entry import Distinct, Name, known
from workflow.config.experiment import Experiment

WORLD = "studies/ancestry"  # id and folder of the case with the ancestor


class Ancestry(Study):
    """A case again, with one expert that was fine-tuned from an ancestor of the base."""

    case: Name = Field(description="The case.")
    expert: Name = Field(description="The expert that starts from the ancestor.")
    ancestor: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.6, description="When the ancestor is taken, as a share of the base's training steps."
    )
    column: str = Field(description="Label of the column on which the lead is explained.")
    leaders: Distinct[Name] = Field(description="Rows whose lead is explained.")
    others: Distinct[Name] = Field(description="Rows over which they lead.")

    @property
    def rows(self) -> list[str]:
        """The rows that are compared: the leaders, then the others."""
        return [*self.leaders, *self.others]

    def steps(self, case: Case) -> int:
        """Return the step of the base's training at which the ancestor is taken."""
        train = case.base.train
        return max(1, round(self.ancestor * train.steps)) if train else 1

    def worlds(self, experiment: Experiment) -> dict[str, World]:
        """Return the case that is made again; see `Study.worlds`."""
        case = experiment.cases[self.case]
        return {WORLD: World.repeat(case, self.case, experiment.world_seeds[0])}

    def check(self, experiment: Experiment) -> None:
        """Refuse an expert, column or row that the case does not have; see `Study.check`."""
        where = "studies.ancestry"
        known(self.case, experiment.cases, f"{where}.case", "case")
        case, rows = experiment.cases[self.case], experiment.rows_of(self.case)
        columns = [column.label for column in [*case.columns, *case.beside]]
        known(self.expert, case.experts, f"{where}.expert", "expert", self.case)
        known(self.column, columns, f"{where}.column", "column", self.case)
        for key, named in (("leaders", self.leaders), ("others", self.others)):
            for row in named:
                known(row, rows, f"{where}.{key}", "row", self.case)
        if both := {*self.leaders} & {*self.others}:
            raise UserError(f"{where}: {sorted(both)[0]!r} is among leaders and others; keep one")
