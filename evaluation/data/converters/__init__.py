"""Converters from the files as published to the rows that the suites read, a module a suite."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
Converter = Callable[[Mapping[str, Path]], dict[str, Rows]]


def per_file(convert: Callable[[Path], Iterable[dict[str, Any]]]) -> Converter:
    """Make a converter out of a function that turns any one of a task's files into rows."""

    def converter(paths: Mapping[str, Path]) -> dict[str, Rows]:
        return {role: list(convert(path)) for role, path in paths.items()}

    return converter


def converter_of(suite: str, task: str) -> Converter:
    """Find a task's converter, from its files by role to its rows by `items` and `fewshot`."""
    module = importlib.import_module(f"{__name__}.{suite}")
    return module.CONVERTERS[task]
