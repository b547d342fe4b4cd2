"""Tests of differences on paired items, against scipy, cases counted by hand, and edge cases."""

from __future__ import annotations

import gzip
import json
import math
from fractions import Fraction

import numpy as np
import pytest

from common.manifest import write_manifest
from report import kept, tables
from report.answers import Answers, attached, is_constant, packed, unpacked
from report.averages import Score
from report.case_table import case_csv, case_grid
from report.experiment import Model
from report.load import load
from report.pairs import compared, holm, lined, mcnemar, over_runs, sign_flips, variance
from report.reading import Reader
from tests.report.conftest import tasks_of
from tests.report.test_faults import change, made, rows

WEIGHTS = {"t": 1.0}


@pytest.fixture(scope="module")
def stats():
    import scipy.stats

    return scipy.stats


def model(scores, id="m", facts=(), **more):
    values = tuple(map(float, scores))
    mean = sum(values) / len(values)
    stderr = float(np.std(values, ddof=1) / math.sqrt(len(values))) if values[1:] else 0.0
    answers = Answers({"t": f"{len(values)}"}, {"t": values}, {"t": facts} if facts else {})
    score = Score(mean, stderr, len(values))
    return Model(id, id, "merge", tasks={"t": score}, answers=answers, **more)


def of(row):
    return row.tasks.get("t")


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (7, 2), (30, 51), (200, 150)])
def test_mcnemar_is_scipy_s_binomial_test(better, worse, stats):
    expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar(better, worse) == pytest.approx(expected, abs=1e-9)


def test_holm_is_scipy_s_and_a_case_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_one_task_is_tested_exactly_and_clusters_by_flips_within_their_monte_carlo_error(stats):
    generator = np.random.default_rng(0)
    one, two = generator.integers(0, 2, (2, 60))
    strata = lined(model(one), model(two), WEIGHTS)
    wins = int((one > two).sum()), int((one < two).sum())
    assert sign_flips(strata) == pytest.approx(stats.binomtest(wins[0], sum(wins)).pvalue, abs=1e-9)
    facts = tuple(int(fact) for fact in generator.integers(0, 9, 60))
    facts = tuple(
        {fact: place for place, fact in enumerate(dict.fromkeys(facts))}[f] for f in facts
    )
    strata = lined(model(one, facts=facts), model(two, facts=facts), WEIGHTS)
    sums = np.bincount(facts, weights=one - two)
    # All signs of nine clusters are counted.
    exact = stats.permutation_test(
        (sums, np.zeros(len(sums))), lambda a, b, axis: (a - b).sum(axis=axis),
        permutation_type="samples", vectorized=True, n_resamples=10_000,
    ).pvalue  # fmt: skip
    assert sign_flips(strata) == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 20_000))


def test_the_variance_is_the_paired_one_and_that_of_clusters_by_hand(stats):
    one, two = [1, 1, 0, 1, 0, 1], [0, 1, 0, 1, 1, 0]
    expected = stats.ttest_rel(one, two)
    strata = lined(model(one), model(two), WEIGHTS)
    gap = sum(one) / 6 - sum(two) / 6
    assert gap / math.sqrt(variance(strata)) == pytest.approx(expected.statistic, abs=1e-12)
    # Pairs of equal items are one observation each: the variance is that of the three.
    doubled = model(np.repeat(one[:3], 2), facts=(0, 0, 1, 1, 2, 2))
    other = model(np.repeat(two[:3], 2), facts=(0, 0, 1, 1, 2, 2))
    lone = lined(model(one[:3]), model(two[:3]), WEIGHTS)
    assert variance(lined(doubled, other, WEIGHTS)) == pytest.approx(variance(lone))


def compare(one, two):
    return compared([one, two], one, of, WEIGHTS)["two"]


def test_without_a_discordant_pair_nothing_is_certain():
    found = compare(model([1, 0, 1, 1]), model([1, 0, 1, 1], "two"))
    assert (found.value, found.p) == (0.0, 1.0) and found.low < 0 < found.high


def test_one_item_says_nothing():
    found = compare(model([1]), model([0], "two"))
    assert (found.p, found.low, found.high) == (1.0, -math.inf, math.inf)


def test_scores_of_0_and_1():
    found = compare(model([1] * 12), model([0] * 12, "two"))
    assert found.value == 1.0 and found.p == pytest.approx(2 / 2**12)
    same = compare(model([0] * 12), model([0] * 12, "two"))
    assert same.p == 1.0 and same.high > 0


def test_other_items_are_not_paired(stats):
    one, two = model([1, 0, 1, 1]), model([1, 0, 1], "two")
    assert lined(one, two, WEIGHTS) is None
    found = compare(one, two)
    error = math.hypot(of(one).stderr, of(two).stderr)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.value) / error))


def worlds(rows, id="m"):
    return Model(
        id, id, "merge", worlds={seed: model(row) for seed, row in enumerate(rows) if len(row)}
    )


def test_worlds_are_clusters_and_a_missing_one_is_left_out():
    one = worlds([[1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 1, 1]])
    two = worlds([[0, 1, 0, 0], [0, 1, 0, 1], []], "two")
    found = compared([one, two], one, of, WEIGHTS)["two"]
    assert found.value == 0.375 and 0 < found.p < 1  # of .5 and .25
    lone = worlds([[], [], [0, 0, 1, 1]], "two")
    # One world in common: McNemar's test on its items.
    assert compared([one, lone], one, of, WEIGHTS)["two"].p == 1.0
    # Worlds that agree by chance are no surer than their items.
    alike = worlds([[1, 1, 1, 0]] * 3), worlds([[1, 1, 0, 0]] * 3, "two")
    assert compared(alike, alike[0], of, WEIGHTS)["two"].p > 0.05


def test_what_is_no_mean_over_items_stays_open_where_a_row_has_one_world():
    one = worlds([[1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 1, 1]])
    lone = worlds([[], [], [0, 0, 1, 1]], "lone")
    third = worlds([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1]], "third")
    rows = [one, lone, third]
    found = compared(rows, one, lambda row: Score(row.tasks["t"].value / 2, 0.0, 1), {})
    assert found["lone"].value == 0.125 and found["lone"].p == 1.0
    assert (found["lone"].low, found["lone"].high) == (-math.inf, math.inf)
    assert math.isfinite(found["third"].low)


def test_a_row_that_is_compared_alone_has_the_test_that_it_has_among_all():
    draw = np.random.default_rng(3)
    models = [worlds(draw.integers(0, 2, (3, 50)), f"m{number}") for number in range(6)]
    found = compared(models, models[0], of, WEIGHTS)
    for one in models[1:]:
        assert compared(models, models[0], of, WEIGHTS, one.id) == {one.id: found[one.id]}
    # Its variance is moderated by the others'.
    assert compared([models[0], models[1]], models[0], of, WEIGHTS)["m1"] != found["m1"]


def test_runs_of_table_3_are_paired_over_seeds_and_items(stats):
    first = [model([1, 1, 1, 0]), model([1, 1, 1, 1])]
    second = [model([1, 0, 1, 0]), model([1, 0, 1, 1])]
    found = over_runs(first, second, of, WEIGHTS)
    # Runs do not differ: the items' part alone, of the differences 0, 1, 0, 0.
    assert found.value == 0.25 and found.freedom == math.inf
    assert found.error == pytest.approx(stats.sem([0, 1, 0, 0]))
    assert over_runs(first, [second[0], Model("x", "x", "merge")], of, WEIGHTS) is None


def write_items(small, seed=0, same=()):
    """Give every row of the small experiment files of items that its scores are the means of.

    Args:
        small: The fixture.
        seed: Of the draw.
        same: Rows that answer as the Japanese expert does.
    """
    draw, expert = np.random.default_rng(seed), {}
    paths = [*(small[1] / "case1/scores/test").glob("*.json")]
    paths = [path for path in paths if path.name.count(".") == 1]
    paths = sorted(paths, key=lambda path: path.stem != "ja")
    for path in [*paths, *(small[1] / "ablation").rglob("scores.json")]:
        lines, content = [], json.loads(path.read_text())
        for task in tasks_of(small[2]["cases"]["case1"]):
            right = draw.integers(0, 2, 40) if path.stem not in same else expert[task]
            if path.stem == "ja":
                expert[task] = right
            for number, one in enumerate(right):
                record = {"task": task, "id": f"i{number}", "score": float(one)}
                record |= {"answer": int(one), "gold": 1, "loglikelihoods": [0.5, 1]}
                if task.endswith("gsm_en"):
                    record |= {"answer": f"日 {one}", "gold": f"g{number % 10}"}
                lines.append(json.dumps(record, ensure_ascii=False))
            values = [Fraction(int(one)) for one in right]
            entry = content["tasks"][task]
            entry["value"], entry["items"] = float(sum(values) / 40), 40
            entry["stderr"] = float(np.std(right, ddof=1) / math.sqrt(40))
        path.write_text(json.dumps(content))
        items = path.with_name(f"{path.stem}.items.jsonl.gz")
        items.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def recomputed(small, name):
    """Recompute a table's cells from the items' files alone, with fractions."""
    from tests.report.independent import cells

    return cells(small[0], small[1], name)


def test_tables_and_their_errors_are_those_of_the_items(small):
    write_items(small)
    assert made(small) == 0
    for name in ("table1", "table3"):
        for (row, column), (value, error) in recomputed(small, name).items():
            text = (small[1].parent / f"tables/{name}.csv").read_text(encoding="utf-8")
            found = table(text)[row]
            assert found[column] == f"{value:.6f}", (row, column)
            assert error is None or found[f"{column} stderr"] == f"{error:.6f}", (row, column)


def table(text):
    import csv
    import io

    return {row["id"]: row for row in csv.DictReader(io.StringIO(text))}


def test_kept_answers_give_the_same_tables_and_are_small(small, tmp_path):
    write_items(small, same=("soup",))
    (small[1] / "config.json").write_text(small[0].read_text())
    experiment = load(small[0], small[1])
    written = tables.write(experiment, tmp_path / "first")
    kept.keep(small[0], small[1], tmp_path / "kept.jsonl")
    with kept.opened(tmp_path / "kept.jsonl") as again:
        tables.write(again, tmp_path / "second")
    for path in written:
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
    grid = case_grid(experiment.cases[0], 7)
    notes = "\n".join(grid.notes)
    assert "Model Soups: answers as Japanese expert does (at least 99% of all items" in notes
    assert "GSM (40 items, 10 answers)" in notes
    assert "The smallest difference from the highest Avg that this table separates" in notes
    assert any(row.cells[0].text == "Model Soups°" for row in grid.rows)
    assert "Avg p (Holm)" in case_csv(experiment.cases[0])
    odd = Answers({"t": "1"}, {"t": (0.25, 1.0, 0.0, 0.25)}, {"t": (0, 1, 0, 2)}, {"t": (1.0, 0.5)})
    assert unpacked(json.loads(json.dumps(packed(odd)))) == odd


def test_an_answer_that_never_changes_is_named(small):
    write_items(small)
    experiment = load(small[0], small[1])
    soup = next(model for model in experiment.cases[0].models if model.id == "soup")
    assert not is_constant(soup.answers, "bottle_ja8/a")
    path = small[1] / "case1/scores/test/soup.items.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for number, line in enumerate(lines):
        if line["task"] == "bottle_ja8/a":
            line |= {"answer": 0, "gold": number % 2, "score": float(number % 2 == 0)}
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    change(
        small[1] / "case1/scores/test/soup.json",
        lambda c: c["tasks"]["bottle_ja8/a"].update(value=0.5),
    )
    notes = case_grid(load(small[0], small[1]).cases[0], 7).notes
    assert any(n.startswith("Constant answer") and n.endswith("Model Soups: A_1.") for n in notes)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda lines: [*lines, *lines[:3]], "bottle_ja8/a has 3 items twice in"),
        (lambda lines: lines[1:], "bottle_ja8/a has 39 items, its score 40 in"),
        (lambda lines: [lines[0].replace('"score": 0.0', '"score": 1.0').replace(
            '"score": 1.0', '"score": 0.5'), *lines[1:]], "the mean of its items is"),
        (lambda lines: ["no JSON"], "damaged"),
    ],
)  # fmt: skip
def test_items_unlike_the_score_cost_the_cell_and_are_named(small, capsys, edit, said):
    write_items(small)
    path = small[1] / "case1/scores/test/soup.items.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("\n".join(edit(lines)).encode()))
    assert made(small) == 1
    error = capsys.readouterr().err
    assert said in error and str(path) in error
    assert (rows(small)["soup"]["A_1"] == "") == (said != "damaged")
    assert rows(small)["dam"]["Avg"]


def test_items_that_their_manifest_does_not_know_are_named(small, capsys):
    write_items(small)
    scores = small[1] / "case1/scores/test/soup.json"
    path = scores.with_name("soup.items.jsonl.gz")
    write_manifest(
        scores.with_name("soup.manifest.json"), kind="scores", parameters={},
        outputs={"scores": scores, "items": path},
    )  # fmt: skip
    assert made(small) == 0
    path.write_bytes(path.read_bytes() + b"\0")
    assert made(small) == 1
    assert f"{path}: was changed, damaged or exchanged" in capsys.readouterr().err


def test_what_is_recalled_is_what_was_read(small, tmp_path, monkeypatch):
    write_items(small)
    monkeypatch.setenv("BOTTLE_HASH_CACHE", str(tmp_path / "cache/hashes.json"))
    first = load(small[0], small[1]).cases[0].models
    files = list((tmp_path / "cache/answers").iterdir())
    assert len(files) == 2  # the case's and the ablation's
    again = load(small[0], small[1]).cases[0].models
    assert [m.answers for m in again] == [m.answers for m in first]
    for file in files:
        file.write_text("{")
    assert [m.answers for m in load(small[0], small[1]).cases[0].models] == [
        m.answers for m in first
    ]
    assert attached(Reader(small[1]), [], {}) == []
