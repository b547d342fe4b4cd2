"""Studies beyond the tables: one folder each; a new one is found without a change elsewhere."""

from __future__ import annotations

import importlib
import pkgutil

NAMES = tuple(found.name for found in pkgutil.iter_modules(__path__) if found.ispkg)


def about(name: str) -> str:
    """Say in a line what a study is about: the first line of its package."""
    return (importlib.import_module(f"studies.{name}").__doc__ or "").strip()
