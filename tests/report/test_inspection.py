"""What merges kept of their experts: the table and the panels, with numbers computed by hand."""

from __future__ import annotations

import json
import re

import pytest

from common.calling import call
from report import inspection, panels, tables
from report.load import load
from tests.report.conftest import fill, inspected, write


def table(experiment):
    grid = inspection.inspection_grid(experiment.cases[0])
    rows = {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in grid.rows}
    return list(grid.header[1:]), rows


def number(value):
    return f"{value:.3f}".removeprefix("0")


def test_the_table_has_weights_and_scores_of_every_inspected_merge(small):
    config, results, about = small
    case = about["cases"]["case1"]
    found = json.loads((results / "case1/inspection.json").read_text())
    header, rows = table(load(config, results))
    labels = [expert["label"] for expert in case["experts"].values()]
    assert header == [f"Kept: {label}" for label in labels] + ["Outside", "Length"] + [
        f"Score: {label}" for label in labels
    ] + ["Held out"]  # fmt: skip
    assert set(rows) == {row["label"] for row in about["methods"].values()}

    def value(model, task):
        path = results / f"case1/scores/test/{model}.json"
        return json.loads(path.read_text())["tasks"][task]["value"]

    def at_home(model, expert):
        domain = case["experts"][expert]["domain"]
        return sum(value(model, task) for task in domain) / len(domain)

    for id, row in about["methods"].items():
        kept = [number(found["all"]["kept"][id][expert]) for expert in case["experts"]]
        rest = [number(found["all"][name][id]) for name in ("outside", "length")]
        scores = [f"{at_home(id, e) / at_home(e, e):.2f}" for e in case["experts"]]
        best = max(value(expert, "bottle_ja8/c") for expert in case["experts"])
        away = f"{value(id, 'bottle_ja8/c') / best:.2f}"
        assert rows[row["label"]] == [*kept, *rest, *scores, away]


def test_worlds_are_averaged_and_one_without_an_inspection_is_left_out(small, tmp_path):
    _, _, about = small
    del about["seed"], about["ablation"]
    about["ablation"] = None
    about["seeds"] = [1, 2, 3]
    results = tmp_path / "worlds"
    fill(results, about | {"ablation": {"objectives": {}, "seeds": [], "case": "case1"}})
    write(tmp_path / "worlds.json", about)
    (results / "case1-seed3/inspection.json").unlink()
    _, rows = table(load(tmp_path / "worlds.json", results))
    parts = [
        json.loads((results / f"{world}/inspection.json").read_text())["all"]["kept"]["soup"]["ja"]
        for world in ("case1", "case1-seed2")
    ]
    assert rows["Model Soups"][0] == number(sum(parts) / 2)


def test_panels_have_a_row_for_every_merge_and_a_dot_for_every_layer_and_module(small):
    config, results, about = small
    found = inspected(["ja", "math_a"], list(about["methods"]))
    found["all"]["kept"]["soup"]["ja"] = 1.5  # beyond the experts' own
    for place, group in enumerate(found["groups"]):
        group["kept"]["soup"]["ja"] = -0.5 + place / 2  # the head's, the last, is not shown
    found["all"]["outside"]["dam"] = None
    write(results / "case1/inspection.json", found)
    case = load(config, results).cases[0]
    ja, _, outside = panels.kept(case)
    assert len(ja.marks) == len(about["methods"])
    (soup,) = [mark for mark in ja.marks if mark.label == "Model Soups"]
    # The axis goes from -.5 to 1.5 over 160 units that begin at 160.
    assert soup.seeds == pytest.approx([160, 200, 240, 280])
    assert soup.x == pytest.approx(320) and soup.text == "1.500"
    assert [text for _, text in ja.ticks] == ["-.500", ".000", "1.000", "1.500"]
    (dam,) = [mark for mark in outside.marks if mark.label == "DAM"]
    assert dam.text == "–" and not dam.seeds


def test_coefficients_have_a_table_and_panels_for_rescaling_and_for_mixing(small):
    config, results, about = small
    found = inspected(["ja", "math_a"], list(about["methods"]))

    def own(total):
        shares = {"ja": total / 4, "math_a": 1 - total / 4}
        return {"dam": {"sum": total, "spread": 0.25, "shares": shares}}

    found["all"]["coefficients"] = own(1.25)
    for place, group in enumerate(found["groups"]):
        group["coefficients"] = own(0.5 + place / 2)  # .5, 1, 1.5, 2 and the head's 2.5
    write(results / "case1/inspection.json", found)
    case = load(config, results).cases[0]
    grid = inspection.coefficients_grid(case)
    assert grid.header == ("Model", "Weights", "Sum", "Spread", "Share: ja", "Share: math_a")
    lines = [[cell.text for cell in row.cells] for row in grid.rows]
    assert [line[1] for line in lines] == [
        *("all", "0 attention", "0 mlp", "1 attention", "1 mlp", "head")
    ]
    assert lines[0] == ["DAM", "all", "1.250", ".250", number(1.25 / 4), number(1 - 1.25 / 4)]
    assert lines[4][2:] == ["2.000", ".250", ".500", ".500"]
    total, ja, _ = panels.coefficients(case)
    assert (total.title, ja.title) == ("Sum of coefficients", "Share of Japanese expert")
    (dam,) = total.marks
    # The axis goes from 0 to 2 over 160 units that begin at 160.
    assert dam.seeds == pytest.approx([200, 240, 280, 320]) and dam.x == pytest.approx(260)


def test_without_coefficients_there_is_no_table_of_them(small):
    config, results, _ = small
    assert inspection.coefficients_grid(load(config, results).cases[0]) is None


def test_the_page_shows_it_and_goes_without_a_damaged_file(small, tmp_path, capsys):
    config, results, _ = small
    given = ["page", "--config", str(config), "--results", str(results)]
    page = tmp_path / "report.html"
    assert call("report.cli", [*given, "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "Why a merge works" in text and "Kept of Japanese expert" in text
    assert re.search(r"How experts moved, 5 groups", text)
    names = {grid.name for grid in tables.grids(load(config, results))}
    assert "table1_inspection" in names
    path = results / "case1/inspection.json"
    for damage in ("{", "{}", json.dumps({"experts": [], "merges": [], "all": 1, "groups": []})):
        path.write_text(damage)
        capsys.readouterr()
        assert call("report.cli", [*given, "--out", str(page)]) == 1
        assert "inspection.json" in capsys.readouterr().err
        assert "Why a merge works" not in page.read_text(encoding="utf-8")
