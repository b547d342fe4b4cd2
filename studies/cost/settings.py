"""The study of quality against price: what it runs, and after how many evaluations it looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import UserError, nearest


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
    return [*(n for n in sorted(config["cost_study"]["evaluations"]) if n < budget), budget]


def runs(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the study's pairs of case and row, without rows that a case does not have."""
    study = config["cost_study"]
    return [
        (case, row)
        for case in study["cases"]
        for row in study["rows"]
        if case in config["methods"][row].get("cases", [case])
    ]


def check(config: Mapping[str, Any]) -> None:
    """Refuse a study that names what does not exist.

    Args:
        config: The configuration with the schema's defaults filled in.

    Raises:
        UserError: One line with the place and the nearest valid name.
    """
    study = config.get("cost_study")
    if not study:
        return
    for case in study["cases"]:
        if case not in config["cases"]:
            raise UserError(
                f"cost_study.cases: unknown case {case!r}{nearest(case, config['cases'])}"
            )
    for row in study["rows"]:
        if row not in config["methods"]:
            raise UserError(
                f"cost_study.rows: unknown row {row!r}{nearest(row, config['methods'])}"
            )
        if "seconds" in config["methods"][row].get("evolve", {}):
            raise UserError(
                f"cost_study.rows: {row} is limited in seconds, so that its number of evaluations "
                "is not known beforehand; give it a budget alone"
            )
        if "greedy" in config["methods"][row]:
            raise UserError(f"cost_study.rows: {row} is a greedy soup, which no seed changes")
    for name in ("dam", "search"):
        if study[name] not in study["rows"]:
            raise UserError(
                f"cost_study.{name}: {study[name]!r} is not among cost_study.rows"
                f"{nearest(study[name], study['rows'])}"
            )
    if "evolve" not in config["methods"][study["search"]]:
        raise UserError(f"cost_study.search: {study['search']} is no evolutionary search")
