"""Searches with other algorithms than CMA-ES on tiny models: state, replay and the front."""

import csv
import json
import shutil

import numpy as np
import pytest

from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.files import read_json, write_jsonl
from search.cli import main
from tests.search.conftest import make_items

SUITES = "bottle_kobest/copa,bottle_kobest/hellaswag"
BUDGETS = {"nsga2": 20, "map": 14, "m2n2": 14, "merge3": 16}


@pytest.fixture(scope="module")
def data(world, tmp_path_factory):
    """Items of two tasks."""
    folder = tmp_path_factory.mktemp("goals") / "data"
    shutil.copytree(world / "data", folder)
    random = np.random.default_rng(7)
    for split in ("dev", "test"):
        rows = make_items(random, split, 8)
        write_jsonl(folder / split / "bottle_kobest" / "hellaswag.jsonl", rows)
    return folder


@pytest.fixture
def evolve(command, data, tmp_path):
    """Make the command line of a search with an algorithm."""

    def make(algorithm, name, *extra):
        given = ["--algorithm", algorithm, "--budget", BUDGETS[algorithm], "--seed", "3"]
        given += ["--data", data, "--suites", SUITES, "--out", tmp_path / name, *extra]
        return command("evolve", *given, data=False)

    return make


def table(folder, name="search.csv"):
    with open(folder / name, encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("algorithm", BUDGETS)
def test_a_search_that_stops_goes_on_and_is_replayed(
    algorithm, evolve, command, tmp_path, monkeypatch
):
    import search.workbench

    real, stops = search.workbench.Workbench.evaluate, [11, 2]

    def evaluate(self, index, genome):
        if stops and index == stops[-1]:
            stops.pop()
            raise KeyboardInterrupt
        return real(self, index, genome)

    monkeypatch.setattr(search.workbench.Workbench, "evaluate", evaluate)
    for _ in range(2):  # in the first generation, then in a later one or at its end
        with pytest.raises(KeyboardInterrupt):
            main(evolve(algorithm, "out"))
        assert not (tmp_path / "out").exists()
    assert main(evolve(algorithm, "out")) == 0 and not stops
    assert main(evolve(algorithm, "whole")) == 0
    for name in ("manifest.json", "search.csv", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "out.search").exists()
    rows = table(tmp_path / "out")
    averages = [float(row["dev_average"]) for row in rows]
    assert len(rows) == BUDGETS[algorithm] and len(set(averages)) > 2
    about = read_json(tmp_path / "out" / "manifest.json")["parameters"]["search"]
    assert about["algorithm"] == algorithm and about["chosen"] == averages.index(max(averages))
    given = ["--of", tmp_path / "out", "--evaluations", len(rows), "--out", tmp_path / "again"]
    assert main(command("replay", *given, method=None, data=False)) == 0
    again, out = (Checkpoint(tmp_path / name) for name in ("again", "out"))
    assert again.fingerprint == out.fingerprint


def test_the_front_of_a_search_and_its_models(evolve, world, tmp_path, capsys):
    assert main(evolve("nsga2", "out")) == 0
    models = ["--base", world / "base", "--experts", f"a={world / 'a'}", f"b={world / 'b'}"]
    given = ["front", "--of", tmp_path / "out", "--out", tmp_path / "front", "--write", "2"]
    assert main([*map(str, [*given, *models])]) == 0
    rows = {row["evaluation"]: row for row in table(tmp_path / "out")}
    tasks = SUITES.split(",")
    scores = {n: [float(row[task]) for task in tasks] for n, row in rows.items()}
    front = table(tmp_path / "front", "front.csv")
    assert [row["dev_average"] for row in front] == sorted(
        (row["dev_average"] for row in front), key=float, reverse=True
    )
    for row in front:  # none is beaten, and each is as the search has it
        own = scores[row["evaluation"]]
        assert [float(row[task]) for task in tasks] == own
        for other in scores.values():
            assert other == own or any(a < b for a, b in zip(other, own, strict=True))
    beaten = scores.keys() - {row["evaluation"] for row in front}
    for n in beaten:
        assert any(
            all(float(row[task]) >= score for task, score in zip(tasks, scores[n], strict=True))
            for row in front
        )
    volumes = [float(row["hypervolume"]) for row in table(tmp_path / "front", "hypervolume.csv")]
    assert volumes == sorted(volumes) and len(volumes) == len(rows)
    first = next(iter(scores.values()))
    assert volumes[0] == pytest.approx(first[0] * first[1])
    assert (tmp_path / "front" / "front.svg").read_text().lstrip().startswith("<?xml")
    # The best on average is on the front; if it is written it is the search's own result.
    written = sorted(path.name for path in (tmp_path / "front" / "models").iterdir())
    assert len(written) == min(2, len(front)) and set(written) <= {r["evaluation"] for r in front}
    for name in written:
        card = read_json(tmp_path / "front" / "models" / name / "manifest.json")
        assert card["parameters"]["search"]["chosen"] == int(name)
    goals = ["--goals", json.dumps([tasks]), "--out", str(tmp_path / "one"), "--write", "1"]
    assert main([*map(str, ["front", "--of", tmp_path / "out", *models]), *goals]) == 0
    (only,) = table(tmp_path / "one", "front.csv")
    model = Checkpoint(tmp_path / "one" / "models" / only["evaluation"])
    assert model.fingerprint == Checkpoint(tmp_path / "out").fingerprint


def test_wrong_options_are_reported_before_anything_is_written(evolve, world, tmp_path):
    out = ["--out", tmp_path / "front"]
    for given, message in (
        (evolve("map", "out", "--budget", "5"), "give a budget of 9 evaluations or more"),
        (evolve("nsga2", "out", "--population", "40"), "population of 40 does not fit"),
        (evolve("map", "out", "--space", "data-flow"), "the parameter space"),
        (["front", "--of", tmp_path, *out], "no such file"),
        (["front", "--of", tmp_path, "--write", "2", *out], "--write needs --base"),
        (["front", "--of", tmp_path, "--write", "-1", *out], "--write -1: give 0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(word) for word in given])
        assert not (tmp_path / "out").exists() and not (tmp_path / "front").exists()
    without = [w for w in evolve("map", "out") if w not in ("--budget", str(BUDGETS["map"]))]
    with pytest.raises(UserError, match="map needs --budget"):
        main([*without, "--seconds", "9"])
