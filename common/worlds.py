"""The worlds of an experiment: each case is made again from every seed, in its own folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def seeds_of(config: Mapping[str, Any]) -> list[int]:
    """Return the seeds of a configuration's worlds: `seeds`, or the one `seed`."""
    return list(config.get("seeds") or [config.get("seed", 0)])


def folder_of(case: str, seed: int, seeds: Sequence[int]) -> str:
    """Name the folder of a case's world; the world of the first seed has the case's own name.

    Args:
        case: The case's name in the configuration.
        seed: The world's seed.
        seeds: The experiment's seeds.
    """
    return case if seed == seeds[0] else f"{case}-seed{seed}"
