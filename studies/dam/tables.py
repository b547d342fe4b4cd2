"""The DAM study's tables: every setting and its comparison's reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from report import fields
from report.averages import Spread, spread
from report.experiment import Column
from report.grid import MISSING, Cell, Grid, Row, difference_cells, number
from report.paired import Difference, compare
from studies.dam.load import Study, strata_of

Differences = Mapping[tuple[str, str], Difference]


def differences(study: Study) -> dict[tuple[str, str], Difference]:
    """Compare every setting with the reference of its comparisons.

    Returns:
        By setting and reference, the difference of their averages; only pairs of which both have
        been run in every world.
    """
    pairs = [
        (setting, comparison["reference"])
        for comparison in study.config["comparisons"].values()
        for setting in comparison["settings"]
        if study.complete(setting) and study.complete(comparison["reference"])
    ]
    pairs = list(dict.fromkeys(pairs))
    if not pairs:
        return {}
    found = compare(strata_of(study, pairs), study.config["resamples"], seed=0)
    return dict(zip(pairs, found, strict=True))


def average(study: Study, setting: str) -> Spread | None:
    """Summarise a setting's test average over worlds; None where it has not been run."""
    return spread([run.average(study.averaged) for run in study.runs.get(setting, {}).values()])


def column(study: Study, setting: str, column: Column) -> Spread | None:
    """Summarise a setting's score in a column over worlds."""
    return spread([run.column(column) for run in study.runs.get(setting, {}).values()])


def dev(study: Study, setting: str) -> Spread | None:
    """Summarise a setting's dev average over worlds."""
    return spread([run.dev for run in study.runs.get(setting, {}).values()])


def higher(study: Study, setting: str, reference: str) -> int:
    """Count the worlds in which a setting's average is above the reference's."""
    columns, runs = study.averaged, study.runs
    return sum(
        runs[setting][seed].average(columns) > runs[reference][seed].average(columns) + 1e-12
        for seed in study.seeds
    )


def _chosen(study: Study, setting: str) -> str:
    """Write what each world chose on dev."""
    runs = study.runs.get(setting, {})
    values = [runs[seed].candidate.values() if seed in runs else () for seed in study.seeds]
    if not any(values):
        return ""
    return " ".join("/".join(f"{value:g}" for value in row) or MISSING for row in values)


def _row(study: Study, name: str, setting: str, found: Differences) -> Row:
    comparison = study.config["comparisons"][name]
    reference = comparison["reference"]
    label = study.config["settings"][setting]["label"]
    total = average(study, setting)
    deviation = number(total.deviation) if total and total.deviation is not None else ""
    difference = found.get((setting, reference))
    cells = [Cell(label), Cell(number(total and total.mean), deviation)]
    if setting == reference:
        cells += [Cell("reference"), Cell(""), Cell("")]
    elif difference is None:
        cells += [Cell(MISSING)] * 3
    else:
        cells += difference_cells(difference)
        cells.append(Cell(f"{higher(study, setting, reference)}/{len(study.seeds)}"))
    trial = dev(study, setting)
    cells.append(Cell(number(trial and trial.mean)))
    for shown in study.apart:
        score = column(study, setting, shown)
        cells.append(Cell(number(score and score.mean)))
    return Row((*cells, Cell(_chosen(study, setting))))


def grid(study: Study, name: str, found: Differences) -> Grid:
    """Lay out one comparison: the reference, then the settings in the order of the configuration.

    Args:
        study: The study.
        name: The comparison.
        found: What `differences` returned.
    """
    comparison = study.config["comparisons"][name]
    settings = [comparison["reference"], *comparison["settings"]]
    apart = [c.label + ("‡" if c.label in study.held_out else "") for c in study.apart]
    header = ("Setting", "Test average", "Difference [95 %]", "p", "Higher in", "Dev average")
    notes = list(comparison.get("notes", []))
    for setting in settings:
        if not study.complete(setting):
            done = len(study.runs.get(setting, {}))
            label = study.config["settings"][setting]["label"]
            notes.append(f"{label}: run in {done} of {len(study.seeds)} worlds.")
    return Grid(
        f"dam_{name}",
        comparison["title"],
        "The first row is the reference.",
        (*header, *apart, "Learning rates"),
        tuple(_row(study, name, setting, found) for setting in settings),
        tuple(notes),
    )


def explanation(study: Study) -> str:
    """Say in a paragraph what the tables' columns mean."""
    seeds = ", ".join(map(str, study.seeds))
    averaged = ", ".join(column.label for column in study.averaged)
    rates = ", ".join(f"{rate:g}" for rate in study.config["learning_rates"])
    return (
        f"{study.title}. A world is the case's data, base and experts, made from one of the seeds "
        f"{seeds}. *Test average*: mean over worlds ± sample standard deviation of the mean over "
        f"{averaged}. *Difference*: to the reference, over the test items of all worlds, which "
        "both settings answered. *[95 %]*: interval of a paired bootstrap of the test items; *p*: "
        "of a sign-flip permutation test of items. Both draw within tasks, with items that say "
        f"the same in several worlds kept together ({study.config['resamples']:,} draws). Both "
        "take these worlds as given: *higher in* counts the worlds that agree. No p is corrected "
        "for the number of comparisons. *Dev average*: of the candidate chosen on the dev items. "
        "*Learning rates*: "
        f"each world's choice among {rates}; empty where there was no choice. ‡ held out, in no "
        "expert's domain."
    )


def csv(study: Study, found: Differences) -> str:
    """Write all comparisons for programs."""
    header = ["comparison", "setting", "label", "reference", "worlds"]
    header += ["Avg mean", "Avg sd", *(f"Avg seed {seed}" for seed in study.seeds)]
    header += ["difference", "low", "high", "p", "worlds higher", "dev mean", "dev sd"]
    for shown in study.columns:
        header += [f"{shown.label} mean", f"{shown.label} sd"]
    rows: list[list[Any]] = [[*header, "chosen"]]
    for name, comparison in study.config["comparisons"].items():
        reference = comparison["reference"]
        for setting in (reference, *comparison["settings"]):
            runs = study.runs.get(setting, {})
            row = [name, setting, study.config["settings"][setting]["label"], reference, len(runs)]
            row += _pair(average(study, setting))
            averages = {seed: run.average(study.averaged) for seed, run in runs.items()}
            row += [fields.decimals(averages.get(seed)) for seed in study.seeds]
            difference = found.get((setting, reference))
            if difference:
                parts = (difference.value, difference.low, difference.high, difference.p)
                row += [fields.decimals(part) for part in parts]
                row.append(higher(study, setting, reference))
            else:
                row += [""] * 5
            row += _pair(dev(study, setting))
            for shown in study.columns:
                row += _pair(column(study, setting, shown))
            rows.append([*row, _chosen(study, setting)])
    return fields.text(rows)


def _pair(total: Spread | None) -> list[str]:
    return [fields.decimals(total and total.mean), fields.decimals(total and total.deviation)]
