"""The plan of a cask against a run's measured costs, and what it refuses."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from cask import cli as cask_cli
from common.errors import UserError
from common.sources import ROOT
from paper import casks, cli
from workflow import configuration

# CPU seconds of cask.yaml's steps on Gemma 3 270M, 2 cores, 2026-11-29, as results/cask/cost.csv
# has them; rows that it lacks had not run.
MEASURED = list(
    csv.DictReader((Path(__file__).with_name("cask_costs.csv")).read_text().splitlines())
)
FACTOR = 1.5  # of an estimate and what was measured, whichever is larger


def planned(**changes):
    """Load cask.yaml with terms accepted, rows that the kept table has, and some changes."""
    read = configuration.read(ROOT / "cask.yaml")
    ran = {row["id"] for row in MEASURED}
    methods = {name: row for name, row in read["methods"].items() if name in ran}
    return configuration.resolve(
        configuration.merge(read, {"accept_terms": ["gemma"], **changes}) | {"methods": methods}
    )


def hours(steps, words):
    return sum(step.hours for step in steps if words in step.name)


def reported(config, tmp_path, accepted=("gemma",), **given):
    given = {"memory": 25.0, "reachable": lambda: True, **given}
    return casks.report(config, accepted, tmp_path, **given)


@pytest.mark.parametrize(
    ("words", "stage", "split"),
    [
        ("training of", "experts", ""),
        ("teachers", "teachers", ""),
        ("that learn", "merges", "dam"),
        ("searched", "search", ""),
        ("dev items", "evaluation", "dev"),
        ("test items", "evaluation", "test"),
    ],
)
def test_estimates_are_near_what_a_run_measured(words, stage, split, tmp_path):
    rows = [row for row in MEASURED if row["stage"] == stage]
    if split == "dam":
        rows = [row for row in rows if row["id"].startswith("dam_")]
    elif split:
        rows = [row for row in rows if row["split"] == split]
    measured = sum(float(row["cpu_s"]) for row in rows)
    estimated = 3600 * hours(casks.steps_of(planned(), tmp_path), words)
    assert measured / FACTOR < estimated < measured * FACTOR


def test_costs_of_the_run_itself_replace_estimates(tmp_path):
    for name, seconds in (("ja", 1800), ("ko", 3600)):
        folder = tmp_path / "cask" / "models" / name
        folder.mkdir(parents=True)
        (folder / "cost.json").write_text(json.dumps({"cpu_s": seconds, "wall_s": 9e9}))
    steps = casks.steps_of(planned(), tmp_path)
    (step,) = [step for step in steps if "training of" in step.name]
    assert step.known == "measured in 2 of 3"
    assert step.hours == pytest.approx(1.5 * 1.5)  # the third counts as the others' mean


def test_seeds_and_size_scale_the_plan(tmp_path):
    def of(**changes):
        return sum(step.hours for step in casks.steps_of(planned(**changes), tmp_path))

    one, two = of(), of(seed=None, seeds=[1, 2])
    fetched = hours(casks.steps_of(planned(), tmp_path), "download")
    assert two - fetched == pytest.approx(2 * (one - fetched))
    size = {"cask": {"size": {"parameters": 134.0e6}}}
    names = ("training of", "that learn", "searched")
    for words in names:
        whole = hours(casks.steps_of(planned(), tmp_path), words)
        half = hours(casks.steps_of(planned(cases=size), tmp_path), words)
        assert half == pytest.approx(whole / 2)


def test_a_plan_without_obstacles_lists_all(tmp_path):
    lines, errors = reported(planned(), tmp_path)
    assert errors == []
    text = "\n".join(lines)
    for words in ("download of gemma3-270m", "training of 3 experts", "memory GB", "disk: about"):
        assert words in text


def test_every_obstacle_is_one_line(tmp_path, monkeypatch):
    small = type(shutil.disk_usage(tmp_path))(1, 1, 10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)
    _, errors = reported(planned(), tmp_path, (), memory=4.0, reachable=lambda: False)
    assert len(errors) == 4
    expected = ["accept_terms: [gemma]", "GB more and 0 GB are free", "holds", "hub.benchmarks"]
    for error, words in zip(errors, expected, strict=True):
        assert words in error
        assert "\n" not in error
    _, errors = reported(planned(hub={"benchmarks": str(tmp_path / "none")}), tmp_path)
    assert len(errors) == 2  # the disk is still small
    assert "hub.benchmarks" in errors[0]


def test_local_copies_and_the_bottles_tasks_need_no_hub(tmp_path):
    def asked():
        raise AssertionError("nothing has to be reached")

    _, errors = reported(planned(hub={"benchmarks": str(tmp_path)}), tmp_path, reachable=asked)
    assert errors == []


def test_the_command_plans_before_terms_are_accepted(monkeypatch, capsys):
    monkeypatch.setattr(casks, "_hub_answers", lambda: False)
    with pytest.raises(UserError, match=r"accept_terms: \[gemma\]"):
        cli.main(["preflight", "--config", str(ROOT / "cask.yaml")])
    assert "training of 3 experts" in capsys.readouterr().out


def test_the_casks_command_hands_over(monkeypatch):
    called = []
    monkeypatch.setattr("os.execv", lambda program, words: called.append(words))
    cask_cli.main(["preflight", "--config", "mine.yaml"])
    assert called[0][1:] == ["-m", "paper", "preflight", "--config", "mine.yaml"]
