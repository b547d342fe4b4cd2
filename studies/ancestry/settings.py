"""Case 2b: a case study again, with one expert that was fine-tuned from an ancestor of the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import UserError, nearest

WORLD = "case2b"  # its id, folder and target


def worlds_of(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the case under its own id, empty where the configuration has none.

    Args:
        config: The resolved configuration.

    Returns:
        By id, the entry of the case that it repeats and, as ``of``, that case's name.
    """
    entry = config.get(WORLD)
    return {} if not entry else {WORLD: config["cases"][entry["case"]] | {"of": entry["case"]}}


def rows_of(config: Mapping[str, Any]) -> list[str]:
    """Return the method rows that are compared: those that claim the lead, then the others."""
    entry = config[WORLD]
    return [*entry["leaders"], *entry["others"]]


def steps_of(config: Mapping[str, Any]) -> int:
    """Return the step of the base's training at which the ancestor is taken."""
    entry = config[WORLD]
    steps = config["cases"][entry["case"]]["base"]["train"]["steps"]
    return max(1, round(entry["ancestor"] * steps))


def check(config: Mapping[str, Any]) -> None:
    """Refuse what names a case, expert, column or row that does not exist.

    Args:
        config: The configuration with the schema's defaults filled in.

    Raises:
        UserError: One line with the place and, where there is one, the nearest valid name.
    """
    entry = config.get(WORLD)
    if not entry:
        return
    if WORLD in config["cases"]:
        raise UserError(f"cases.{WORLD} has the name of the block {WORLD}; rename the case")
    if entry["case"] not in config["cases"]:
        raise UserError(
            f"{WORLD}.case: unknown case {entry['case']!r}{nearest(entry['case'], config['cases'])}"
        )
    case = config["cases"][entry["case"]]
    columns = [column["label"] for column in [*case["columns"], *case["beside"]]]
    name = entry["case"]
    rows = [row for row, about in config["methods"].items() if name in about.get("cases", [name])]
    for key, wanted, valid in (
        ("expert", entry["expert"], list(case["experts"])),
        ("column", entry["column"], columns),
        *(("leaders", row, rows) for row in entry["leaders"]),
        *(("others", row, rows) for row in entry["others"]),
    ):
        if wanted not in valid:
            raise UserError(f"{WORLD}.{key}: {name} has no {wanted!r}{nearest(wanted, valid)}")
    if both := set(entry["leaders"]) & set(entry["others"]):
        raise UserError(f"{WORLD}: {sorted(both)[0]!r} is among leaders and others; keep one")
