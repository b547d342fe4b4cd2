"""One HTML page with everything, which opens offline and loads only answers, from next to it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from common.errors import UserError
from common.files import sha256_file, write_text
from common.manifest import beside, check_recorded, read_manifest
from report import inspection, items, lines, panels, render, summary, together
from report.ablation_table import ablation_grid
from report.beside_paper import claims_grid, values_grid
from report.case_table import case_grid, has_groups, more_grid, table_title, tasks_grid
from report.cells import cells
from report.cost import costs, rows_grid, stages_grid
from report.experiment import Case, Experiment, Model, worlds_of
from report.expert_table import experts_grid
from report.figures import titles
from report.findings import comparisons_grid, findings_grid
from report.grid import Cell, Grid, Row
from report.load import score_files
from report.origin import Steps
from report.published import CLAIMS, Published
from report.smoke_table import smoke_grid
from report.verdicts import Judgement, judgements

_FORMS = (".png", ".pdf")


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
    try:
        about = read_manifest(manifest).get("extra", {})
    except (AttributeError, UserError):
        return "damaged"
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


class _Drawn:
    """Draws the page's figures, with links to the files of each where there are any."""

    def __init__(self, experiment: Experiment, figures: Path | None, out: Path) -> None:
        self.experiment, self.captions = experiment, titles(experiment)
        self.figures, self.out = figures, out
        self.shown: set[str] = set()
        self.faults: list[str] = []

    def _files(self, name: str) -> list[str]:
        self.shown.add(name)
        found = []
        for path in [self.figures / f"{name}{form}" for form in _FORMS] if self.figures else ():
            try:
                check_recorded(path)
            except UserError as error:
                self.faults.append(str(error))
                continue
            if path.is_file():
                found.append(os.path.relpath(path, self.out.parent))
        return found

    def bars(self, name: str, shown: list[panels.Panel], models: tuple[Model, ...]) -> Markup:
        families = panels.legend(models, self.experiment.config)
        caption = self.captions[name]
        return render.figure(name, caption, shown, families, self._files(name))

    def plots(self, case: Case, shown: list[panels.Panel], models: tuple[Model, ...]) -> Markup:
        name = f"{case.table}_compute"
        families = panels.legend(models, self.experiment.config)
        caption, files = self.captions[name], self._files(name)
        return render.figure(name, caption, shown, families, files, True) if shown else Markup("")

    def further(self) -> Markup:
        """Show the pictures of figures that have a caption and that the page does not draw."""
        made = Markup("")
        for name in [name for name in self.captions if name not in self.shown]:
            if files := self._files(name):
                made += render.picture(name, self.captions[name], files)
        return made


def _scored(grid: Grid, known: Mapping[str, Any]) -> Markup:
    """Render a table of scores, whose cells lead to their origin."""
    table = known["tables"].get(grid.name)
    return render.html(grid, table["lines"], table["columns"]) if table else render.html(grid)


def _case_section(drawn: _Drawn, case: Case, known: Mapping[str, Any], found: list) -> Markup:
    experiment, seed = drawn.experiment, drawn.experiment.seed
    content = _scored(case_grid(case, seed), known)
    shown = panels.tasks(case, experiment.config)
    merges = tuple(model for model in case.models if model.kind == "merge")
    content += drawn.bars(f"{case.table}_tasks", shown, merges)
    content += drawn.plots(case, panels.compute(case, found, experiment.config), merges)
    if has_groups(case):
        content += _scored(tasks_grid(case, seed), known)
    if case.more:
        content += _scored(more_grid(case, seed), known)
    return content


def _why(case: Case) -> Markup:
    """Show what merges kept, the loss between models, how coefficients scale, how experts moved."""
    kept, moved = inspection.inspection_grid(case), inspection.experts_grid(case)
    caption = (
        f"{case.title}: what every merge kept of each expert's change, and what is along none. A "
        "dot is a layer's attention or MLP, the diamond all together; 1 is the expert's own change."
    )
    drawn = render.figure(f"{case.table}_kept", caption, panels.kept(case), [], [])
    summary = f"How experts moved, {len(moved.rows) - 1} groups of weights"
    learnt = Markup("")
    if grid := inspection.coefficients_grid(case):
        about = (
            f"{case.title}: what learnt coefficients do to all weights in common (their sum, 1 is "
            "nothing), apart from how they mix the experts (each one's share of the sum). A dot is "
            "a layer's attention or MLP, the diamond all together."
        )
        shown = panels.coefficients(case)
        learnt = render.figure(grid.name, about, shown, [], [])
        learnt += render.part("folded", "Learnt coefficients by layer and module", grid)
    folded = render.part("folded", summary, moved)
    return render.html(kept) + drawn + lines.figure(case) + learnt + folded


def _sections(
    drawn: _Drawn,
    published: Published,
    judged: Sequence[Judgement],
    known: Mapping[str, Any],
    links: str,
    others: Mapping[str, together.Said],
) -> dict[str, Markup]:
    """Build the sections in the order of the page."""
    # Long, because it is the page's table of contents.
    experiment, found = drawn.experiment, costs(drawn.experiment)
    sections = {
        table_title(case.table): _case_section(drawn, case, known, found)
        for case in experiment.cases
    }
    if experiment.ablation:
        table = _scored(ablation_grid(experiment.ablation), known)
        sections["Table 3"] = table + drawn.bars(
            "table3", [panels.ablation(experiment.ablation)], ()
        )
    if len(all_claims := together.with_kept(experiment.name, judged, others)) > 1:
        grid = together.together_grid(published.claims, all_claims)
        sections[grid.title] = render.part("table", grid, {}, [], list(known["tables"]))
    if why := [_why(case) for case in experiment.cases if case.inspected]:
        sections["Why a merge works"] = Markup("").join(why)
    if further := drawn.further():
        sections["Further figures"] = further
    if known["items"]:
        sections["Answers"] = render.part("answers")
    sections["Experts"] = render.html(experts_grid(experiment.cases, experiment.seed))
    if checked := smoke_grid(experiment.cases):
        summary = f"Perplexity of {len(checked.rows)} models on a fixed text"
        sections["Smoke check"] = render.part("folded", summary, checked)
    if found:
        stages, rows = stages_grid(found), rows_grid(experiment, found)
        sections["Cost"] = render.html(stages) + render.html(rows)
    values = values_grid(experiment, published)
    sections["What the paper states"] = render.part(
        "paper",
        published,
        values,
        claims_grid(judged),
        comparisons_grid(judged),
        list(known["tables"]),
    )
    sections["Provenance"] = Markup(links) + _provenance(experiment)
    return sections


def page(
    experiment: Experiment,
    figures: Path | None,
    published: Published,
    links: str = "",
    answers: Path | None = None,
    out: Path = Path("report.html"),
    faults: list[str] | None = None,
    others: Mapping[str, together.Said] | None = None,
) -> str:
    """Build the page: HTML that refers only to files near it.

    Args:
        experiment: The experiment.
        figures: Folder of the figures as files, to which the page links; None links to none.
        published: The paper's values.
        links: HTML that links the tables' files.
        answers: Folder of the answers' scripts; None leaves out their section.
        out: Where the page will be, for its links.
        faults: Takes a line for each damaged manifest or picture.
        others: What the paper's claims came to in other experiments; see `report.together`.
    """
    drawn = _Drawn(experiment, figures, out)
    steps = Steps(experiment.results)
    known = cells(experiment, steps, os.path.relpath(experiment.results, out.parent))
    known["items"] = os.path.relpath(answers, out.parent) if answers else ""
    judged = judgements(experiment, published)
    told = summary.answers(experiment, judged)
    averages = drawn.bars(
        "averages",
        panels.averages(experiment),
        tuple(model for case in experiment.cases for model in case.models),
    )
    claims = findings_grid(judged)
    # A text within a script ends at the first "</".
    data = json.dumps(known, ensure_ascii=False, separators=(",", ":"))
    template = render.templates().get_template("page.html.j2")
    text: str = template.render(
        name=experiment.name,
        first=render.part("first", summary.QUESTION, told, averages, claims, list(known["tables"])),
        sections=_sections(drawn, published, judged, known, links, others or {}),
        cells=Markup(data.replace("</", "<\\/")),
    )
    if faults is not None:
        faults += [*steps.reader.faults, *drawn.faults]
    return text


def write(
    experiment: Experiment,
    figures: Path | None,
    tables: Path | None,
    published: Published,
    out: Path,
    answers: Path | None = None,
    claims: Path = CLAIMS,
) -> list[str]:
    """Write the page to the file `out`, and the answers next to it; see `page`.

    Returns:
        A line for each file that is damaged and therefore not shown.
    """
    faults: list[str] = []
    others: Mapping[str, together.Said] = {}
    try:
        others = together.read(claims)
    except UserError as error:
        faults.append(str(error))
    there = items.write(experiment, answers, faults) if answers else 0
    shown = answers if there else None
    text = page(experiment, figures, published, _links(tables, out), shown, out, faults, others)
    write_text(out, text)
    return faults
