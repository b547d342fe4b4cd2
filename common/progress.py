"""Progress of long steps: one line now and then, in a terminal and in a log alike."""

from __future__ import annotations

import sys
import time

_SILENCE_S = 10.0  # steps shorter than this need no line, and logs stay short


class Progress:
    """Reports on standard error how far a long step is.

    Args:
        total: Number of steps to do; None where nobody knows.
        what: What is being done, as it should be read: ``case1/ja: training``.
    """

    def __init__(self, total: int | None, what: str) -> None:
        self._total = total
        self._what = what
        self._done = 0
        self._start = self._last = time.monotonic()

    def step(self, n: int = 1, note: str = "") -> None:
        """Count `n` more steps as done and report it if the last line is ten seconds old.

        Args:
            n: Steps done since the last call.
            note: A figure worth seeing, such as ``loss 0.12``.
        """
        self._done += n
        now = time.monotonic()
        if now - self._last < _SILENCE_S:
            return
        self._last = now
        parts = [f"{self._done} done" if self._total is None else f"{self._done}/{self._total}"]
        if note:
            parts.append(note)
        if self._total is not None:
            left = (now - self._start) / max(self._done, 1) * max(self._total - self._done, 0)
            parts.append(f"about {left:.0f} s left")
        print(f"{self._what}: {', '.join(parts)}", file=sys.stderr, flush=True)
