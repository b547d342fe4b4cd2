"""A case again, with one expert that was fine-tuned from an ancestor of the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import UserError, nearest

ABOUT = "experts that start from different parents (claim C11)"
WORLD = "studies/ancestry"  # id and folder of the case with the ancestor


def worlds_of(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the case that is made again; see `studies.rooms.worlds_of`."""
    case = config["studies"]["ancestry"]["case"]
    return {WORLD: config["cases"][case] | {"of": case}}


def rows_of(config: Mapping[str, Any]) -> list[str]:
    """Return the method rows that are compared: those that claim the lead, then the others."""
    entry = config["studies"]["ancestry"]
    return [*entry["leaders"], *entry["others"]]


def steps_of(config: Mapping[str, Any]) -> int:
    """Return the step of the base's training at which the ancestor is taken."""
    entry = config["studies"]["ancestry"]
    steps = config["cases"][entry["case"]]["base"]["train"]["steps"]
    return max(1, round(entry["ancestor"] * steps))


def check(config: Mapping[str, Any]) -> None:
    """Refuse what names a case, expert, column or row that does not exist.

    Args:
        config: The configuration with the schema's defaults filled in.

    Raises:
        UserError: One line with the place and, where there is one, the nearest valid name.
    """
    entry, where = config["studies"]["ancestry"], "studies.ancestry"
    if entry["case"] not in config["cases"]:
        raise UserError(
            f"{where}.case: unknown case {entry['case']!r}{nearest(entry['case'], config['cases'])}"
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
            raise UserError(f"{where}.{key}: {name} has no {wanted!r}{nearest(wanted, valid)}")
    if both := set(entry["leaders"]) & set(entry["others"]):
        raise UserError(f"{where}: {sorted(both)[0]!r} is among leaders and others; keep one")
