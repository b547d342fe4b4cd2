"""The gate that every expert must pass, counted by hand."""

from __future__ import annotations

import copy
import json

import pytest

from common.errors import UserError
from evaluation.cli import main
from evaluation.gate import check


def scores(name: str, **values: tuple[float, float]) -> dict:
    tasks = {f"s/{task}": {"value": v, "stderr": e, "items": 9} for task, (v, e) in values.items()}
    return {"model": name, "split": "test", "tasks": tasks}


BASE = scores("base", a=(0.25, 0.03), b=(0.5, 0.04), c=(0.1, 0.0))
EXPERT = scores("ja", a=(0.75, 0.04), b=(0.55, 0.03), c=(0.1, 0.0))


def test_averages_errors_and_learned_tasks():
    judged = check(BASE, {"ja": (EXPERT, ["s/a", "s/b"])})["experts"]["ja"]
    assert judged["domain"] == ["s/a", "s/b"]
    assert judged["base"] == pytest.approx(0.375)
    assert judged["expert"] == pytest.approx(0.65)
    # Each difference has the standard error sqrt(0.03^2 + 0.04^2) = 0.05; the mean of two has
    # sqrt(2 * 0.05^2) / 2.
    assert judged["stderr"] == pytest.approx(0.05 * 2**0.5 / 2)
    assert judged["tasks"]["s/a"] == {"base": 0.25, "expert": 0.75, "learned": True}
    assert judged["tasks"]["s/b"] == {"base": 0.5, "expert": 0.55, "learned": False}


@pytest.mark.parametrize("value,passes", [(0.599, False), (0.601, True), (0.2, False)])
def test_the_gain_must_exceed_two_standard_errors(value, passes):
    # One task: standard error 0.05, so the expert must exceed 0.5 + 0.1.
    expert = scores("ja", b=(value, 0.03))
    if passes:
        assert check(BASE, {"ja": (expert, ["s/b"])})
    else:
        with pytest.raises(UserError, match="expert ja did not learn its domain"):
            check(BASE, {"ja": (expert, ["s/b"])})


def test_no_gain_without_spread_is_no_gain():
    with pytest.raises(UserError, match="did not learn"):
        check(BASE, {"ja": (EXPERT, ["s/c"])})


def test_scores_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match=r"base hold no task 's/d' \(did you mean"):
        check(BASE, {"ja": (EXPERT, ["s/d"])})
    dev = copy.deepcopy(EXPERT) | {"split": "dev"}
    with pytest.raises(UserError, match="split 'dev'"):
        check(BASE, {"ja": (dev, ["s/a"])})


def test_command_line(tmp_path, capsys):
    for name, content in (("base", BASE), ("ja", EXPERT)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    out = tmp_path / "gate.json"
    command = ["gate", "--base", str(tmp_path / "base.json"), "--out", str(out), "--expert"]
    assert main([*command, f"ja={tmp_path}/ja.json:s/a,s/b"]) == 0
    assert json.loads(out.read_text()) == check(BASE, {"ja": (EXPERT, ["s/a", "s/b"])})
    assert "not learned: s/b" in capsys.readouterr().out
    out.unlink()
    with pytest.raises(UserError, match="expert ja did not learn"):
        main([*command, f"ja={tmp_path}/ja.json:s/c"])
    assert not out.exists()
    with pytest.raises(UserError, match="not of the form"):
        main([*command, "ja"])


@pytest.mark.parametrize(
    "content",
    [
        *("[]", '{"a": 1}', '{"model": "m", "split": "x", "tasks": [1]}'),
        *(
            '{"model": "m", "split": "x", "tasks": {"s/a": {"stderr": 0.1, "value": '
            + value
            + "}}}"
            for value in ('"0.5"', "null", "NaN", "1e999", "true", "1e308", "[]")
        ),
    ],
)
def test_a_file_that_holds_no_scores_is_told_in_one_line(tmp_path, content):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(BASE))
    bad.write_text(content)
    out = ["--out", str(tmp_path / "gate.json")]
    for base, expert in ((bad, good), (good, bad)):
        with pytest.raises(UserError, match=r"bad\.json: not a model's scores"):
            main(["gate", "--base", str(base), "--expert", f"ja={expert}:s/a", *out])
    with pytest.raises(UserError, match="is a folder"):
        main(["gate", "--base", str(tmp_path), "--expert", f"ja={good}:s/a", *out])


def test_worlds_go_on_as_long_as_one_passed(tmp_path, capsys):
    files = []
    for world, task in (("case1", "s/a"), ("case1-seed2", "s/c")):  # s/c was not learned
        (tmp_path / world).mkdir()
        files.append(tmp_path / world / "gate.json")
        gate = check(BASE, {"ja": (EXPERT, [task])}, stop=False)
        files[-1].write_text(json.dumps(gate))
    out = tmp_path / "gates.json"
    assert main(["gate", "--worlds", *map(str, files), "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == {"passed": ["case1"], "failed": ["case1-seed2"]}
    told = capsys.readouterr().out
    assert "case1-seed2 is left out of the tables: expert ja did not learn" in told
    assert "1 of 2 worlds" in told
    out.unlink()
    with pytest.raises(UserError, match="no world passed the gate; case1-seed2: expert ja did"):
        main(["gate", "--worlds", str(files[1]), "--out", str(out)])
    assert not out.exists()
    with pytest.raises(UserError, match="give --base and --expert, or --worlds"):
        main(["gate", "--out", str(out)])


def test_names_of_variants_hold_colons(tmp_path):
    task = "ja8:corrected:0.6/jnli"
    for name, value in (("base", 0.2), ("ja", 0.8)):
        entry = {"value": value, "stderr": 0.01, "items": 9}
        content = {"model": name, "split": "test", "tasks": {task: entry}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    out = tmp_path / "gate.json"
    command = ["gate", "--base", str(tmp_path / "base.json"), "--out", str(out)]
    assert main([*command, "--expert", f"ja={tmp_path}/ja.json:{task}"]) == 0
    assert json.loads(out.read_text())["experts"]["ja"]["domain"] == [task]
