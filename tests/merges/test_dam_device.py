"""DAM on a GPU gives what it gives on the CPU, and the base's linear weights are not held."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from merges.dam.method import training_parameters
from merges.dam.sources import load_sources
from merges.dam.states import write_teachers
from merges.dam.training import train
from tests.merges.dam_world import make_world

SHORT = training_parameters(samples=8, batch_size=2, learning_rate=0.01)


@pytest.fixture(scope="module")
def world(make_model, tmp_path_factory):
    """Llama with biases in float32."""
    folder = tmp_path_factory.mktemp("world")
    return make_world(folder, make_model, "llama", torch.float32, attention_bias=True)


def test_only_what_training_looks_at_is_held_of_the_base(world):
    sources = load_sources(world.base, world.experts, world.calibration)
    held = {name for name, tensor in sources.base.items() if not tensor.is_meta}
    assert held == {
        name
        for name in world.base.names()
        if "norm" in name or "embed_tokens" in name or name == "lm_head.weight"
    }
    for name, tensor in sources.whole_base().items():
        assert torch.equal(tensor, world.base.load(name))
        assert sources.base[name].shape == tensor.shape
        assert sources.base[name].dtype == tensor.dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"task_vectors": True}, {"optimizer": "mofo", "embeddings": "vector"}]
)
def test_a_gpu_trains_as_the_cpu_does(world, tmp_path, changes, cached):
    if cached:
        write_teachers(world.base, world.experts, world.calibration, tmp_path / "cache")
        world = dataclasses.replace(world, teachers=tmp_path / "cache")
    parameters = SHORT.replace(**changes)
    cpu = train(world, parameters)
    gpu = train(dataclasses.replace(world, device="cuda"), parameters)
    for ours, theirs in zip(gpu.log, cpu.log, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    for name, tensor in gpu.tensors.items():
        assert tensor.device.type == "cpu"
        torch.testing.assert_close(tensor, cpu.tensors[name], rtol=1e-3, atol=1e-3)
