"""Pickled checkpoints become safetensors with the same bits."""

import json

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.cli import main
from checkpoints.conversion import convert
from checkpoints.reading import Checkpoint
from common.errors import UserError


@pytest.fixture
def pickled(tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    weights = {
        "model.embed_tokens.weight": torch.randn(7, 4).to(torch.bfloat16),
        "lm_head.weight": torch.tensor([[float("nan"), -0.0, 1e30, 2.0]] * 7),
    }
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": 7}))
    return folder, weights


def test_bits_types_and_companions_stay(pickled, tmp_path):
    folder, weights = pickled
    assert convert(folder, tmp_path / "out") == 56
    read = load_file(tmp_path / "out" / "model.safetensors")
    assert set(read) == set(weights)
    for name, tensor in weights.items():
        assert read[name].dtype == tensor.dtype
        kind = torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32
        assert torch.equal(read[name].view(kind), tensor.view(kind))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 7
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["outputs"]) == {"config.json", "model.safetensors"}


def test_small_files_are_indexed(pickled, tmp_path):
    folder, weights = pickled
    convert(folder, tmp_path / "out", shard_bytes=60)
    assert set(Checkpoint(tmp_path / "out").names()) == set(weights)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_the_command_tells_what_it_did_and_spares_other_folders(pickled, tmp_path, capsys):
    folder, _ = pickled
    given = ["convert", "--model", str(folder), "--out"]
    assert main([*given, str(tmp_path / "out")]) == 0
    assert "56 values" in capsys.readouterr().out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="holds something else"):
        main([*given, str(tmp_path / "mine")])
    with pytest.raises(UserError):
        main(["convert", "--model", str(tmp_path / "mine"), "--out", str(tmp_path / "b")])
    assert not (tmp_path / "b").exists()
