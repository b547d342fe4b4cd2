"""Pieces, threads and shards: none of them may change a bit of the result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file

from checkpoints.reading import Checkpoint
from checkpoints.writing import StreamedWeights, TensorSpec, write_weights
from common.errors import UserError
from merges.engine import pieces, registry
from merges.engine import run as engine
from merges.engine.config import MergeConfig
from tests.merges.fake_statistics import drawn

NAMES = ("ja", "math", "sql")
PER_TENSOR = [name for name, info in registry.describe().items() if not info.whole_model]


def read(top: Path, count: int) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    return Checkpoint(top / "base"), {name: Checkpoint(top / name) for name in NAMES[:count]}


def experts_for(method: str) -> int:
    return registry.info(method).experts or 3


def merged(top: Path, method: str, **options: object) -> dict[str, torch.Tensor]:
    base, experts = read(top, experts_for(method))
    found = drawn(method, experts, {name: base.shape(name) for name in base.names()})
    return engine.merge_checkpoints(
        MergeConfig(method, base, experts, {}, seed=3, statistics=found, **options)
    ).tensors


@pytest.mark.parametrize("method", PER_TENSOR)
def test_where_pieces_end_changes_nothing_but_the_order_of_sums(
    method: str, mistral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = merged(mistral, method)
    monkeypatch.setattr(pieces, "CPU_SIZE", 37)
    for name, tensor in merged(mistral, method).items():
        torch.testing.assert_close(tensor, whole[name], rtol=2**-7, atol=1e-6)
        assert (tensor != whole[name]).float().mean() < 0.02


@pytest.mark.parametrize("method", ["ties", "dare_ties", "slerp"])
@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_no_bit(method: str, threads: int, mistral: Path) -> None:
    one, several = merged(mistral, method), merged(mistral, method, threads=threads)
    assert all(torch.equal(one[name], several[name]) for name in one)


def test_shards_hold_the_same_values_and_their_index(mistral: Path, tmp_path: Path) -> None:
    base, experts = read(mistral, 3)
    engine.merge_to_disk(tmp_path / "one", MergeConfig("ties", base, experts, {}))
    engine.merge_to_disk(
        tmp_path / "many", MergeConfig("ties", base, experts, {}, shard_bytes=9_000, threads=2)
    )
    one = load_file(tmp_path / "one" / "model.safetensors")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(one)
    shards = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert shards == [
        f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)
    ]
    assert len(shards) > 3
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in one.values())
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "many").state_dict()
    again = Checkpoint(tmp_path / "many")
    for name, tensor in one.items():
        assert torch.equal(again.load(name), tensor)
        assert torch.equal(loaded[name], tensor)
    outputs = json.loads((tmp_path / "many" / "manifest.json").read_text())["outputs"]
    for shard in shards:
        content = (tmp_path / "many" / shard).read_bytes()
        assert outputs[shard] == f"blake3:{blake3(content).hexdigest()}"


def test_reads_any_range(mistral: Path) -> None:
    checkpoint = Checkpoint(mistral / "ja")
    loaded = load_file(mistral / "ja" / "model.safetensors")
    rng = np.random.default_rng(0)
    for name, tensor in loaded.items():
        start, stop = sorted(rng.integers(0, tensor.numel() + 1, size=2))
        found = checkpoint.read(name, int(start), int(stop))
        assert torch.equal(found, tensor.flatten()[start:stop])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_stored_type_is_what_is_asked_for(dtype: str, llama: Path, tmp_path: Path) -> None:
    base, experts = read(llama, 3)
    engine.merge_to_disk(tmp_path / "out", MergeConfig("linear", base, experts, {}, dtype=dtype))
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert tensor.dtype == getattr(torch, dtype)
        mean = torch.stack([expert.load(name).double() for expert in experts.values()]).mean(0)
        close = {"rtol": 2 * torch.finfo(tensor.dtype).eps, "atol": 1e-7}
        torch.testing.assert_close(tensor.double(), mean, **close)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == dtype


def test_float64_arithmetic_is_that_of_the_formula(llama: Path) -> None:
    base, experts = read(llama, 3)
    tensors = {n: {k: e.load(k) for k in e.names()} for n, e in experts.items()}
    found = engine.merge_tensors(
        "task_arithmetic", base.state_dict(), tensors, {"scale": 0.3}, compute_dtype="float64"
    )
    for name, tensor in found.items():
        root = base.load(name).double()
        exact = root + 0.3 * sum(expert[name].double() - root for expert in tensors.values())
        half_unit = 0.5 * torch.exp2(exact.abs().log2().floor()) * torch.finfo(torch.float32).eps
        assert ((tensor.double() - exact).abs() <= half_unit * (1 + 1e-6)).all()


def test_the_donor_is_the_one_that_is_named(llama: Path, tmp_path: Path) -> None:
    base, experts = read(llama, 3)
    marked = tmp_path / "marked"
    marked.mkdir()
    for path in (llama / "math").iterdir():
        (marked / path.name).write_bytes(path.read_bytes())
    (marked / "chat_template.jinja").write_text("marked")
    experts["math"] = Checkpoint(marked)
    engine.merge_to_disk(tmp_path / "own", MergeConfig("linear", base, experts, {}, donor="math"))
    assert (tmp_path / "own" / "chat_template.jinja").read_text() == "marked"
    engine.merge_to_disk(tmp_path / "base", MergeConfig("linear", base, experts, {}))
    assert not (tmp_path / "base" / "chat_template.jinja").exists()
    with pytest.raises(UserError, match=r"donor: no model 'mth'.*'math'"):
        engine.merge_to_disk(
            tmp_path / "none", MergeConfig("linear", base, experts, {}, donor="mth")
        )


def test_weights_are_hashed_as_they_lie_on_disk(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "half": torch.randn(5, 3, generator=generator).half(),
        "wide": torch.randn(7, generator=generator).double(),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "number": torch.tensor(3),
    }
    hashes = write_weights(tmp_path, tensors)
    content = (tmp_path / "model.safetensors").read_bytes()
    assert hashes == {"model.safetensors": f"blake3:{blake3(content).hexdigest()}"}
    found = load_file(tmp_path / "model.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_parameter_that_was_not_written_is_a_fault(tmp_path: Path) -> None:
    specs = {"a": TensorSpec("F32", (2,)), "b": TensorSpec("F32", (2,))}
    with (
        pytest.raises(RuntimeError, match="b was not written"),
        StreamedWeights(tmp_path, specs) as weights,
    ):
        weights.write("a", 0, torch.zeros(2))
        weights.done("a")
