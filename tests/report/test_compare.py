"""The comparison of two runs' tables, with cells that are counted by hand."""

import csv

import pytest

from common.errors import UserError
from report import compare
from report.case_table import case_csv
from report.cli import main
from report.load import load

# Combined errors of the second folder's cells: .05 where both are .03 and .04.
FIRST = """id,label,kind,A,A stderr,A items,Avg,Avg stderr,Avg items,Avg seed 1
base,Base,base,0.300000,0.030000,200,0.300000,0.030000,200,0.1
soup,Soup,merge,0.500000,0.030000,200,0.500000,0.000000,200,0.2
ties,TIES,merge,,,,0.600000,0.030000,200,0.3
"""
SECOND = """id,label,kind,A,A stderr,A items,Avg,Avg stderr,Avg items,Avg seed 1
base,Base,base,0.300000,0.030000,200,0.350000,0.040000,200,0.9
soup,Soup,merge,0.600000,0.040000,200,0.500000,0.000000,200,0.9
ties,TIES,merge,,,,0.710000,0.040000,200,0.9
"""
THIRD = """id,label,Avg mean,Avg sd,Avg item stderr,Avg items
kl,KL,0.500000,0.003000,0.010000,200
"""


def folder(path, **tables):
    (path / "tables").mkdir(parents=True)
    for name, text in tables.items():
        (path / "tables" / f"{name}.csv").write_text(text)
    return path


def test_cells_are_counted_and_the_ones_apart_are_named(tmp_path, capsys):
    first = folder(tmp_path / "a", table1=FIRST, table3=THIRD)
    second = folder(tmp_path / "b", table1=SECOND, table3=THIRD.replace("0.5", "0.504"))
    file = tmp_path / "cells.csv"
    assert main(["compare", str(first), str(second), "--csv", str(file)]) == 1
    # Apart by 0, 1, 2, 0 and 2.2 errors; table 3 by .004 of hypot(.003, .003) = .00424.
    assert capsys.readouterr().out.splitlines() == [
        "table1: 5 cells: 3 agree within their combined error, 4 within two, 2 are equal to the "
        "byte",
        "  ties, Avg: .600 ± .030 and .710 ± .040 (2.2 errors)",
        "table3: 1 cells: 1 agree within their combined error, 1 within two, 0 are equal to the "
        "byte",
    ]
    rows = list(csv.DictReader(file.open()))
    assert [round(float(row["errors"]), 3) for row in rows] == [0, 1, 2, 0, 2.2, 0.943]
    assert rows[4] == {
        **{"table": "table1", "row": "ties", "column": "Avg", "errors": "2.200000"},
        **{"first": "0.600000", "first error": "0.030000"},
        **{"second": "0.710000", "second error": "0.040000"},
    }


def test_equal_folders_agree(tmp_path, capsys):
    first, second = (folder(tmp_path / name, table1=FIRST) for name in "ab")
    assert main(["compare", str(first), str(second)]) == 0
    assert "5 cells: 5 agree" in capsys.readouterr().out


def test_values_without_an_error_agree_only_where_they_are_equal():
    cell = compare.Pair("soup", "A", ("1.000000", "0.000000"), ("0.990000", "0.000000"))
    assert cell.errors == float("inf")
    assert compare.Pair("soup", "A", ("1.0", "0.0"), ("1.0", "0.0")).errors == 0
    assert compare.Pair("soup", "A", ("1.0", "0.0"), ("", "")).errors == float("inf")


def test_another_experiments_rows_are_listed_and_the_common_ones_compared(tmp_path, capsys):
    first = folder(tmp_path / "a", table1=FIRST)
    other = FIRST.replace("ties,TIES", "dam,DAM").replace("A,A stderr", "B,B stderr")
    second = folder(tmp_path / "b", table1=other)
    assert main(["compare", str(first), str(second)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("table1: 2 cells: 2 agree")
    for told in (f"rows only in {first}: ties", f"columns only in {second}: B"):
        assert f"  {told}\n" in out


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({}, "no tables/.*; give the folder of a finished run"),
        ({"table1": "id,A\nbase,0.3\n"}, "table1.csv: no standard errors to compare by"),
        ({"table1": FIRST.replace("0.300000", "much", 1)}, "table1.csv: no table"),
        ({"table9": FIRST}, "no cell in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, tables, told):
    first = folder(tmp_path / "a", table1=FIRST)
    with pytest.raises(UserError, match=told):
        compare.compare(first, folder(tmp_path / "b", **tables))


def test_the_reports_own_tables_can_be_read(small, tmp_path):
    experiment = load(small[0], small[1])
    text = case_csv(experiment.cases[0])
    cells = compare.read_tables(folder(tmp_path / "a", table1=text))["table1"]
    case = experiment.cases[0]
    for model in case.models:
        if (average := case.average(model)) is not None:
            value, error = cells[model.id, "Avg"]
            assert float(value) == pytest.approx(average.value, abs=1e-6)
            assert float(error) == pytest.approx(average.stderr, abs=1e-6)
