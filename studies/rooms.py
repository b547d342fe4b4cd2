"""The studies: each folder here that has a settings.py is one, and its name is the study's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

NAMES = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/settings.py")))


def settings(name: str) -> ModuleType:
    """Import a study's settings: its ``check``, its ``worlds_of`` and a line ``ABOUT`` it."""
    return importlib.import_module(f"studies.{name}.settings")


def worlds_of(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """List the worlds that the configured studies need in addition to the experiment's cases.

    Args:
        config: The resolved configuration.

    Returns:
        By id, which is the world's folder in the results, the entry of the case that it repeats
        and, as ``of``, that case's name. They have no table of their own.
    """
    worlds: dict[str, dict[str, Any]] = {}
    for name in config["studies"]:
        worlds |= settings(name).worlds_of(config)
    return worlds


def check(config: Mapping[str, Any]) -> None:
    """Check the configured studies; each raises a UserError for what it cannot run."""
    for name in config["studies"]:
        settings(name).check(config)
