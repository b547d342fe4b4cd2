"""One plain HTML page with everything, that opens offline and loads nothing."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from common.errors import UserError
from common.files import sha256_file, write_text
from report import render
from report.ablation_table import ablation_grid
from report.beside_paper import claims_grid, values_grid
from report.case_table import case_grid, has_groups, more_grid, table_title, tasks_grid
from report.cost import costs, rows_grid, stages_grid
from report.experiment import Case, Experiment, Model
from report.expert_table import experts_grid
from report.figures import titles
from report.grid import Cell, Grid, Row
from report.load import score_files
from report.published import Published
from report.smoke_table import smoke_grid

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: #1c1c1c;
  max-width: 1180px; margin: 0 auto; padding: 1.5rem; background: #fff; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { margin: 2.6rem 0 .6rem; font-size: 1.3rem;
  border-bottom: 1px solid #ccc; padding-bottom: .2rem; }
p, li { max-width: 52rem; } nav a { margin-right: 1rem; } a { color: #0a58a8; }
figure { margin: 1.4rem 0; }
figcaption { font-size: .9rem; max-width: 56rem; margin-bottom: .5rem; }
/* Wide tables may use the margin at the right of the text. */
.scroll { overflow-x: auto; width: max-content; max-width: min(100vw - 4rem, 50vw + 526px); }
img { max-width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .42rem; text-align: right; white-space: nowrap; font-weight: normal; }
th.t, td.t { text-align: left; } td.t { white-space: normal; }
thead th { font-weight: 600; border-bottom: 1.5px solid #333; vertical-align: bottom;
  white-space: normal; }
tbody tr:nth-child(even) { background: #f6f6f6; } tr.g th, tr.g td { border-top: 1px solid #888; }
table tbody { border-bottom: 1.5px solid #333; } .e { color: #767676; font-size: .88em; }
.notes p { font-size: .82rem; margin: .25rem 0; } code { font-size: .88em; word-break: break-all; }
"""


def _image(path: Path, caption: str) -> str:
    if not path.exists():
        raise UserError(f"{path}: no such figure; run `python -m report figures` first")
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<img src="data:image/png;base64,{content}" alt="{escape(caption)}"></figure>\n'
    )


def _listed(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>\n"


def _ranked(case: Case, models: Sequence[Model]) -> list[tuple[float, float, str]]:
    """Return average, error and label of the merges that are compared, the highest first."""
    found = [
        (score.value, score.stderr, model.label)
        for model in models
        if model.kind == "merge" and model.best_of and (score := case.average(model))
    ]
    return sorted(found, reverse=True)


def _headline(experiment: Experiment) -> str:
    """Say in words, per case, which merge has the best average and how far the next is."""
    lines = []
    for case in experiment.cases:
        ranked, others = _ranked(case, case.models), _ranked(case, case.more)
        if not ranked:
            lines.append(f"{case.title}: no merge has been scored on every column.")
            continue
        value, stderr, label = ranked[0]
        line = f"{case.title}: {label} has the highest average, {value:.3f} ± {stderr:.3f}"
        if len(ranked) > 1:
            line += f"; next is {ranked[1][2]} with {ranked[1][0]:.3f} ± {ranked[1][1]:.3f}"
        if others:
            value, stderr, label = others[0]
            line += f"; of the other methods, untuned, {label} with {value:.3f} ± {stderr:.3f}"
        lines.append(line + ".")
    return _listed(lines)


def _paper(experiment: Experiment, published: Published) -> str:
    values = values_grid(experiment, published)
    parts = [
        f"<p>{escape(published.paper['authors'])}, “{escape(published.paper['title'])}”, "
        f"{escape(published.paper['identifier'])}, {published.paper['year']}.</p>\n",
        render.html(values),
        "<p>In words:</p>\n",
    ]
    for table in published.tables.values():
        parts.append(f"<p><b>{escape(table.title)}</b></p>{_listed(table.statements)}")
    parts += [render.html(claims_grid(experiment, published))]
    parts += ["<p>What the paper leaves open:</p>\n"]
    return "".join([*parts, _listed(published.unknown)])


def _links(tables: Path | None, out: Path) -> str:
    """Link the tables' files by paths relative to the page, so that both can move together."""
    if tables is None or not tables.is_dir():
        return ""
    files = sorted(path for path in tables.iterdir() if path.suffix in (".csv", ".md", ".tex"))
    links = (
        f'<a href="{escape(os.path.relpath(path, out.parent))}">{escape(path.name)}</a>'
        for path in files
    )
    return f"<p>The tables as files: {', '.join(links)}.</p>\n"


def _settings(model: Model) -> str:
    """Say with which parameters a merge was made, and how a search chose them."""
    parameters = model.manifest.get("parameters", {})
    parts = [f"{name} = {value}" for name, value in sorted(parameters.get("set", {}).items())]
    if "set_layers" in parameters:
        parts.append("other values by layer (in its manifest)")
    if search := parameters.get("search"):
        # Candidates are numbered from 0 in search.csv.
        parts.append(
            f"candidate {search['chosen']} of the {search['evaluations']} in search.csv, "
            f"dev average {search['dev_average']:.3f}"
        )
    return "; ".join(parts) or "none"


def _provenance(experiment: Experiment) -> str:
    files = [
        Row((Cell(name), Cell(sha256_file(path))))
        for name, path in score_files(experiment.config, experiment.results)
    ]
    caption = (
        "Every score that this page shows, with the sha256 of its file. Beside each score file "
        "stand the items behind it; each model's manifest.json names its method, resolved "
        "parameters, seed, and the hashes of what it was made from."
    )
    grid = Grid("provenance", "Scores", caption, ("File", "sha256"), tuple(files), texts=2)
    merges = []
    for case in experiment.cases:
        for model in case.all_models:
            if model.kind == "merge" and model.manifest:
                code = str(model.manifest.get("code", ""))
                cells = (table_title(case.table), model.label, _settings(model), code)
                merges.append(Row(tuple(map(Cell, cells)), case.id))
    caption = "Resolved parameters of the merges, and the hash of the code that made them."
    header = ("Table", "Merge", "Parameters", "Code")
    made = Grid("parameters", "Parameters", caption, header, tuple(merges), texts=4)
    return (render.html(made) if merges else "") + (
        f"<details><summary>Hashes of {len(files)} score files</summary>{render.html(grid)}"
        "</details>\n"
    )


def page(experiment: Experiment, figures: Path, published: Published, links: str = "") -> str:
    """Build the page.

    Args:
        experiment: The experiment.
        figures: Folder of the figures as PNG.
        published: The paper's values.
        links: HTML that links the tables' files.

    Returns:
        HTML with figures embedded; it refers to nothing outside itself.

    Raises:
        UserError: A figure is missing.
    """
    found, seed = costs(experiment), experiment.seed
    captions = titles(experiment)

    def image(name: str) -> str:
        return _image(figures / f"{name}.png", captions[name])

    sections = {"Summary": _headline(experiment) + image("averages")}
    for case in experiment.cases:
        figures_of_case = image(f"{case.table}_tasks") + image(f"{case.table}_compute")
        parts = [render.html(case_grid(case, seed)), figures_of_case]
        if has_groups(case):
            parts.append(render.html(tasks_grid(case, seed)))
        if case.more:
            parts.append(render.html(more_grid(case, seed)))
        sections[table_title(case.table)] = "".join(parts)
    if experiment.ablation:
        table = render.html(ablation_grid(experiment.ablation))
        sections["Table 3"] = table + image("table3")
    sections["Experts"] = render.html(experts_grid(experiment.cases, seed))
    if checked := smoke_grid(experiment.cases):
        sections["Smoke check"] = (
            f"<details><summary>Perplexity of {len(checked.rows)} models on a fixed text</summary>"
            f"{render.html(checked)}</details>\n"
        )
    if found:
        sections["Cost"] = render.html(stages_grid(found)) + render.html(
            rows_grid(experiment, found)
        )
    sections["What the paper states"] = _paper(experiment, published)
    sections["Provenance"] = links + _provenance(experiment)
    anchors = {title: title.lower().replace(" ", "-") + "-section" for title in sections}
    links = "".join(f'<a href="#{anchors[title]}">{escape(title)}</a>' for title in sections)
    body = "".join(
        f'<h2 id="{anchors[title]}">{escape(title)}</h2>\n{content}'
        for title, content in sections.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Merging in a Bottle: {escape(experiment.name)}</title>"
        f"<style>{_STYLE}</style></head><body>\n"
        f"<h1>Merging in a Bottle: experiment “{escape(experiment.name)}”</h1>\n"
        "<p>Merged language models compared in the layout of the paper's three tables. A row "
        "without scores says why. The paper's own values stand apart, under “What the paper "
        "states”.</p>\n"
        f"<nav>{links}</nav>\n{body}</body></html>\n"
    )


def write(
    experiment: Experiment, figures: Path, tables: Path | None, published: Published, out: Path
) -> None:
    """Write the page to the file `out`, with links to the tables' files; see `page`."""
    write_text(out, page(experiment, figures, published, _links(tables, out)))
