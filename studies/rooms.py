"""What a configuration may say of studies: a key for each folder, with that folder's settings."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from studies import NAMES, about
from studies.study import Study
from workflow.config.cases import World
from workflow.config.entry import Entry
from workflow.config.experiment import Experiment


class Rooms(Entry):
    """Studies outside the default run: `python -m workflow study NAME`."""

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


def _key(study: str) -> Any:
    """Return a study's type and field; the class has the folder's name, `my_study` as MyStudy."""
    module = importlib.import_module(f"studies.{study}.settings")
    kind = getattr(module, study.title().replace("_", ""))
    return kind | None, Field(None, description=about(study))


if TYPE_CHECKING:
    Studies = Rooms
else:  # the folders are known when the program runs
    fields = {study: _key(study) for study in NAMES}
    Studies = create_model("Studies", __base__=Rooms, __doc__=Rooms.__doc__, **fields)
