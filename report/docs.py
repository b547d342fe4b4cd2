"""Pages of `docs/results/` from kept runs, their index, and README's numbers."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import machine
from common.errors import UserError
from common.files import read_json, write_bytes, write_text
from report import kept, processors, render, together
from report.ablation_table import ablation_grid
from report.beside_paper import claims_grid
from report.case_table import case_grid, more_grid, table_title, untuned
from report.cost import costs, has_statistics, stages_grid
from report.experiment import Case, Experiment, Model
from report.grid import Grid, number
from report.published import CLAIMS, PAPER, load
from report.verdicts import Judgement, judgements

_BLOCK = re.compile(
    r"(<!-- results of (\w+), rows ([\w ]+) -->\n).*?(<!-- end of results -->)", re.S
)
_WRITTEN = "<!-- Written by `python -m report results`. Do not edit; see docs/README.md. -->\n"


def _figures(experiment: Experiment) -> list[str]:
    """Name the figures that a page shows."""
    found = costs(experiment)
    informed = [case.table for case in experiment.cases if has_statistics(case, found)]
    computed = [f"{case.table}_compute" for case in experiment.cases]
    return ["averages", *computed, *(f"{table}_data" for table in informed)]


def _image(experiment: Experiment, name: str, folder: str, alt: str) -> str:
    return f"![{alt}]({folder}/{experiment.name}-{name}.png)\n"


def _runs(experiment: Experiment) -> list[dict[str, Any]]:
    path = experiment.results / machine.NAME
    return read_json(path) if path.exists() else []


def _machines(experiment: Experiment) -> str:
    """Name every machine that took part: processor, instruction sets, cores."""
    named = (
        f"{run['processor']} with {', '.join(run['instructions']) or 'no vector instructions'}, "
        f"{run['cores']} cores"
        for run in _runs(experiment)
    )
    return "; ".join(dict.fromkeys(named)) or "not recorded"


def _of_last_run(experiment: Experiment, name: str) -> str:
    runs = _runs(experiment)
    return runs[-1][name] if runs else "not recorded"


def _spent(experiment: Experiment) -> dict[str, str]:
    """Return number of steps, CPU seconds and minutes of wall time, as text."""
    found, seconds = costs(experiment), sum(run["seconds"] for run in _runs(experiment))
    minutes = f"{seconds / 60:.0f}" if seconds else "not recorded"
    cpu = f"{sum(cost.cpu_s for cost in found):,.0f}"
    return {"Steps": str(len(found)), "CPU seconds": cpu, "Minutes in all": minutes}


def _facts(experiment: Experiment) -> dict[str, str]:
    date, commit = (_of_last_run(experiment, name) for name in ("date", "commit"))
    about = {"Date": date, "Commit": commit, "Machine": _machines(experiment)}
    return about | _spent(experiment)


def _code(grid: Grid) -> str:
    return f"```\n{render.plain(grid)}```\n"


def _case(experiment: Experiment, case: Case) -> str:
    title, seed = table_title(case.table), experiment.seed
    alt = f"{case.title}: average against compute"
    parts = [f"## {title}. {case.title}\n", _code(case_grid(case, seed))]
    parts.append(_image(experiment, f"{case.table}_compute", "../figures", alt))
    if f"{case.table}_data" in _figures(experiment):
        alt = f"{case.title}: average of every method against data and price"
        parts.append(_image(experiment, f"{case.table}_data", "../figures", alt))
    if case.more:
        grid = more_grid(case, seed)
        parts += [
            f"### Methods that the paper does not compare{untuned(case)}\n",
            _code(grid),
        ]
    return "\n".join(parts)


def page(experiment: Experiment, judged: Sequence[Judgement], discussion: str) -> str:
    """Write one experiment's page.

    Args:
        experiment: The experiment, from a kept run.
        judged: The paper's claims; see `report.verdicts.judgements`.
        discussion: What a person wrote about it, as Markdown.

    Returns:
        The page as Markdown, for the folder `docs/results`.
    """
    facts = "\n".join(f"| {name} | {value} |" for name, value in _facts(experiment).items())
    parts = [
        f"# Results of the experiment `{experiment.name}`\n\n{_WRITTEN}",
        f"| | |\n|---|---|\n{facts}\n",
        _image(experiment, "averages", "../figures", "Average of every model, by case study"),
        "Scores are shares of right answers on test items (XLSum: ROUGE-2). `*` marks the highest "
        f"among the merges.\n`±` after an average is its standard error over "
        f"{experiment.cases[0].errors}.\n",
    ]
    if discussion:
        parts.append(f"## What the tables say\n\n{discussion.strip()}\n")
    parts += [_case(experiment, case) for case in experiment.cases]
    if experiment.ablation:
        grid = ablation_grid(experiment.ablation)
        parts += [
            "## Table 3. DAM's training objective, mean ± deviation over seeds\n",
            _code(grid),
        ]
    about = "[The same claims in all experiments](claims.md).\n"
    parts += ["## The paper's claims\n", about, render.markdown(claims_grid(judged))]
    if found := costs(experiment):
        parts += ["## Where the time went\n", _code(stages_grid(found))]
    return "\n".join(parts)


def _best(case: Case, kind: str) -> Model | None:
    return next((model for model, _ in case.ranked(kind, case.all_models)), None)


def _average(case: Case, model: Model | None) -> str:
    score = case.average(model) if model else None
    return f"{number(score.value)} ± {number(score.stderr)}" if score else number(None)


def _line(experiment: Experiment, row: str) -> str:
    """Write a row of README's table: one model's average in every case."""
    label, cells = row, []
    for case in experiment.cases:
        named = {model.id: model for model in case.models}
        model = _best(case, "expert") if row == "expert" else named.get(row)
        label = "Best expert" if row == "expert" else model.label if model else label
        cells.append(_average(case, model))
    return f"| {' | '.join([label, *cells])} |\n"


def summary(experiment: Experiment, rows: list[str]) -> str:
    """Write what README shows of an experiment.

    Args:
        experiment: The experiment, from a kept run.
        rows: Names of rows; `expert` is the expert with the highest average in each case.

    Returns:
        Markdown: a sentence with time and machine, a small table, a figure.
    """
    spent = _spent(experiment)
    titles = [f"{case.title}, mean of {len(case.averaged)}" for case in experiment.cases]
    return (
        f"The run of {_of_last_run(experiment, 'date')} took {spent['Steps']} steps, "
        f"{spent['CPU seconds']} CPU seconds and {spent['Minutes in all']} minutes on\n"
        f"{_machines(experiment)}.\n\n"
        f"| Model | {' | '.join(titles)} |\n|---|{'---:|' * len(titles)}\n"
        + "".join(_line(experiment, row) for row in rows)
        + f"\n{_image(experiment, 'averages', 'docs/figures', 'Average of every model')}"
    )


def _index(facts: Mapping[str, tuple[str, ...]], elsewhere: bool) -> str:
    more = "\n[The paper's claims in all of them, next to each other](results/claims.md).\n"
    more += "\n[The same experiments on another processor](results/processors.md).\n" * elsewhere
    lines = "".join(f"| {' | '.join(cells)} |\n" for cells in facts.values())
    return (
        f"# Results\n\n{_WRITTEN}\n"
        "One page for each experiment whose scores are kept in `docs/results`.\n\n"
        "| experiment | date | commit | machine | best merge by case |\n"
        f"|---|---|---|---|---|\n{lines}{more}"
    )


def _entry(experiment: Experiment) -> tuple[str, ...]:
    best = [(case, _best(case, "merge")) for case in experiment.cases]
    merges = "; ".join(
        f"{table_title(case.table)}{', other methods' * (model in case.more)}: {model.label} "
        f"{_average(case, model)}"
        for case, model in best
        if model
    )
    facts = list(_facts(experiment).values())[:3]
    return (f"[{experiment.name}](results/{experiment.name}.md)", *facts, merges)


def add(config: Path, results: Path, docs: Path, elsewhere: bool = False) -> None:
    """Keep what the pages need of a finished run: scores and figures.

    Args:
        config: The resolved configuration.
        results: The results folder, with its figures.
        docs: The folder of the documentation.
        elsewhere: Whether this is a second run, on another processor, of which scores are kept.

    Raises:
        UserError: A figure is missing, or no first run is kept.
    """
    path = docs / "results" / f"{read_json(config)['name']}.jsonl"
    if elsewhere:
        if not path.exists():
            raise UserError(f"{path}: no such file; keep a first run, without --elsewhere")
        kept.keep(config, results, path.parent / processors.FOLDER / path.name)
        return
    kept.keep(config, results, path)
    with kept.opened(path) as experiment:
        for name in _figures(experiment):
            drawn = results / "figures" / f"{name}.png"
            if not drawn.exists():
                raise UserError(f"{drawn}: no such figure; run `snakemake figures` first")
            write_bytes(docs / "figures" / f"{experiment.name}-{name}.png", drawn.read_bytes())


def _processors(folder: Path) -> str:
    """Write the page on runs that were made again on another processor; empty without any."""
    written = folder / "processors-discussion.md"
    parts = []
    for second in sorted((folder / processors.FOLDER).glob("*.jsonl")):
        with kept.opened(folder / second.name) as one, kept.opened(second) as two:
            parts.append(processors.section(one, two, [_facts(one), _facts(two)]))
    if parts and written.exists():
        parts.insert(0, written.read_text(encoding="utf-8"))
    return "\n".join([f"# Results on other processors\n\n{_WRITTEN}", *parts]) if parts else ""


def texts(docs: Path) -> dict[Path, str]:
    """Make every generated page again from the kept runs.

    Args:
        docs: The folder of the documentation; README.md is next to it.

    Returns:
        By path, the pages of the experiments, of their claims, their index, the claims as data for
        the pages of other runs, and README.md with its new numbers.

    Raises:
        UserError: README shows an experiment of which nothing is kept.
    """
    made, entries, readme = {}, {}, docs.parent / "README.md"
    published, claims = load(PAPER), {}
    runs = {path.stem: path for path in sorted((docs / "results").glob("*.jsonl"))}
    # A run is open for one page at a time: its scores are unpacked into a temporary folder.
    for name, path in runs.items():
        written = docs / "results" / f"{name}-discussion.md"
        with kept.opened(path) as experiment:
            discussion = written.read_text(encoding="utf-8") if written.exists() else ""
            judged = judgements(experiment, published)
            made[docs / "results" / f"{name}.md"] = page(experiment, judged, discussion)
            entries[name], claims[name] = _entry(experiment), together.said(judged)
    grid = render.markdown(together.together_grid(published.claims, claims))
    made[docs / "results/claims.md"] = (
        f"# The paper's claims in all experiments\n\n{_WRITTEN}\n{grid}"
    )
    kept_claims = json.dumps(claims, ensure_ascii=False, indent=1)
    made[docs / "results" / CLAIMS.name] = f"{kept_claims}\n"
    elsewhere = _processors(docs / "results")
    if elsewhere:
        made[docs / "results/processors.md"] = elsewhere
    made[docs / "results.md"] = _index(entries, bool(elsewhere))

    def shown(found: re.Match) -> str:
        if found[2] not in runs:
            raise UserError(f"{readme}: no run of {found[2]!r} is kept in {docs / 'results'}")
        with kept.opened(runs[found[2]]) as experiment:
            return f"{found[1]}{summary(experiment, found[3].split())}{found[4]}"

    if readme.exists():
        made[readme] = _BLOCK.sub(shown, readme.read_text(encoding="utf-8"))
    return made


def draw(docs: Path) -> list[Path]:
    """Draw the pages' figures again from the kept runs, and return their paths."""
    from report import figures  # matplotlib is not needed for texts

    written = []
    for path in sorted((docs / "results").glob("*.jsonl")):
        with kept.opened(path) as experiment, tempfile.TemporaryDirectory() as folder:
            figures.write(experiment, Path(folder))
            for name in _figures(experiment):
                drawn = docs / "figures" / f"{experiment.name}-{name}.png"
                write_bytes(drawn, Path(folder, f"{name}.png").read_bytes())
                written.append(drawn)
    return written


def write(docs: Path) -> list[Path]:
    """Write what `texts` makes and return the paths."""
    for path, text in (made := texts(docs)).items():
        write_text(path, text)
    return list(made)
