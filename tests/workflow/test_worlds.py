"""Several worlds of one experiment: the further ones are made beside the first."""

from __future__ import annotations

import csv
import json

import pytest

from common.manifest import accept

pytestmark = pytest.mark.workflow


def further(project, stop):
    """Give the reproduced experiment a second world."""
    del project.config["seed"]
    project.config |= {"seeds": [1, 2], "gate": {"stop": stop}}
    project.config["methods"] = {"soup": project.config["methods"]["soup"]}
    for key in ("ablation", "studies"):
        del project.config[key]
    project.write()


def test_a_further_world_leaves_the_first_one_s_steps_alone(project):
    further(project, stop=False)
    assert project.planned() == {
        "bottle_data": 2,
        "bottle_base": 2,
        "bottle_expert": 6,
        "evaluate": 2 * (4 + 4 + 1),  # in each case, parents on dev and test items, and a soup
        "gate": 2,
        "merge": 2,
        "smoke": 2 + 2,  # the first world's read fewer rows than before
        "inspect": 2 + 2,
        "resolved_config": 1,
        "make_tables": 1,
        "make_figures": 1,
        "make_page": 1,
    }


def test_a_world_that_fails_the_gate_is_named_and_the_others_make_the_tables(project):
    further(project, stop=True)
    del project.config["cases"]["case2"]
    project.write()
    for path in project.results.glob("case1/scores/dev/*[a-z].json"):
        content = json.loads(path.read_text())
        if "tasks" in content:
            for entry in content["tasks"].values():
                entry["value"] = 0.1 if path.stem == "base" else 0.9
            path.write_text(json.dumps(content))
            accept(path)
    output = project.reproduce()
    assert "case1-seed2 is left out of the tables: expert ja did not learn" in output
    found = json.loads((project.results / "case1/gates.json").read_text())
    assert found == {"passed": ["case1"], "failed": ["case1-seed2"]}
    with open(project.results / "tables/table1.csv", encoding="utf-8") as stream:
        rows = {row["id"]: row for row in csv.DictReader(stream)}
    soup = json.loads((project.results / "case1/scores/test/soup.json").read_text())
    assert float(rows["soup"]["MGSM"]) == pytest.approx(soup["tasks"]["bottle_ja8/mgsm"]["value"])
