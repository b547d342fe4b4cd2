"""The same kernels on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from checkpoints.reading import Checkpoint
from merges.engine import registry
from merges.engine import run as engine
from merges.engine.config import MergeConfig
from tests.merges.fake_statistics import PLAIN

RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("method", PLAIN)
def test_a_gpu_merges_as_the_cpu_does(method: str, llama: Path, tmp_path: Path) -> None:
    names = ("ja", "math", "sql")[: registry.info(method).experts or 3]
    base = Checkpoint(llama / "base")
    experts = {name: Checkpoint(llama / name) for name in names}
    for device in ("cpu", "cuda"):
        engine.merge_to_disk(
            tmp_path / device,
            MergeConfig(method, base, experts, {}, device=device, compute_dtype="float64"),
        )
    cpu, gpu = Checkpoint(tmp_path / "cpu"), Checkpoint(tmp_path / "cuda")
    for name in cpu.names():
        torch.testing.assert_close(gpu.load(name), cpu.load(name), rtol=1e-6, atol=1e-7)
        if method in RANDOM:
            same = (gpu.load(name) == base.load(name)) == (cpu.load(name) == base.load(name))
            assert same.all()
