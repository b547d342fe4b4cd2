"""docs/merging.md says of every method what the registry says."""

from __future__ import annotations

from pathlib import Path

import pytest

from merges.engine import registry

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "merging.md"


@pytest.mark.parametrize("name", [name for name, info in registry.describe().items() if info.paper])
def test_the_table_of_methods_is_that_of_the_registry(name: str) -> None:
    info = registry.info(name)
    row = next(
        (line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{name}` |")), ""
    )
    assert info.title in row and info.paper.removeprefix("arXiv:") in row
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    acts = "whole models" if info.whole_model else info.unit
    experts = [f"{info.experts} expert{'s' * (info.experts > 1)}"] if info.experts else []
    seen = [f"{kind} of the {whose}" for whose, kind in info.statistics.items()]
    assert cells[2:] == [", ".join([*sorted(info.needs), *seen, *experts]) or "-", acts]
