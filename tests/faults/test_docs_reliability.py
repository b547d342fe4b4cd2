"""The page on reliability: its tests exist, and its figures are those of the record."""

import json
import re

import pytest

from tests.faults.added import added
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


def test_parts_are_added_up_by_hand():
    parts = [
        {"fuzz: a": {"inputs": 10, "slowest ms": 7}, "kills: most of one point": 2, "kills": 5},
        {"fuzz: a": {"inputs": 11, "refused": 4, "slowest ms": 3}, "kills: most of one point": 1},
        {"kills": 1, "load: to plan": {"rows": 1000, "CPU s": 9.5}},
    ]
    assert added(parts) == {
        "fuzz: a": {"inputs": 21, "refused": 4, "slowest ms": 7},
        "kills": 6,
        "kills: most of one point": 2,
        "load: to plan": {"rows": 1000, "CPU s": 9.5},
    }
