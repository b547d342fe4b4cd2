"""A search in data-flow space, from the command line to the checkpoint on disk."""

from __future__ import annotations

import csv
import shutil

import pytest
import torch

from checkpoints.reading import Checkpoint
from checkpoints.smoke import smoke
from common.errors import UserError
from common.files import read_json, write_json, write_jsonl
from search.cli import main
from search.dataflow import DataFlowSpace


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import what takes seconds only when the tests run: collecting them stays quick."""
    global Harness
    from evaluation.harness import Harness


BUDGET = 14
SETTINGS = ("--scales", "matrix", "--sigma", "0.6", "--max-depth", "5")


@pytest.fixture(scope="module")
def world(make_model, tmp_path_factory):
    """Base, two experts, and dev items of one task."""
    folder = tmp_path_factory.mktemp("dataflow_search")
    for seed, name in enumerate(("base", "a", "b")):
        make_model(folder / name, "mistral", seed)
    draw = torch.Generator().manual_seed(0)
    rows = []
    for number in range(16):
        words = [f" w{4 + n}" for n in torch.randperm(44, generator=draw)[:5].tolist()]
        prompt = f"w{4 + number}{words[0]}"
        rows.append({"id": str(number), "prompt": prompt, "choices": words[1:], "gold": number % 4})
    write_jsonl(folder / "data" / "dev" / "bottle_kobest" / "copa.jsonl", rows)
    (folder / "data" / "manifest.json").write_text("{}")
    return folder


def run(world, out, *extra, budget=BUDGET):
    return main(
        [
            *("evolve", "--space", "data-flow", "--base", str(world / "base"), "--experts"),
            *(f"{name}={world / name}" for name in "ab"),
            *("--data", str(world / "data"), "--suites", "bottle_kobest/copa", "--seed", "3"),
            *("--budget", str(budget), "--out", str(out), *extra),
        ]
    )


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("found") / "out"
    assert run(world, out, *SETTINGS) == 0
    return out


def history(folder):
    with open(folder / "search.csv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def winner(folder):
    return read_json(folder / "manifest.json")["parameters"]


def test_the_written_model_scores_as_it_did_in_memory(world, found):
    rows, parameters = history(found), winner(found)
    assert len(rows) == BUDGET
    best = rows[parameters["search"]["chosen"]]
    suites = ["bottle_kobest/copa"]
    scores = Harness(world / "data", suites, "dev", found).evaluate_folder(found, "winner")[0]
    assert scores["tasks"]["bottle_kobest/copa"]["value"] == float(best["dev_average"])
    for row in rows:
        assert not row["dev_average"] or float(row["dev_average"]) <= float(best["dev_average"])
    # The start is expert a as it is.
    start = Harness(world / "data", suites, "dev", world / "a").evaluate_folder(world / "a", "a")
    assert start[0]["tasks"]["bottle_kobest/copa"]["value"] == float(rows[0]["dev_average"])


def test_the_recipe_in_the_manifest_makes_the_same_weights(world, found):
    parameters = winner(found)
    space = DataFlowSpace(Checkpoint(world / "base"), {n: Checkpoint(world / n) for n in "ab"})
    recipe = {key: parameters[key] for key in ("path", "embedding_from")}
    tensors, changes = space.tensors(recipe)
    written = Checkpoint(found)
    assert written.config["num_hidden_layers"] == len(recipe["path"]) == changes.popitem()[1]
    assert written.names() == sorted(tensors)
    assert all(torch.equal(written.load(name), tensors[name]) for name in tensors)


def test_deep_and_empty_paths_score_worst_and_the_search_goes_on(world, tmp_path):
    assert run(world, tmp_path / "out", "--sigma", "2", "--max-depth", "2", budget=30) == 0
    rows = history(tmp_path / "out")
    failed = [row for row in rows if row["failure"]]
    assert any("more than 2" in row["failure"] for row in failed)
    assert all(not row["dev_average"] for row in failed)
    assert len(winner(tmp_path / "out")["path"]) <= 2


def test_experts_may_be_of_other_depths_than_the_base(world, make_model, tmp_path):
    other = tmp_path / "world"
    shutil.copytree(world, other)
    shutil.rmtree(other / "b")
    make_model(other / "b", "mistral", 7, num_hidden_layers=3)
    given = ("--embedding-from", "b", "--sigma", "1", "--max-depth", "9", "--repeats", "1")
    assert run(other, tmp_path / "out", *given) == 0
    out, parameters = tmp_path / "out", winner(tmp_path / "out")
    rows, path = history(out), parameters["path"]
    genes = [name for name in rows[0] if name.startswith("include")]
    assert genes == [
        *(f"include a layer {n} pass 0" for n in range(2)),
        *(f"include b layer {n} pass 0" for n in range(3)),
    ]
    assert Checkpoint(out).config["num_hidden_layers"] == len(path)
    suites = ["bottle_kobest/copa"]
    scores = Harness(world / "data", suites, "dev", out).evaluate_folder(out, "winner")[0]
    best = float(rows[parameters["search"]["chosen"]]["dev_average"])
    assert scores["tasks"]["bottle_kobest/copa"]["value"] == best
    # The first candidate is expert b, one layer deeper than the base.
    start = Harness(world / "data", suites, "dev", other / "b").evaluate_folder(other / "b", "b")
    assert start[0]["tasks"]["bottle_kobest/copa"]["value"] == float(rows[0]["dev_average"])
    # An expert whose head is its embedding takes part with that head, which the result keeps.
    shutil.rmtree(other / "b")
    make_model(other / "b", "mistral", 7, num_hidden_layers=3, tie_word_embeddings=True)
    assert run(other, tmp_path / "tied", *given) == 0
    start = Harness(world / "data", suites, "dev", other / "b").evaluate_folder(other / "b", "b")
    first = history(tmp_path / "tied")[0]
    assert start[0]["tasks"]["bottle_kobest/copa"]["value"] == float(first["dev_average"])
    embedding = Checkpoint(other / "b").read("model.embed_tokens.weight")
    made = Checkpoint(tmp_path / "tied")
    assert torch.equal(made.read("lm_head.weight"), embedding)
    assert made.config["tie_word_embeddings"] is False
    # Another vocabulary is refused.
    shutil.rmtree(other / "b")
    make_model(other / "b", "mistral", 7, 50, num_hidden_layers=3)
    with pytest.raises(UserError, match=r"expert b .* has another tokenizer"):
        run(other, tmp_path / "refused")


def test_the_same_seed_finds_the_same_model(world, found, tmp_path):
    assert run(world, tmp_path / "again", *SETTINGS) == 0
    for name in ("manifest.json", "search.csv", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (found / name).read_bytes()


def test_card_and_smoke_check(world, found, tmp_path):
    card = (found / "README.md").read_text(encoding="utf-8")
    for number, step in enumerate(winner(found)["path"]):
        assert f"| {number} | {step['expert']} | {step['layer']} | {step['scale']:.4f} |" in card
    # The tiny tokenizer knows no word of the smoke text, so that one of its own is read.
    text = " ".join(f"w{number}" for number in range(4, 30))
    report = smoke(found, {"a": world / "a"}, tmp_path / "smoke.json", text)
    assert report["model"]["not_finite"] == 0 and report["model"]["perplexity"] > 1


def test_what_does_not_fit_the_space_is_refused(world, tmp_path):
    with pytest.raises(UserError, match="--granularity"):
        run(world, tmp_path / "out", "--granularity", "2")
    with pytest.raises(UserError, match="no model 'c'"):
        run(world, tmp_path / "out", "--embedding-from", "c")
    other = tmp_path / "world"
    shutil.copytree(world, other)
    config = read_json(other / "b" / "config.json")
    write_json(other / "b" / "config.json", config | {"rms_norm_eps": 1e-5})
    with pytest.raises(UserError, match="rms_norm_eps is 1e-05"):
        run(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
