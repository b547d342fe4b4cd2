"""The studies: one folder and one field of `Studies` each, of the same name."""

from __future__ import annotations

from pydantic import Field

from studies.ancestry.settings import Ancestry
from studies.cost.settings import Cost
from studies.dam.settings import Dam
from studies.study import Study
from workflow.config.cases import World
from workflow.config.entry import Entry
from workflow.config.experiment import Experiment


class Studies(Entry):
    """Studies outside the default run: `python -m workflow study NAME`."""

    dam: Dam | None = Field(None, description="What matters in DAM, over several worlds.")
    cost: Cost | None = Field(
        None, description="Quality against price, over search seeds (claim C2)."
    )
    ancestry: Ancestry | None = Field(
        None, description="Experts that start from different parents (claim C11)."
    )

    @property
    def present(self) -> dict[str, Study]:
        """The studies that the configuration has, by name."""
        return {name: study for name, study in self if study is not None}

    def worlds(self, experiment: Experiment) -> dict[str, World]:
        """Return the worlds of all studies; see `Study.worlds`."""
        worlds: dict[str, World] = {}
        for study in self.present.values():
            worlds |= study.worlds(experiment)
        return worlds

    def check(self, experiment: Experiment) -> None:
        """Check all studies; see `Study.check`."""
        for study in self.present.values():
            study.check(experiment)


NAMES = tuple(Studies.model_fields)


def about(name: str) -> str:
    """Say in a line what a study is about."""
    return Studies.model_fields[name].description or ""
