"""`python -m bottle tiny`: models and data with which the other commands work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bottle import cli
from checkpoints.reading import Checkpoint
from common.files import read_json, read_jsonl


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "family"
    assert cli.main(["tiny", str(folder)]) == 0
    return folder


def test_the_family_has_a_base_experts_and_data(tiny):
    experts = ["ja", "math_a", "math_b"]
    prints = {Checkpoint(tiny / name).fingerprint for name in ("base", *experts)}
    assert len(prints) == 4
    assert all(len(read_jsonl(tiny / f"data/calibration/{name}.jsonl")) == 24 for name in experts)
    assert len(read_jsonl(tiny / "data/test/bottle_gsm_en/gsm_en.jsonl")) == 8
    assert sum(path.stat().st_size for path in tiny.rglob("*")) < 4e6


def test_it_can_be_merged_and_evaluated(tiny, tmp_path):
    from evaluation.cli import main as evaluate
    from merges.cli import main as merge

    experts = [f"{name}={tiny / name}" for name in ("ja", "math_a")]
    merged = tmp_path / "merged"
    given = ["--base", str(tiny / "base"), "--experts", *experts, "--out", str(merged)]
    assert merge(["--method", "ties", *given]) == 0
    given = ["--data", str(tiny / "data"), "--suites", "bottle_gsm_en"]
    assert evaluate(["--model", str(merged), "--out", str(tmp_path / "s.json"), *given]) == 0
    assert read_json(tmp_path / "s.json")["tasks"]["bottle_gsm_en/gsm_en"]["items"] == 8


def test_equal_seeds_give_equal_bytes(tiny, tmp_path):
    assert cli.main(["tiny", str(tmp_path / "again")]) == 0
    for name in ("base/model.safetensors", "ja/model.safetensors", "data/manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tiny / name).read_bytes()
    assert json.loads((tiny / "base/config.json").read_text())["num_hidden_layers"] == 2
