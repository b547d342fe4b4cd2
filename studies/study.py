"""What a study adds to an experiment's configuration."""

from __future__ import annotations

from workflow.config.cases import World
from workflow.config.entry import Entry
from workflow.config.experiment import Experiment


class Study(Entry):
    """The settings of one study; its class is in studies/NAME/settings.py."""

    def worlds(self, experiment: Experiment) -> dict[str, World]:
        """Return the worlds that the study needs in addition to the experiment's cases.

        The key is the world's id, which is also its folder in the results.
        """
        return {}

    def check(self, experiment: Experiment) -> None:
        """Refuse settings that name what the experiment does not have.

        Raises:
            UserError: One line with the place and, where there is one, the nearest valid name.
        """
        raise NotImplementedError
