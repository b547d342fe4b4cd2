"""DAM as the registry offers it: presets, and what it does within the merge engine."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from checkpoints.reading import Checkpoint
from common.errors import UserError
from merges.dam import training
from merges.dam.data import make_batch
from merges.dam.method import training_parameters
from merges.dam.sources import load_sources
from merges.dam.training import Trainer
from merges.engine import registry
from merges.engine import run as engine
from merges.engine.config import MergeConfig
from tests.merges.dam_world import make_world, plain_model

AUTHORS = training_parameters(
    learning_rate=1e-3,
    optimizer="mofo",
    mofo_fraction=0.3,
    weight_decay=0.01,
    last_position=True,
    transform="tanh",
    coefficient_dtype="bfloat16",
    unmerged="tanh_mean",
)


@pytest.fixture(scope="module")
def world(make_model, tmp_path_factory):
    """Llama in float32."""
    return make_world(tmp_path_factory.mktemp("world"), make_model, "llama", torch.float32)


@pytest.fixture
def resolved(monkeypatch):
    """What training is asked for when the registry's function is called with some settings."""
    monkeypatch.setattr(training, "train", lambda request, parameters: parameters)

    def run(**settings):
        return registry.load("dam")(None, **registry.validate("dam", settings))

    return run


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (
            None,
            training_parameters(
                batch_size=1, learning_rate=2e-3, schedule="constant", optimizer="adamw",
                temperature=2.0, kl_direction="teacher||merged", formulas="code", tokens="all",
                objective={"kl": 1.0, "cosine": 0.01, "l1": 1e-6, "l2": 1e-6},
            ),
        ),
        (
            "paper",
            training_parameters(
                kl_direction="merged||teacher", formulas="paper", last_position=True
            ),
        ),
        ("authors-code", AUTHORS),
        (
            "best",
            training_parameters(
                batch_size=8, learning_rate=0.2, schedule="cosine", temperature=1.0,
                tokens="answer", task_vectors=True,
            ),
        ),
    ],
)  # fmt: skip
def test_presets(resolved, preset, expected):
    assert resolved(preset=preset) == expected


def test_explicit_settings_win_over_the_preset(resolved):
    changes = {
        "learning_rate": 3e-3, "last_position": False, "transform": "none",
        "objective": {"mse": 1.0}, "weight_decay": 0.0,
    }  # fmt: skip
    assert resolved(preset="authors-code", **changes) == AUTHORS.replace(**changes)


def test_every_parameter_reaches_the_training(resolved):
    changes = {
        "samples": 3, "batch_size": 2, "epochs": 4, "learning_rate": 0.5, "schedule": "cosine",
        "optimizer": "mofo", "mofo_fraction": 0.5, "beta1": 0.1, "beta2": 0.2, "weight_decay": 0.3,
        "clip": 0.4, "temperature": 7.0, "kl_direction": "merged||teacher", "formulas": "paper",
        "objective": {"js": 1.0}, "tokens": "answer", "last_position": True,
        "teacher_embeddings": "merged", "granularity": "head", "transform": "relu",
        "init": "random", "coefficient_dtype": "bfloat16", "task_vectors": True,
        "base_source": True, "merge_lm_head": False, "embeddings": "scalar", "norms": "vector",
        "unmerged": "tanh_mean", "moe_experts": "base", "tokens_per_forward": 9,
            "recompute_activations": True,
    }  # fmt: skip
    assert vars(resolved(**changes)) == changes | {"start": None, "title": "DAM"}


def test_unknown_preset_is_refused():
    with pytest.raises(UserError, match=r"preset: 'papr' is unknown \(did you mean 'paper'"):
        registry.validate("dam", {"preset": "papr"})


def merge(world, out, **settings):
    options = {"calibration": world.calibration, "embeddings_and_norms": "base", "seed": 0}
    settings = {"samples": 4, "batch_size": 2, **settings}
    return engine.merge_to_disk(
        out, MergeConfig("dam", world.base, world.experts, settings, **options)
    )


def test_the_authors_code_leaves_soups_only_little_and_is_told_in_the_manifest(world, tmp_path):
    """At the start all weights are tanh(1/3) times the experts' sum, embeddings and norms too."""
    out = merge(world, tmp_path / "out", preset="authors-code")
    merged = load_file(out / "model.safetensors")
    for name in world.base.names():
        total = sum(expert.load(name) for expert in world.experts.values())
        start = math.tanh(float(torch.tensor(1 / 3, dtype=torch.bfloat16))) * total
        if "norm" in name or "embed" in name:
            start = math.tanh(1 / 3) * total
            torch.testing.assert_close(merged[name], start, rtol=1e-5, atol=1e-6)
        else:
            assert (merged[name] - start).norm() < 0.02 * start.norm()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["parameters"]["set"]["preset"] == "authors-code"


def test_padded_computation_of_the_authors_gives_the_packed_loss(world):
    """Rows padded to one length, logits masked, the sum over all cells divided by true tokens."""
    sources = load_sources(world.base, world.experts, world.calibration)
    trainer = Trainer(world, training_parameters(samples=4, last_position=True), sources)
    rows = [[0, 3, 5], [1, 2, 7], [4, 6, 0]]
    _, terms = trainer.loss(make_batch(sources.calibrations, rows, "all", last=True), rows)
    ours = plain_model(world.base.path, torch.float32)
    merged = {**dict(ours.named_parameters()), **trainer.result().tensors}
    expected = 0.0
    for data, numbers, expert in zip(
        sources.calibrations, rows, world.experts.values(), strict=True
    ):
        ids = torch.zeros(3, 32, dtype=torch.long)
        mask = torch.zeros(3, 32)
        for line, row in enumerate(numbers):
            sample = data.ids[data.starts[row] : data.starts[row + 1]]
            ids[line, : len(sample)] = sample
            mask[line, : len(sample)] = 1
        teacher = dict(plain_model(expert.path, torch.float32).named_parameters())
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}
        p, q = (
            torch.func.functional_call(ours, weights, (), inputs).logits * mask[..., None] / 2
            for weights in (merged, teacher)
        )
        summed = F.kl_div(p.log_softmax(-1), q.softmax(-1), reduction="sum")
        expected += 4 * summed.item() / mask.sum().item()
    assert terms["kl"].item() == pytest.approx(expected, rel=1e-5)


def test_an_expert_with_another_tokenizer_is_refused(world, tmp_path):
    folder = shutil.copytree(world.experts["two"].path, tmp_path / "two")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"w9"', '"w99"'))
    changed = dataclasses.replace(world, experts={**world.experts, "two": Checkpoint(folder)})
    with pytest.raises(UserError, match="tokenizer"):
        merge(changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sample_longer_than_the_context_is_refused(world, tmp_path):
    path = tmp_path / "long.jsonl"
    row = {"prompt": " ".join(["w5"] * 70), "answer": " w6", "eos": True}
    path.write_text(json.dumps(row) + "\n")
    changed = dataclasses.replace(world, calibration={**world.calibration, "two": path})
    with pytest.raises(UserError, match="line 1: the sample has 73 tokens, more than the model's"):
        merge(changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()
