"""Losses on lines: what is said of them, computed by hand, and what the panels draw."""

from __future__ import annotations

import html
import itertools
import json
import re

import pytest

from common.calling import call
from report import lines
from report.load import load
from tests.report.conftest import fill, inspected, write

BASE, JA, MATH = 0.8, 0.1, 0.2  # losses of base and experts


def straight(one, two, bump=0.0):
    """A line that goes evenly from end to end, but for a rise at its middle."""
    step = (two - one) / 4
    return [one, one + step, one + 2 * step + bump, one + 3 * step, two]


def put(small, **changed):
    """Write lines of two merges; `changed` replaces some: a side, a merge and an expert."""
    config, results, about = small
    found = inspected(["ja", "math_a"], list(about["methods"]))
    between = found["lines"]
    ends = {"ja": JA, "math_a": MATH}
    between["base"] = {
        merge: {expert: straight(BASE, 0.4) for expert in ends} for merge in ("soup", "dam")
    }
    between["experts"] = {
        merge: {expert: straight(0.4, end) for expert, end in ends.items()}
        for merge in ("soup", "dam")
    }
    for place, losses in changed.items():
        side, merge, expert = place.split("__")
        between[side][merge][expert] = losses
    write(results / "case1/inspection.json", found)
    return load(config, results).cases[0]


def said(case):
    return lines.said(lines.Lines(case))


def test_without_a_rise_there_is_no_barrier(small):
    # 2 merges, 2 experts, 2 sides. A rise of less than .01, and one within the line, are none.
    assert said(put(small)).startswith("No barrier: none of 8 lines rises by .010")
    within = [0.8, 0.4, 0.7, 0.5, 0.4]
    case = put(small, base__dam__ja=within, experts__soup__ja=straight(0.4, 0.405, 0.01))
    assert said(case).startswith("No barrier: none of 8 lines")


def test_a_barrier_is_the_rise_above_the_higher_end(small):
    # The middle of 0.4 -> 0.2 is 0.3; with 0.25 more, 0.55 is 0.15 above 0.4.
    case = put(
        small,
        experts__dam__math_a=straight(0.4, MATH, 0.25),
        base__soup__ja=straight(BASE, 0.4, 0.22),  # 0.82: 0.02 above 0.8
    )
    assert said(case).startswith(
        "Barriers: 2 of 8 lines rise by more than .010 above both ends, the highest by .150, from "
        "DAM to the expert, on the rows of Maths & logic. "
    )


def test_merges_beyond_the_lowest_mean_loss_went_too_far(small):
    # Means over both experts: .8, .5, .3, .35, .5; the merge is .2 above the lowest.
    case = put(
        small, base__dam__ja=[0.8, 0.5, 0.2, 0.3, 0.5], base__dam__math_a=[0.8, 0.5, 0.4, 0.4, 0.5]
    )
    assert "DAM went too far" in said(case) and "lower by up to .200. " in said(case)
    assert "went too far" not in said(put(small))
    # One expert's gain that is the other's loss is none.
    case = put(small, base__dam__ja=[0.8, 0.6, 0.2, 0.3, 0.4], base__dam__math_a=straight(0.8, 0.2))
    assert "too far" not in said(case)


def test_the_panels_draw_the_losses_in_one_scale(small):
    case = put(small, base__dam__ja=[0.8, 0.5, 0.2, 0.3, 0.4])
    found = lines.Lines(case)
    drawn = str(lines.figure(case))
    panels = re.findall(r'<div><b title="([^"]*)">.*?</svg></div>', drawn)
    assert [html.unescape(name) for name in panels] == [model.label for model in found.merges]
    scales = set()
    for model, part in zip(found.merges, drawn.split("<div><b")[1:], strict=True):
        zero, *levels = [
            (float(y), float(label))
            for y, label in re.findall(
                r'y="([0-9.]+)" class="small" text-anchor="end">([0-9.]+)<', part
            )
        ]
        assert zero[1] == 0 and len(levels) >= 2
        scale = (zero[0] - levels[-1][0]) / levels[-1][1]  # pixels of a nat
        scales.add(round(scale, 1))
        ways = re.findall(r'class="way w\d" d="M([^"]*)"', part)
        assert len(ways) == 2
        for expert, way in zip(("ja", "math_a"), ways, strict=True):
            points = [tuple(map(float, point.split())) for point in way.split("L")]
            losses = [(zero[0] - 3 - y) / scale for _, y in points]
            wanted = found.of("base", model.id, expert) + found.of("experts", model.id, expert)[1:]
            assert losses == pytest.approx(wanted, abs=0.003)
            steps = [two[0] - one[0] for one, two in itertools.pairwise(points)]
            assert steps == pytest.approx([steps[0]] * 8, abs=0.11) and steps[0] > 10
    assert len(scales) == 1


def test_a_merge_that_broke_does_not_flatten_the_others(small):
    drawn = str(lines.figure(put(small, base__dam__ja=straight(BASE, 40.0))))
    assert "leave a panel at the top reach at most 40.000" in drawn
    tops = [float(label) for label in re.findall(r'text-anchor="end">([0-9.]+)', drawn)]
    assert max(tops) <= 2 * BASE * 1.04


def test_worlds_are_averaged_and_one_without_lines_is_left_out(small, tmp_path):
    _, _, about = small
    del about["seed"]
    about |= {"ablation": None, "seeds": [1, 2, 3]}
    results = tmp_path / "worlds"
    fill(results, about | {"ablation": {"objectives": {}, "seeds": [], "case": "case1"}})
    write(tmp_path / "worlds.json", about)
    paths = [results / f"case1{end}/inspection.json" for end in ("", "-seed2", "-seed3")]
    found = [json.loads(path.read_text()) for path in paths]
    del found[1]["lines"]
    write(paths[1], found[1])
    case = load(tmp_path / "worlds.json", results).cases[0]
    own = lines.Lines(case)
    each = [found[n]["lines"]["base"]["soup"]["ja"] for n in (0, 2)]
    mean = [sum(pair) / 2 for pair in zip(*each, strict=True)]
    assert own.of("base", "soup", "ja") == pytest.approx(mean)
    assert own.seeds == [1, 3] and "in the world of seed 1, seed 3" in str(lines.figure(case))


@pytest.mark.parametrize("damage", ["none", "short", "text", "one side", "expert"])
def test_a_page_without_usable_lines_has_all_the_rest(small, tmp_path, damage, capsys):
    config, results, _ = small
    path = results / "case1/inspection.json"
    found = json.loads(path.read_text())
    between = found["lines"]
    if damage == "none":  # as older files are
        del found["lines"]
    elif damage == "short":
        between["base"]["soup"]["ja"].pop()
    elif damage == "text":
        between["base"]["soup"]["ja"][2] = "high"
    elif damage == "one side":
        between["experts"] = {}
    else:
        for merge in between["experts"].values():
            del merge["ja"]
    write(path, found)
    out = tmp_path / "report.html"
    given = ["page", "--config", str(config), "--results", str(results), "--out", str(out)]
    code = call("report.cli", [*given, "--go-on"])
    said, page = capsys.readouterr(), out.read_text()
    assert code == 0 and 'id="table1"' in page
    assert 'id="figure-table1_lines"' not in page
    named = "inspection.json" in said.out + said.err
    assert named == (damage == "text")
    assert ("Why a merge works" in page) == (damage != "text")
