"""The study of quality against price: what it runs, and after how many evaluations it looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import UserError, nearest

ABOUT = "quality against price, over search seeds (claim C2)"


def evaluations_of(config: Mapping[str, Any], row: str) -> list[int]:
    """List after how many dev evaluations a row is looked at.

    Args:
        config: The resolved configuration.
        row: A row of it.

    Returns:
        Of a search the study's numbers below its budget, then its budget; of another row one
        number: its candidates, 0 where nothing is chosen.
    """
    entry = config["methods"][row]
    if "evolve" not in entry:
        return [len(entry.get("tune", []))]
    budget = entry["evolve"]["budget"]
    return [*(n for n in sorted(config["studies"]["cost"]["evaluations"]) if n < budget), budget]


def runs(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the study's pairs of case and row, without rows that a case does not have."""
    study = config["studies"]["cost"]
    return [
        (case, row)
        for case in study["cases"]
        for row in study["rows"]
        if case in config["methods"][row].get("cases", [case])
    ]


def worlds_of(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return no world: the study runs on the experiment's cases."""
    return {}


def check(config: Mapping[str, Any]) -> None:
    """Refuse a study that names what does not exist.

    Args:
        config: The configuration with the schema's defaults filled in.

    Raises:
        UserError: One line with the place and the nearest valid name.
    """
    study = config["studies"]["cost"]
    for case in study["cases"]:
        if case not in config["cases"]:
            raise UserError(
                f"studies.cost.cases: unknown case {case!r}{nearest(case, config['cases'])}"
            )
    for row in study["rows"]:
        if row not in config["methods"]:
            raise UserError(
                f"studies.cost.rows: unknown row {row!r}{nearest(row, config['methods'])}"
            )
        if "seconds" in config["methods"][row].get("evolve", {}):
            raise UserError(
                f"studies.cost.rows: {row} is limited in seconds, so that its number of "
                "evaluations is not known beforehand; give it a budget alone"
            )
        if "greedy" in config["methods"][row]:
            raise UserError(f"studies.cost.rows: {row} is a greedy soup, which no seed changes")
    for name in ("dam", "search"):
        if study[name] not in study["rows"]:
            raise UserError(
                f"studies.cost.{name}: {study[name]!r} is not among studies.cost.rows"
                f"{nearest(study[name], study['rows'])}"
            )
    if "evolve" not in config["methods"][study["search"]]:
        raise UserError(f"studies.cost.search: {study['search']} is no evolutionary search")
