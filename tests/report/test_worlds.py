"""Means over worlds: the estimator against others, by hand and by simulation, and its gaps."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest

from common.errors import UserError
from report import kept, tables, worlds
from report.answers import Answers
from report.averages import Score, mean
from report.case_table import case_csv, case_grid
from report.experiment import Model
from report.load import load
from report.pairs import compared, groups
from report.worlds import moderated, over_worlds, prior

WORLDS, ITEMS = 3, 200


def binomial(right, items=ITEMS):
    value = right / items
    return Score(value, math.sqrt(value * (1 - value) / (items - 1)), items)


def test_a_row_of_its_own_has_the_plain_error_and_never_less_than_its_items():
    scores = [Score(value, 0.01, ITEMS) for value in (0.5, 0.6, 0.7)]
    (found,) = over_worlds([scores])
    assert found == Score(pytest.approx(0.6), pytest.approx(0.1 / math.sqrt(3)), 600)
    (equal,) = over_worlds([[Score(0.5, 0.03, ITEMS)] * 3])
    assert equal.stderr == pytest.approx(0.03 / math.sqrt(3))
    assert over_worlds([[]]) == [None]
    assert over_worlds([scores[:1]]) == [scores[0]]


def test_the_prior_is_that_from_which_variances_were_drawn():
    generator = np.random.default_rng(0)
    for freedom, scale in ((4.0, 0.02), (12.0, 0.5)):
        true = scale * freedom / generator.chisquare(freedom, 60_000)
        drawn = true * generator.chisquare(2, len(true)) / 2
        found = prior(list(drawn), 2)
        assert found == (pytest.approx(freedom, rel=0.15), pytest.approx(scale, rel=0.05))
    equal = generator.chisquare(2, 200) / 2
    common, scale = prior(list(equal), 2)
    assert common > 20 and scale == pytest.approx(1, rel=0.2)
    assert prior([0.3] * 9, 2) == (math.inf, pytest.approx(0.3))  # luck that all rows share
    assert moderated([1.0, 2.0], 2) == ([1.0, 2.0], 2.0)  # two rows teach nothing


def test_of_two_worlds_no_row_is_surer_than_its_own_scores():
    """One degree of freedom hides a row that a seed fails, which a common variance would cover."""
    steady = [(0.90, 0.91), (0.88, 0.90), (0.93, 0.92), (0.86, 0.87), (0.91, 0.93)]
    table = [[Score(value, 0.01, ITEMS) for value in row] for row in [*steady, (0.5, 0.9)]]
    found = over_worlds(table)
    assert found[-1].stderr >= 0.4 / 2  # of 2 values, the error of the mean is half the distance
    variances = [0.5 * (a - b) ** 2 for a, b in [*steady, (0.5, 0.9)]]
    drawn, _ = moderated(variances, 1)
    assert all(one >= own for one, own in zip(drawn, variances, strict=True))


def simulated(generator, rows=12):
    """Scores of rows in worlds whose true deviations differ, and the true standard errors."""
    between = 0.03 * np.exp(0.5 * generator.normal(size=rows))
    truth = generator.uniform(0.4, 0.7, size=rows)
    world = 0.02 * generator.normal(size=WORLDS)
    chances = truth[:, None] + world + between[:, None] * generator.normal(size=(rows, WORLDS))
    chances = chances.clip(0.05, 0.95)
    right = generator.binomial(ITEMS, chances)
    items = truth * (1 - truth) / ITEMS
    exact = np.sqrt((0.02**2 + between**2 + items) / WORLDS)
    return [[binomial(count) for count in row] for row in right], truth, exact


def bootstrap(scores, generator, resamples=400):
    """The hierarchical bootstrap: worlds, then items within each, corrected for few worlds."""
    right = np.array([round(score.value * score.items) for score in scores])
    worlds = generator.integers(len(right), size=(resamples, len(right)))
    means = generator.binomial(ITEMS, (right / ITEMS)[worlds]).mean(axis=1) / ITEMS
    count = len(right)
    items = np.mean([score.stderr**2 for score in scores]) / count
    # Worlds drawn from so few vary by (W - 1) / W too little, and items are drawn a second time.
    return math.sqrt(max((means.var() - items) * count / (count - 1), items))


def test_the_error_is_that_of_a_hierarchical_bootstrap_and_of_the_truth():
    generator = np.random.default_rng(1)
    squares = {"ours": [], "bootstrap": [], "items": [], "truth": []}
    logs = {"ours": [], "bootstrap": []}
    for _ in range(60):
        table, _, exact = simulated(generator)
        for scores, found, true in zip(table, over_worlds(table), exact, strict=True):
            again = bootstrap(scores, generator)
            items = math.sqrt(sum(score.stderr**2 for score in scores)) / WORLDS
            squares["ours"].append(found.stderr**2)
            squares["bootstrap"].append(again**2)
            squares["items"].append(items**2)
            squares["truth"].append(true**2)
            logs["ours"].append(math.log(found.stderr / true))
            logs["bootstrap"].append(math.log(again / true))
    mean = {name: np.mean(values) for name, values in squares.items()}
    assert mean["bootstrap"] == pytest.approx(mean["truth"], rel=0.2)
    assert mean["ours"] == pytest.approx(mean["bootstrap"], rel=0.2)
    assert mean["ours"] == pytest.approx(mean["truth"], rel=0.15)
    assert mean["items"] < 0.6 * mean["truth"]  # what one world's error leaves out
    # It is as right on average, and much nearer the truth in the single row.
    assert np.std(logs["ours"]) < 0.8 * np.std(logs["bootstrap"])


def models(table):
    return [
        Model(
            f"row{place}",
            f"Row {place}",
            "merge",
            worlds={s: Model("", "", "merge", tasks={"t": score}) for s, score in enumerate(row)},
        )
        for place, row in enumerate(table)
    ]


def of(model):
    return model.tasks.get("t")


def test_paired_intervals_hold_the_true_difference_as_often_as_they_say():
    generator = np.random.default_rng(2)
    held, widths, plain = [], [], []
    for _ in range(150):
        table, truth, _ = simulated(generator)
        rows = models(table)
        apart = compared(rows, rows[0], of, {"t": 1.0})
        for place, row in enumerate(rows[1:], 1):
            gap = apart[row.id]
            width = (gap.high - gap.low) / 2
            held.append(gap.low <= truth[0] - truth[place] <= gap.high)
            pairs = zip(table[0], table[place], strict=True)
            lone = np.std([one.value - two.value for one, two in pairs], ddof=1)
            widths.append(width)
            plain.append(4.303 * lone / math.sqrt(WORLDS))
    assert 0.93 <= np.mean(held) <= 0.99
    assert np.mean(widths) < 0.85 * np.mean(plain)  # 2 degrees of freedom alone are wider


def benchmark(generator, task, rows=10, count=3, items=100):
    """Rows in worlds that all answer one set of items, of which some are hard; and the truth."""
    truth = generator.uniform(0.4, 0.6, size=rows)
    hard = generator.choice((-0.3, 0.3), size=items)
    trained = 0.03 * generator.normal(size=(rows, count))
    chances = truth[:, None, None] + trained[:, :, None] + hard
    right = (generator.random(chances.shape) < chances).astype(float)
    made = []
    for place, answered in enumerate(right):
        row = {}
        for seed, values in enumerate(answered):
            stderr = values.std(ddof=1) / math.sqrt(items)
            shared = 0.0 if task.startswith("bottle_") else stderr**2
            row[seed] = Model(
                f"row{place}",
                "",
                "merge",
                tasks={task: Score(values.mean(), stderr, items, shared=shared)},
                answers=Answers({task: "same"}, {task: tuple(values)}),
            )
        made.append(Model(f"row{place}", "", "merge", worlds=row))
    return made, truth


def test_more_worlds_do_not_lessen_the_error_of_items_that_they_share():
    def errors_and_coverage(task):
        generator = np.random.default_rng(4)
        errors, squares, held = [], [], []
        for _ in range(120):
            rows, truth = benchmark(generator, task)
            known = [worlds._sharing(row.worlds) for row in rows]
            table = [[world.tasks[task] for world in row.values()] for row in known]
            for found, true in zip(over_worlds(table), truth, strict=True):
                errors.append((found.value - true) ** 2)
                squares.append(found.stderr**2)
            apart = compared(rows, rows[0], lambda row: row.tasks.get(task), {task: 1.0})
            for place, row in enumerate(rows[1:], 1):
                gap = apart[row.id]
                held.append(gap.low <= truth[0] - truth[place] <= gap.high)
        return np.mean(squares) / np.mean(errors), np.mean(held)

    ratio, held = errors_and_coverage("ja8/xwinograd_ja")
    assert 0.85 <= ratio <= 1.2
    assert 0.94 <= held <= 0.995
    # The same numbers taken for items of each world's own are too sure of a row's score.
    ratio, _ = errors_and_coverage("bottle_ja8/xwino")
    assert ratio < 0.75


def test_shared_items_by_hand():
    # Two worlds that agree: the items' variance is that of one, not half of it.
    one = Score(0.5, 0.05, 100, shared=0.05**2)
    (found,) = over_worlds([[one, one]])
    assert found.stderr == pytest.approx(0.05)
    # A mean of a shared column and a generated one: half of the squared error is shared.
    both = mean([one, Score(0.7, 0.05, 100)])
    assert both.shared == pytest.approx(both.stderr**2 / 2)
    (found,) = over_worlds([[both, both]])
    assert found.stderr**2 == pytest.approx(both.stderr**2 * (1 / 2 + 1 / 4))


def test_rows_are_compared_in_the_worlds_that_both_have():
    table = [[binomial(180), binomial(100)], [binomial(160), binomial(80)]]
    rows = models(table)
    del rows[1].worlds[0]
    alone = compared(rows, rows[0], of, {"t": 1.0})["row1"]
    # One world is left: its items' errors, which count as independent where no item is known.
    one, two = table[0][1], table[1][1]
    assert alone.value == pytest.approx(0.1) == one.value - two.value
    assert alone.error == pytest.approx(math.hypot(one.stderr, two.stderr))


def test_groups_are_near_ties():
    near, far = [(180, 170, 175), (179, 171, 173), (178, 169, 176)], [(100, 92, 96)] * 2
    rows = models([[binomial(count) for count in row] for row in near + far])

    def mean_of(model):
        scores = [score.tasks["t"] for score in model.worlds.values()] or [model.tasks["t"]]
        return Score(sum(score.value for score in scores) / len(scores), 0.0, ITEMS)

    found = [{model.id for model, _ in group} for group in groups(rows, mean_of, {})]
    assert found == [{"row0", "row1", "row2"}, {"row3", "row4"}]


def test_a_table_says_what_its_worlds_share(several):
    path, results, config = several
    (case, *_) = load(path, results).cases
    assert "data, base, experts and merges are made anew in each." in case_grid(case, 7).caption
    config["cases"]["case1"]["base"] = {"package": "gemma3-270m"}
    path.write_text(json.dumps(config))
    (case, *_) = load(path, results).cases
    anew = "experts, merges and generated items are made anew in each, not the base."
    assert anew in case_grid(case, 7).caption
    config["cases"]["case1"]["columns"][0]["tasks"] = ["kobest/copa"]
    path.write_text(json.dumps(config))
    (case, *_) = load(path, results).cases
    assert "in each, not the base and benchmarks' items." in case_grid(case, 7).caption


@pytest.fixture
def several(small, tmp_path):
    """The small experiment in three worlds, each with other scores."""
    from tests.report.conftest import fill

    path, _, config = small
    del config["seed"]
    config["seeds"] = [7, 8, 9]
    path.write_text(json.dumps(config))
    fill(tmp_path / "worlds", config)
    return path, tmp_path / "worlds", config


def rows_of(text):
    return {row["id"]: row for row in csv.DictReader(io.StringIO(text))}


def test_the_csv_has_every_world_and_the_mean(several):
    case = load(several[0], several[1]).cases[0]
    for row in rows_of(case_csv(case)).values():
        if row["kind"] == "chance":
            continue
        each = [float(row[f"Avg seed {seed}"]) for seed in (7, 8, 9)]
        assert float(row["Avg"]) == pytest.approx(np.mean(each), abs=2e-6)
        assert row["seed"] == "7 8 9"
        items = [float(row[f"Avg seed {seed} stderr"]) for seed in (7, 8, 9)]
        least = math.sqrt(np.mean(np.square(items)) / 3)
        assert float(row["Avg stderr"]) >= least - 2e-6
    grid = case_grid(case, 7)
    assert "Mean over 3 worlds, of seeds 7, 8, 9" in grid.caption
    assert any(note.startswith("Groups by Avg: (1) ") for note in grid.notes)
    assert any("worlds and test items together" in note for note in grid.notes)


def test_one_world_says_that_its_errors_are_of_items_only(small):
    grid = case_grid(load(small[0], small[1]).cases[0], 7)
    assert "Errors are over test items only; one world." in grid.notes
    assert "over test items only" in grid.caption and "Seed 7." in grid.caption


def test_a_world_that_failed_the_gate_is_left_out_and_named(several):
    path, results, config = several
    gate = json.loads((results / "case1-seed8/gate.json").read_text())
    gate["failed"] = {"ja": "expert ja did not learn its domain"}
    (results / "case1-seed8/gate.json").write_text(json.dumps(gate))
    case = load(path, results).cases[0]
    row = rows_of(case_csv(case))["soup"]
    assert row["seed"] == "7 9" and "Avg seed 8" not in row
    grid = case_grid(case, 7)
    assert "Mean over 2 of the 3 worlds, of seeds 7, 9" in grid.caption
    assert "Seed 8 is left out: expert ja did not learn its domain." in grid.notes
    (results / "case1-seed9/gate.json").write_text(json.dumps(gate))
    grid = case_grid(load(path, results).cases[0], 7)  # one is left: no error between worlds
    assert "Scores of 1 of the 3 worlds, of seed 7" in grid.caption
    assert "Errors are over test items only; one world." in grid.notes
    assert sum(line.cells[5].strong for line in grid.rows) == 1
    config["gate"] = {"stop": False}
    path.write_text(json.dumps(config))
    assert rows_of(case_csv(load(path, results).cases[0]))["soup"]["seed"] == "7 8 9"


def test_a_row_that_lacks_a_world_says_so_and_takes_no_part_in_the_marks(several):
    path, results, _ = several
    (results / "case1-seed9/scores/test/soup.json").unlink()
    (results / "case1-seed9/merges/soup.failed").write_text("error: it overflows\n")
    case = load(path, results).cases[0]
    row = rows_of(case_csv(case))["soup"]
    assert row["status"] == "2 of 3 worlds: seed 9 failed: it overflows"
    assert (row["best_of"], row["seed"], row["Avg seed 9"]) == ("False", "7 8", "")
    grid = case_grid(case, 7)
    assert any(line.cells[0].text == "Model Soups° (2 of 3 worlds)" for line in grid.rows)
    assert not any("Model Soups" in note for note in grid.notes if note.startswith("Groups"))


def test_scores_of_another_seed_are_not_mixed_in(several):
    path, results, _ = several
    other = (results / "case1-seed8/scores/test/soup.json").read_text()
    (results / "case1/scores/test/soup.json").write_text(other)
    status = rows_of(case_csv(load(path, results).cases[0]))["soup"]["status"]
    assert status == "2 of 3 worlds: seed 7 of another world (seed 8, not 7)"


def test_a_folder_of_other_models_is_refused_and_new_rows_are_not(several):
    path, results, config = several
    config["cases"]["case1"]["base"] = {"label": "Base", "train": {"steps": 1100}}
    path.write_text(json.dumps(config))
    (results / "config.json").write_text(json.dumps(config))
    config["methods"]["new"] = {"label": "New", "method": "linear"}
    config["cases"]["case1"]["columns"].pop()
    path.write_text(json.dumps(config))
    assert load(path, results).cases[0].models[-1].status == "not run"
    config["cases"]["case1"]["base"]["train"]["steps"] = 700
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"cases\.case1\.base\.train\.steps is 1100 there and 700"):
        load(path, results)


def test_leftover_further_worlds_are_not_read(several):
    path, results, config = several
    config["seeds"] = [7]
    path.write_text(json.dumps(config))
    case = load(path, results).cases[0]
    assert not case.worlds and rows_of(case_csv(case))["soup"]["seed"] == "7"


def test_a_kept_run_makes_the_same_tables(several, tmp_path):
    path, results, _ = several
    tables.write(load(path, results), tmp_path / "before")
    kept.keep(path, results, tmp_path / "kept.jsonl")
    with kept.opened(tmp_path / "kept.jsonl") as experiment:
        tables.write(experiment, tmp_path / "after")
    for file in (tmp_path / "before").glob("*.csv"):
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes()
