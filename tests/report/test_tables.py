"""The tables' content, marks and gaps, and that nothing measured is in them."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil

import pytest

from common.errors import UserError
from report import footnotes, published, tables
from report.ablation_table import ablation_csv, ablation_grid
from report.beside_paper import values_grid
from report.case_table import best, case_csv, case_grid, more_grid, tasks_csv
from report.load import load


def rows_of(text: str) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in csv.DictReader(io.StringIO(text))}


def set_tasks(path, **values):
    """Overwrite a score file: values by task, as (value, stderr)."""
    content = json.loads(path.read_text())
    for task, (value, stderr) in values.items():
        name = next(name for name in content["tasks"] if name.endswith(f"/{task}"))
        content["tasks"][name] |= {"value": value, "stderr": stderr}
    path.write_text(json.dumps(content))


def case_of(small):
    return load(small[0], small[1]).cases[0]


def test_csv_values_by_hand(small):
    path = small[1] / "case1/scores/test/soup.json"
    set_tasks(path, a=(0.8, 0.06), jsquad=(0.2, 0.03), c=(0.4, 0.04), gsm_en=(0.5, 0.01))
    row = rows_of(case_csv(case_of(small)))["soup"]
    assert (row["A_1"], row["A_1 stderr"], row["A_1 items"]) == ("0.800000", "0.060000", "200")
    assert (row["Pair"], row["Pair stderr"], row["Pair items"]) == ("0.300000", "0.025000", "400")
    # (0.8 + 0.3) / 2, sqrt(0.06^2 + 0.025^2) / 2; the column beside takes no part.
    assert (row["Avg"], row["Avg stderr"], row["Avg items"]) == ("0.550000", "0.032500", "600")
    assert (row["GSM"], row["kind"], row["seed"]) == ("0.500000", "merge", "7")


def test_kinds_data_and_embeddings(small):
    rows = rows_of(case_csv(case_of(small)))
    assert [row["kind"] for row in rows.values()] == [
        *("chance", "base", "expert", "expert", "merge", "merge", "merge", "merge")
    ]
    assert rows["soup"]["data"] == "none"
    assert rows["ties_tuned"]["data"] == "dev items (3 evaluations)"
    assert rows["dam"]["data"] == "calibration (2 × 1729 samples)"
    assert (rows["dam"]["embeddings_and_norms"], rows["soup"]["embeddings_and_norms"]) == (
        *("base", "merged"),
    )
    assert rows["soup"]["counted forward_tokens"] == "2000000"
    assert (rows["chance"]["A_1"], rows["chance"]["Avg"]) == ("0.250000", "0.250000")


def test_whose_embeddings_a_path_and_a_published_merge_have(small):
    path, results, config = small
    search = {"space": "data-flow", "budget": 4}
    config["methods"] |= {
        "dfs": {"label": "Paths", "method": "linear", "evolve": search},
        "dfs_base": {"label": "P", "method": "linear", "evolve": search},
        "unrun": {"label": "U", "method": "linear", "evolve": search | {"embedding_from": "ja"}},
        "evollm": {"label": "EvoLLM", "hub": "evollm_jp_7b"},
    }
    path.write_text(json.dumps(config))
    for row, whose in (("dfs", "math_a"), ("dfs_base", "base")):
        folder = results / "case1/merges" / row
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps({"parameters": {"embedding_from": whose}}))
    rows = rows_of(case_csv(case_of(small)))
    found = {name: rows[name]["embeddings_and_norms"] for name in rows}
    assert found["dfs"] == "of math_a" and found["dfs_base"] == "base"
    assert found["unrun"] == "of ja" and found["evollm"] == "as published"
    assert found["ties_tuned"] == "merged" and found["ja"] == "own"
    assert rows["evollm"]["data"] == "not known here" and rows["soup"]["data"] == "none"


def test_best_ignores_base_experts_and_rows_that_take_no_part(small):
    scores = {"base": 0.99, "ja": 0.98, "slerp": 0.97, "dam": 0.6, "soup": 0.6, "ties_tuned": 0.5}
    for model, value in scores.items():
        set_tasks(small[1] / f"case1/scores/test/{model}.json", a=(value, 0.03))
    case = case_of(small)
    column = case.columns[0]
    found = best(case.models, [model.column(column) for model in case.models])
    assert found == {"dam", "soup"}
    marked = {row.cells[0].text for row in case_grid(case, 7).rows if row.cells[3].strong}
    assert marked == {"DAM", "Model Soups"}


def test_tasks_that_were_not_learned_and_held_out_ones_are_marked(small):
    grid = case_grid(case_of(small), 7)
    # Pair = jsquad (not learned) and c (in no domain): only the first mark holds for the column.
    assert grid.header[3:] == ("A_1", "Pair†", "Avg", "GSM")
    notes = "\n".join(grid.notes)
    assert "Pair: jsquad (Japanese expert)" in notes
    assert "‡ In no expert's domain: Pair: c." in notes


def test_a_perfect_score_is_not_shown_as_certain(small):
    def warned():
        notes = case_grid(case_of(small), 7).notes
        return any(note.startswith("±.000 stands where") for note in notes)

    for path in (small[1] / "case1/scores/test").glob("*[a-z].json"):
        if not path.name.endswith(".cost.json"):
            set_tasks(path, **dict.fromkeys(("a", "jsquad", "c", "gsm_en"), (0.5, 0.03)))
    assert not warned()
    set_tasks(small[1] / "case1/scores/test/dam.json", a=(1.0, 0.0))
    assert warned()


def test_caption_says_what_the_numbers_are(small):
    caption = case_grid(case_of(small), 7).caption
    for words in ("own generated tasks", "not those benchmarks", "200 items", "Seed 7", "±"):
        assert words in caption


def test_missing_and_failed_rows_stay_as_rows(small):
    scores = small[1] / "case1/scores/test"
    (scores / "soup.json").unlink()
    (scores / "ties_tuned.json").unlink()
    failed = small[1] / "case1/merges/ties_tuned.failed"
    failed.write_text("error: every candidate gave NaN\n")
    case = case_of(small)
    rows = rows_of(case_csv(case))
    assert (rows["soup"]["status"], rows["soup"]["Avg"]) == ("not run", "")
    assert rows["ties_tuned"]["status"] == "failed: every candidate gave NaN"
    grid = case_grid(case, 7)
    labels = [row.cells[0].text for row in grid.rows]
    assert "Model Soups (not run)" in labels
    assert "TIES (tuned) (failed)" in labels
    assert "TIES (tuned): failed: every candidate gave NaN." in grid.notes


def smoke_row(not_finite=0):
    perplexity = None if not_finite else 50.0
    return {"perplexity": perplexity, "bits_per_byte": 3.0, "not_finite": not_finite, "tokens": 9}


def test_a_model_that_is_not_finite_is_a_failed_row(small):
    checked = {"soup": smoke_row(4), "dam": smoke_row()}
    content = {"text": "0" * 64, "model": smoke_row(), "parents": checked}
    (small[1] / "case1/smoke.json").write_text(json.dumps(content))
    runs = {"kl/seed1": smoke_row(2), "kl/seed0": smoke_row()}
    (small[1] / "ablation/smoke.json").write_text(json.dumps(content | {"parents": runs}))
    rows = rows_of(case_csv(case_of(small)))
    reason = "failed: logits are NaN or infinite at 4 positions of the smoke text"
    assert (rows["soup"]["status"], rows["soup"]["Avg"]) == (reason, "")
    assert rows["dam"]["status"] == "ok" and rows["dam"]["Avg"] != ""
    assert f"Model Soups: {reason}." in case_grid(case_of(small), 7).notes
    row = rows_of(ablation_csv(load(small[0], small[1]).ablation))["kl"]
    assert (row["runs"], row["Avg seed 1"]) == ("2", "")
    # What failed before has its own reason.
    (small[1] / "case1/merges/soup.failed").write_text("error: it overflows\n")
    assert rows_of(case_csv(case_of(small)))["soup"]["status"] == "failed: it overflows"


def test_a_damaged_smoke_check_is_named(small):
    (small[1] / "case1/smoke.json").write_text('{"model": {}}')
    (line,) = load(small[0], small[1]).faults
    assert "smoke.json: not a smoke check" in line


def test_methods_beyond_the_paper_s_have_a_table_of_their_own(small, tmp_path):
    before = tmp_path / "before"
    tables.write(load(small[0], small[1]), before)
    config = small[2]
    config["methods"]["karcher"] = {"label": "Karcher", "method": "karcher", "table": "more"}
    greedy = {"label": "Greedy soup", "method": "linear", "greedy": True, "table": "more"}
    config["methods"] = {"greedy_soup": greedy, **config["methods"]}
    small[0].write_text(json.dumps(config))
    scores = small[1] / "case1/scores/test"
    for name, value in (("karcher", 0.4), ("greedy_soup", 0.3)):
        text = (scores / "soup.json").read_text().replace('"soup"', f'"{name}"')
        (scores / f"{name}.json").write_text(text)
        set_tasks(scores / f"{name}.json", a=(value, 0.03))
    set_tasks(scores / "dam.json", a=(0.99, 0.01))
    tables.write(load(small[0], small[1]), tmp_path / "first")
    set_tasks(scores / "karcher.json", a=(0.41, 0.03))
    tables.write(load(small[0], small[1]), tmp_path / "after")
    for name in ("table1.csv", "table1.md", "table1_tasks.csv", "table1_tasks.md"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    assert not (before / "table1_more.csv").exists()
    ids = ["chance", "base", "ja", "math_a", "greedy_soup", "karcher"]
    rows = rows_of((tmp_path / "after/table1_more.csv").read_text())
    assert list(rows) == ids
    assert (rows["greedy_soup"]["data"], rows["greedy_soup"]["status"]) == ("not recorded", "ok")
    assert rows["karcher"]["A_1"] == "0.410000"
    main = rows_of((tmp_path / "after/table1.csv").read_text())
    assert list(main) == list(rows_of((before / "table1.csv").read_text()))
    columns = [name for name in main["dam"] if not name.startswith("counted ")]
    assert [name for name in rows["karcher"] if not name.startswith("counted ")] == columns
    manifest = {"kind": "merge", "inputs": {}, "parameters": {}}
    path = small[1] / "case1/merges/greedy_soup/manifest.json"
    path.parent.mkdir()
    for joined, words in (
        (["ja"], "Japanese expert, alone."),
        (["ja", "math_a"], "the average of"),
    ):
        search = {"evaluations": 3, "joined": joined}
        path.write_text(json.dumps(manifest | {"parameters": {"search": search}}))
        grid = more_grid(case_of(small), 7)
        assert any(note.startswith(f"Greedy soup: {words}") for note in grid.notes)
    assert grid.rows[4].cells[1].text == "dev items (3 evaluations)"
    marked = [row.cells[0].text for row in grid.rows if row.cells[3].strong]
    assert marked == ["Karcher"]  # the best of its own table, whatever the paper's rows score
    assert grid.title == "Table 1, other methods" and "Untuned" in grid.caption
    assert grid.header == case_grid(case_of(small), 7).header


def test_a_missing_task_leaves_its_column_and_the_average_open(small):
    path = small[1] / "case1/scores/test/dam.json"
    content = json.loads(path.read_text())
    del content["tasks"]["bottle_ja8/c"]
    path.write_text(json.dumps(content))
    row = rows_of(case_csv(case_of(small)))["dam"]
    assert row["A_1"] != "" and row["Pair"] == "" and row["Avg"] == ""


def test_no_scores_at_all_is_one_clear_line(small):
    shutil.rmtree(small[1] / "case1/scores")
    shutil.rmtree(small[1] / "ablation")
    with pytest.raises(UserError, match=r"no scores in .*make reproduce"):
        load(small[0], small[1])


def test_damaged_scores_are_named(small):
    path = small[1] / "case1/scores/test/dam.json"
    path.write_text('{"tasks": {"bottle_ja8/a": {"value": 0.5}}}')
    (line,) = load(small[0], small[1]).faults
    assert line.startswith("bottle_ja8/a is not a score (KeyError('stderr')) in ")
    assert "case1/scores/test/dam.json" in line
    path.write_text('{"tasks": {"b/a": {"value": 0.5, "stderr": 0, "items": 0}}}')
    (line,) = load(small[0], small[1]).faults
    assert line.startswith("b/a has no items in ")


def test_task_table_lists_each_task_under_its_column(small):
    text = tasks_csv(case_of(small))
    mine = [r for r in csv.DictReader(io.StringIO(text)) if r["id"] == "soup"]
    assert [(r["column"], r["task"]) for r in mine] == [
        ("A_1", "bottle_ja8/a"),
        ("Pair", "bottle_ja8/jsquad"),
        ("Pair", "bottle_ja8/c"),
        ("GSM", "bottle_gsm_en/gsm_en"),
    ]


def test_ablation_by_hand(small):
    for seed, value in enumerate((0.4, 0.5, 0.6)):
        path = small[1] / f"ablation/kl/seed{seed}/scores.json"
        set_tasks(path, a=(value, 0.03), jsquad=(value, 0.03), c=(value, 0.03))
    ablation = load(small[0], small[1]).ablation
    row = rows_of(ablation_csv(ablation))["kl"]
    assert (row["Avg mean"], row["Avg sd"], row["runs"]) == ("0.500000", "0.100000", "3")
    assert (row["Avg seed 0"], row["Avg seed 2"]) == ("0.400000", "0.600000")
    assert (row["A_1 mean"], row["A_1 sd"]) == ("0.500000", "0.100000")
    # Pair's error is sqrt(2) 0.03 / 2, the average's sqrt(0.03^2 + that^2) / 2.
    assert float(row["Avg item stderr"]) == pytest.approx(0.03 * 1.5**0.5 / 2, abs=1e-6)


def test_ablation_with_a_missing_seed(small):
    (small[1] / "ablation/kl/seed1/scores.json").unlink()
    ablation = load(small[0], small[1]).ablation
    row = rows_of(ablation_csv(ablation))["kl"]
    assert (row["runs"], row["Avg seed 1"]) == ("2", "")
    assert "KL, seed 1: not run." in ablation_grid(ablation).notes


def test_a_row_beyond_the_paper_s_is_marked_and_cannot_be_the_best(small):
    small[2]["ablation"]["objectives"]["mse"]["extra"] = True
    small[0].write_text(json.dumps(small[2]))
    for seed in range(3):
        for name, value in (("kl", 0.4), ("mse", 0.9)):
            path = small[1] / f"ablation/{name}/seed{seed}/scores.json"
            set_tasks(path, a=(value, 0.03), jsquad=(value, 0.03), c=(value, 0.03))
    grid = ablation_grid(load(small[0], small[1]).ablation)
    assert [(row.cells[0].text, row.cells[1].strong) for row in grid.rows] == [
        ("KL", True),
        ("MSE°", False),
    ]
    assert any(note.startswith("° A row beyond the paper's") for note in grid.notes)


def test_rerendering_gives_equal_bytes_whatever_was_measured(small, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    tables.write(load(small[0], small[1]), first)
    for path in small[1].rglob("*cost.json"):
        content = json.loads(path.read_text())
        content |= {"wall_s": 98765.0, "cpu_s": 87654.0, "peak_rss_mb": 76543}
        path.write_text(json.dumps(content))
    tables.write(load(small[0], small[1]), second)
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert {"table1.csv", "table1.md", "table1.tex", "table1_tasks.csv", "table3.csv"} < set(names)
    for name in names:
        content = (second / name).read_bytes()
        assert content == (first / name).read_bytes(), name
        if name != "manifest.json":  # which names torch's "+cpu" build
            assert not re.search(rb"98765|87654|76543|wall|cpu|rss", content), name


def test_manifest_hashes_the_scores_that_were_used(small, tmp_path):
    from hashlib import sha256

    tables.write(load(small[0], small[1]), tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    path = small[1] / "case1/scores/test/soup.json"
    assert manifest["inputs"]["case1/scores/test/soup.json"] == (
        sha256(path.read_bytes()).hexdigest()
    )
    assert len(manifest["inputs"]) == 2 + 7 + 6  # gate and inspection, models, ablation runs
    assert "table1.csv" in manifest["outputs"]


def test_the_default_configuration_gives_three_tables(full, tmp_path):
    tables.write(load(*full), tmp_path)
    assert len((tmp_path / "table3.csv").read_text().splitlines()) == 11  # nine, an extra one
    header = (tmp_path / "table1.csv").read_text().splitlines()[0].split(",")
    for label in ("JComQA", "JNLI", "MARC", "JSQuAD", "JAQKET", "XLSum", "XWino", "MGSM", "Avg"):
        assert label in header
    assert (tmp_path / "table2_tasks.csv").exists()


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_rows_that_stand_in_are_said_in_caption_and_note(small):
    task = next(task for task in case_of(small).tasks if task.endswith("/jsquad"))
    for path in (small[1] / "case1/scores/test").glob("*.json"):
        if ".cost" not in path.name:
            marked = {"items": "made by hand", "fewshot": "made by hand"}
            change(path, lambda c, m=marked: c["tasks"][task].update(stand_in=m))
    grid = case_grid(case_of(small), 0)
    assert "rows that only stand in for the benchmark's own" in grid.caption
    label = case_of(small).task_label(task)
    assert [note for note in grid.notes if "made by hand" in note] == [
        f"Not the benchmark's own items, but made by hand: {label}.",
        f"Not the benchmark's own examples, but made by hand: {label}.",
    ]
    experiment = load(small[0], small[1])
    assert "stand in" in ablation_grid(experiment.ablation).caption
    assert "do not compare with the paper's" in values_grid(experiment, published.load()).caption


def test_two_backends_in_one_table_are_told_apart(small):
    assert not any("Evaluated" in note for note in case_grid(case_of(small), 0).notes)
    change(small[1] / "case1/scores/test/soup.json", lambda c: c.update(backend="vllm"))
    notes = case_grid(case_of(small), 0).notes
    label = next(model.label for model in case_of(small).models if model.id == "soup")
    assert f"Evaluated by vllm: {label}; the others by hf." in notes


def test_an_undefined_score_costs_its_row_and_no_other(small):
    before = rows_of(case_csv(case_of(small)))
    lost = {"value": None, "stderr": None, "undefined": "not a number for 1 of 4 items"}
    task = case_of(small).tasks[0]
    change(small[1] / "case1/scores/test/soup.json", lambda c: c["tasks"][task].update(lost))
    after = rows_of(case_csv(case_of(small)))
    assert after.pop("soup")["status"] == f"failed: {task} has no score: {lost['undefined']}"
    before.pop("soup")
    assert after == before


@pytest.mark.parametrize(
    ("seeds", "text"), [([], ""), (["1"], " (seed 1)"), (["1", "3"], " (seeds 1, 3)")]
)
def test_a_note_names_the_seeds_of_its_worlds(seeds, text):
    assert footnotes._of_seeds(seeds) == text


def test_a_caption_says_which_tasks_are_generated(small):
    config, results, about = small

    def caption():
        return case_grid(load(config, results).cases[0], 0).caption

    assert "the bottle's own generated tasks" in caption()
    case = about["cases"]["case1"]
    case["beside"][0]["tasks"] = ["mine/sums"]  # not of the average
    config.write_text(json.dumps(about))
    assert "the bottle's own generated tasks" in caption()
    case["columns"][1]["tasks"] = ["kobest/copa"]
    config.write_text(json.dumps(about))
    assert "the named tasks, of which the bottle generates: A_1;" in caption()
    case["columns"][0]["tasks"] = ["kobest/boolq"]
    config.write_text(json.dumps(about))
    assert "Test scores on the named tasks;" in caption()


def test_time_that_a_resumed_search_measured_is_in_no_table():
    from types import SimpleNamespace

    from report.fields import counted_names

    resumed = SimpleNamespace(counted={"evaluations": 5, "earlier_cpu_s": 0.3, "earlier_wall_s": 2})
    assert counted_names([resumed, SimpleNamespace(counted={"steps": 1})]) == [
        "evaluations",
        "steps",
    ]
