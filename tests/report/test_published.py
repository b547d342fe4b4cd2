"""The file of published values, and what its loader refuses."""

from __future__ import annotations

import pytest
import yaml

from common.errors import UserError
from report import published


@pytest.fixture
def content() -> dict:
    return yaml.safe_load(published.PAPER.read_text(encoding="utf-8"))


def refused(tmp_path, content, match):
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match=match):
        published.load(path)


def test_claims_and_values_are_those_of_the_text():
    paper = published.load()
    assert [claim.id for claim in paper.claims] == [f"C{number}" for number in range(1, 14)]
    assert all(claim.tables for claim in paper.claims)
    stated = {
        (table, row, column): value
        for table, about in paper.tables.items()
        for row, entry in about.rows.items()
        for column, value in entry.cells.items()
    }
    assert stated == {
        ("table1", "evolutionary", "Avg"): 0.62,
        ("table1", "soup", "Avg"): 0.61,
        ("table1", "dare_ties", "Avg"): 0.55,
        ("table1", "dare_ties", "JComQA"): 0.82,
        ("table1", "dare_ties", "MGSM"): 0.62,
        ("table2", "dam", "Okapi (German)"): 0.4434,
        ("table2", "dam", "SQL-Eval"): 0.6125,
        ("table2", "soup", "SQL-Eval"): 0.5969,
        ("table2", "dare_ties", "KoBEST (Korean)"): 0.6307,
    }


def test_rows_and_columns_exist_at_both_scales():
    root = published.PAPER.parents[2]
    configs = [
        yaml.safe_load((root / name).read_text("utf-8")) for name in ("config.yaml", "paper.yaml")
    ]
    known = {row for config in configs for row in config["methods"]}
    for config in configs:
        columns = {
            case["table"]: [c["label"] for c in case["columns"]]
            for case in config["cases"].values()
        }
        for name, table in published.load().tables.items():
            if name in columns:
                assert list(table.columns) == [*columns[name], "Avg"]
            for row in table.rows.values():
                assert set(row.ours) <= known
                assert set(row.ours) & set(config["methods"])


def test_null_is_unknown(tmp_path, content):
    content["tables"]["table1"]["rows"]["dam"]["cells"]["Avg"] = None
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert published.load(path).tables["table1"].rows["dam"].cells == {}


def test_mistakes_are_named(tmp_path, content):
    def changed(change):
        copy = yaml.safe_load(yaml.safe_dump(content))
        change(copy)
        return copy

    cells = content["tables"]["table1"]["rows"]["soup"]["cells"]
    cells["Average"] = 0.5
    refused(tmp_path, content, r"table1\.soup: unknown column 'Average'")
    del cells["Average"]
    cells["Avg"] = 61
    refused(tmp_path, content, "61 is not a score between 0 and 1")
    cells["Avg"] = 0.61
    refused(tmp_path, changed(lambda c: c["claims"].pop(2)), "'C4' is in the place of C3")
    refused(tmp_path, changed(lambda c: c["claims"][0].update(tables=["tabel1"])), "table1")
    refused(tmp_path, changed(lambda c: c.pop("claims")), "not a file of published values")
    with pytest.raises(UserError, match="no such file"):
        published.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"row": "damm"}, r"claim C1: unknown row 'damm' \(did you mean 'dam'"),
        ({"than": ["other"]}, "claim C1: unknown row 'other'"),
        ({"is": "abov"}, r"claim C1: unknown 'is' 'abov' \(did you mean 'above'"),
        ({"table": "table9"}, "claim C1: unknown table 'table9'"),
    ],
)
def test_a_claim_s_test_names_what_there_is(tmp_path, content, wrong, match):
    content["claims"][0]["tests"][0] |= wrong
    refused(tmp_path, content, match)
