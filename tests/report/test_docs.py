"""Pages of docs from kept runs: they repeat the run's tables, and README repeats them."""

import json
import re
import shutil

import pytest

from common.errors import UserError
from common.files import read_jsonl
from common.worlds import folder_of, seeds_of
from report import docs, kept, load, render, tables
from report.cli import main
from tests.report.conftest import ROOT

MACHINE = [
    {"processor": "Some CPU (family 25, model 17)", "instructions": ["AVX2", "AVX-512"], "cores": 2}
    | {"date": "2026-01-02", "commit": "0123456789ab", "seconds": 600}
]


def finished(config, results, text="{}"):
    """Give a made-up run what the workflow and the figures would have left."""
    (results / "machine.json").write_text(json.dumps(MACHINE))
    experiment = load.load(config, results)
    for name in docs._figures(experiment):
        (results / "figures").mkdir(exist_ok=True)
        (results / "figures" / f"{name}.png").write_bytes(name.encode())
    return experiment


def test_a_kept_run_gives_the_same_bytes_of_every_table(full, tmp_path):
    config, results = full
    kept.keep(config, results, tmp_path / "run.jsonl")
    tables.write(load.load(config, results), tmp_path / "first")
    with kept.opened(tmp_path / "run.jsonl") as experiment:
        written = tables.write(experiment, tmp_path / "again")
    assert len(written) > 10
    for path in written:
        assert path.read_bytes() == (tmp_path / "first" / path.name).read_bytes(), path.name
    worlds = len(seeds_of(json.loads(config.read_text())))
    assert (tmp_path / "run.jsonl").stat().st_size < 300_000 * worlds


def test_a_failed_and_a_changed_model_are_still_that_in_a_kept_run(small, tmp_path):
    config, results, _ = small
    (results / "case1/merges/soup.failed").write_text("error: no memory\n")
    manifest = results / "case1/merges/dam/manifest.json"
    changed = json.loads(manifest.read_text()) | {"outputs": {"model.safetensors": "1" * 64}}
    manifest.write_text(json.dumps(changed))
    kept.keep(config, results, tmp_path / "run.jsonl")
    with kept.opened(tmp_path / "run.jsonl") as experiment:
        status = {model.id: model.status for model in experiment.cases[0].models}
    assert status["soup"] == "failed: no memory"
    assert status["dam"] == load.STALE
    assert status["ties_tuned"] == "ok"


def test_kept_scores_name_no_folder_of_the_machine(small, tmp_path):
    config, results, about = small
    place = tmp_path / "places"
    about["hub"] = {"benchmarks": str(place / "benchmarks"), "table": "paper/hub.tsv"}
    about["tasks"] = {"mine/sums": {"items": f"{place}/sums.jsonl", "label": "Sums 3/4 and 1/2/3"}}
    config.write_text(json.dumps(about))
    (results / "case1/merges/soup.failed").write_text(
        f"error: {place}/model: no memory ({place}/x)\n"
    )
    kept.keep(config, results, tmp_path / "run.jsonl")
    assert str(tmp_path) not in (tmp_path / "run.jsonl").read_text()
    rows = dict(read_jsonl(tmp_path / "run.jsonl"))
    assert rows["config.json"]["hub"] == {"benchmarks": "benchmarks", "table": "paper/hub.tsv"}
    task = rows["config.json"]["tasks"]["mine/sums"]
    assert task == {"items": "sums.jsonl", "label": "Sums 3/4 and 1/2/3"}
    assert rows["case1/merges/soup.failed"] == "error: model: no memory (x)\n"


def test_the_command_writes_page_index_figures_and_readme(small, tmp_path, capsys):
    config, results, _ = small
    experiment = finished(config, results)
    folder = tmp_path / "docs"
    (folder / "results").mkdir(parents=True)
    (folder / "results/small-discussion.md").write_text("A sentence by a person.\n")
    start, end = "<!-- results of small, rows base expert dam -->\n", "<!-- end of results -->"
    (tmp_path / "README.md").write_text(f"before\n{start}old\n{end}\nafter\n")
    command = ["results", "--config", str(config), "--results", str(results)]
    assert main([*command, "--docs", str(folder)]) == 0
    page = (folder / "results/small.md").read_text()
    case = experiment.cases[0]
    for grid in tables.grids(experiment)[:2]:
        assert render.plain(grid) in page
    assert "A sentence by a person." in page
    assert "Some CPU (family 25, model 17) with AVX2, AVX-512, 2 cores" in page
    assert "| Commit | 0123456789ab |" in page and "| Minutes in all | 10 |" in page
    assert (folder / "figures/small-averages.png").read_bytes() == b"averages"
    for image in re.findall(r"\]\((\.\./figures/.*?)\)", page):
        assert (folder / "results" / image).exists()
    assert "[small](results/small.md)" in (folder / "results.md").read_text()
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith(f"before\n{start}The run of 2026-01-02")
    assert readme.endswith(f"{end}\nafter\n") and "old" not in readme
    dam = next(model for model in case.models if model.id == "dam")
    assert f"| DAM | {case.average(dam).value:.3f}"[:8] in readme
    # Without a run the same files come from what is kept.
    shutil.rmtree(results)
    assert main(["results", "--docs", str(folder)]) == 0
    assert (folder / "results/small.md").read_text() == page
    assert (tmp_path / "README.md").read_text() == readme


def test_figures_and_tables_are_made_from_a_kept_run(small, tmp_path, capsys):
    config, results, _ = small
    given = ["--config", str(config), "--results", str(results)]
    assert main(["tables", *given, "--out", str(tmp_path / "ours")]) == 0
    kept.keep(config, results, tmp_path / "run.jsonl")
    shutil.rmtree(results)
    for command in ("tables", "figures"):
        given = ["--kept", str(tmp_path / "run.jsonl"), "--out", str(tmp_path / command)]
        assert main([command, *given]) == 0
    table = (tmp_path / "ours/table1.csv").read_bytes()
    assert (tmp_path / "tables/table1.csv").read_bytes() == table
    assert (tmp_path / "figures/averages.png").stat().st_size > 10_000
    for given, message in (
        ([], "give --config and --results of a run, or --kept"),
        (["--kept", str(tmp_path / "none.jsonl")], "none.jsonl: no such file"),
    ):
        with pytest.raises(UserError, match=message):
            main(["tables", *given, "--out", str(tmp_path / "more")])


def test_a_missing_figure_is_one_line(small, tmp_path):
    config, results, _ = small
    command = ["results", "--config", str(config), "--results", str(results)]
    with pytest.raises(UserError, match=r"averages\.png: no such figure; run `snakemake figures`"):
        main([*command, "--docs", str(tmp_path / "docs")])


def test_the_pages_and_readme_are_what_the_kept_runs_say():
    made = docs.texts(ROOT / "docs")
    assert ROOT / "README.md" in made
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `python -m report results`"


def test_readme_numbers_are_averages_of_the_kept_scores():
    """README's cells against a mean over the raw kept scores, without the report's own code."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    name = re.search(r"<!-- results of (\w+)", readme)[1]
    files = dict(map(tuple, read_jsonl(ROOT / "docs/results" / f"{name}.jsonl")))
    config = files["config.json"]
    label = config["methods"]["dam_tuned"]["label"]
    cells = re.search(rf"^\| {re.escape(label)} \|(.*)\|$", readme, re.M)[1].split("|")
    for cell, (case, about) in zip(cells, config["cases"].items(), strict=True):
        seeds, values = seeds_of(config), []
        for world in (folder_of(case, seed, seeds) for seed in seeds):
            tasks = files[f"{world}/scores/test/dam_tuned.json"]["tasks"]
            columns = [[tasks[task]["value"] for task in c["tasks"]] for c in about["columns"]]
            values.append(sum(sum(c) / len(c) for c in columns) / len(columns))
        average = sum(values) / len(values)
        assert abs(float(cell.split("±")[0]) - average) <= 0.0005 + 1e-9


@pytest.mark.parametrize("name", ["bottle", "far", "more"])
def test_the_index_names_the_best_merge_of_a_case_whichever_table_it_is_in(name):
    page = (ROOT / f"docs/results/{name}.md").read_text(encoding="utf-8")
    index = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    (entry,) = [line for line in index.splitlines() if line.startswith(f"| [{name}]")]
    for table in ("Table 1", "Table 2"):
        _, _, text = page.partition(f"## {table}.")
        blocks = text.partition("\n## ")[0].split("```")[1::2]
        assert len(blocks) == 2  # the paper's rows, and other methods
        merges = "".join(block.rpartition("\n---")[2] for block in blocks)
        best = max(re.findall(r"(\.\d{3})[* ]±", merges))
        assert re.search(rf"{table}[^:]*: [^;|]*? (\.\d+) ±", entry)[1] == best


def test_a_run_elsewhere_is_compared_with_the_first(small, tmp_path, capsys):
    config, results, _ = small
    finished(config, results)
    folder = tmp_path / "docs"
    command = ["results", "--config", str(config), "--results", str(results)]
    command += ["--docs", str(folder)]
    assert docs.texts(folder).get(folder / "results/processors.md") is None
    with pytest.raises(UserError, match="keep a first run"):
        main([*command, "--elsewhere"])
    assert main(command) == 0
    path = results / "case1/scores/test/soup.json"
    scores = json.loads(path.read_text())
    task = next(iter(scores["tasks"]))
    scores["tasks"][task]["value"] -= 0.3
    path.write_text(json.dumps(scores))
    (results / "machine.json").write_text(json.dumps([MACHINE[0] | {"processor": "Another CPU"}]))
    (folder / "results/processors-discussion.md").write_text("What a person says.\n")
    kept_first = (folder / "results/small.jsonl").read_bytes()
    assert main([*command, "--elsewhere"]) == 0
    assert (folder / "results/small.jsonl").read_bytes() == kept_first
    page = (folder / "results/processors.md").read_text()
    assert "Some CPU" in page and "Another CPU" in page and "What a person says." in page
    assert "results/processors.md" in (folder / "results.md").read_text()
    apart = page.partition("**Apart.**")[2].partition("**Table 1.**")[0]
    rows = [line for line in apart.splitlines() if line.startswith("| table")][1:]
    # The task's column and the average over two; nothing else has changed.
    assert rows and all("soup" in row for row in rows)
    averages = page.partition("**Table 1.**")[2]
    (soup,) = [line for line in averages.splitlines() if line.startswith("| Model Soups |")]
    column = load.load(config, results).cases[0].averaged
    shares = [1 / len(entry.tasks) / len(column) for entry in column if task in entry.tasks]
    assert soup.endswith(f"| {-0.3 * shares[0]:.3f} |".replace("-0.", "-."))
    # The command takes kept scores in place of a results folder.
    capsys.readouterr()
    first, second = folder / "results/small.jsonl", folder / "results/elsewhere/small.jsonl"
    assert main(["compare", str(first), str(first)]) == 0
    assert main(["compare", str(first), str(second)]) == 1
    assert "soup" in capsys.readouterr().out
    # A run with other settings is none on another processor alone, and the page says so.
    assert "Not the same experiment" not in page
    changed = json.loads(config.read_text())
    changed["calibration"] = {"rows": 7}
    config.write_text(json.dumps(changed))
    assert main([*command, "--elsewhere"]) == 0
    page = (folder / "results/processors.md").read_text()
    assert "Not the same experiment.** More than the processor differs: calibration.rows." in page
