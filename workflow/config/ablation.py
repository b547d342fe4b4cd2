"""The ablation: one row's merge again under other objectives, over seeds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

from pydantic import Field

from common.errors import UserError
from workflow.config.entry import Distinct, Entry, Name, Parameters, Seed, known
from workflow.config.methods import Row


class Objective(Entry):
    """A row of the ablation's table."""

    label: str = Field(description="Name in the table.")
    objective: Annotated[dict[str, float], Field(min_length=1)] = Field(
        description="Weights of the objective's terms."
    )
    set: Parameters = Field({}, description="Further parameters of its runs.")
    extra: bool = Field(False, description="Whether it is a row that the paper does not have.")


class Ablation(Entry):
    """Table 3: objectives compared on one case, over seeds."""

    case: Name = Field(description="The case.")
    seeds: Distinct[Seed] = Field(description="Seeds of the data's draw and order.")
    row: Name = Field(description="The row whose other settings the runs share.")
    set: Parameters = Field({}, description="Parameters of all runs, over the row's.")
    keep_merges: bool = Field(
        True, description="Whether merged models are kept after they are evaluated and checked."
    )
    objectives: Annotated[dict[Name, Objective], Field(min_length=1)] = Field(
        description="The table's rows, by name."
    )

    def settings(self, row: Parameters, objective: str) -> dict[str, Any]:
        """Return the parameters of a run: the `set` of its row, with the ablation's over it."""
        entry = self.objectives[objective]
        return {**row, **self.set, **entry.set, "objective": entry.objective}

    def check(
        self, cases: Collection[str], rows: Mapping[str, Row], resolve: Callable[..., object]
    ) -> None:
        """Refuse a case, row or parameter that the experiment does not have; see `hub.check`."""
        known(self.case, cases, "ablation.case", "case")
        known(self.row, rows, "ablation.row", "row")
        row = rows[self.row]
        if row.search or row.method is None:
            raise UserError(f"ablation.row: {self.row} is searched for; name a fixed row")
        for name in self.objectives:
            where = f"ablation.objectives.{name}"
            resolve(row.method, self.settings(row.set, name), where)
