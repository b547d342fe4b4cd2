"""The study of ancestry on a small results folder: leads and verdicts counted by hand."""

from __future__ import annotations

import csv
import gzip
import json

import pytest

from common.errors import UserError
from studies.ancestry import table as ancestry
from studies.cli import main

CONFIG = {
    "name": "small",
    "seed": 1,
    "cases": {
        "case2": {
            "table": "table2",
            "title": "Case study 2",
            "base": {"label": "Base"},
            "experts": {"ko": {"label": "Korean expert", "domain": ["s/a", "s/b"]}},
            "columns": [
                {"label": "Korean", "tasks": ["s/a", "s/b"]},
                {"label": "Other", "tasks": ["s/c"]},
            ],
        }
    },
    "methods": {
        "dare": {"label": "DARE", "method": "dare_ties"},
        "soup": {"label": "Soup", "method": "linear"},
        "dam": {"label": "DAM", "method": "dam", "cases": ["case2"], "table": "more"},
        "ties": {"label": "TIES", "method": "ties"},
    },
    "studies": {
        "ancestry": {
            "case": "case2",
            "expert": "ko",
            "ancestor": 0.6,
            "column": "Korean",
            "leaders": ["dare"],
            "others": ["soup", "dam"],
        },
    },
}
ITEMS = 40
# Right answers among the 40 items of tasks a, b, c: the first so many are right.
RIGHT = {
    ("case2", "dare"): (20, 10, 0),
    ("case2", "soup"): (20, 20, 40),  # the lead is (0 - 10) / 80 = -.125
    ("case2", "dam"): (10, 10, 0),  # the lead is (10 + 0) / 80 = .125
    ("studies/ancestry", "dare"): (40, 40, 0),
    ("studies/ancestry", "soup"): (20, 20, 0),  # (20 + 20) / 80 = .5
    ("studies/ancestry", "dam"): (40, 40, 40),  # 0
}


def write_scores(results, world, row, right):
    folder = results / world / "scores" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    tasks, records = {}, []
    for task, count in zip("abc", right, strict=True):
        tasks[f"s/{task}"] = {"value": count / ITEMS, "stderr": 0.01, "items": ITEMS}
        records += [
            {"task": f"s/{task}", "id": f"{task}-{n:02}", "score": float(n < count)}
            for n in range(ITEMS)
        ]
    (folder / f"{row}.json").write_text(json.dumps({"tasks": tasks, "seed": 1}))
    lines = "\n".join(map(json.dumps, records)) + "\n"
    (folder / f"{row}.items.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


@pytest.fixture
def small(tmp_path):
    config, results = tmp_path / "config.json", tmp_path / "results"
    config.write_text(json.dumps(CONFIG))
    for (world, row), right in RIGHT.items():
        write_scores(results, world, row, right)
    for row in ("base", "ko"):
        write_scores(results, "studies/ancestry", row, (4, 4, 4))
    return config, results


def leads(small):
    case = ancestry.load(CONFIG, small[1])
    return {lead.other: lead for lead in ancestry.leads(CONFIG, case, small[1])}


def test_leads_and_verdicts_by_hand(small):
    found = leads(small)
    soup, dam = found["Soup"], found["DAM"]
    assert [d.value for d in (soup.before, soup.after, soup.change)] == pytest.approx(
        [-0.125, 0.5, 0.625]
    )
    assert [d.value for d in (dam.before, dam.after, dam.change)] == pytest.approx(
        [0.125, 0.0, -0.125]
    )
    for lead in (soup, dam):
        for part in (lead.before, lead.after, lead.change):
            assert part.low <= part.value <= part.high
    assert (soup.verdict(), dam.verdict()) == ("supports the claim", "speaks against the claim")
    # 40 of 80 items differ in one direction: no sign flip comes near.
    assert soup.after.p < 0.001 and dam.after.p == 1.0


def test_a_lead_that_is_not_clear_supports_nothing(small):
    write_scores(small[1], "studies/ancestry", "soup", (40, 39, 0))
    lead = leads(small)["Soup"]
    assert lead.after.value == pytest.approx(1 / 80) and lead.after.low == 0
    assert lead.change.low > 0  # the change alone is not enough
    assert lead.verdict() == "moves as claimed, without a clear lead"
    write_scores(small[1], "studies/ancestry", "soup", (40, 40, 0))
    write_scores(small[1], "case2", "soup", (21, 10, 0))
    lead = leads(small)["Soup"]
    assert lead.change.low == 0 and lead.verdict() == "is inconclusive"


def test_the_tables_hold_the_compared_rows_and_the_claim(small, tmp_path, capsys):
    out = tmp_path / "out"
    config, results = map(str, small)
    assert main(["ancestry", "--config", config, "--results", results, "--out", str(out)]) == 0
    assert "2 pairs; supports the claim: 1; speaks against the claim: 1." in capsys.readouterr().out
    with open(out / "table2b.csv", encoding="utf-8") as stream:
        rows = {row["id"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["chance", "base", "ko", "dare", "soup", "dam"]
    assert float(rows["dare"]["Korean"]) == 1.0
    with open(out / "claim_c11.csv", encoding="utf-8") as stream:
        claims = list(csv.DictReader(stream))
    assert [(row["leader"], row["other"]) for row in claims] == [("DARE", "Soup"), ("DARE", "DAM")]
    assert float(claims[0]["change"]) == 0.625
    page = (out / "table2b.md").read_text()
    assert page.startswith("**Table 2b.** Case study 2, the Korean expert")
    assert "the Korean expert fine-tuned from the base at 60 % of its steps" in page
    written = {path.name for path in out.iterdir()}
    assert written == {"manifest.json"} | {
        f"{name}.{form}" for name in ("table2b", "claim_c11") for form in ("csv", "md", "tex")
    }


def test_what_is_lacking_is_told(small, tmp_path):
    config, results = small
    write_scores(results, "case2", "dam", (1, 1, 1))
    path = results / "case2" / "scores" / "test" / "dam.items.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().replace('"a-00"', '"a-99"')
    path.write_bytes(gzip.compress(lines.encode()))
    with pytest.raises(UserError, match="case2/dam: other items of s/a"):
        leads(small)
    path.unlink()
    assert list(leads(small)) == ["Soup"]
    config.write_text(json.dumps(CONFIG | {"studies": {}}))
    with pytest.raises(UserError, match="studies has no 'ancestry'"):
        main(["ancestry", *f"--config {config} --results {results} --out {tmp_path}".split()])
