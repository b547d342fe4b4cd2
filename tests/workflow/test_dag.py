"""The whole experiment through real Snakemake, on settings so small that nothing is learned."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.test_contributing import examples

pytestmark = pytest.mark.workflow
ROOT = Path(__file__).resolve().parents[2]


def rows(project, table):
    with open(project.results / "tables" / f"{table}.csv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_one_command_makes_tables_figures_and_page(reproduced):
    config = reproduced.config
    for case, table in (("case1", "table1"), ("case2", "table2")):
        parents = ["chance", "base", *config["cases"][case]["experts"]]
        for name, wanted in ((table, "main"), (f"{table}_more", "more")):
            methods = [
                method
                for method, row in config["methods"].items()
                if case in row.get("cases", [case]) and row.get("table", "main") == wanted
            ]
            assert [row["id"] for row in rows(reproduced, name)] == parents + methods
    assert [row["id"] for row in rows(reproduced, "table3")] == ["kl", "entropy"]
    for suffix in ("png", "pdf"):
        assert list((reproduced.results / "figures").glob(f"*.{suffix}"))
    assert "<table" in (reproduced.results / "report.html").read_text(encoding="utf-8")
    assert "report.html" in reproduced.output
    (run,) = json.loads((reproduced.results / "machine.json").read_text(encoding="utf-8"))
    assert run["processor"] and run["cores"] >= 1 and run["seconds"] > 0
    assert "DAM (paper)" in reproduced.output and "TIES" in reproduced.output


def test_a_greedy_soup_is_chosen_on_dev_and_its_evaluations_are_counted(reproduced):
    (row,) = [row for row in rows(reproduced, "table1_more") if row["id"] == "greedy_soup"]
    assert (row["data"], row["counted evaluations"]) == ("dev items (5 evaluations)", "5")
    folder = reproduced.results / "case1" / "merges" / "greedy_soup"
    search = json.loads((folder / "manifest.json").read_text())["parameters"]["search"]
    assert search["kind"] == "greedy" and search["joined"]
    with open(folder / "search.csv", encoding="utf-8") as stream:
        tried = list(csv.DictReader(stream))
    # What was scored in memory is what the gate scored from disk.
    for expert, line in zip(reproduced.config["cases"]["case1"]["experts"], tried, strict=False):
        path = reproduced.results / "case1" / "scores" / "dev" / f"{expert}.json"
        scores = json.loads(path.read_text())["tasks"]
        for task, value in line.items():
            if "/" in task:
                assert float(value) == pytest.approx(scores[task]["value"], abs=1e-6)


def test_every_row_has_its_whole_price(reproduced):
    with open(reproduced.results / "cost.csv", encoding="utf-8") as stream:
        steps = list(csv.DictReader(stream))
    made = {row["id"]: row for row in steps if row["stage"] in ("merges", "search")}
    assert set(made) == set(reproduced.config["methods"])
    for id, row in made.items():
        for name in ("wall_s", "cpu_s", "peak_rss_mb", "bytes_read", "bytes_written"):
            assert float(row[name]) > 0, (id, name)
        assert float(row["gpu_s"]) == 0
    weights = reproduced.results / "case1/merges/soup/model.safetensors"
    # A merge reads its three experts and writes one model; the base it does not need.
    assert int(made["soup"]["bytes_read"]) > 3 * 0.9 * weights.stat().st_size
    assert int(made["soup"]["bytes_written"]) >= weights.stat().st_size
    plain = [made[id] for id in ("soup", "ties", "dare_ties", "model_stock")]
    assert {(row["forward_tokens"], row["flops"]) for row in plain} == {("0", "0")}
    assert int(made["dam_paper"]["backward_tokens"]) > 0
    assert made["evolutionary"]["evaluations"] == "5"
    assert int(made["evolutionary"]["forward_tokens"]) > 0


def test_every_model_is_smoke_checked_and_the_page_shows_it(reproduced):
    for case in ("case1", "case2"):
        found = json.loads((reproduced.results / case / "smoke.json").read_text())
        models = [path.parent.name for path in reproduced.results.glob(f"{case}/m*/*/config.json")]
        assert {"base", *found["parents"]} == set(models)
        for checked in (found["model"], *found["parents"].values()):
            assert checked["not_finite"] == 0 and checked["perplexity"] > 1
    runs = json.loads((reproduced.results / "ablation" / "smoke.json").read_text())["parents"]
    assert set(runs) == {f"{kind}/seed{seed}" for kind in ("kl", "entropy") for seed in (0, 1)}
    page = (reproduced.results / "report.html").read_text(encoding="utf-8")
    assert "models on a fixed text</summary>" in page


def test_every_merge_is_inspected_and_the_page_shows_it(reproduced):
    for case in ("case1", "case2"):
        found = json.loads((reproduced.results / case / "inspection.json").read_text())
        rows = {
            path.parent.name for path in reproduced.results.glob(f"{case}/merges/*/config.json")
        }
        reordered = {"evolutionary_dfs"}  # has other layers than the base
        assert set(found["merges"]) == rows - reordered
        kept = found["all"]["kept"]["soup"].values()
        assert list(kept) == pytest.approx([1 / 3] * 3, abs=1e-3)
        assert set(found["lines"]["base"]) == set(found["merges"])
        assert {
            len(line) for each in found["lines"]["base"].values() for line in each.values()
        } == {5}
    page = (reproduced.results / "report.html").read_text(encoding="utf-8")
    assert "Why a merge works" in page and "Kept of German expert" in page
    assert 'id="figure-table2_lines"' in page
    assert (reproduced.results / "tables/table2_inspection.md").exists()


def test_every_artefact_has_its_manifest(reproduced):
    folders = [
        *reproduced.results.glob("case*/models/*"),
        *reproduced.results.glob("case*/merges/*"),
    ]
    folders += [*reproduced.results.glob("case*/data"), *reproduced.results.glob("case*/teachers")]
    folders += [*reproduced.results.glob("ablation/*/*/model"), reproduced.results / "tables"]
    assert len(folders) > 15
    for folder in folders:
        assert (folder / "manifest.json").is_file(), folder


def test_a_second_run_has_nothing_to_do(project):
    before = {path: path.stat().st_mtime_ns for path in project.results.rglob("*.json")}
    output = project.reproduce()
    assert "Nothing to be done" in output
    assert {path: path.stat().st_mtime_ns for path in project.results.rglob("*.json")} == before


@pytest.mark.parametrize(
    ("gone", "again"),
    [
        ("case2/scores/test/soup.json", {"evaluate": 1}),
        ("case2/scores/test/soup.manifest.json", {"evaluate": 1}),
        ("case1/merges/soup/manifest.json", {"merge": 1, "evaluate": 1, "smoke": 1, "inspect": 1}),
        ("case2/smoke.json", {"smoke": 1}),
        ("case1/inspection.json", {"inspect": 1}),
        ("ablation/kl/seed0/scores.json", {"ablation_evaluate": 1}),
    ],
)
def test_what_is_deleted_is_made_again(project, gone, again):
    path = project.results / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    report = {"make_tables": 1, "make_figures": 1, "make_page": 1}
    assert project.planned() == again | report


def test_a_method_and_a_task_added_as_contributing_says_run_only_their_own_jobs(project):
    shown = examples()
    assert project.planned() == {}
    method = "merges/methods/median.py"
    (project.folder / method).write_text(shown[method], encoding="utf-8")
    assert project.planned() == {}
    for key in ("ablation", "studies"):  # these and other rows would only take time
        del project.config[key]
    kept = {row: project.config["methods"][row] for row in ("soup", "ties_tuned")}
    project.config["methods"] = kept | yaml.safe_load(shown["config.yaml"])
    project.write()
    report = {"resolved_config": 1, "make_tables": 1, "make_figures": 1, "make_page": 1}
    assert project.planned() == {"merge": 2, "evaluate": 2, "smoke": 2, "inspect": 2, **report}
    project.config["tasks"] = yaml.safe_load(shown["sums.yaml"])["tasks"]
    project.config["cases"]["case2"]["beside"].append({"label": "Sums", "tasks": ["mine/sums"]})
    project.write()
    code, output = project.run("snakemake", "-n", "--configfile", "tiny.yaml")
    assert code != 0 and "tasks.mine/sums: no such file sums.jsonl" in output
    (project.folder / "sums.jsonl").write_text(shown["sums.jsonl"], encoding="utf-8")
    planned = project.planned()
    assert planned["own_task"] >= 1 and planned["merge"] >= 2 and planned["prompts"] == 1
    assert not {"bottle_data", "bottle_base", "bottle_expert"} & set(planned)
    project.reproduce()
    found = {row["id"]: row for row in rows(project, "table2")}
    assert found["median"]["Sums"] and found["base"]["Sums"]
    # The page shows the own task's prompts as they were asked.
    assert (project.results / "case2/prompts/mine/sums.jsonl.gz").exists()
    assert (project.results / "items/case2/data/test/mine/sums.js").exists()
    assert project.planned() == {}


def test_a_changed_number_runs_only_its_own_method(project):
    project.config["methods"]["ties"]["set"]["density"] = 0.35
    project.write()
    planned = project.planned()
    assert planned == {
        "merge": 2,
        "evaluate": 2,
        "smoke": 2,
        "inspect": 2,
        "resolved_config": 1,
        "make_tables": 1,
        "make_figures": 1,
        "make_page": 1,
    }
    listed = project.snakemake("-n", "-p")
    assert set(re.findall(r"wildcards: case=\w+, row=(\w+)", listed)) == {"ties"}


def test_a_store_changes_no_score_and_makes_nothing_run_again(project):
    project.config["evaluation"]["store"] = True
    project.write()
    assert set(project.planned()) == {"resolved_config", "make_tables", "make_figures", "make_page"}
    scores = project.results / "case1/scores/test/soup.json"
    items = scores.with_name("soup.items.jsonl.gz")
    before = scores.read_bytes(), items.read_bytes()
    for _ in range(2):  # the second time from the store
        scores.unlink()
        project.snakemake(str(scores.relative_to(project.folder)), "--cores", "1")
        assert (scores.read_bytes(), items.read_bytes()) == before
        kept = sorted((project.results / "store").iterdir())
        assert len(kept) == 9  # the case's tasks
    assert json.loads(scores.with_name("soup.cost.json").read_text())["counted"]["tokens"] > 0


def test_tables_and_figures_never_run_a_merge_or_an_evaluation(project):
    scores = project.results / "case1" / "scores" / "test"
    (scores / "ties.json").unlink()  # one row is missing, all code has changed
    with open(project.folder / "merges" / "engine" / "run.py", "a", encoding="utf-8") as source:
        source.write("\n_UNUSED = 1\n")
    shutil.rmtree(project.results / "tables")
    shutil.rmtree(project.results / "figures")
    assert project.planned("tables", "figures") == {"tables": 1, "figures": 1}
    output = project.snakemake("tables", "figures")
    assert output.count("\n") <= 40, output  # the configuration alone has over 300 lines
    (row,) = [row for row in rows(project, "table1") if row["id"] == "ties"]
    assert row["Avg"] == ""
    assert not (scores / "ties.json").exists()
    assert list((project.results / "figures").glob("*.png"))


def test_tables_from_a_folder_that_was_dropped_in(project, reproduced):
    dropped = project.folder / "dropped"
    project.results.rename(dropped)
    shutil.rmtree(project.folder / ".snakemake")
    project.config["scores_from"] = "dropped"
    project.write()
    project.snakemake("tables", "figures")
    for table in ("table1.csv", "table2.csv", "table3.csv"):
        made = (project.results / "tables" / table).read_bytes()
        assert made == (reproduced.results / "tables" / table).read_bytes()
    assert not list(project.results.glob("case*"))


def test_snakemake_makes_its_own_report(project):
    project.snakemake("--report", "snakemake.html")
    text = (project.folder / "snakemake.html").read_text(encoding="utf-8")
    assert "Merging in a Bottle: base and experts of each case study" in text
    assert all(rule in text for rule in ("make_tables", "make_figures", "make_page"))


def test_a_mistyped_key_is_told_before_anything_runs(project):
    project.config["methods"]["ties"]["set"] = {"densty": 0.5}
    project.write()
    code, output = project.run("workflow", "reproduce", "--config", "tiny.yaml")
    assert code == 2
    assert output.count("\n") == 1 and "did you mean 'density'" in output
    code, output = project.run("snakemake", "-n", "--configfile", "tiny.yaml")
    assert code != 0 and "did you mean 'density'" in output and "Traceback" not in output


def test_a_target_read_as_a_configuration_is_explained(project):
    target = "results/tiny/case1/gate.json"
    code, output = project.run("snakemake", "-n", "--configfile", "tiny.yaml", target)
    (told,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert code != 0 and told.startswith(f"error: tiny.yaml, {target}: unknown key")
    assert told.endswith("if the last is a target, put it before --configfile")
    assert project.snakemake(target, "-n")


def test_parsing_imports_no_torch(project):
    code = (
        "import sys, runpy; sys.argv = ['snakemake', '-n', '--configfile', 'tiny.yaml']\n"
        "try: runpy.run_module('snakemake', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'lm_eval', 'datasets'} & set(sys.modules)))"
    )
    (project.folder / "parse.py").write_text(code)
    code, output = project.run("parse")
    assert code == 0 and output.rstrip().endswith("[]"), output[-2000:]


def test_reproducing_from_a_dropped_in_folder_follows_its_scores(project):
    dropped = project.folder / "dropped"
    project.results.rename(dropped)
    shutil.rmtree(project.folder / ".snakemake")
    project.config["scores_from"] = "dropped"
    project.write()
    project.reproduce()
    assert "Nothing to be done" in project.reproduce()
    scores = dropped / "case1" / "scores" / "test" / "soup.json"
    content = json.loads(scores.read_text(encoding="utf-8"))
    content["tasks"]["bottle_ja8/mgsm"]["value"] = 0.123
    scores.write_text(json.dumps(content), encoding="utf-8")
    code, output = project.run("workflow", "reproduce", "--config", "tiny.yaml", "--cores", "2")
    assert code != 0 and "accept it: python -m checkpoints accept" in output
    assert project.run("checkpoints", "accept", str(scores))[0] == 0
    output = project.reproduce()
    assert "make_tables" in output and ".123" in output
    (row,) = [row for row in rows(project, "table1") if row["id"] == "soup"]
    assert row["MGSM"] == "0.123000"


def test_a_failed_row_is_a_row_and_the_others_are_finished(project):
    weights = project.results / "case1" / "merges" / "ties"
    project.config["methods"]["ties"] |= {"set": {"scale": 1.0e39}, "cases": ["case1"]}
    project.config["methods"]["soup"]["set"] = {"weights": [1.0, 2.0, 3.0]}
    # Its weights are finite, what they compute is not.
    project.config["methods"]["dare_ties"] |= {"set": {"scale": 1.0e30}, "cases": ["case2"]}
    project.write()
    code, output = project.run("workflow", "reproduce", "--config", "tiny.yaml", "--cores", "2")
    assert code != 0
    told = re.search(r"^error: tensor \S+: the merge overflows float32", output, re.M)
    assert told, output  # whole: otherwise pytest shows its beginning and end
    assert not (weights / "manifest.json").exists()
    project.snakemake("tables", "figures")
    found = {row["id"]: row for row in rows(project, "table1")}
    assert found["ties"]["status"].startswith("failed: tensor ") and found["ties"]["Avg"] == ""
    assert found["soup"]["status"] == "ok" and found["soup"]["Avg"] != ""
    checked = json.loads((project.results / "case2" / "smoke.json").read_text())["parents"]
    assert checked["dare_ties"]["not_finite"] > 0 and checked["soup"]["not_finite"] == 0
    inspected = json.loads((project.results / "case2" / "inspection.json").read_text())["merges"]
    assert "soup" in inspected
    found = {row["id"]: row for row in rows(project, "table2")}
    assert found["dare_ties"]["status"].startswith("failed: ") and found["dare_ties"]["Avg"] == ""
    assert found["soup"]["status"] == "ok" and found["soup"]["Avg"] != ""
