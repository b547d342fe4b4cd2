"""The cost study through real Snakemake, and its part of the configuration."""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from workflow import configuration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))


def test_a_search_is_looked_at_until_its_budget_and_other_rows_once(config):
    config["methods"]["evolutionary"]["evolve"]["budget"] = 20
    resolved = configuration.resolve(config)
    study, rows = resolved.studies.cost, resolved.methods
    assert study.evaluations_of(rows["evolutionary"]) == [1, 3, 6, 12, 20]
    assert study.evaluations_of(rows["dam_tuned"]) == [6]
    assert study.evaluations_of(rows["dam_paper"]) == [0]
    assert len(study.runs(resolved)) == len(study.rows)
    config["methods"]["dam_paper"]["cases"] = ["case1"]
    config["studies"] = {"cost": config["studies"]["cost"] | {"cases": ["case2"]}}
    resolved = configuration.resolve(config)
    assert ("case2", "dam_paper") not in resolved.studies.cost.runs(resolved)


@pytest.mark.parametrize(
    ("key", "value", "pattern"),
    [
        ("cases", ["cas1"], r"studies\.cost\.cases: unknown case 'cas1' \(did you mean 'case1'"),
        ("rows", ["evolutionary", "dam_tund"], r"unknown row 'dam_tund' \(did you mean"),
        ("rows", ["greedy_soup", "dam_tuned"], "which no seed changes"),
        ("dam", "soup", r"studies\.cost\.dam: unknown row 'soup' of studies\.cost\.rows"),
        ("search", "dam_paper", "dam_paper is no evolutionary search"),
        ("seed", [0], r"unknown key 'seed' at studies\.cost \(did you mean 'seeds'"),
    ],
)
def test_mistakes_in_the_study_are_one_line(config, key, value, pattern):
    config["studies"]["cost"][key] = value
    with pytest.raises(UserError, match=pattern) as refused:
        configuration.resolve(config)
    assert "\n" not in str(refused.value)


@pytest.mark.workflow
def test_the_study_runs_its_rows_with_its_seeds_and_nothing_else(project):
    assert project.planned() == {}
    code, output = project.run("workflow", "study", "cost", "--config", "tiny.yaml", "--cores", "2")
    assert code == 0, output[-4000:]
    folder = project.results / "studies/cost"
    with (folder / "cost.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["row"], row["seed"], row["evaluations"]) for row in rows] == [
        *(("ties_tuned", seed, "2") for seed in "01"),
        *(("evolutionary", seed, after) for seed in "01" for after in ("1", "3", "5")),
        *(("dam_paper", seed, "0") for seed in "01"),
    ]
    searches = [folder / f"case1/evolutionary/seed{seed}" for seed in (0, 1)]
    tried = [(search / "model/search.csv").read_text() for search in searches]
    assert tried[0] != tried[1]
    for search, text in zip(searches, tried, strict=True):
        dev = [float(row["dev_average"]) for row in csv.DictReader(text.splitlines())]
        looks = [row for row in rows if row["row"] == "evolutionary"]
        looks = [row for row in looks if row["seed"] == search.name[-1]]
        assert [float(row["dev_average"]) for row in looks] == pytest.approx(
            [max(dev[:1]), max(dev[:3]), max(dev)], abs=1e-6
        )
        for name, seed in (("model", int(search.name[-1])), ("after1", int(search.name[-1]))):
            assert json.loads((search / name / "manifest.json").read_text())["seed"] == seed
    assert re.search(r"^C2, case1: ", (folder / "cost.md").read_text(), re.M)
    assert (folder / "cost.png").stat().st_size > 10_000
    # The tables' own rows are as they were.
    assert project.planned() == {} and project.planned("study_cost") == {}
