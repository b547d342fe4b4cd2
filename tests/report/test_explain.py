"""Explaining a number: the chain of its inputs, old manifests, and its command."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import pytest

from common.calling import call
from common.manifest import beside, fingerprint, hash_of, write_manifest
from report.explain import explain
from report.load import load
from report.origin import Steps
from report.scores import STALE


def explained(results: Path, capsys, *given: str) -> tuple[int, str]:
    """The exit code and the output of the command."""
    code = call("report.cli", ["explain", *given, "--results", str(results)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture
def recorded(small) -> Path:
    """The small results with manifests from the data to the scores of one merge."""
    config, results, _ = small
    (results / "config.json").write_bytes(config.read_bytes())
    world = results / "case1"

    def file(name: str) -> Path:
        path = world / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
        return path

    rows, items = file("data/calibration/ja.jsonl"), file("data/test/bottle_ja8/a.jsonl")
    kept = {"calibration/ja.jsonl": rows, "test/bottle_ja8/a.jsonl": items}
    write_manifest(world / "data/manifest.json", kind="data", parameters={}, outputs=kept, seed=7)
    weights = {}
    for id, inputs in (
        ("models/base", {"data": world / "data"}),
        ("models/ja", {"data": world / "data", "base": world / "models/base"}),
    ):
        outputs = {"model.safetensors": file(f"{id}/model.safetensors")}
        about = {"recipe": {"steps": 5, "note": "x" * 500}}
        place = world / id / "manifest.json"
        write_manifest(place, kind=id, parameters=about, inputs=inputs, outputs=outputs, seed=7)
        weights[id] = fingerprint({"model.safetensors": hash_of(outputs["model.safetensors"])})
    inputs = {"base": weights["models/base"], "experts.ja": weights["models/ja"]}
    inputs |= {"calibration.ja": rows, "lost": "f" * 64}
    merged = {"model.safetensors": file("merges/soup/model.safetensors")}
    write_manifest(
        world / "merges/soup/manifest.json",
        kind="merge", parameters={"set": {"scale": 0.5}}, inputs=inputs, outputs=merged, seed=7,
    )  # fmt: skip
    scores = world / "scores/test/soup.json"
    content = json.loads(scores.read_text())
    content["weights"] = fingerprint({"model.safetensors": hash_of(merged["model.safetensors"])})
    scores.write_text(json.dumps(content))
    about = {"split": "test", "backend": "hf", "dtype": "float32", "engine": "sqlite"}
    inputs = {"weights": content["weights"], "bottle_ja8/a": items}
    write_manifest(
        beside(scores),
        kind="scores", parameters=about | {"batch_size": 4, "limit": None},
        inputs=inputs, outputs={"scores": scores}, seed=7,
    )  # fmt: skip
    return results


def test_the_chain_ends_at_the_data_each_step_after_what_it_needed(recorded):
    steps = Steps(recorded).chain("case1/merges/soup", "case1")
    assert [step.path for step in steps] == [
        *("case1/data", "case1/models/base", "case1/models/ja", "case1/merges/soup")
    ]
    inputs = {name: place for name, _, place in steps[-1].inputs}
    assert inputs == {
        "base": "case1/models/base",
        "experts.ja": "case1/models/ja",
        "calibration.ja": "case1/data/calibration/ja.jsonl",
        "lost": "",
    }
    assert steps[-1].recipe == ["set.scale = 0.5"]
    assert steps[1].recipe == ["recipe.note = (in its manifest)", "recipe.steps = 5"]


def older(folder: Path) -> str:
    """Give a model the manifest that it had when weights were hashed with SHA-256."""
    weights, path = folder / "model.safetensors", folder / "manifest.json"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    record = json.loads(path.read_text()) | {"outputs": {weights.name: digest}}
    path.write_text(json.dumps({name: own for name, own in record.items() if name != "sha256"}))
    return hashlib.sha256(f"{weights.name} {digest}\n".encode()).hexdigest()


def test_earlier_manifests_of_models_are_found_by_later_steps_and_the_reverse(recorded):
    older(recorded / "case1/models/ja")  # the merge names it by BLAKE3
    path = recorded / "case1/merges/soup/manifest.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    # Here the merge is the older one, and the base was made again since.
    line = f"model.safetensors {hashlib.sha256(b'models/base/model.safetensors').hexdigest()}\n"
    record["inputs"]["base"] = hashlib.sha256(line.encode()).hexdigest()
    path.write_text(json.dumps(record))
    inputs = {
        name: place
        for name, _, place in Steps(recorded)
        .chain(path.parent.relative_to(recorded).as_posix(), "case1")[-1]
        .inputs
    }
    assert (inputs["base"], inputs["experts.ja"]) == ("case1/models/base", "case1/models/ja")


def test_a_score_and_a_model_with_hashes_of_two_kinds_are_compared(recorded, small):
    def status() -> str:
        (case, *_) = load(*small[:2]).cases
        return next(model.status for model in case.models if model.id == "soup")

    scores, soup = recorded / "case1/scores/test/soup.json", recorded / "case1/merges/soup"
    assert status() == "ok"
    earlier = older(soup)
    assert status() == "ok"  # a later score of an older model
    beside(scores).unlink()
    content = json.loads(scores.read_text())
    for weights, right in ((earlier, True), ("0" * 64, False), ("blake3:" + "0" * 64, False)):
        scores.write_text(json.dumps(content | {"weights": weights}))
        assert status() == ("ok" if right else STALE)
    (soup / "model.safetensors").write_text("others")
    scores.write_text(json.dumps(content))
    assert status() == STALE


def test_what_earlier_manifests_lack_is_not_recorded_and_what_there_is_is_shown(recorded, capsys):
    code, text = explained(recorded, capsys, "table1", "model soups", "A_1")
    assert code == 0
    assert "command   not recorded" in text and "commit not recorded" in text
    assert "lost: no such file or folder here now" in text
    assert "--suites bottle_ja8/a" in text and "--batch-size 4" in text
    cost = recorded / "case1/merges/soup/cost.json"
    cost.write_text(json.dumps({"command": "python -m merges", "commit": "abc"}))
    text = explained(recorded, capsys, "table1", "soup", "a_1")[1]
    assert "command   python -m merges" in text and "commit abc" in text


def test_scores_that_were_dropped_in_are_explained_without_a_manifest(small, capsys):
    (small[1] / "config.json").write_bytes(small[0].read_bytes())
    code, text = explained(small[1], capsys, "table3", "KL", "Seed 1")
    assert code == 0 and "without a manifest" in text and "Seed 0" not in text
    values = [
        json.loads((small[1] / f"ablation/kl/seed{seed}/scores.json").read_text())["tasks"]
        for seed in (0, 1, 2)
    ]
    means = []
    for tasks in values:
        one, two, three = (tasks[f"bottle_ja8/{name}"]["value"] for name in ("a", "jsquad", "c"))
        means.append((one + (two + three) / 2) / 2)
    text = explain(load(*small[:2]), "Table 3", "kl", "Mean", None)
    assert f"KL, Mean: {sum(means) / 3:.3f}".replace("0.", ".") in text.splitlines()[0]
    assert text.count("Seed ") == 3


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("tabel1", "soup", "Avg"), "no table 'tabel1' (did you mean 'table1'?)"),
        (("table1", "Model Soup", "Avg"), "(did you mean 'Model Soups'?)"),
        (("table1", "soup", "Pairs"), "no column of table1 'Pairs' (did you mean 'Pair'?)"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(small, capsys, given, told):
    (small[1] / "config.json").write_bytes(small[0].read_bytes())
    code, text = explained(small[1], capsys, *given)
    assert code == 2 and text.count("\n") == 1 and told in text


@pytest.mark.slow
def test_the_command_of_a_cell_makes_its_value_again(finished, capsys, tmp_path, monkeypatch):
    text = explained(finished, capsys, "table1", "Model Soups", "Pair")[1]
    command = shlex.split(text.partition("  again ")[2].splitlines()[0])
    assert command[:3] == ["python", "-m", "evaluation"]
    monkeypatch.chdir(tmp_path)
    assert call("evaluation.cli", command[3:]) == 0
    again = json.loads((tmp_path / command[-1]).read_text())["tasks"]
    first = json.loads((finished / "case1/scores/test/soup.json").read_text())["tasks"]
    assert set(again) == {"bottle_ja8/marc", "bottle_ja8/mgsm"}
    assert all(again[task] == first[task] for task in again)
    value = sum(again[task]["value"] for task in again) / 2
    assert f"Pair: {value:.3f}".replace("0.", ".") in text
    # The merge, too, names what made it.
    made = next(line for line in text.splitlines() if "command   python -m merges" in line)
    assert f"--out {finished}/case1/merges/soup" in made
