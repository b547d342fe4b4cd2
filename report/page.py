"""One plain HTML page with everything, that opens offline and loads nothing."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from common.errors import UserError
from common.files import sha256_file, write_text
from common.manifest import beside, check_recorded, read_manifest
from report import render
from report.ablation_table import ablation_grid
from report.beside_paper import claims_grid, values_grid
from report.case_table import (
    case_grid,
    has_groups,
    more_grid,
    near_ties,
    table_title,
    tasks_grid,
    untuned,
)
from report.cost import costs, rows_grid, stages_grid
from report.experiment import Case, Experiment, Model, worlds_of
from report.expert_table import experts_grid
from report.figures import titles
from report.grid import Cell, Grid, Row
from report.load import score_files
from report.published import Published
from report.smoke_table import smoke_grid


def _ranked(case: Case, models: Sequence[Model]) -> list[tuple[float, float, str]]:
    """Return average, error and label of the merges that are compared, the highest first."""
    found = [
        (score.value, score.stderr, model.label)
        for model in models
        if model.kind == "merge" and model.best_of and (score := case.average(model))
    ]
    return sorted(found, reverse=True)


def _headline(experiment: Experiment) -> list[str]:
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
        if tied := near_ties(case):
            line += (
                "; the 95 % interval of the difference, paired within worlds, does not separate "
                f"{label} from {', '.join(tied)}"
            )
        if others:
            value, stderr, label = others[0]
            line += (
                f"; of the other methods{untuned(case)}, {label} with {value:.3f} ± {stderr:.3f}"
            )
        lines.append(line + ".")
    return lines


def _links(tables: Path | None, out: Path) -> Markup:
    """Link the tables' files by paths relative to the page, so that both can move together."""
    if tables is None or not tables.is_dir():
        return Markup("")
    files = sorted(path for path in tables.iterdir() if path.suffix in (".csv", ".md", ".tex"))
    return render.part("links", {path.name: os.path.relpath(path, out.parent) for path in files})


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


def _bound(path: Path) -> str:
    """Say whether a file's manifest vouches for it."""
    manifest = beside(path)
    if not manifest.is_file():
        return "none"
    about = read_manifest(manifest).get("extra", {})
    return "edited by hand, accepted" if "accepted" in about else "the same"


def _provenance(experiment: Experiment) -> Markup:
    files = [
        Row((Cell(name), Cell(sha256_file(path)), Cell(_bound(path))))
        for name, path in score_files(experiment.config, experiment.results)
    ]
    caption = (
        "Every score that this page shows, with the sha256 of its file, which is compared with the "
        "manifest next to it, if there is one. The items behind it are "
        "next to each score file; each model's manifest.json names its method, resolved "
        "parameters, seed, and the hashes of its inputs."
    )
    titles = ("File", "sha256", "Manifest")
    grid = Grid("provenance", "Scores", caption, titles, tuple(files), texts=3)
    merges = []
    for seed, case in worlds_of(experiment.cases):
        title = table_title(case.table) + (f", seed {seed}" if seed is not None else "")
        for model in case.all_models:
            if model.kind == "merge" and model.manifest:
                code = str(model.manifest.get("code", ""))
                cells = (title, model.label, _settings(model), code)
                merges.append(Row(tuple(map(Cell, cells)), case.id))
    caption = "Resolved parameters of the merges, and the hash of the code that made them."
    header = ("Table", "Merge", "Parameters", "Code")
    made = Grid("parameters", "Parameters", caption, header, tuple(merges), texts=4)
    summary = f"Hashes of {len(files)} score files"
    return (render.html(made) if merges else Markup("")) + render.part("folded", summary, grid)


def page(experiment: Experiment, figures: Path, published: Published, links: str = "") -> str:
    """Build the page: HTML with figures embedded, that refers to nothing outside itself.

    Args:
        experiment: The experiment.
        figures: Folder of the figures as PNG.
        published: The paper's values.
        links: HTML that links the tables' files.

    Raises:
        UserError: A figure is missing.
    """
    found, seed = costs(experiment), experiment.seed
    captions = titles(experiment)

    def image(name: str) -> Markup:
        path = figures / f"{name}.png"
        if not path.exists():
            raise UserError(f"{path}: no such figure; run `python -m report figures` first")
        check_recorded(path)
        return render.part("image", captions[name], base64.b64encode(path.read_bytes()).decode())

    # The order in which sections are entered is their order on the page.
    sections = {"Summary": render.part("listed", _headline(experiment)) + image("averages")}
    for case in experiment.cases:
        content = render.html(case_grid(case, seed))
        content += image(f"{case.table}_tasks") + image(f"{case.table}_compute")
        if has_groups(case):
            content += render.html(tasks_grid(case, seed))
        if case.more:
            content += render.html(more_grid(case, seed))
        sections[table_title(case.table)] = content
    if experiment.ablation:
        table = render.html(ablation_grid(experiment.ablation))
        sections["Table 3"] = table + image("table3")
    sections["Experts"] = render.html(experts_grid(experiment.cases, seed))
    if checked := smoke_grid(experiment.cases):
        summary = f"Perplexity of {len(checked.rows)} models on a fixed text"
        sections["Smoke check"] = render.part("folded", summary, checked)
    if found:
        stages, rows = stages_grid(found), rows_grid(experiment, found)
        sections["Cost"] = render.html(stages) + render.html(rows)
    values, claims = values_grid(experiment, published), claims_grid(experiment, published)
    sections["What the paper states"] = render.part("paper", published, values, claims)
    sections["Provenance"] = links + _provenance(experiment)
    template = render.templates().get_template("page.html.j2")
    return template.render(name=experiment.name, sections=sections)


def write(
    experiment: Experiment, figures: Path, tables: Path | None, published: Published, out: Path
) -> None:
    """Write the page to the file `out`, with links to the tables' files; see `page`."""
    write_text(out, page(experiment, figures, published, _links(tables, out)))
