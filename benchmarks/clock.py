"""Count the seconds of calls, by stage, and measure how fast products of matrices are."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any


class Clock:
    """Seconds by stage; what a counted call inside another takes counts for the inner one alone.

    Args:
        now: Returns seconds: of the process, its thread, or the wall.

    Attributes:
        spent: The sums.
    """

    def __init__(self, now: Callable[[], float] = time.process_time) -> None:
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


def least(
    work: Callable[[], object], repeats: int = 9, now: Callable[[], float] = time.process_time
) -> float:
    """Return the least seconds of some work, the first time left out."""
    found = []
    for _ in range(repeats + 1):
        began = now()
        work()
        found.append(now() - began)
    return min(found[1:])


def product_speed(
    rows: int,
    columns: int,
    outputs: int,
    dtype: str = "float32",
    device: str = "cpu",
    now: Callable[[], float] = time.process_time,
) -> float:
    """Return the FLOPs a second of (rows, columns) times (columns, outputs), as a layer does it."""
    import torch

    kind = {"dtype": getattr(torch, dtype), "device": device}
    left, right = torch.randn(rows, columns, **kind), torch.randn(outputs, columns, **kind)

    def products() -> None:
        for _ in range(10):
            product = left @ right.t()
        product[0, 0].item()  # on a GPU, waits for it

    return 10 * 2 * rows * columns * outputs / least(products, now=now)
