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
    """Find a task's converter.

    Args:
        suite: ja8, kobest, okapi_de or sql_eval.
        task: Name within the suite.

    Returns:
        A function from the paths of the task's files, by role, to the rows, by `items` and
        `fewshot`.
    """
    module = importlib.import_module(f"{__name__}.{suite}")
    return module.CONVERTERS[task]
