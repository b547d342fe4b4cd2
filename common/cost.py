"""What a step cost: measured time and memory, and what was counted."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from common.files import write_json


class Cost:
    """Counts of a running step.

    Attributes:
        counted: By name, sums of what was reported: tokens, FLOPs, evaluations, bytes.
    """

    def __init__(self) -> None:
        self.counted: dict[str, float] = {}

    def count(self, **amounts: float) -> None:
        """Add amounts (tokens, FLOPs, evaluations ...) to the step's counts."""
        for name, amount in amounts.items():
            self.counted[name] = self.counted.get(name, 0) + amount


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@contextlib.contextmanager
def measure(path: Path | str) -> Iterator[Cost]:
    """Measure a block and write its cost when it ends well.

    The file stands apart from manifests and scores, because no measurement repeats exactly.

    Args:
        path: Where the cost goes, as JSON: `wall_s` and `cpu_s` in seconds, `peak_rss_mb` in
            MB (10^6 bytes, of the whole process so far), `counted`.

    Yields:
        The counter to which the block reports.
    """
    cost = Cost()
    wall, cpu = time.monotonic(), _cpu_seconds()
    yield cost
    write_json(
        path,
        {
            "wall_s": round(time.monotonic() - wall, 3),
            "cpu_s": round(_cpu_seconds() - cpu, 3),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
            "counted": cost.counted,
        },
    )
