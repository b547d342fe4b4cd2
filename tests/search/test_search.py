"""Search: the strategy on a known optimum, genomes, averages, and whole runs on tiny models."""

import csv
import json

import numpy as np
import pytest
import torch

from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.files import read_json, write_jsonl
from merges.engine import merge_to_disk
from merges.layers import LayerRules
from search import evolutionary
from search.cli import main
from search.workbench import Evaluation, average_of

LAYERS = 2


def genes_of(method, parameters, experts=("a", "b")):
    return evolutionary.genome(method, parameters, experts, LAYERS)


def run(genes, score, **settings):
    history = []

    def evaluate(values):
        history.append((np.array(values), score(values)))
        return Evaluation(len(history) - 1, {}, history[-1][1])

    settings = {"budget": 200, "population": None, "sigma": 0.3, "seed": 0} | settings
    return evolutionary.evolve(genes, evaluate, **settings), history


def test_cma_es_finds_the_minimum_of_a_quadratic():
    genes = genes_of("task_arithmetic", {"weights": None})
    target = np.linspace(0.2, 1.8, len(genes))
    best, history = run(genes, lambda x: 1 - float(((x - target) ** 2).mean()), budget=600)
    assert np.abs(best - target).max() < 0.05
    assert len(history) == 600
    bounds = np.array([gene.bounds for gene in genes])
    for values, _ in history:
        assert (values >= bounds[:, 0]).all() and (values <= bounds[:, 1]).all()


def test_the_default_setting_is_the_first_candidate_and_the_budget_is_kept():
    genes = genes_of("task_arithmetic", {"weights": {"a": 0.5, "b": 1.5}})
    for budget in (1, 2, 7, 25):
        best, history = run(genes, lambda x: 0.5, budget=budget)
        assert len(history) == budget
        np.testing.assert_array_equal(history[0][0], [0.5, 1.5] * (LAYERS + 1))
        np.testing.assert_array_equal(best, history[0][0])  # the earliest of equals


def test_a_failed_candidate_scores_worst_and_the_search_goes_on():
    genes = genes_of("task_arithmetic", {"weights": None})
    target = np.full(len(genes), 1.3)

    def score(x):
        return None if x[0] < 1.0 else 1 - float(((x - target) ** 2).mean())

    best, history = run(genes, score, budget=400)
    assert any(value is None for _, value in history)
    assert np.abs(best - target).max() < 0.1


def test_same_seed_same_candidates():
    genes = genes_of("task_arithmetic", {"weights": None})
    first, second, other = (
        np.array([values for values, _ in run(genes, np.mean, budget=40, seed=seed)[1]])
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a_genome_decodes_into_rules_that_reach_every_tensor_once():
    genes = genes_of("ties", {"weights": None, "density": 0.2})
    assert len(genes) == (LAYERS + 1) * 3
    values = np.arange(len(genes)) / 10 + 0.1
    rules = LayerRules("ties", evolutionary.rules(genes, values))
    expected = {
        "model.layers.0.mlp.up_proj.weight": (0.1, 0.2, 0.3),
        "model.layers.1.self_attn.q_proj.weight": (0.4, 0.5, 0.6),
        "model.embed_tokens.weight": (0.7, 0.8, 0.9),
        "lm_head.weight": (0.7, 0.8, 0.9),
        "model.norm.weight": (0.7, 0.8, 0.9),
    }
    for tensor, (a, b, density) in expected.items():
        given = rules(tensor)
        assert given == {
            "weights": {"a": pytest.approx(a), "b": pytest.approx(b)},
            "density": pytest.approx(density),
        }


def test_a_density_for_each_expert_is_searched_for_each():
    densities = {"b": 0.6, "a": 0.3}
    genes = genes_of("dare_ties", {"weights": [0.5, 1.5], "density": densities})
    assert [(gene.name, gene.start) for gene in genes[:4]] == [
        ("weights a layer 0", 0.5),
        ("weights b layer 0", 1.5),
        ("density a layer 0", 0.3),
        ("density b layer 0", 0.6),
    ]
    values = [gene.start for gene in genes]
    given = LayerRules("dare_ties", evolutionary.rules(genes, values))("lm_head.weight")
    assert given == {"weights": {"a": 0.5, "b": 1.5}, "density": densities}


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(UserError, match="has no per-expert weights"):
        genes_of("slerp", {"t": 0.5})
    genes = genes_of("task_arithmetic", {"weights": None})
    with pytest.raises(UserError, match="budget of 0"):
        run(genes, np.mean, budget=0)
    with pytest.raises(UserError, match="population of 9"):
        run(genes, np.mean, budget=5, population=9)


def test_the_average_is_the_mean_over_columns_of_their_tasks_means():
    tasks = {"s/a": 0.2, "s/b": 0.4, "s/c": 1.0}
    assert average_of(tasks, [["s/a", "s/b"], ["s/c"]]) == pytest.approx((0.3 + 1.0) / 2)
    with pytest.raises(UserError, match="needs task 's/d'"):
        average_of(tasks, [["s/d"]])


@pytest.fixture(scope="module")
def world(make_model, tmp_path_factory):
    """Base, two experts, and dev items of one suite whose texts the tiny tokenizer knows."""
    folder = tmp_path_factory.mktemp("search")
    for seed, name in enumerate(("base", "a", "b")):
        make_model(folder / name, "mistral", seed=seed)
    random = np.random.default_rng(0)
    rows = []
    for number in range(12):
        words = [f" w{index}" for index in random.choice(np.arange(4, 48), 5, replace=False)]
        prompt = f"w{random.integers(4, 48)}{words[0]}"
        rows.append({"id": str(number), "prompt": prompt, "choices": words[1:], "gold": 0})
    write_jsonl(folder / "data" / "dev" / "bottle_kobest" / "copa.jsonl", rows)
    (folder / "data" / "manifest.json").write_text("{}")
    return folder


def command(world, *extra):
    return [
        *(extra[0], "--method", extra[1], "--base", str(world / "base"), "--experts"),
        *(f"{name}={world / name}" for name in ("a", "b")),
        *("--data", str(world / "data"), "--suites", "bottle_kobest/copa", *extra[2:]),
    ]


def history(folder):
    with open(folder / "search.csv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_tuning_writes_the_best_candidate_s_merge(world, tmp_path):
    candidates = [{"scale": 0.0}, {"scale": 0.4}, {"scale": 0.8}]
    arguments = ["--candidates", json.dumps(candidates), "--out", str(tmp_path / "out")]
    assert main(command(world, "tune", "task_arithmetic", *arguments)) == 0
    tried = history(tmp_path / "out")
    assert [float(row["scale"]) for row in tried] == [0.0, 0.4, 0.8]
    averages = [float(row["dev_average"]) for row in tried]
    manifest = read_json(tmp_path / "out" / "manifest.json")
    chosen = manifest["parameters"]["search"]["chosen"]
    assert chosen == averages.index(max(averages))
    assert manifest["parameters"]["set"]["scale"] == candidates[chosen]["scale"]
    parents = {name: Checkpoint(world / name) for name in ("a", "b")}
    merge_to_disk(
        tmp_path / "again",
        "task_arithmetic",
        Checkpoint(world / "base"),
        parents,
        candidates[chosen],
    )
    written, again = (Checkpoint(tmp_path / name) for name in ("out", "again"))
    assert written.fingerprint == again.fingerprint


def test_the_winner_of_a_search_can_be_rebuilt_from_its_manifest(world, tmp_path):
    for name in ("out", "out2"):
        arguments = ["--budget", "9", "--seed", "3", "--out", str(tmp_path / name)]
        assert main(command(world, "evolve", "task_arithmetic", *arguments)) == 0
    assert len(history(tmp_path / "out")) == 9
    first, second = (tmp_path / name / "manifest.json" for name in ("out", "out2"))
    assert first.read_bytes() == second.read_bytes()
    recipe = read_json(first)["parameters"]
    merge_to_disk(
        tmp_path / "again",
        recipe["method"],
        Checkpoint(world / "base"),
        {name: Checkpoint(world / name) for name in ("a", "b")},
        recipe["set"],
        parameters_for=LayerRules(recipe["method"], recipe.get("set_layers") or []),
    )
    written, again = Checkpoint(tmp_path / "out"), Checkpoint(tmp_path / "again")
    for name in written.names():
        assert torch.equal(written.load(name), again.load(name))


def test_mistakes_are_told_before_anything_is_written(world, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="did you mean 'scale'"):
        main(command(world, "tune", "task_arithmetic", "--candidates", '[{"scal": 1}]', *out))
    with pytest.raises(UserError, match="--candidates: not valid JSON"):
        main(command(world, "tune", "task_arithmetic", "--candidates", "[", *out))
    with pytest.raises(UserError, match="--budget"):
        main(command(world, "evolve", "task_arithmetic", *out))
    (world / "data" / "dev" / "bottle_kobest" / "wic.jsonl").write_text("")
    suites = ["--suites", "bottle_kobest/wic"]
    with pytest.raises(UserError, match="has no items"):
        main(command(world, "evolve", "task_arithmetic", "--budget", "2", *suites, *out))
    assert not (tmp_path / "out").exists()
