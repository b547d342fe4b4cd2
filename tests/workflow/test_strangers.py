"""The configuration of experts without a common base, and what of it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from common.errors import UserError
from merges.alignment.aligning import METHODS
from workflow import configuration
from workflow.config.methods import Align

ROOT = Path(__file__).resolve().parents[2]


def loaded(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(f"extends: {ROOT / 'strangers.yaml'}\nname: own\n{text}")
    return configuration.load(path)


def test_the_keys_are_those_of_the_command():
    assert set(get_args(Align)) == set(METHODS)


def test_two_experts_have_two_bases_and_every_alignment_has_a_soup():
    config = configuration.load(ROOT / "strangers.yaml")
    (case,) = config.cases.values()
    assert {name: own.base_seed for name, own in case.experts.items()} == {"ja": None, "math_a": 11}
    soups = {row.align for row in config.methods.values() if row.method == "linear"}
    assert soups == {None, *METHODS}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "methods: {odd: {label: Odd, method: regmean, align: weights}}",
            "methods.odd: statistics are of the experts as they were trained",
        ),
        ("methods: {odd: {label: Odd, method: linear, align: weight}}", "align"),
        ("methods: {odd: {label: Odd, hub: x, align: weights}}", "leave 'align' out"),
        ("cases: {case1: {experts: {ja: {base_seed: -1}}}}", "base_seed"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        loaded(tmp_path, text)


def test_only_the_bottle_trains_another_base(tmp_path):
    case = configuration.read(ROOT / "cask.yaml")["cases"]
    (name,) = case
    expert = next(iter(case[name]["experts"]))
    path = tmp_path / "own.yaml"
    own = f"cases: {{{name}: {{experts: {{{expert}: {{base_seed: 3}}}}}}}}"
    path.write_text(f"extends: {ROOT / 'cask.yaml'}\nname: own\naccept_terms: [gemma]\n{own}\n")
    with pytest.raises(UserError, match="base_seed is for experts that the bottle trains"):
        configuration.load(path)


def test_the_record_says_what_the_documents_say():
    record = json.loads((ROOT / "docs/data/strangers.json").read_text())
    assert record["undone to the bit"] == [20, 20]
    plain = record["lines"]["none"]["loss"]
    for method in METHODS:
        own = record["lines"][method]["loss"]
        for expert, path in own.items():
            half = len(path) // 2
            assert path[half] < plain[expert][half]  # a lower barrier
            if method != "transport":  # which alone changes the function
                assert path[-1] == pytest.approx(plain[expert][-1], rel=1e-3)
