"""The page on reliability: its tests exist, and its figures are those of the record."""

import json
import re

import pytest

from tests.test_docs_security import names_of_tests
from tests.workflow.test_house import ROOT

PAGE = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
TABLES = PAGE.split("| figure | value |\n|---|---|\n")[1:]


def test_every_test_that_the_page_names_exists():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 30
    assert not named - set(names_of_tests())


@pytest.mark.parametrize(("number", "name"), [(0, "faults"), (1, "faults-long")])
def test_the_figures_are_those_of_the_record(number, name):
    part = TABLES[number].split("\n\n", 1)[0]
    shown = dict(line.strip("| ").split(" | ", 1) for line in part.splitlines())
    record = json.loads((ROOT / f"docs/data/{name}.json").read_text(encoding="utf-8"))
    assert shown == {name: cell(value) for name, value in record.items()}


def cell(value):
    """Write a figure as the page has it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return str(value)
