"""Progress of an evaluation: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from common.progress import Progress


class Bar:
    """Shows how many of a task's requests the model of this name has answered."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._shown: Any = None

    def start(self, task: str, requests: int) -> None:
        """Begin a task with this number of requests."""
        self.close()
        what = f"{self._model}: {task}"
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._shown = tqdm(total=requests, desc=what, unit=" requests", leave=False)
        else:
            self._shown = Progress(requests, what)

    def update(self, requests: int) -> None:
        """Count requests as answered."""
        if isinstance(self._shown, Progress):
            self._shown.step(requests)
        elif self._shown is not None:
            self._shown.update(requests)

    def close(self) -> None:
        """End the bar of the last task."""
        if self._shown is not None and not isinstance(self._shown, Progress):
            self._shown.close()
        self._shown = None
