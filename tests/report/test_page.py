"""The page, the figures, the costs and the command line."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from common.calling import call
from report import cost, figures, page, published
from report.load import load
from report.smoke_table import smoke_grid

ROOT = Path(__file__).parents[2]
# Elements that have no end tag.
_VOID = {"meta", "img", "br"}


class Balanced(HTMLParser):
    """Checks that every element is closed, and collects what the page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.ids, self.text = [], [], set(), ""

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.references += [values[key] for key in ("href", "src") if key in values]
        if "id" in values:
            assert values["id"] not in self.ids, values["id"]
            self.ids.add(values["id"])
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def made(full, tmp_path_factory) -> tuple[Path, Path]:
    """A folder with the page of the default configuration, and its results; figures are empty."""
    config, results = full
    out = tmp_path_factory.mktemp("made")
    given = ["--config", str(config), "--results", str(results)]
    assert call("report.cli", ["tables", *given, "--out", str(out / "tables")]) == 0
    (out / "figures").mkdir()
    for name in figures.titles(load(config, results)):
        (out / "figures" / f"{name}.png").write_bytes(b"drawn in other tests")
    given += ["--figures", str(out / "figures"), "--tables", str(out / "tables")]
    assert call("report.cli", ["page", *given, "--out", str(out / "report.html")]) == 0
    return out, results


def test_page_is_whole_and_loads_nothing_from_elsewhere(made):
    text = (made[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(https?:)?//[a-z]", text)
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    for reference in parser.references:
        if reference.startswith("#"):
            assert reference[1:] in parser.ids
        else:
            assert (made[0] / reference).is_file()
    assert sum(reference.endswith(".png") for reference in parser.references) == 6
    assert not any(reference.endswith(".js") for reference in parser.references)
    assert len(text) < 1_500_000
    assert "neither confirms nor refutes" in parser.text
    for claim in published.load().claims:
        assert claim.sentence in parser.text


def test_page_sets_stated_values_beside_ours(made, full):
    text = (made[0] / "report.html").read_text(encoding="utf-8")
    row = re.search(r"<tr[^>]*><th[^>]*>Table 2</th><td[^>]*>SQL-Eval</td>.*?</tr>", text).group()
    scores = json.loads((made[1] / "case2/scores/test/dam_paper.json").read_text())
    ours = f"{scores['tasks']['bottle_sql_eval/sql']['value']:.3f}".removeprefix("0")
    assert re.findall(r">(\.?\d[.\d]*) ?<", row)[:2] == [".6125", ours]


def test_figures_are_equal_bytes_when_drawn_again(small, tmp_path):
    given = ["--config", str(small[0]), "--results", str(small[1]), "--out"]
    # Another process, with another hash seed, must draw the same.
    command = [sys.executable, "-m", "report", "figures", *given, str(tmp_path / "first")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    figures.write(load(small[0], small[1]), tmp_path / "second")
    drawn = sorted(path.name for path in (tmp_path / "second").iterdir())
    names = figures.titles(load(small[0], small[1]))
    assert {"averages", "table1_compute", "table1_tasks", "table3"} <= set(names)
    forms = [f"{name}.{form}" for name in names for form in ("pdf", "png")]
    assert drawn == sorted(["manifest.json", *forms])
    for name in drawn:
        first, second = tmp_path / "first" / name, tmp_path / "second" / name
        assert first.read_bytes() == second.read_bytes(), name


def test_figures_with_gaps_are_drawn(small, tmp_path):
    (small[1] / "case1/scores/test/soup.json").unlink()
    (small[1] / "case1/scores/test/base.json").unlink()
    for seed in (0, 1, 2):
        (small[1] / f"ablation/mse/seed{seed}/scores.json").unlink()
    experiment = load(small[0], small[1])
    figures.write(experiment, tmp_path)
    assert "not run" in page.page(experiment, tmp_path, published.load())


def test_the_smoke_check_stands_on_the_page(made, small, tmp_path):
    shutil.copytree(made[0] / "figures", tmp_path, dirs_exist_ok=True)  # any will do
    assert "Smoke check" not in page.page(load(*small[:2]), tmp_path, published.load())

    def row(perplexity):
        bits = None if perplexity is None else 2.0
        return {"perplexity": perplexity, "bits_per_byte": bits, "not_finite": 0, "tokens": 9}

    others = {"ja": row(80.0), "math_a": row(40.0), "soup": row(100.0), "dam": row(None)}
    (small[1] / "case1/smoke.json").write_text(
        json.dumps({"model": row(51234.0), "parents": others, "text": "0" * 64})
    )
    experiment = load(small[0], small[1])
    grid = smoke_grid(experiment.cases)
    assert [[cell.text for cell in row.cells[1:]] for row in grid.rows] == [
        ["Base", "51,234", "1,281", "2"],
        ["Japanese expert", "80", "2", "2"],
        ["Maths & logic", "40", "1", "2"],
        ["Model Soups", "100", "2.5", "2"],
        ["DAM", "–", "–", "–"],
    ]
    text = page.page(experiment, tmp_path, published.load())
    assert "Perplexity of 5 models on a fixed text" in text
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert "case1/smoke.json" in parser.text


def test_costs_by_hand(small):
    found = cost.costs(load(small[0], small[1]))
    rows = {
        row.cells[0].text: [cell.text for cell in row.cells[1:3]]
        for row in (cost.stages_grid(found).rows)
    }
    assert rows["Data"] == ["1", "3.0"]
    assert rows["Base models"] == ["1", "10.0"]
    assert rows["Experts"] == ["2", "20.0"]
    assert rows["DAM's teachers"] == ["1", "4.0"]
    assert rows["Merges"] == ["3", "30.0"]
    assert rows["Tuning and search"] == ["1", "10.0"]
    assert rows["Evaluation"] == ["13", "26.0"]  # 7 models and 6 runs of the ablation, 2 s each
    assert rows["Ablation's merges"] == ["6", "120.0"]
    assert rows["All"] == ["28", "223.0"]


def test_cost_csv_has_one_row_a_step(made):
    rows = list(csv.DictReader((made[0] / "cost.csv").open(encoding="utf-8")))
    dam = [row for row in rows if row["id"] == "dam_tuned" and row["case"] == "case1"]
    assert [(row["stage"], row["cpu_s"]) for row in dam] == [
        ("search", "10.000"),
        ("evaluation", "2.000"),
    ]
    assert dam[0]["counted flops"] == "3000000000000"


def test_show_prints_the_three_tables_and_the_places(made, full, capsys):
    given = ["--config", str(full[0]), "--results", str(full[1]), "--out", str(made[0])]
    assert call("report.cli", ["show", *given]) == 0
    text = capsys.readouterr().out
    more = "Table 2, other methods, untuned. "
    for words in ("Table 1. ", "Table 2. ", "Table 3. ", more, "Where the time went"):
        assert words in text
    assert str(made[0] / "report.html") in text
    assert max(map(len, text.splitlines())) <= 130


def test_no_scores_is_one_line_and_code_2(tmp_path, small, capsys):
    given = ["--config", str(small[0]), "--results", str(tmp_path), "--out", str(tmp_path / "t")]
    assert call("report.cli", ["tables", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no scores in") and error.count("\n") == 1
    assert not (tmp_path / "t").exists()


def test_the_page_draws_its_figures_and_links_only_files_that_there_are(small, tmp_path):
    experiment = load(*small[:2])
    (tmp_path / "averages.pdf").write_bytes(b"")
    text = page.page(experiment, tmp_path, published.load(), out=tmp_path / "report.html")
    assert 'href="averages.pdf"' in text and 'href="averages.png"' not in text
    drawn = re.findall(r'<svg viewBox[^>]*aria-label="([^"]*)"', text)
    case = experiment.cases[0]
    merges = case.by_average([model for model in case.models if model.kind == "merge"])
    assert [about.split(":")[0] for about in drawn] == [
        *("Table 1. Case study 1", "A_1", "Pair", "Pair", "GSM"),
        *("Table 1, average over FLOPs (logarithmic)",),
        *("Table 1, average over CPU seconds (logarithmic)", "Mean over seeds"),
        *("Kept of Japanese expert", "Kept of Maths &amp; logic", "Outside"),
        *(f"{model.label}, loss" for model in merges),
    ]
    best = max(
        (model for model in case.models if model.kind == "merge"),
        key=lambda model: case.average(model).value,
    )
    value = f"{case.average(best).value:.3f}".removeprefix("0")
    assert f"highest {best.label} {value}" in drawn[0]
    # One bar is an outline for the base and each expert, in the panel of averages alone.
    averages = re.findall(r"<svg viewBox.*?</svg>", text, re.S)[0]
    parents = len(case.models) - len(merges)
    assert averages.count('fill="none" stroke="#') == parents > 0
    assert text.count('height="12" fill="none"') == parents
    assert re.findall(r'fill="none" stroke="#[^>]*></svg> ([^<]*)', text) == ["Base and experts"]


def test_equal_scores_give_equal_bytes_wherever_they_are(small, tmp_path):
    texts = []
    for name in ("one", "other"):
        results = tmp_path / name / "results"
        shutil.copytree(small[1], results)
        out = tmp_path / name / "report.html"
        page.write(load(small[0], results), None, None, published.load(), out, out.parent / "items")
        texts.append(out.read_bytes())
    assert texts[0] == texts[1]


def test_every_number_in_the_tables_of_scores_leads_to_its_origin(made):
    text = (made[0] / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.S).group(1))
    assert set(data["tables"]) == {
        *("table1", "table1_more", "table2", "table2_more", "table2_tasks", "table3")
    }
    for name, table in data["tables"].items():
        html = re.search(rf'<table class="scores"[^>]*data-table="{name}".*?</table>', text, re.S)
        lines = re.findall(r'<tr[^>]* data-line="([^"]+)"', html.group())
        assert sorted(lines) == sorted(table["lines"])
        columns = re.findall(r'data-column="([^"]+)"', html.group())
        assert columns == list(dict.fromkeys(columns)) and set(columns) == set(table["columns"])
        for _, runs in table["lines"].values():
            assert all((made[1] / path).is_file() for _, path in runs)
            assert all(path in data["runs"] for _, path in runs)


def test_a_damaged_manifest_is_named_and_the_rest_of_the_page_made(small, tmp_path, capsys):
    (small[1] / "case1/data").mkdir(exist_ok=True)
    (small[1] / "case1/data/manifest.json").write_text("{")
    given = ["--config", str(small[0]), "--results", str(small[1]), "--items", str(tmp_path / "i")]
    drawn = tmp_path / "figures/averages.png"
    drawn.parent.mkdir()
    drawn.write_bytes(b"whole")
    (tmp_path / "figures/manifest.json").write_text(
        json.dumps({"kind": "figures", "outputs": {"averages.png": "0" * 64}})
    )
    given += ["--figures", str(drawn.parent)]
    assert call("report.cli", ["page", *given, "--out", str(tmp_path / "report.html")]) == 1
    errors = capsys.readouterr().err
    assert "case1/data/manifest.json" in errors and "figures/averages.png" in errors
    assert 'href="figures/averages.png"' not in (tmp_path / "report.html").read_text("utf-8")
    assert "Model Soups" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_help_and_tables_start_without_heavy_libraries():
    code = (
        "import sys, report.cli, report.tables, report.page, report.show, report.figures\n"
        "print({'torch', 'matplotlib', 'pandas', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_further_figure_with_a_caption_is_on_the_page(small, tmp_path, monkeypatch):
    config, results, _ = small
    known = figures.titles
    monkeypatch.setattr(
        page, "titles", lambda experiment: known(experiment) | {"mine": "A new one."}
    )
    drawn = tmp_path / "figures"
    drawn.mkdir()
    for name in ("averages.png", "mine.png", "mine.pdf"):
        (drawn / name).write_bytes(b"drawn in other tests")
    text = page.page(load(config, results), drawn, published.load(), out=tmp_path / "report.html")
    further = text.partition("Further figures</h2>")[2].partition("<h2")[0]
    assert "A new one." in further and 'src="figures/mine.png"' in further
    assert 'href="figures/mine.pdf"' in further and "averages" not in further
