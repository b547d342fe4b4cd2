"""Greedy soup: the order, what joins and what does not, by hand; and whole runs on tiny models."""

import csv

import pytest
import torch

from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.files import read_json
from search.cli import main
from search.evaluation import Evaluation
from search.greedy import Greedy


def choose(scores, experts="abc"):
    """Run with hand-made scores, written as {"a": 0.5, "ab": 0.6}; a soup's letters are sorted."""
    asked, greedy = [], Greedy(len(experts))
    while generation := greedy.ask():
        told = []
        for genome in generation:
            members = "".join(name for name, part in zip(experts, genome, strict=True) if part)
            asked.append(members)
            told.append(scores[members])
        # Whatever is taken up again goes on the same way.
        again = Greedy(len(experts))
        again.restore(greedy.state())
        assert again.ask() == generation
        greedy.tell(told)
    return "".join(experts[n] for n in greedy.joined), asked


def test_experts_join_best_first_while_the_score_does_not_fall():
    scores = {"a": 0.2, "b": 0.6, "c": 0.4, "bc": 0.7, "abc": 0.65}
    assert choose(scores) == ("bc", ["a", "b", "c", "bc", "abc"])


def test_one_that_is_refused_does_not_stop_the_next():
    scores = {"a": 0.6, "b": 0.5, "c": 0.4, "ab": 0.55, "ac": 0.61}
    assert choose(scores) == ("ac", ["a", "b", "c", "ab", "ac"])


def test_an_equal_score_lets_an_expert_in_and_equals_keep_the_order_given():
    scores = dict.fromkeys(("a", "b", "c", "ab", "abc"), 0.5)
    assert choose(scores) == ("abc", ["a", "b", "c", "ab", "abc"])


def test_a_failed_expert_stays_out_and_a_failed_soup_is_refused():
    scores = {"a": None, "b": 0.6, "c": 0.4, "bc": None}
    assert choose(scores) == ("b", ["a", "b", "c", "bc"])
    assert choose({"a": None, "b": None, "c": None}) == ("", ["a", "b", "c"])
    assert choose({"a": 0.1}, "a") == ("a", ["a"])


@pytest.fixture
def parents(make_model, tmp_path):
    """Base and three experts, and a data folder that only its manifest is read of."""
    for seed, name in enumerate(("base", "a", "b", "c")):
        make_model(tmp_path / name, "mistral", seed=seed)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("{}")
    return tmp_path


class Bench:
    """A workbench that gives hand-made scores, in the order in which it is asked."""

    scores = ()

    def __init__(self, space, *_, **__):
        self.space, self.merged = space, []
        Bench.last = self

    def close(self):
        pass

    def evaluate(self, index, genome):
        average = self.scores[index]
        tensors, _ = self.space.tensors(self.space.decode(genome))
        self.merged.append({name: tensor.clone() for name, tensor in tensors.items()})
        tasks, counted = {"s/t": average}, {"dev_tokens": 7.0}
        return Evaluation(
            index, self.space.named(genome), average, tasks, "", list(genome), counted
        )


def run(parents, monkeypatch, scores, out):
    monkeypatch.setattr("search.searches.Workbench", Bench)
    monkeypatch.setattr(Bench, "scores", scores)
    arguments = ["--data", str(parents / "data"), "--suites", "bottle_kobest/copa"]
    experts = [f"{name}={parents / name}" for name in "abc"]
    base = ["--base", str(parents / "base"), "--experts", *experts]
    assert main(["greedy", *base, *arguments, "--out", str(out)]) == 0


@pytest.mark.parametrize(
    ("scores", "joined", "chosen"),
    [
        ([0.2, 0.6, 0.4, 0.7, 0.65], "bc", 3),
        ([0.2, 0.6, 0.4, 0.6, 0.6], "bca", 4),  # equal ones join: the soup is the last of them
        ([0.6, 0.6, 0.4, 0.5, 0.5], "a", 0),
    ],
)
def test_the_soup_is_written_with_its_history_and_cost(
    parents, monkeypatch, tmp_path, scores, joined, chosen
):
    run(parents, monkeypatch, scores, tmp_path / "out")
    models = {name: Checkpoint(parents / name) for name in joined}
    written = Checkpoint(tmp_path / "out")
    for name in written.names():
        mean = sum(model.load(name).double() for model in models.values()) / len(models)
        torch.testing.assert_close(written.load(name).double(), mean, rtol=1e-6, atol=1e-7)
    search = read_json(tmp_path / "out" / "manifest.json")["parameters"]["search"]
    assert (search["kind"], search["joined"]) == ("greedy", list(joined))
    assert (search["chosen"], search["evaluations"]) == (chosen, 5)
    assert search["dev_average"] == scores[chosen]
    assert read_json(tmp_path / "out" / "cost.json")["counted"] == {
        "evaluations": 5,
        "dev_tokens": 35.0,
    }
    with open(tmp_path / "out" / "search.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["dev_average"]) for row in rows] == scores
    assert [[row[name] for name in "abc"] for row in rows[:3]] == [
        ["1.0", "0.0", "0.0"],
        ["0.0", "1.0", "0.0"],
        ["0.0", "0.0", "1.0"],
    ]


def test_an_expert_alone_is_scored_as_it_is(parents, monkeypatch, tmp_path):
    run(parents, monkeypatch, [0.2, 0.6, 0.4, 0.7, 0.65], tmp_path / "out")
    for name, merged in zip("abc", Bench.last.merged, strict=False):
        expert = Checkpoint(parents / name)
        assert all(torch.equal(merged[tensor], expert.load(tensor)) for tensor in expert.names())


def test_the_row_can_be_made_again_from_its_manifest(parents, monkeypatch, tmp_path):
    from merges.engine.config import MergeConfig
    from merges.engine.run import merge_to_disk

    run(parents, monkeypatch, [0.2, 0.6, 0.4, 0.7, 0.65], tmp_path / "out")
    recipe = read_json(tmp_path / "out" / "manifest.json")["parameters"]
    experts = {name: Checkpoint(parents / name) for name in recipe["experts"]}
    base = Checkpoint(parents / "base")
    merge_to_disk(tmp_path / "again", MergeConfig(recipe["method"], base, experts, recipe["set"]))
    assert Checkpoint(tmp_path / "again").fingerprint == Checkpoint(tmp_path / "out").fingerprint


def test_where_no_expert_can_be_scored_nothing_is_written(parents, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="all 3 candidates failed"):
        run(parents, monkeypatch, [None, None, None], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_method_or_a_setting_is_refused():
    given = ["--base", "b", "--experts", "a=a", "--data", "d", "--suites", "s", "--out", "o"]
    with pytest.raises(UserError, match="leave --method and --set out"):
        main(["greedy", "--method", "ties", *given])
    with pytest.raises(UserError, match="tune needs --method"):
        main(["tune", *given])


def test_a_shorter_greedy_search_is_read_off_its_record(parents, monkeypatch, tmp_path):
    run(parents, monkeypatch, [0.2, 0.6, 0.4, 0.7, 0.65], tmp_path / "out")
    experts = [f"{name}={parents / name}" for name in "abc"]
    for count, chosen in ((1, "a"), (3, "b"), (4, "bc"), (5, "bc")):
        out = tmp_path / f"after{count}"
        given = ["--of", str(tmp_path / "out"), "--evaluations", str(count), "--out", str(out)]
        assert main(["replay", "--base", str(parents / "base"), "--experts", *experts, *given]) == 0
        weights = read_json(out / "manifest.json")["parameters"]["set"]["weights"]
        assert weights == {name: float(name in chosen) for name in "abc"}


def test_a_soup_that_only_equals_the_best_expert_is_scored_again_too(world, command, tmp_path):
    # With this seed's three items the soup's average is that of its first expert, ranked before it.
    given = ["--fitness-items", "3", "--rescored", "2", "--seed", "2", "--out", tmp_path / "out"]
    assert main(command("greedy", *given, method=None, experts="abc")) == 0
    search = read_json(tmp_path / "out" / "manifest.json")["parameters"]["search"]
    with open(tmp_path / "out" / "search.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    averages = [float(row["dev_average"]) for row in rows]
    assert search["chosen"] == 4 and averages.index(max(averages)) == 0
    assert float(rows[4]["full_average"]) == search["fitness"]["full_average"]
    assert search["fitness"]["rescored"] == sum(row["full_average"] != "" for row in rows) == 3
