"""Count the seconds of calls, by stage."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any


class Clock:
    """Seconds by stage; what a counted call inside another takes counts for the inner one alone.

    Attributes:
        spent: The sums.
    """

    def __init__(self, now: Callable[[], float] = time.process_time) -> None:
        """Begin with no stage.

        Args:
            now: Returns seconds: of the process, its thread, or the wall.
        """
        self.spent: dict[str, float] = {}
        self._now = now

    def counted(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """Return the function, its seconds counted."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            before, began = sum(self.spent.values()), self._now()
            try:
                return function(*args, **kwargs)
            finally:
                inside = sum(self.spent.values()) - before
                own = self._now() - began - inside
                self.spent[stage] = self.spent.get(stage, 0.0) + own

        return call

    def watch(self, owner: Any, name: str, stage: str | None = None) -> None:
        """Count a class's method or a module's function from now on; the stage is its name."""
        setattr(owner, name, self.counted(getattr(owner, name), stage or name))
