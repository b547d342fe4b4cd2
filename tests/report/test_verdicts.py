"""Verdicts on the paper's claims, from made-up scores whose answer is plain."""

from __future__ import annotations

import json
import math

import pytest

from report import published
from report.averages import Score
from report.beside_paper import claims_grid
from report.load import load
from report.verdicts import spread_difference, verdicts

PAPER = published.load()


@pytest.fixture
def paper_s(small):
    """The small experiment with rows that stand for the paper's, all costs known."""
    config, results = small[2], small[1]
    methods = config["methods"]
    methods["dam_tuned"] = methods.pop("dam")
    methods["evolutionary"] = {"label": "Evolutionary", "method": "ties", "evolve": {"budget": 9}}
    methods["dare_ties"] = {"label": "DARE-TIES", "method": "dare_ties"}
    objectives = config["ablation"]["objectives"]
    for name, terms in (
        ("kl", {"kl": 1}),
        ("mse", {"mse": 1}),
        ("entropy", {"entropy": 1}),
        ("kl_cosine", {"kl": 1, "cosine": 0.01}),
        ("kl_l1_l2", {"kl": 1, "l1": 1e-6, "l2": 1e-6}),
    ):
        objectives[name] = {"label": name, "objective": terms}
    small[0].write_text(json.dumps(config))
    return config, results


def score(path, value, stderr=0.01, seed=7):
    tasks = ("bottle_ja8/a", "bottle_ja8/jsquad", "bottle_ja8/c", "bottle_gsm_en/gsm_en")
    values = value if isinstance(value, tuple) else (value,) * 4
    entries = {
        task: {"value": one, "stderr": stderr, "items": 200}
        for task, one in zip(tasks, values, strict=True)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seed": seed, "tasks": entries}))


def judge(small, paper_s, rows=(), objectives=(), flops=(1e9, 4e9)):
    results = paper_s[1]
    for row, value in dict(rows).items():
        score(results / f"case1/scores/test/{row}.json", value)
    for name, values in dict(objectives).items():
        for seed, value in enumerate(values):
            score(results / f"ablation/{name}/seed{seed}/scores.json", value, seed=seed)
    for row, amount in zip(("dam_tuned", "evolutionary"), flops, strict=True):
        path = results / f"case1/merges/{row}/cost.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        cost = {"wall_s": 1, "cpu_s": 1, "peak_rss_mb": 5, "counted": {"flops": amount}}
        path.write_text(json.dumps(cost))
    experiment = load(small[0], small[1])
    return verdicts(experiment, PAPER), experiment


ROWS = {"dam_tuned": 0.7, "evolutionary": 0.5, "soup": 0.4, "ties_tuned": 0.4, "dare_ties": 0.3}


def test_dam_leads_and_is_cheaper(small, paper_s):
    found, experiment = judge(small, paper_s, ROWS)
    # The average of two columns, of which one has two tasks: sqrt(.01^2 + .01^2 / 2) / 2 each.
    width = 1.959964 * math.sqrt(2) * math.sqrt(1.5e-4) / 2
    assert found["C1"].endswith(f"C1 holds here: DAM less Evolutionary: +0.200 ± {width:.3f}.")
    assert "C2 holds here" in found["C2"] and "for 1 G FLOPs" in found["C2"]
    assert "against 4 G" in found["C2"]
    grid = claims_grid(experiment, PAPER)
    assert [row.cells[0].text for row in grid.rows] == [f"C{n}" for n in range(1, 14)]
    assert grid.rows[0].cells[3].text == found["C1"] and grid.rows[3].cells[3].text == "–"


def test_dam_behind_or_as_dear(small, paper_s):
    found, _ = judge(small, paper_s, ROWS | {"dam_tuned": 0.4})
    assert "C1 does not hold here" in found["C1"] and "C2 does not hold here" in found["C2"]
    found, _ = judge(small, paper_s, ROWS | {"dam_tuned": 0.505})
    assert "C1 stays open here" in found["C1"] and "C2 holds here" in found["C2"]
    found, _ = judge(small, paper_s, ROWS, flops=(3e9, 4e9))  # not even twice as cheap
    assert "C2 does not hold here" in found["C2"]


def test_the_ablation_s_claims(small, paper_s):
    runs = {
        "kl": (0.5, 0.5, 0.5),
        "mse": (0.4, 0.41, 0.4),
        "entropy": (0.3, 0.3, 0.3),
        "kl_cosine": (0.5, 0.5, 0.5),
        "kl_l1_l2": (0.6, 0.6, 0.6),
    }
    found, _ = judge(small, paper_s, ROWS, runs)
    for id, words in (("C7", "holds"), ("C8", "holds"), ("C9", "does not"), ("C12", "does not")):
        assert f"{id} {words}" in found[id]
    better = {"mse": (0.7, 0.7, 0.7), "kl_cosine": (0.7, 0.7, 0.7), "entropy": (0.6, 0.6, 0.6)}
    found, _ = judge(small, paper_s, ROWS, runs | better | {"kl_l1_l2": (0.51, 0.51, 0.51)})
    for id, words in (("C7", "does not"), ("C8", "does not"), ("C9", "holds"), ("C12", "stays")):
        assert f"{id} {words}" in found[id]


def test_balance_over_columns(small, paper_s):
    wide, narrow = (0.9, 0.1, 0.1, 0.5), (0.5, 0.52, 0.52, 0.5)
    found, _ = judge(small, paper_s, ROWS | {"soup": narrow, "dare_ties": wide})
    # Deviations over the two columns: .01 and .4.
    assert "against DARE-TIES holds here: -0.390 [" in found["C13"]
    found, _ = judge(small, paper_s, ROWS | {"soup": wide, "dare_ties": narrow})
    assert "does not hold here: +0.390 [" in found["C13"]


def test_the_interval_of_a_spread_covers_what_noise_makes():
    certain = [Score(value, 0.0, 9) for value in (0.2, 0.6)]
    assert spread_difference(certain, certain) == (0, 0, 0)
    noisy = [Score(value, 0.02, 9) for value in (0.2, 0.6)]
    gap, low, high = spread_difference(noisy, certain)
    # Half the difference of two scores: a normal variable with deviation .02 / sqrt 2.
    assert gap == 0
    assert (low, high) == pytest.approx((-0.0277, 0.0277), abs=0.002)


def test_without_scores_nothing_is_judged(small):
    for path in (small[1] / "ablation").rglob("scores.json"):
        path.unlink()
    assert set(verdicts(load(small[0], small[1]), PAPER)) <= {"C13"}
