"""The claims of several experiments next to each other: who agrees, and what decides."""

from __future__ import annotations

import json

import pytest

from common.errors import UserError
from common.files import read_jsonl
from report import page, published, together
from report.load import load
from report.verdicts import judgements
from tests.report.conftest import ROOT


def entry(verdict: str) -> dict[str, str]:
    effect = "+.100 [+.050, +.150]"
    return {"verdict": verdict, "effect": effect, "repeats": "", "compared": "A less B"}


def words(*verdicts: str) -> str:
    """What the table says of one claim in as many experiments; empty where one cannot judge."""
    found = {str(n): {"C1": entry(v)} if v else {} for n, v in enumerate(verdicts)}
    claims = [published.Claim("C1", "A is better.", ("table1",))]
    (row,) = together.together_grid(claims, found).rows
    return row.cells[2].text


def test_a_word_says_whether_experiments_agree():
    yes, no, unsure = "holds", "does not hold", "open"
    assert words(yes, yes) == words(no, no, "") == "they agree"
    assert words(yes, unsure, yes, unsure) == "they agree, 2 open"
    assert words(yes, no, unsure) == "they differ"
    assert words(yes, unsure) == "one decides"
    assert words(unsure, unsure) == "all open"
    assert words(yes, "") == "one experiment"
    assert words("", "") == "–"


def test_this_run_takes_the_place_of_the_kept_one_of_its_name(full):
    experiment = load(*full)
    judged = judgements(experiment, published.load())
    kept = {name: {"C1": entry("holds")} for name in ("bottle", "cask")}
    found = together.with_kept("bottle", judged, kept)
    assert list(found) == ["bottle (this run)", "cask"]
    by_claim = {one.claim.id: one for one in judged}
    for id, about in found["bottle (this run)"].items():
        assert about["verdict"] == by_claim[id].verdict
    assert set(found["bottle (this run)"]) == {id for id, one in by_claim.items() if one.findings}


def test_the_comparison_that_is_shown_is_one_from_which_the_verdict_follows(full):
    # C4 asks for any of two comparisons in two columns, then for both averages.
    for one in judgements(load(*full), published.load()):
        if not one.findings:
            assert one.verdict == "open"
            continue
        assert one.deciding is not None and one.deciding.verdict == one.verdict
        if one.claim.id != "C4":
            continue
        by_quantity: dict[str, list[str]] = {}
        for finding in one.findings:
            by_quantity.setdefault(finding.compared.partition(", ")[2], []).append(finding.verdict)
        joined = {
            quantity: ("holds" in verdicts if quantity else set(verdicts) == {"holds"})
            for quantity, verdicts in by_quantity.items()
        }
        quantity = one.deciding.compared.partition(", ")[2]
        assert joined[quantity] == (one.verdict == "holds")


def test_a_claim_names_what_its_tables_lack(small):
    config, results, about = small
    about["methods"] |= {"dare_ties": {"label": "DARE-TIES", "method": "dare_ties"}}
    about["methods"] |= {"dam_paper": {"label": "DAM (paper)", "method": "dam"}}
    config.write_text(json.dumps(about))
    scores = results / "case1/scores/test"
    for id, level in (("dare_ties", 0.2), ("dam_paper", 0.9)):
        content = json.loads((scores / "base.json").read_text()) | {"model": id}
        for task in content["tasks"].values():
            task["value"] = level
        (scores / f"{id}.json").write_text(json.dumps(content))
    judged = {one.claim.id: one for one in judgements(load(config, results), published.load())}
    # It loses on average, and there is no column JComQA.
    assert judged["C4"].findings and judged["C4"].verdict == "open"
    assert "JComQA not compared" in judged["C4"].deciding.compared


def test_the_page_shows_them_and_a_damaged_file_only_costs_the_table(small, tmp_path):
    experiment = load(*small[:2])
    kept = tmp_path / "claims.json"
    kept.write_text(json.dumps({"cask": {"C1": entry("holds")}}))
    out = tmp_path / "report.html"
    assert page.write(experiment, None, None, published.load(), out, claims=kept) == []
    text = out.read_text(encoding="utf-8")
    assert '<figure id="together">' in text and "holds: A less B, +.100 [+.050, +.150]" in text
    for damaged in ("[]", '{"cask": {"C1": {}}}', '{"cask": [1]}', "{"):
        kept.write_text(damaged)
        (fault,) = page.write(experiment, None, None, published.load(), out, claims=kept)
        assert str(kept) in fault and "\n" not in fault
        assert '<figure id="together">' not in out.read_text(encoding="utf-8")
    kept.unlink()
    assert together.read(kept) == {}
    with pytest.raises(UserError):
        kept.write_text("[1]")
        together.read(kept)


def test_kept_claims_are_those_of_the_kept_scores_and_hold_no_text_of_items():
    said = together.read()
    names = {path.stem for path in (ROOT / "docs/results").glob("*.jsonl")}
    assert set(said) == names and {"bottle", "cask"} <= names
    for name in names:
        rows = dict(read_jsonl(ROOT / f"docs/results/{name}.jsonl"))
        assert not any("prompt" in key for key in rows)
