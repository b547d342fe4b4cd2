"""docs/merging.md says of every method what the registry says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.files import read_jsonl
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


def test_what_was_found_has_the_scores_of_the_kept_run() -> None:
    from report import kept

    text = DOCUMENT.read_text().split("**What was found**")[1]
    found = re.findall(r"^\| (\w+) \| (\.\d+) \| (\.\d+) \| \d+ \| ", text, re.MULTILINE)
    run = DOCUMENT.parent / "results" / "more.jsonl"
    with kept.opened(run) as experiment:
        scores = [
            {model.id: f"{case.average(model).value:.3f}"[1:] for model in case.models + case.more}
            for case in experiment.cases
        ]
    rows = dict(read_jsonl(run))["config.json"]["methods"]
    tuned = {name for name, row in rows.items() if row.get("tune") and row["table"] == "more"}
    assert {row for row, *_ in found} == tuned
    for row, *shown in found:
        assert shown == [values[row] for values in scores], row
