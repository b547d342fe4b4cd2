"""Searches over models as they are published: bfloat16, and with tokens behind the base's."""

from __future__ import annotations

import csv

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.files import read_json, write_json
from merges.engine.config import MergeConfig
from merges.engine.layer_rules import LayerRules
from merges.engine.run import merge_to_disk
from search.cli import main


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import what takes seconds only when the tests run: collecting them stays quick."""
    global Harness
    from evaluation.harness import Harness


TASK = "bottle_kobest/copa"


def halved(folder):
    """Store a model in bfloat16."""
    path = folder / "model.safetensors"
    tensors = {name: values.bfloat16() for name, values in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"dtype": "bfloat16"})


@pytest.fixture(scope="module")
def published(make_model, tmp_path_factory):
    """A base and two experts in bfloat16, the second with three tokens more."""
    folder = tmp_path_factory.mktemp("published")
    for seed, (name, vocabulary) in enumerate({"base": 48, "a": 48, "b": 51}.items()):
        make_model(folder / name, "mistral", seed, vocabulary)
        halved(folder / name)
    return folder


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties"])
def test_a_search_in_bfloat16_over_a_cropped_expert(published, world, tmp_path, method):
    experts = {name: Checkpoint(published / name) for name in "ab"}
    given = ["evolve", "--method", method, "--base", str(published / "base"), "--experts"]
    given += [f"{name}={expert.path}" for name, expert in experts.items()]
    given += ["--data", str(world / "data"), "--suites", TASK, "--budget", "6", "--sigma", "0.5"]
    given += ["--dtype", "bfloat16", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"expert b .* has another tokenizer than the base"):
        main(given)
    assert main([*given, "--vocabulary", "crop-to-base"]) == 0
    recipe = read_json(tmp_path / "out" / "manifest.json")["parameters"]
    merge_to_disk(
        tmp_path / "again",
        MergeConfig(
            method,
            Checkpoint(published / "base"),
            experts,
            recipe["set"],
            parameters_for=LayerRules(method, recipe["set_layers"]),
            vocabulary=recipe["vocabulary"],
        ),
    )
    written, again = (Checkpoint(tmp_path / name) for name in ("out", "again"))
    for name in again.names():
        assert written.dtype(name) == "BF16"
        assert torch.equal(written.load(name), again.load(name))
    # In bfloat16 as well the scores in memory are those of the written checkpoint.
    out = tmp_path / "out"
    scores, _ = Harness(world / "data", [TASK], "dev", out, dtype="bfloat16").evaluate_folder(
        out, "winner"
    )
    with open(out / "search.csv", encoding="utf-8") as stream:
        row = list(csv.DictReader(stream))[recipe["search"]["chosen"]]
    assert scores["tasks"][TASK]["value"] == float(row["dev_average"])
    # What it would have chosen earlier is read off its record, cropped alike.
    replay = ["replay", *given[3:8], "--of", str(out), "--evaluations", "6"]
    assert main([*replay, "--out", str(tmp_path / "replayed")]) == 0
    assert Checkpoint(tmp_path / "replayed").fingerprint == written.fingerprint


def test_a_device_that_is_not_there_is_refused(published, world, tmp_path):
    given = ["evolve", "--method", "ties", "--base", str(published / "base"), "--experts"]
    given += [f"a={published / 'a'}", "--data", str(world / "data"), "--suites", TASK]
    given += ["--budget", "2", "--device", "cuda:99", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--device cuda:99: not usable here"):
        main(given)
