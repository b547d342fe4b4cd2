"""Options that several command lines share."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from common.cli import json_list, pairs
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MODELS = ["--base", "b", "--out", "o"]
SEARCH = [*MODELS, "--experts", "e=e"]
# Each option that takes several values: parser, what else the command needs, option, two values.
OPTIONS = [
    *(
        ("merges.cli.build_parser", [], option, values)
        for option, values in (
            ("--experts", ["ja=models/ja", "math=models/math"]),
            ("--set", ["density=0.3", 'weights={"ja": 1}']),
            ("--calibration", ["ja=ja.jsonl", "math=math.jsonl"]),
            ("--locate", ["org/a=a", "org/b=b"]),
            ("--statistics", ["ja=ja", "math=math"]),
            ("--slices", ["ja=0:3", "math=1:4"]),
            ("--align-rows", ["ja.jsonl", "math.jsonl"]),
        )
    ),
    (
        "merges.statistics.cli.build_parser",
        ["--model", "m", "--out", "o"],
        "--calibration",
        ["ja=ja.jsonl", "math=math.jsonl"],
    ),
    (
        "merges.dam.teachers.build_parser",
        [*MODELS, "--calibration", "ja=x"],
        "--experts",
        ["ja=ja", "math=math"],
    ),
    ("merges.dam.teachers.build_parser", SEARCH, "--calibration", ["ja=ja", "math=math"]),
    *(
        ("search.cli.build_parser", [command, *SEARCH], option, ["one=1", "two=2"])
        for command in ("tune", "evolve", "greedy")
        for option in ("--set", "--calibration", "--statistics")
    ),
    *(
        ("search.cli.build_parser", [command, *MODELS], "--experts", ["ja=ja", "math=math"])
        for command in ("tune", "evolve", "greedy", "replay")
    ),
    *(
        ("search.kinship.build_parser", needed, option, ["ja=ja", "math=math"])
        for needed, option in (
            (["--base", "b"], "--experts"),
            (["--base", "b", "--experts", "e=e"], "--scores"),
        )
    ),
    (
        "search.goals.front.build_parser",
        ["--of", "o", "--out", "f"],
        "--experts",
        ["ja=ja", "math=math"],
    ),
    ("checkpoints.cli.build_parser", ["preflight"], "--experts", ["ja=ja", "math=math"]),
    (
        "checkpoints.cli.build_parser",
        ["smoke", "--model", "m", "--out", "o"],
        "--parent",
        ["base=base", "ja=ja"],
    ),
    *(
        ("merges.inspecting.build_parser", needed, option, ["ja=ja", "math=math"])
        for needed, option in (
            (["--base", "b"], "--experts"),
            (["--base", "b", "--experts", "e=e"], "--merges"),
            (["--base", "b", "--experts", "e=e"], "--calibration"),
        )
    ),
    *(
        ("merges.core_space.build_parser", ["--base", "b", "--method", "m", *more], option, values)
        for option, more, values in (
            ("--experts", ["--out", "o"], ["ja=ja", "math=math"]),
            ("--set", ["--out", "o", "--experts", "e=e"], ["density=0.3", "scale=1"]),
        )
    ),
    (
        "merges.copa.build_parser",  # its --experts is that of merges.core_space
        ["--base", "b", "--out", "o", "--experts", "e=e"],
        "--set",
        ["density=0.3", "factor=1"],
    ),
    ("merges.alignment.cli.build_parser", [], "--align-rows", ["ja.jsonl", "math.jsonl"]),
    ("merges.card.build_parser", ["model"], "--scores", ["a.json", "b.json"]),
    ("cask.cli.build_parser", ["base"], "--accept-terms", ["gemma", "llama"]),
    (
        "cask.cli.build_parser",
        ["data", "--tasks", "s/a", "--tokenizer", "t", "--out", "o"],
        "--experts",
        ["ja=s/a,s/b", "ko=s/c"],
    ),
    ("evaluation.cli._parser", [], "--model", ["base=base", "models/ja"]),
    (
        "evaluation.gate._parser",
        ["--base", "b", "--out", "o"],
        "--expert",
        ["ja=ja.json:s/a,s/b", "math=math.json:s/c"],
    ),
    ("evaluation.gate._parser", ["--out", "o"], "--worlds", ["a/gate.json", "b/gate.json"]),
]


@pytest.mark.parametrize(("parser", "needed", "option", "values"), OPTIONS)
def test_several_values_and_a_repeated_option_are_the_same(parser, needed, option, values):
    module, _, name = parser.rpartition(".")
    build = getattr(importlib.import_module(module), name)
    field = option.removeprefix("--").replace("-", "_")
    together = [option, *values, *(["--seed", "1"] if "--seed" in build().format_help() else [])]
    apart = [part for value in values for part in (option, value)]
    for given in (together, apart):
        assert getattr(build().parse_args([*needed, *given]), field) == values


def test_every_option_with_several_values_is_tested_above():
    tested = {(parser.rpartition(".")[0], option) for parser, _, option, _ in OPTIONS}
    found = set()
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        if parts[0] in ("tests", "benchmarks") or parts[0].startswith("."):
            continue
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "add_values" in text else ():
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "add_values":
                found.add((".".join((*parts[:-1], path.stem)), node.args[1].value))
        if parts != ("common", "cli.py"):
            assert not re.search(r'nargs="\+"|action="append"', text), path
    assert found == tested


def test_pairs_keep_their_order_and_refuse_what_is_no_pair():
    assert list(pairs(["b=x", "a=y=z"], "--experts").items()) == [
        ("b", Path("x")),
        ("a", Path("y=z")),
    ]
    assert pairs(["base=x"], "--parent", reserved="") == {"base": Path("x")}
    for items, message in (
        (["ja"], "--experts ja: give NAME=PATH"),
        (["=x"], "--experts =x: give NAME=PATH"),
        (["ja=x", "ja=y"], "--experts ja=y: 'ja' is given twice; choose another name"),
        (["base=x"], "--experts base=x: 'base' is the base's name; choose another"),
        (["a\tb=x"], r"--experts: 'a\tb' holds unprintable characters; choose another name"),
    ):
        with pytest.raises(UserError) as error:
            pairs(items, "--experts")
        assert str(error.value) == message


@pytest.mark.parametrize("text", [None, "", "{", "{}", "[]", "3"])
def test_what_is_no_list_with_an_entry_is_refused(text):
    with pytest.raises(UserError, match=r"--candidates: .*give a list"):
        json_list(text, "--candidates")
