"""Tiny models of many classes with multipliers that matter, as base, experts and data for DAM."""

from __future__ import annotations

import shutil

import torch
from safetensors.torch import load_file, save_file

from checkpoints.reading import Checkpoint
from common.files import read_json, write_json
from merges.engine.requests import WholeModelRequest
from tests.conftest import tiny_tokenizer
from tests.evaluation import walk
from tests.merges.dam_world import write_rows

VOCABULARY = 48
# Where a class has multipliers or caps, values that change what it computes.
FAR = {
    "cohere": {"logit_scale": 0.4, "use_qk_norm": True},
    "cohere2": {"logit_scale": 0.4},
    "falcon_h1": {"lm_head_multiplier": 0.6, "embedding_multiplier": 2.0, "key_multiplier": 0.7},
    "gemma2": {
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 5,
    },
    "gemma3_text": {
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 5,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
        },
    },
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.5,
    },
    "qwen2": {"tie_word_embeddings": True},
}
WINDOW = 6  # of layers that slide; rows are longer


def make(kind, seed=0, **changes):
    """Build a model whose every parameter, norms and biases included, is random."""
    changes = FAR.get(kind, {}) | changes
    for key in ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size"):
        if key in walk.TYPES[kind]:
            changes = {key: WINDOW} | changes
    model = walk.make(kind, vocab_size=VOCABULARY, **changes)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.dim() < 2 else 0.05
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))
    return model


def make_request(folder, kind, dtype=torch.float32, experts=("one", "two"), rows=8, **changes):
    """Write a base, experts near it and their data; return a request."""
    base = make(kind, **changes).to(dtype)
    draw = torch.Generator().manual_seed(7)
    for name in ("base", *experts):
        model = base
        if name != "base":
            model = make(kind, **changes).to(dtype)
            with torch.no_grad():
                for parameter in model.parameters():
                    noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
                    parameter.add_(0.1 * noise.to(dtype))
        model.save_pretrained(folder / name)
        tiny_tokenizer(folder / name, VOCABULARY)
    return WholeModelRequest(
        base=Checkpoint(folder / "base"),
        experts={name: Checkpoint(folder / name) for name in experts},
        calibration={
            name: write_rows(folder / f"{name}.jsonl", seed, rows)
            for seed, name in enumerate(experts)
        },
        teachers=None,
        seed=0,
        embeddings_and_norms="base",
        threads=1,
    )


def quantised(folder, model, method, dtype):
    """Copy a model with one weight in eight bits and a block on quantisation."""
    shutil.copytree(model.path, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    tensors[f"{name}.absmax"] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"quantization_config": {"quant_method": method}})
    return folder
