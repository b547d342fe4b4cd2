"""The claims on the first screen: a row for each comparison, with those that agree."""

from __future__ import annotations

import json

from report import published, summary
from report.findings import comparisons_grid, findings_grid
from report.load import load
from report.verdicts import judgements, sentences


def test_the_first_screen_shows_verdict_effect_and_the_seeds_that_agree(full):
    experiment, paper = load(*full), published.load()
    judged = judgements(experiment, paper)
    grid = findings_grid(judged)
    rows = [[cell.text for cell in row.cells] for row in grid.rows]
    assert [row[0] for row in rows if row[0] == "C11"] == ["C11"]  # also a claim without a verdict
    found = sentences(judged)
    for claim in paper.claims:
        own = [row for row in rows if row[0] == claim.id]
        assert len(own) == 1 and own[0][1] == claim.sentence
        if claim.id in found:
            assert {"holds", "does not hold", "open"} >= {row[2] for row in own}
    case = experiment.config["cases"][experiment.config["ablation"]["case"]]

    def averages(objective: str) -> list[float]:
        values = []
        for seed in experiment.config["ablation"]["seeds"]:
            path = full[1] / f"ablation/{objective}/seed{seed}/scores.json"
            tasks = json.loads(path.read_text())["tasks"]
            columns = [[tasks[t]["value"] for t in c["tasks"]] for c in case["columns"]]
            values.append(sum(sum(c) / len(c) for c in columns) / len(columns))
        return values

    gaps = [kl - mse for kl, mse in zip(averages("kl"), averages("mse"), strict=True)]
    all_of = comparisons_grid(judged).rows
    (row,) = [r for r in all_of if r.cells[2].text == "Table 3: KL less MSE"]
    row = [cell.text for cell in row.cells]
    mean = f"{sum(gaps) / len(gaps):+.3f}".replace("0.", ".")
    assert row[0] == "C7" and row[3].startswith(f"{mean} [")
    agreeing = sum(gap * sum(gaps) > 0 for gap in gaps)
    assert row[4] == f"{agreeing} of {len(gaps)} seeds"


def test_a_sentence_names_a_few_rows_and_counts_the_others():
    assert summary._several(list("abcdefgh")) == "a, b, c, d, e, f, g, h"
    assert summary._several(list("abcdefghi")) == "a, b, c, d, e, f, g and 2 others"


def test_the_summary_counts_the_claims_in_words(full):
    judged = judgements(load(*full), published.load())
    line = summary.answers(load(*full), judged)[-1]
    assert line.startswith("Of the paper's 13 claims: ")
    for verdict, (one, several) in summary._VERDICTS.items():
        ids = [j.claim.id for j in judged if j.findings and j.verdict == verdict]
        if ids:
            assert f"{len(ids)} {several if ids[1:] else one} ({', '.join(ids)})" in line
