"""The command line: files, repetition, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from evaluation.cli import main
from evaluation.items import read_records

ROOT = Path(__file__).parents[2]


def arguments(world, *more: str) -> list[str]:
    suites = "bottle_ja8/jcomqa,bottle_ja8/mgsm,bottle_sql_eval"
    return ["--data", str(world / "data"), "--suites", suites, *more]


def test_one_process_serves_several_models_offline(world, tmp_path, capsys):
    models = [f"--model={name}={world / name}" for name in "ab"]
    home = tmp_path / "home"
    home.mkdir()
    # A home of its own shows that nothing is cached there but checkpoints' hashes.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "evaluation", *arguments(world, *models, "--out-dir", "first")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "bottle_ja8/jcomqa" in done.stdout and "±" in done.stdout
    cached = {path.name for path in home.rglob("*") if path.is_file()}
    assert cached <= {"hashes.json", "hashes.json.lock"}

    # The same again, in this process: the same bytes, but for what was measured.
    main(arguments(world, *models, "--out-dir", str(tmp_path / "second")))
    capsys.readouterr()
    first, second = tmp_path / "first", tmp_path / "second"
    names = {f"{m}{end}" for m in "ab" for end in (".json", ".items.jsonl.gz", ".manifest.json")}
    measured = {f"{m}.cost.json" for m in "ab"}
    assert {path.name for path in first.iterdir()} == names | measured
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    scores = json.loads((first / "b.json").read_text())
    assert scores["weights"] and scores["weights"] != json.loads((first / "a.json").read_text())
    items = read_records(first / "b.items.jsonl.gz")
    assert len(items) == sum(task["items"] for task in scores["tasks"].values())
    cost = json.loads((first / "b.cost.json").read_text())
    assert cost["counted"] == scores["counted"]


@pytest.mark.parametrize(
    "more,message",
    [
        (["--model", "{world}/none", "--out", "s.json"], "no such folder"),
        (["--model", "{world}/tokenizer", "--out", "s.json"], "not a model folder"),
        (["--model", "{world}/a", "--model", "{world}/b", "--out", "s.json"], "--out-dir"),
        (["--model", "{world}/a", "--model", "{world}/a", "--out-dir", "s"], "are called 'a'"),
        (["--model", "{world}/a", "--out", "s.json", "--limit", "0"], "--limit 0: give 1 or more"),
        (["--out", "s.json"], "no --model"),
        (["--model", "={world}/a", "--out-dir", "s"], "no name; give --model NAME=DIR"),
        (["--model", "{world}/a", "--out", "{world}"], "is a folder; give a file"),
        (["--model", "{world}/a", "--out", "{world}/a/config.json/s.json"], "can be written to"),
        (
            ["--model", "{world}/a", "--out", "s.json", "--store", "{world}/a/config.json"],
            "can be written to",
        ),
        (
            ["--model", "{world}/a", "--out", "s.json", "--device", "foo"],
            "foo: not usable here",
        ),
        (
            ["--model", "{world}/a", "--out", "s.json", "--tokenizer", "{world}/none"],
            "no tokenizer",
        ),
        (["--model", "{world}/a", "--out", "s.json", "--tokenizer", "{world}"], "no tokenizer"),
        (["--model", "{world}/a", "--out", "s.json", "--suites", "bottle_ja9"], "did you mean"),
    ],
)
def test_refusals_leave_nothing(world, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(arguments(world, *(text.format(world=world) for text in more)))
    assert list(tmp_path.iterdir()) == []


def test_each_model_has_files_of_its_own_name(world, tmp_path, monkeypatch, capsys):
    """Names with full stops keep apart, and the folder one stands in has a name too."""
    monkeypatch.chdir(world / "a")
    given = ["--data", str(world / "data"), "--suites", "bottle_ja8/xwino", "--limit", "1"]
    for out in ("m-v0.1", "m-v0.2", "m-v0.3.json"):
        main([*given, "--model", ".", "--out", str(tmp_path / out)])
    main([*given, "--model", ".", "--out-dir", str(tmp_path)])
    (tmp_path / "link").symlink_to(world / "a")
    main([*given, "--model", str(tmp_path / "link"), "--out-dir", str(tmp_path)])
    (tmp_path / "link").unlink()
    ends = (".cost.json", ".items.jsonl.gz", ".manifest.json")
    names = {f"{name}{end}" for name in ("m-v0.1", "m-v0.2", "m-v0.3", "a", "link") for end in ends}
    names |= {"m-v0.1", "m-v0.2", "m-v0.3.json", "a.json", "link.json"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_list_and_help_need_no_torch(capsys):
    code = (
        "import sys, evaluation.cli as c; c.main(['--list']); "
        "assert not {'torch', 'transformers', 'lm_eval'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "bottle_kobest/wic" in done.stdout
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "python -m evaluation data" in capsys.readouterr().out
