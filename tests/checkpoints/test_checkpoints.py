"""Reading refuses what is damaged, checking what does not belong together."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.checking import check_compatible, check_finite
from checkpoints.names import is_linear, kind
from checkpoints.reading import INDEX, SINGLE, Checkpoint
from checkpoints.writing import write_checkpoint
from common.cost import measure
from common.errors import UserError
from common.files import read_json


@pytest.fixture(scope="module")
def base(make_model, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def copy(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


def shard(folder):
    """Split a single weight file in two shards with an index, as large models have."""
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / SINGLE).unlink()
    weight_map = {name: file for file, part in halves.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return halves


def test_every_parameter_has_its_kind(base):
    kinds = {name: kind(name) for name in Checkpoint(base).names()}
    assert kinds.pop("model.embed_tokens.weight") == "embedding"
    norms = {name for name in kinds if "norm" in name}
    assert {name for name, is_a in kinds.items() if is_a == "norm"} == norms
    assert len(norms) == 2 * 2 + 1
    assert all(is_linear(name) for name in kinds if name not in norms)
    assert kind("model.layers.0.self_attn.rotary_emb.inv_freq") == "other"
    assert is_linear("model.layers.0.self_attn.q_proj.bias")


def test_reads_what_safetensors_reads_sharded_or_not(base, copy):
    expected = load_file(base / SINGLE)
    shard(copy)
    for folder in (base, copy):
        checkpoint = Checkpoint(folder)
        assert checkpoint.names() == sorted(expected)
        for name, tensor in checkpoint.state_dict().items():
            assert torch.equal(tensor, expected[name])
            assert checkpoint.shape(name) == tuple(expected[name].shape)
            assert checkpoint.dtype(name) == "F32"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mapped_checkpoint_gives_the_same_arrays_and_none_can_be_written(copy, dtype, tmp_path):
    path = copy / SINGLE
    tensors = {name: values.to(dtype) for name, values in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    read, mapped = Checkpoint(copy), Checkpoint(copy, mapped=True)
    with measure(tmp_path / "cost.json"):
        for name in read.names():
            for part in ((0, None), (3, 17), (5, 5)):
                expected = read.read_array(name, *part)
                array = mapped.read_array(name, *part)
                assert array.dtype == expected.dtype and np.array_equal(array, expected)
                if array.size:
                    with pytest.raises(ValueError, match="read-only"):
                        array[0] = 0
            assert torch.equal(mapped.load(name), tensors[name])  # a tensor is a copy as before
    # Whole, and fourteen values of each, once mapped and once not; whole once more as tensors.
    size = sum(t.numel() * 3 + 28 for t in tensors.values()) * dtype.itemsize
    assert 0 <= read_json(tmp_path / "cost.json")["bytes_read"] - size < 10_000


def test_the_fingerprint_follows_the_weights(base, copy):
    assert Checkpoint(copy).fingerprint == Checkpoint(base).fingerprint
    tensors = load_file(copy / SINGLE)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, copy / SINGLE)
    assert Checkpoint(copy).fingerprint != Checkpoint(base).fingerprint


def test_a_missing_shard_is_named(copy):
    shard(copy)
    (copy / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors: this shard is missing"):
        Checkpoint(copy)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(copy, keep):
    content = (copy / SINGLE).read_bytes()
    (copy / SINGLE).write_bytes(content[:keep])
    with pytest.raises(UserError, match=r"truncated|not a safetensors file"):
        Checkpoint(copy)


def test_an_index_that_names_a_tensor_its_shard_lacks_is_refused(copy):
    halves = shard(copy)
    index = json.loads((copy / INDEX).read_text())
    moved = halves["a.safetensors"][0]
    index["weight_map"][moved] = "b.safetensors"
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="is missing from the shard"):
        Checkpoint(copy)


def test_a_folder_without_a_model_is_refused(tmp_path, copy):
    with pytest.raises(UserError, match=r"no config\.json"):
        Checkpoint(tmp_path)
    (copy / SINGLE).unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        Checkpoint(copy)


@pytest.mark.parametrize(
    ("dtype", "stored"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.float4_e2m1fn_x2, "F4")]
)
def test_float8_and_float4_are_refused_by_their_type(copy, dtype, stored):
    values = torch.zeros(2, 4, dtype=torch.uint8).view(dtype)  # F4's header says [2, 8]
    save_file({"w": values}, copy / SINGLE)
    with pytest.raises(UserError, match=f"has type '{stored}', .*convert the checkpoint to BF16"):
        Checkpoint(copy)


def change(copy, **tensors):
    held = load_file(copy / SINGLE)
    for name, tensor in tensors.items():
        if tensor is None:
            del held[name]
        else:
            held[name] = tensor
    save_file(held, copy / SINGLE)
    return Checkpoint(copy)


def test_an_expert_with_other_tensors_is_refused(base, copy):
    first = Checkpoint(base)
    check_compatible(first, {"e": Checkpoint(copy)})
    wide = torch.zeros(49, 32)
    with pytest.raises(UserError, match=r"lm_head\.weight has shape \[49, 32\].*\[48, 32\]"):
        check_compatible(first, {"e": change(copy, **{"lm_head.weight": wide})})
    with pytest.raises(UserError, match=r"expert e .* lacks the base's tensor lm_head\.weight"):
        check_compatible(first, {"e": change(copy, **{"lm_head.weight": None})})
    surplus = {"lm_head.weight": torch.zeros(48, 32), "extra.weight": torch.zeros(2)}
    with pytest.raises(UserError, match=r"has tensor extra\.weight, which the base"):
        check_compatible(first, {"e": change(copy, **surplus)})


def test_an_expert_with_another_tokenizer_is_refused(base, copy):
    text = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(text.replace("w4", "v4"))
    with pytest.raises(UserError, match=r"another tokenizer than"):
        check_compatible(Checkpoint(base), {"e": Checkpoint(copy)})


def test_values_that_are_not_finite_are_counted():
    check_finite(torch.full((4,), 3e38), "w", "here")  # the sum overflows, the values do not
    tensor = torch.ones(3, 3)
    tensor[1, 1] = float("nan")
    with pytest.raises(UserError, match=r"here: tensor w holds 1 NaN or infinite value;"):
        check_finite(tensor, "w", "here")
    tensor[0, 0] = -float("inf")
    with pytest.raises(UserError, match=r"2 NaN or infinite values"):
        check_finite(tensor, "w", "here")


def test_a_written_checkpoint_loads_in_transformers(base, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tensors = {name: tensor + 1 for name, tensor in Checkpoint(base).state_dict().items()}
    write_checkpoint(tmp_path, tensors, base)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name])
    assert AutoTokenizer.from_pretrained(tmp_path)("w5 w7")["input_ids"] == [5, 7]
