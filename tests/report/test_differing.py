"""Two runs beyond their cells: claims, settings, and the first step with other outputs."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from common.errors import UserError
from report import kept
from report.cli import main
from report.differing import differences, other_keys, other_settings
from tests.report.conftest import write


def manifest(path: Path, **about) -> None:
    """Write a manifest with what every one of this project has."""
    common = {"inputs": {"data": "d" * 64}, "parameters": {}, "seed": 7, "code": "c"}
    common |= {"versions": {"torch": "1"}, "numerics": {"capability": "AVX2"}}
    write(path, {"kind": "made", **common, **about})


@pytest.fixture
def two(small, tmp_path) -> tuple[Path, Path]:
    """A run with manifests, and a copy of it."""
    _, results, config = small
    terms = {"kl": {"kl": 1}, "mse": {"kl": 1, "cosine": 1}}  # the two of claim C8
    for id, objective in config["ablation"]["objectives"].items():
        objective["objective"] = terms[id]
    write(results / "config.json", config)
    (results / "case1/data").mkdir(exist_ok=True)
    for name in ("data", "models/base", "models/ja", "merges/soup"):
        manifest(results / f"case1/{name}/manifest.json", outputs={"model": name})
    shutil.copytree(results, tmp_path / "other")
    return results, tmp_path / "other"


def test_keys_that_differ_have_dots_between_their_names():
    one = {"a": {"b": 1, "c": [1]}, "d": None, "e": {}}
    assert other_keys(one, one) == []
    assert other_keys(one, {"a": {"b": 2, "c": [2]}, "d": None}) == ["a.b", "a.c", "e"]
    assert other_keys({"a": None}, {}) == ["a"]


def test_a_row_or_a_part_that_one_run_left_out_is_no_other_setting():
    rows = {"soup": {"method": "linear"}, "ties": {"set": {"density": 0.2}}}
    whole = {"name": "a", "methods": rows, "ablation": {"seeds": [0]}, "cases": {"c": {"steps": 9}}}
    part = {"name": "b", "methods": {"ties": rows["ties"]}, "cases": {"c": {"steps": 9}}}
    assert other_settings(whole, part) == other_settings(part, whole) == []
    other = {
        "methods": {"ties": {"set": {"density": 0.5}}},
        "ablation": {"seeds": [1]},
        "cases": {"c": {"steps": 8}},
    }
    assert sorted(other_settings(whole, other)) == [
        "ablation.seeds",
        "cases.c.steps",
        "methods.ties.set.density",
    ]


def test_the_first_step_in_the_order_of_the_work_is_named_with_its_cause(two):
    one, other = two
    (line,) = [line for line in differences(one, other) if line.startswith("case1")]
    assert line.endswith(" steps that both have left the same outputs")
    # The merge comes by its name before the models, and after them in the work.
    for name in ("merges/soup", "models/ja"):
        manifest(other / f"case1/{name}/manifest.json", outputs={"model": "other"})
    (line,) = [line for line in differences(one, other) if line.startswith("case1")]
    assert line == (
        "case1: the first step with other outputs is case1/models/ja: model; although all that is "
        "recorded is equal"
    )
    about = {"versions": {"torch": "2"}, "numerics": {"capability": "AVX512"}, "seed": 8}
    manifest(other / "case1/models/ja/manifest.json", outputs={"model": "other"}, **about)
    (line,) = [line for line in differences(one, other) if line.startswith("case1")]
    assert line.endswith("; other seed; versions (torch); numerics (capability)")


def test_settings_and_claims_that_differ_are_named_also_of_kept_scores(two, tmp_path, capsys):
    one, other = two
    config = json.loads((other / "config.json").read_text())
    config["cases"]["case1"]["title"] = "Another"
    write(other / "config.json", config)
    for seed in (0, 1, 2):  # the losses change places
        for first, second in (("kl", "mse"), ("mse", "kl")):
            shutil.copy(
                one / f"ablation/{first}/seed{seed}/scores.json",
                other / f"ablation/{second}/seed{seed}/scores.json",
            )
    for results in two:
        command = ["tables", "--config", str(results / "config.json"), "--results", str(results)]
        assert main([*command, "--out", str(results / "tables")]) == 0
    capsys.readouterr()
    assert main(["compare", str(one), str(other)]) == 1
    out = capsys.readouterr().out
    assert "configuration: other cases.case1.title\n" in out
    kept.keep(other / "config.json", other, tmp_path / "kept.jsonl")
    lines = differences(one, tmp_path / "kept.jsonl")
    assert "configuration: other cases.case1.title" in lines
    assert not any(line.startswith("case1") for line in lines)  # no steps are kept
    for text in (out, "\n".join([*lines, ""])):
        (claim,) = [line for line in text.splitlines() if line.startswith("  C8: ")]
        assert set(claim.removeprefix("  C8: ").split(" and ")) == {"holds", "does not hold"}
        assert "claims: 0 of 1 have the same verdict\n" in text


def test_folders_of_tables_alone_differ_in_nothing_else(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert differences(tmp_path / "a", tmp_path / "b") == []


def test_a_damaged_manifest_is_one_line(two):
    (two[1] / "case1/models/ja/manifest.json").write_text("[]")
    with pytest.raises(UserError, match="a manifest is not an object") as caught:
        differences(*two)
    assert "\n" not in str(caught.value)


def test_runs_before_and_after_weights_had_blake3_are_compared_by_their_weights(two):
    one, other = two
    weights, old, new = b"weights", hashlib.sha256(b"weights").hexdigest(), "blake3:" + "1" * 64
    name = "model.safetensors"
    for results, recorded, seen in ((one, old, "0" * 64), (other, new, new)):
        model = results / "case1/models/ja"
        (model / name).write_bytes(weights)
        manifest(model / "manifest.json", outputs={name: recorded})
        made = {"README.md": recorded, "config.json": "c" * 64}  # the card says the hashes
        manifest(results / "case1/merges/soup/manifest.json", inputs={"base": seen}, outputs=made)
    (line,) = [line for line in differences(one, other) if line.startswith("case1")]
    assert line.endswith(" steps that both have left the same outputs")
    (other / "case1/models/ja" / name).write_bytes(b"others")
    (line,) = [line for line in differences(one, other) if line.startswith("case1")]
    assert f"first step with other outputs is case1/models/ja: {name}" in line
    (other / "case1/models/ja" / name).write_bytes(weights)
    made["config.json"] = "d" * 64
    manifest(other / "case1/merges/soup/manifest.json", inputs={"base": new}, outputs=made)
    (line,) = [line for line in differences(one, other) if line.startswith("case1")]
    assert "first step with other outputs is case1/merges/soup: config.json; other inputs" in line
