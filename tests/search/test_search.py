"""The search's parts: the strategy on a known optimum, genomes, averages, the record."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from common.errors import UserError
from merges.engine.layer_rules import LayerRules
from search.evaluation import Evaluation
from search.evolutionary import CmaEs, check_settings
from search.parameters import genome, groups
from search.record import average_of, spearman, table
from search.space import Gene, Space, reflect
from search.state import StateFile
from search.strategies import Listed


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import what takes seconds only when the tests run: collecting them stays quick."""
    global Budget, Search, spread
    from search.loop import Budget, Search, spread


NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.self_attn.q_norm.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
]


def genes_of(method, parameters, experts=("a", "b"), **grouping):
    return genome(method, parameters, experts, groups(NAMES, **grouping))


class Line(Space):
    """A space without models."""

    def __init__(self, genes):
        self.genes = tuple(genes)

    def describe(self):
        return {}

    def decode(self, values):
        return {"values": list(values)}

    def tensors(self, recipe):
        return {}, {}


class Scored:
    """A workbench that needs no model."""

    def __init__(self, space, score):
        self.space, self.score = space, score

    def evaluate(self, index, values):
        average = self.score(np.array(values))
        return Evaluation(index, self.space.named(values), average, genome=values)


def run(genes, score, file=None, **settings):
    settings = {"budget": 200, "population": None, "sigma": 0.3, "seed": 0} | settings
    space, budget = Line(genes), settings.pop("budget")
    check_settings(genes, budget, settings["population"], settings["sigma"])
    search = Search(space, CmaEs(genes, **settings), Scored(space, score), Budget(budget), file)
    return search.run()


def test_cma_es_finds_the_minimum_of_a_quadratic():
    genes = genes_of("task_arithmetic", {"weights": None})
    target = np.linspace(0.2, 1.8, len(genes))
    history = run(genes, lambda x: 1 - float(((x - target) ** 2).mean()), budget=600)
    best = max(history, key=lambda item: item.average)
    assert np.abs(np.array(best.genome) - target).max() < 0.05
    assert len(history) == 600
    bounds = np.array([gene.bounds for gene in genes])
    for item in history:
        values = np.array(item.genome)
        assert (values >= bounds[:, 0]).all() and (values <= bounds[:, 1]).all()


def test_an_optimum_on_a_bound_is_found():
    genes = genes_of("ties", {"weights": None, "density": 0.2})
    target = np.array([gene.bounds[number % 2] for number, gene in enumerate(genes)])
    history = run(genes, lambda x: 1 - float(((x - target) ** 2).mean()), budget=900)
    best = max(history, key=lambda item: item.average)
    assert np.abs(np.array(best.genome) - target).max() < 0.05


def test_reflection_folds_the_line_and_keeps_what_is_inside():
    assert [reflect(x, 0.0, 2.0) for x in (0.0, 0.3, 2.0)] == [0.0, 0.3, 2.0]
    for given, expected in ((2.5, 1.5), (-0.5, 0.5), (4.5, 0.5), (-2.5, 1.5), (6.25, 1.75)):
        assert reflect(given, 0.0, 2.0) == expected
    random = np.random.default_rng(0)
    for value in random.normal(0, 100, 1000):
        folded = reflect(value, 0.05, 1.0)
        assert 0.05 <= folded <= 1.0
        assert reflect(folded, 0.05, 1.0) == folded


def test_the_default_setting_is_the_first_candidate_and_the_budget_is_kept():
    genes = genes_of("task_arithmetic", {"weights": {"a": 0.5, "b": 1.5}})
    for budget in (1, 2, 7, 25):
        history = run(genes, lambda x: 0.5, budget=budget)
        assert len(history) == budget
        assert history[0].genome == [0.5, 1.5] * 3


def test_a_failed_candidate_scores_worst_and_the_search_goes_on():
    genes = genes_of("task_arithmetic", {"weights": None})
    target = np.full(len(genes), 1.3)

    def score(x):
        return None if x[0] < 1.0 else 1 - float(((x - target) ** 2).mean())

    history = run(genes, score, budget=400)
    assert any(item.average is None for item in history)
    best = max((item for item in history if item.average is not None), key=lambda i: i.average)
    assert np.abs(np.array(best.genome) - target).max() < 0.1


def test_same_seed_same_candidates():
    genes = genes_of("task_arithmetic", {"weights": None})
    first, second, other = (
        [item.genome for item in run(genes, lambda x: float(np.mean(x)) / 2, budget=40, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("population", [2, 3])
def test_a_small_population_searches_too(population):
    genes = genes_of("slerp", {"t": 0.5})
    target = np.linspace(0.2, 0.8, len(genes))
    history = run(
        genes, lambda x: 1 - float(((x - target) ** 2).mean()), budget=300, population=population
    )
    best = max(history, key=lambda item: item.average)
    assert np.abs(np.array(best.genome) - target).max() < 0.05


class Killed(Exception):
    pass


@pytest.mark.parametrize("stops", [(1,), (2,), (9, 10, 11), (30, 55)])
def test_a_search_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path, stops):
    genes = genes_of("ties", {"weights": None, "density": 0.2})

    def score(x):
        return float(np.sin(7 * x).mean() ** 2)

    whole = run(genes, score, budget=70, seed=3)
    scored = []
    for stop in (*stops, None):

        def cut(x, stop=stop):
            if len(scored) == stop:
                raise Killed
            scored.append(list(x))
            return score(x)

        file = StateFile(tmp_path / "out", {"seed": 3})
        try:
            parts = run(genes, cut, file, budget=70, seed=3)
        except Killed:
            continue
    assert [item.genome for item in parts] == [item.genome for item in whole]
    assert [item.average for item in parts] == [item.average for item in whole]
    assert scored == [item.genome for item in whole]  # none was scored twice


def test_a_larger_budget_goes_on_from_a_smaller_one(tmp_path):
    genes = genes_of("task_arithmetic", {"weights": None})

    def score(x):
        return float(np.cos(5 * x).mean() ** 2)

    file = StateFile(tmp_path / "out", {})
    run(genes, score, file, budget=17)
    continued = run(genes, score, StateFile(tmp_path / "out", {}), budget=40)
    whole = run(genes, score, budget=40)
    assert [item.genome for item in continued] == [item.genome for item in whole]


def test_seconds_end_a_search_after_the_first_candidate(monkeypatch):
    space, clock = Line(genes_of("task_arithmetic", {"weights": None})), [0.0]
    monkeypatch.setattr("search.loop.time.monotonic", lambda: clock[0])

    def score(x):
        clock[0] += 10.0
        return 0.5

    for seconds, expected in ((0.5, 1), (10.0, 1), (35.0, 4)):
        clock[0] = 0.0
        strategy = CmaEs(space.genes, population=None, sigma=0.3, seed=0)
        search = Search(space, strategy, Scored(space, score), Budget(None, seconds))
        assert len(search.run()) == expected


def test_the_state_of_another_search_is_refused_and_a_damaged_one_too(tmp_path):
    space = Line([Gene("all", "t", "", 0.5, (0.0, 1.0))])
    bench = Scored(space, lambda x: 0.5)
    file = StateFile(tmp_path / "out", {"seed": 1, "data": "x"})
    Search(space, Listed(2), bench, Budget(), file).run()
    assert len(file.load().evaluations) == 2
    with pytest.raises(UserError, match=r"another data and seed; .* remove .*out.search"):
        StateFile(tmp_path / "out", {"seed": 2, "data": "y"}).load()
    file.path.write_text('{"configuration": 1}')
    with pytest.raises(UserError, match="not the state of a search"):
        file.load()
    file.remove()
    assert file.load() is None


def test_a_genome_decodes_into_rules_that_reach_every_tensor_once():
    for kinds, granularity, count in (
        ("together", 1, 3),
        ("together", 2, 2),
        ("together", 9, 2),
        ("separate", 1, 8),
        ("separate", 2, 6),
    ):
        found = groups(NAMES, granularity, kinds)
        assert len(found) == count == len({group.name for group in found})
        for name in NAMES:
            reached = [
                group.name
                for group in found
                if LayerRules("ties", [group.rule | {"set": {"density": 0.5}}])(name)
            ]
            assert len(reached) == 1, (name, reached)


def test_groups_are_named_for_what_they_hold():
    reached = {}
    for group in groups(NAMES, 1, "separate"):
        rules = LayerRules("ties", [group.rule | {"set": {"density": 0.5}}])
        reached[group.name] = [name for name in NAMES if rules(name)]
    assert reached == {
        "layer 0 attention": ["model.layers.0.self_attn.q_proj.weight"],
        "layer 0 mlp": ["model.layers.0.mlp.up_proj.weight"],
        "layer 0 norms": [
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.self_attn.q_norm.weight",
        ],
        "layer 1 attention": ["model.layers.1.self_attn.q_proj.weight"],
        "layer 1 mlp": ["model.layers.1.mlp.up_proj.weight"],
        "embeddings": ["model.embed_tokens.weight"],
        "lm_head": ["lm_head.weight"],
        "norms": ["model.norm.weight"],
    }
    # What is the base's has no genes.
    kept = [group.name for group in groups(NAMES, 1, "separate", "base")]
    assert kept == [name for name in reached if "norms" not in name and name != "embeddings"]


def test_genes_are_weights_densities_or_t():
    names = [gene.name for gene in genes_of("ties", {"weights": None, "density": 0.2})]
    assert names[:3] == ["weights a layer 0", "weights b layer 0", "density layer 0"]
    assert len(names) == 9
    densities = {"b": 0.6, "a": 0.3}
    genes = genes_of("dare_ties", {"weights": [0.5, 1.5], "density": densities})
    assert [(gene.name, gene.start) for gene in genes[:4]] == [
        ("weights a layer 0", 0.5),
        ("weights b layer 0", 1.5),
        ("density a layer 0", 0.3),
        ("density b layer 0", 0.6),
    ]
    assert [(g.name, g.bounds) for g in genes_of("slerp", {"t": 0.5}, granularity=2)] == [
        ("t layers 0-1", (0.0, 1.0)),
        ("t rest", (0.0, 1.0)),
    ]


def test_what_cannot_be_searched_is_refused():
    for method in ("iso_c", "model_stock", "dam"):
        with pytest.raises(UserError, match="no searchable parameters"):
            genes_of(method, {})
    with pytest.raises(UserError, match="scope=model"):
        genes_of("ties", {"weights": None, "density": 0.2, "scope": "model"})
    with pytest.raises(UserError, match="granularity of 0"):
        groups(NAMES, 0)
    genes = genes_of("task_arithmetic", {"weights": None})
    for settings, message in (
        ({"budget": 0}, "budget of 0"),
        ({"budget": 5, "population": 9}, "population of 9"),
        ({"population": 1}, "population of 1"),
        ({"sigma": 0.0}, "sigma of 0"),
        ({"sigma": float("nan")}, "sigma of nan"),
    ):
        with pytest.raises(UserError, match=message):
            run(genes, np.mean, **settings)
    with pytest.raises(UserError, match="weights a layer 0 starts at 3, outside its bounds"):
        run(genes_of("task_arithmetic", {"weights": {"a": 3.0, "b": 1.0}}), np.mean)


def test_the_average_is_the_mean_over_columns_of_their_tasks_means():
    tasks = {"s/a": 0.2, "s/b": 0.4, "s/c": 1.0}
    assert average_of(tasks, [["s/a", "s/b"], ["s/c"]]) == pytest.approx((0.3 + 1.0) / 2)
    with pytest.raises(UserError, match="needs task 's/d'"):
        average_of(tasks, [["s/d"]])


def test_the_table_holds_every_number_exactly():
    random = np.random.default_rng(0)
    history = [
        Evaluation(0, {"x": float(random.normal()), "list": [0.1, 1 / 3]}, 1 / 3, {"s/t": 2 / 7}),
        Evaluation(1, {"x": float(random.normal() * 1e-30)}, failure="tensor w: it, too, is NaN"),
    ]
    rows = list(csv.DictReader(io.StringIO(table(history))))
    for item, row in zip(history, rows, strict=True):
        assert float(row["x"]) == item.genes["x"]
        assert row["failure"] == item.failure
    assert float(rows[0]["dev_average"]) == 1 / 3 and float(rows[0]["s/t"]) == 2 / 7
    assert json.loads(rows[0]["list"]) == [0.1, 1 / 3]
    assert rows[1]["dev_average"] == rows[1]["s/t"] == ""


def test_spearman_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    for _ in range(20):
        x, y = random.integers(0, 6, 12), random.normal(size=12)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert spearman([1.0], [2.0]) is None
    assert spearman([1.0, 1.0], [2.0, 3.0]) is None


def test_candidates_to_score_again_are_spread_over_the_ranks():
    averages = [0.3, None, 0.9, 0.1, 0.5, 0.7]
    history = [Evaluation(index, {}, average) for index, average in enumerate(averages)]
    assert [item.index for item in spread(history, 3)] == [2, 4, 3]
    assert [item.index for item in spread(history, 99)] == [2, 5, 4, 0, 3]
    assert spread([Evaluation(0, {})], 3) == []
