"""The DAM study through real Snakemake, and its part of the configuration."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from studies.rooms import Studies
from workflow import configuration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))


def test_a_world_of_the_experiment_s_seed_is_the_case_itself(config):
    resolved = configuration.resolve(config)
    assert Studies(dam=resolved.studies.dam).worlds(resolved) == {}  # it has all three seeds
    del config["seeds"]
    config["seed"] = 1
    resolved = configuration.resolve(config)
    worlds = Studies(dam=resolved.studies.dam).worlds(resolved)
    assert {name: (world.seed, world.of) for name, world in worlds.items()} == {
        "studies/dam/case1_seed2": (2, "case1"),
        "studies/dam/case1_seed3": (3, "case1"),
    }
    assert worlds["studies/dam/case1_seed2"].experts == resolved.cases["case1"].experts
    assert Studies().worlds(resolved) == {}


def test_settings_take_the_study_s_parameters_unless_they_name_a_preset(config):
    study = configuration.resolve(config).studies.dam
    rates = [{"learning_rate": rate} for rate in study.learning_rates]
    assert study.candidates_of("reference") == rates
    assert study.candidates_of("soup") == [{}]
    assert study.candidates_of("fp32_2") == [{"learning_rate": 2e-3}]
    assert study.set_of("samples_10") == study.set | {"samples": 10, "epochs": 100}
    assert study.set_of("tanh_bf16_1") == {"preset": "authors-code", "samples": 600}
    assert study.set_of("soup") == {}


def test_every_setting_stands_in_a_comparison_and_is_tuned_alike(config):
    study = configuration.resolve(config).studies.dam
    shown = [
        setting
        for comparison in study.comparisons.values()
        for setting in (comparison.reference, *comparison.settings)
    ]
    assert set(shown) == set(study.settings)
    for setting in study.settings:
        assert len(study.candidates_of(setting)) in (1, len(study.learning_rates))
    # Settings that differ in their data make about as many steps.
    for name in study.comparisons["data"].settings:
        chosen = study.set_of(name)
        steps = chosen["samples"] * chosen.get("epochs", 1) / chosen["batch_size"]
        assert steps == pytest.approx(125, rel=0.11)


@pytest.mark.parametrize(
    ("path", "value", "pattern"),
    [
        (("sets",), {}, r"unknown key 'sets' at studies\.dam \(did you mean 'set'\?\)"),
        (("case",), "case3", r"unknown case 'case3' \(did you mean 'case"),
        (("settings", "row", "lable"), "x", r"'lable' at studies\.dam\.settings\.row .*'label'"),
        (("settings", "row", "set"), {"granularty": "row"}, r"settings\.row: .*'granularity'"),
        (("settings", "row", "set"), {"granularity": "rows"}, r"settings\.row: .*granularity"),
        (("settings", "row", "method"), "damm", r"unknown method 'damm' \(did you mean 'dam'\?\)"),
        (
            ("settings", "row", "experts"),
            ["jo"],
            r"unknown expert 'jo' of case1 \(did you mean 'ja'\?\)",
        ),
        (("settings", "row", "learning_rates"), [0.1, 0.2], r"2 learning rates; give one, or 3"),
        (("set", "samples"), 2001, r"2001 samples .* only 2000"),
        (("comparisons", "data", "reference"), "referenc", r"did you mean 'reference'"),
        (("comparisons", "data", "settings"), ["samples_11"], r"did you mean 'samples_1"),
        (("comparisons", "data", "settings"), ["reference"], r"compared with itself"),
    ],
)
def test_a_mistake_is_told_in_one_line(config, path, value, pattern):
    place = config["studies"]["dam"]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(UserError, match=pattern) as refused:
        configuration.resolve(config)
    assert "\n" not in str(refused.value)


@pytest.mark.workflow
def test_the_study_makes_its_worlds_and_nothing_of_the_default_run(project):
    assert project.planned() == {}
    planned = project.planned("study_dam")
    settings = len(project.config["studies"]["dam"]["settings"])
    # World 1 is the default run's; of world 2 data, base, experts, teachers and gate are lacking.
    assert planned == {
        "bottle_data": 1,
        "bottle_base": 1,
        "bottle_expert": 3,
        "teachers": 1,
        "evaluate": 4,
        "gate": 1,
        "study_dam_expert": 6,
        "study_dam_teachers": 2,
        "study_dam_mixed": 2,
        "study_dam_tune": 2 * settings,
        "study_dam_evaluate": 2 * settings,
        "study_dam": 1,
    }


@pytest.mark.workflow
def test_the_study_runs_to_its_tables_and_figures(project):
    study = project.config["studies"]["dam"]
    study["seeds"] = [1]  # the world is there
    project.write()
    code, output = project.run("workflow", "study", "dam", "--config", "tiny.yaml", "--cores", "2")
    assert code == 0, output[-4000:]
    folder = project.results / "studies/dam"
    with open(folder / "dam.csv", encoding="utf-8") as stream:
        rows = {(row["comparison"], row["setting"]): row for row in csv.DictReader(stream)}
    for name, comparison in study["comparisons"].items():
        for setting in (comparison["reference"], *comparison["settings"]):
            assert rows[name, setting]["worlds"] == "1" and rows[name, setting]["Avg mean"]
    assert float(rows["data", "reference"]["chosen"]) in study["learning_rates"]
    assert rows["data", "soup"]["chosen"] == ""
    assert "(h) Data" in (folder / "dam.md").read_text(encoding="utf-8")
    assert (folder / "dam_data.png").is_file()

    def made(setting):
        return json.loads((folder / setting / "seed1" / "model" / "manifest.json").read_text())

    own, swapped, mixed, moved = map(made, ("reference", "swapped", "mixed", "moved"))
    assert own["parameters"]["search"]["space"]["candidates"] == [
        {"learning_rate": rate} for rate in study["learning_rates"]
    ]
    inputs = own["inputs"]
    assert swapped["inputs"]["calibration.ja"] == inputs["calibration.math_a"]
    assert swapped["inputs"]["calibration.math_a"] == inputs["calibration.ja"]
    assert swapped["inputs"]["calibration.math_b"] == inputs["calibration.math_b"]
    assert len({mixed["inputs"][f"calibration.{e}"] for e in ("ja", "math_a", "math_b")}) == 1
    assert moved["inputs"]["experts.ja"] != inputs["experts.ja"]
    assert moved["inputs"]["base"] == inputs["base"]
    assert made("soup")["parameters"]["method"] == "linear"
    assert project.planned("study_dam") == {}
