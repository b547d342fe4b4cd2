"""The study of quality against price: reading, means, intervals and the verdict, by hand."""

from __future__ import annotations

import csv
import json
import math

import pytest

from common.calling import call
from common.errors import UserError
from report.averages import Score
from report.intervals import difference
from studies.cost.table import claim, load_looks, study_grid

STUDY = {
    "cases": ["case1"],
    "seeds": [0, 1],
    "evaluations": [1, 2],
    "rows": ["evo", "dam"],
    "dam": "dam",
    "search": "evo",
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def scores(value, stderr=0.03):
    entry = {"value": value, "stderr": stderr, "items": 200}
    tasks = ("bottle_ja8/a", "bottle_ja8/jsquad", "bottle_ja8/c", "bottle_gsm_en/gsm_en")
    return {"seed": 0, "tasks": dict.fromkeys(tasks, entry)}


@pytest.fixture
def study(small):
    """A search of 4 evaluations looked at after 1, 2 and 4, and DAM, over two seeds."""
    config, results = small[2], small[1]
    row = {"label": "Evolutionary", "method": "task_arithmetic", "evolve": {"budget": 4}}
    config["methods"]["evo"] = row
    config["studies"] = {"cost": STUDY}
    small[0].write_text(json.dumps(config))
    write(results / "case1/teachers/cost.json", cost(4.0, flops=100))
    for seed in (0, 1):
        run = results / f"studies/cost/case1/evo/seed{seed}"
        search = {"parameters": {"search": {"evaluations": 4}}, "inputs": {}}
        write(run / "model/manifest.json", search)
        write(run / "model/cost.json", cost(30.0, dev_flops=4000, earlier_cpu_s=10.0))
        lines = ["evaluation,dev_average,failure", "0,0.2,", "1,,bad", "2,0.5,", "3,0.4,"]
        (run / "model/search.csv").write_text("\n".join(lines) + "\n")
        for after, value in ((1, 0.2), (2, 0.2), (4, 0.4 + 0.1 * seed)):
            write(run / f"test/after{after}.json", scores(value))
            write(run / f"test/after{after}.manifest.json", {})
            write(run / f"test/after{after}.cost.json", cost(1.0))
        run = results / f"studies/cost/case1/dam/seed{seed}"
        write(run / "model/manifest.json", {"parameters": {}, "inputs": {"teachers": "0"}})
        write(run / "model/cost.json", cost(6.0, flops=900))
        write(run / "test/after0.json", scores(0.6 + 0.1 * seed))
    return config, results


def cost(cpu_s, **counted):
    return {"wall_s": 1.0, "cpu_s": cpu_s, "peak_rss_mb": 5, "counted": counted}


def test_looks_by_hand(study):
    looks = load_looks(*study)
    found = [
        (look.row, look.seed, look.evaluations, look.dev, look.flops, look.cpu_s) for look in looks
    ]
    # 40 CPU s and 4,000 FLOPs over 4 evaluations; DAM pays 4 s and 100 FLOPs for its teachers.
    assert found[:3] == [
        ("evo", 0, 1, 0.2, 1000, 10),
        ("evo", 0, 2, 0.2, 2000, 20),  # the second candidate failed
        ("evo", 0, 4, 0.5, 4000, 40),
    ]
    assert found[-1] == ("dam", 1, 0, None, 1000, 10)
    assert [look.test.value for look in looks if look.row == "dam"] == pytest.approx([0.6, 0.7])


def test_table_and_verdict_by_hand(study):
    config, results = study
    looks = load_looks(config, results)
    grid = study_grid(looks, config)
    assert [[cell.text for cell in row.cells[1:]] for row in grid.rows] == [
        ["Evolutionary", "1", "2", ".200", ".200", "1 k", "10.0"],
        ["Evolutionary", "2", "2", ".200", ".200", "2 k", "20.0"],
        ["Evolutionary", "4", "2", ".500", ".450", "4 k", "40.0"],
        ["DAM", "0", "2", "–", ".650", "1 k", "10.0"],
    ]
    assert grid.rows[2].cells[5].error == ".071"  # of .4 and .5
    line = claim(looks, config, "case1")
    # Deviations of .0707 over two seeds make Welch's interval wide: nothing can be told.
    assert "DAM cannot be distinguished from Evolutionary: +0.200 ± " in line
    assert "with 0.25 times its FLOPs and 0.25 times its CPU seconds" in line
    assert "With no more FLOPs than DAM the search is at 0.200, after 1 evaluations" in line
    assert "The claim holds here" in line
    for seed in (0, 1):
        run = results / f"studies/cost/case1/dam/seed{seed}"
        write(run / "model/cost.json", cost(6.0, flops=2900))
    assert "The claim does not hold here" in claim(load_looks(config, results), config, "case1")


@pytest.mark.parametrize(("ours", "word"), [(0.9, "beats"), (0.1, "stays behind")])
def test_verdict_words(study, ours, word):
    config, results = study
    for seed in (0, 1):
        for row, name, value in (("dam", "after0", ours), ("evo", "after4", 0.45)):
            path = results / f"studies/cost/case1/{row}/seed{seed}/test/{name}.json"
            write(path, scores(value + 0.001 * seed))
    line = claim(load_looks(config, results), config, "case1")
    assert f"DAM {word} Evolutionary" in line
    assert ("does not hold" in line) == (word == "stays behind")


def test_the_interval_is_welch_s_where_items_are_certain():
    from scipy import stats

    first = [0.61, 0.64, 0.70]
    second = [0.50, 0.52, 0.51, 0.55]
    gap, width = difference(
        [Score(value, 0.0, 200) for value in first], [Score(value, 0.0, 200) for value in second]
    )
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (gap - width, gap + width) == pytest.approx((expected.low, expected.high))


def test_the_interval_is_the_items_where_seeds_change_nothing():
    gap, width = difference([Score(0.6, 0.03, 200)] * 3, [Score(0.5, 0.04, 200)] * 3)
    assert (gap, width) == pytest.approx((0.1, 1.959964 * math.hypot(0.03, 0.04)))


def test_command_writes_table_figure_and_manifest(study, small, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["--config", str(small[0]), "--results", str(small[1]), "--out", str(out)]
    assert call("studies.cli", ["cost", *given]) == 0
    names = {f"cost.{form}" for form in ("csv", "md", "png", "pdf")} | {"manifest.json"}
    assert {path.name for path in out.iterdir()} == names
    with (out / "cost.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8 and rows[2]["dev_average"] == "0.500000"
    assert "C2, case1: DAM" in (out / "cost.md").read_text(encoding="utf-8")
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["inputs"]) == 8 and set(manifest["outputs"]) == names - {"manifest.json"}


def test_no_scores_are_one_line(small):
    with pytest.raises(UserError, match="run `python -m workflow study cost`"):
        load_looks(small[2] | {"studies": {"cost": STUDY | {"rows": ["dam"]}}}, small[1])
