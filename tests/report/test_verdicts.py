"""Verdicts on the paper's claims, from made-up scores whose answer is plain."""

from __future__ import annotations

import json
import math

import pytest

from report import published
from report.averages import Score
from report.beside_paper import claims_grid
from report.load import load
from report.verdicts import judge, judgements, sentences, spread_difference

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


def judged(small, paper_s, rows=(), objectives=(), flops=(1e9, 4e9)):
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
    return sentences(judgements(experiment, PAPER)), experiment


ROWS = {"dam_tuned": 0.7, "evolutionary": 0.5, "soup": 0.4, "ties_tuned": 0.4, "dare_ties": 0.3}


def by_claim(experiment):
    return {judged.claim.id: judged for judged in judgements(experiment, PAPER)}


def test_dam_leads_and_is_cheaper(small, paper_s):
    found, experiment = judged(small, paper_s, ROWS)
    # The average of two columns, of which one has two tasks: sqrt(.01^2 + .01^2 / 2) / 2 each.
    width = 1.959964 * math.sqrt(2) * math.sqrt(1.5e-4) / 2
    ends = f"[+{0.2 - width:.3f}, +{0.2 + width:.3f}]"
    assert found["C1"] == f"holds here: Table 1: DAM less Evolutionary: +0.200 {ends}."
    assert found["C2"].startswith("holds here") and "1 G FLOPs" in found["C2"]
    assert "against 4 G" in found["C2"]
    grid = claims_grid(judgements(experiment, PAPER))
    assert [row.cells[0].text for row in grid.rows] == [f"C{n}" for n in range(1, 14)]
    assert grid.rows[0].cells[3].text == found["C1"] and grid.rows[10].cells[3].text == "–"


def test_dam_behind_or_as_dear(small, paper_s):
    found, _ = judged(small, paper_s, ROWS | {"dam_tuned": 0.4})
    assert found["C1"].startswith("does not") and found["C2"].startswith("does not")
    found, _ = judged(small, paper_s, ROWS | {"dam_tuned": 0.505})
    # Half a point ± .017: not surely better, but surely not two points worse.
    assert found["C1"].startswith("stays open") and found["C2"].startswith("holds")
    found, _ = judged(small, paper_s, ROWS | {"dam_tuned": 0.49})
    assert found["C2"].startswith("stays open")
    found, _ = judged(small, paper_s, ROWS, flops=(3e9, 4e9))  # not even twice as cheap
    assert found["C2"].startswith("does not hold here")


def test_the_strongest_search_is_the_rival_and_not_the_last(small, paper_s):
    methods = paper_s[0]["methods"]
    methods["evolutionary_dfs"] = {"label": "Paths", "method": "linear", "evolve": {"budget": 9}}
    small[0].write_text(json.dumps(paper_s[0]))
    _, experiment = judged(small, paper_s, ROWS | {"evolutionary_dfs": 0.2})
    assert by_claim(experiment)["C2"].findings[0].compared == "DAM less Evolutionary"


def test_the_ablation_s_claims(small, paper_s):
    runs = {
        "kl": (0.5, 0.5, 0.5),
        "mse": (0.4, 0.41, 0.4),
        "entropy": (0.3, 0.3, 0.3),
        "kl_cosine": (0.48, 0.48, 0.48),
        "kl_l1_l2": (0.6, 0.6, 0.6),
    }
    found, experiment = judged(small, paper_s, ROWS, runs)
    for id, words in (("C7", "holds"), ("C8", "holds"), ("C9", "does not"), ("C12", "does not")):
        assert found[id].startswith(words), id
    (gap, _) = by_claim(experiment)["C7"].findings
    assert (gap.agree, gap.repeats, gap.over) == (3, 3, "seeds")
    better = {"mse": (0.7, 0.7, 0.7), "kl_cosine": (0.7, 0.7, 0.7), "entropy": (0.6, 0.6, 0.6)}
    found, _ = judged(small, paper_s, ROWS, runs | better | {"kl_l1_l2": (0.51, 0.51, 0.51)})
    for id, words in (("C7", "does not"), ("C8", "does not"), ("C9", "holds"), ("C12", "stays")):
        assert found[id].startswith(words), id
    # One bad seed leaves open whether the cosine helps: the paired interval is wide.
    found, _ = judged(small, paper_s, ROWS, runs | {"kl_cosine": (0.6, 0.6, 0.45)})
    assert found["C8"].startswith("stays open")


def test_balance_over_columns(small, paper_s):
    wide, narrow = (0.9, 0.1, 0.1, 0.5), (0.5, 0.52, 0.52, 0.5)
    found, _ = judged(small, paper_s, ROWS | {"soup": narrow, "dare_ties": wide})
    # Deviations over the two columns: .01 and .4.
    assert found["C13"].startswith("holds here: Table 1: Model Soups less DARE-TIES, deviation")
    assert "-0.390 [" in found["C13"]
    found, _ = judged(small, paper_s, ROWS | {"soup": wide, "dare_ties": narrow})
    assert found["C13"].startswith("does not hold here") and "+0.390 [" in found["C13"]


def test_soups_near_dam_and_dare_ties_by_column(small, paper_s):
    """C3 to C5, whose columns have other names here."""
    case = paper_s[0]["cases"]["case1"]
    for column, label in zip(case["columns"], ("JComQA", "JSQuAD"), strict=True):
        column["label"] = label
    case["beside"][0]["label"] = "MGSM"
    small[0].write_text(json.dumps(paper_s[0]))
    low, high = (0.2, 0.2, 0.2, 0.2), (0.9, 0.1, 0.1, 0.9)
    rows = ROWS | {"dam_tuned": 0.7, "soup": 0.69, "dare_ties": high}
    _, experiment = judged(small, paper_s, rows)
    found = by_claim(experiment)
    assert [one.verdict for one in found["C3"].findings] == ["open"]  # -.01 ± .017
    # Above both in two columns, below both on average: .5 against .7.
    assert [one.verdict for one in found["C4"].findings] == ["holds"] * 6
    assert found["C4"].verdict == "holds"
    assert [one.compared for one in found["C5"].findings] == [
        "DARE-TIES less Model Soups, JSQuAD"  # JAQKET is no column here
    ]
    _, experiment = judged(small, paper_s, rows | {"dare_ties": low})
    assert by_claim(experiment)["C4"].verdict == "does not hold"


def test_rows_that_differ_in_their_embeddings_alone_are_paired(small, paper_s):
    methods = paper_s[0]["methods"]
    methods["soup_base"] = methods["soup"] | {"label": "B", "embeddings_and_norms": "base"}
    small[0].write_text(json.dumps(paper_s[0]))
    _, experiment = judged(small, paper_s, ROWS | {"soup_base": 0.5})
    (one,) = by_claim(experiment)["C10"].findings
    assert (one.compared, one.verdict) == ("B less Model Soups", "holds")


@pytest.mark.parametrize(
    ("said", "low", "high", "verdict"),
    [
        ("above", 0.01, 0.02, "holds"),
        ("above", -0.01, 0.02, "open"),
        ("above", -0.02, -0.01, "does not hold"),
        ("below", -0.02, -0.01, "holds"),
        ("near", -0.02, 0.02, "holds"),
        ("near", 0.01, 0.03, "open"),
        ("near", 0.03, 0.05, "does not hold"),
        ("matches", -0.01, 0.3, "holds"),
        ("matches", -0.03, 0.3, "open"),
        ("matches", -0.3, -0.03, "does not hold"),
        ("not_above", -0.3, 0.02, "holds"),
        ("not_above", -0.3, 0.03, "open"),
        ("not_above", 0.001, 0.01, "does not hold"),
    ],
)
def test_an_interval_decides_and_one_across_the_border_does_not(said, low, high, verdict):
    assert judge(said, low, high) == verdict


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
    assert set(sentences(judgements(load(small[0], small[1]), PAPER))) <= {"C3", "C13"}
