"""Refuses a results folder whose models were made in another way than the configuration says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json

# What changes tables, but no model: rows and columns may be added to finished results.
_SHOWN = ("backend", "beside", "columns", "dev_tasks", "domain", "label", "notes", "table", "title")


def _values(entry: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    """Yield the numbers and words in a part of a configuration, each with its place."""
    for key, value in entry.items():
        if key in _SHOWN:
            continue
        if isinstance(value, Mapping):
            yield from _values(value, f"{place}.{key}")
        else:
            yield f"{place}.{key}", value


def _made(config: Mapping[str, Any], of: Mapping[str, Any]) -> dict[str, Any]:
    """List what makes the models that two configurations share."""
    found: dict[str, Any] = {}
    for case in config["cases"].keys() & of["cases"].keys():
        entry, other = config["cases"][case], of["cases"][case]
        shared = entry["experts"].keys() & other["experts"].keys()
        experts = {name: entry["experts"][name] for name in shared}
        found |= _values({**entry, "experts": experts}, f"cases.{case}")
    return found


def check(config: Mapping[str, Any], results: Path) -> None:
    """Compare a configuration with that of a results folder, where it has one.

    Raises:
        UserError: A model of the folder was made with another setting.
    """
    path = results / "config.json"
    if not path.exists():
        return
    there = read_json(path)
    own, other = _made(config, there), _made(there, config)
    for place in sorted(own.keys() | other.keys()):
        if own.get(place) != other.get(place):
            raise UserError(
                f"{path}: another world: {place} is {other.get(place)} there and {own.get(place)} "
                "in the configuration; run the experiment, or give that file as the configuration"
            )
