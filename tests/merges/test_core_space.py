"""Core Space against full matrices in float64, and its adapter against PEFT."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.adapters import Adapter
from checkpoints.reading import Checkpoint
from common.errors import UserError
from merges.cli import main
from merges.core_space import Pair, merge_factors
from tests.conftest import tiny_model

MODULES = ("self_attn.q_proj", "mlp.down_proj")
RANKS = {"one": 2, "two": 3, "three": 1}


def write_adapter(folder, base, rank, seed, alpha=4, modules=MODULES, **more):
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for name in base.names():
        if name.startswith("model.layers.") and name.endswith(
            tuple(f"{m}.weight" for m in modules)
        ):
            (rows, columns), where = base.shape(name), name.removesuffix(".weight")
            start = f"base_model.model.{where}"
            tensors[f"{start}.lora_A.weight"] = torch.randn(rank, columns, generator=draw)
            tensors[f"{start}.lora_B.weight"] = 0.1 * torch.randn(rows, rank, generator=draw)
    folder.mkdir()
    ends = [module.rpartition(".")[2] for module in modules]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha}
    config |= {"target_modules": ends, "base_model_name_or_path": str(base.path)}
    (folder / "adapter_config.json").write_text(json.dumps(config | more))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A base and three adapters of unlike ranks, one of which changes one module alone."""
    folder = tmp_path_factory.mktemp("core")
    base = Checkpoint(tiny_model(folder / "base"))
    for seed, (name, rank) in enumerate(RANKS.items()):
        modules = MODULES[:1] if name == "three" else MODULES
        write_adapter(folder / name, base, rank, seed, modules=modules, use_rslora=name == "two")
    return folder


def changes(top, name):
    """An adapter's change s B A of each parameter in float64, and its factors."""
    config = json.loads((top / name / "adapter_config.json").read_text())
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    tensors = load_file(top / name / "adapter_model.safetensors")
    found = {}
    for key in tensors:
        if "lora_A" in key:
            pair = (tensors[k].double().numpy() for k in (key.replace("lora_A", "lora_B"), key))
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[module] = (*pair, scale)
    return found


def run(top, out, method, *settings, experts=tuple(RANKS)):
    given = ["core-space", "--base", str(top / "base"), "--method", method, "--out", str(out)]
    given += ["--experts", *(f"{name}={top / name}" for name in experts)]
    assert main([*given, *(["--set", *settings] if settings else [])]) == 0
    return {
        module: scale * (b @ a) for module, (b, a, scale) in changes(out.parent, out.name).items()
    }


def test_a_linear_method_gives_the_sum_of_the_changes(top, tmp_path):
    found = run(top, tmp_path / "out", "task_arithmetic", "scale=0.7")
    own = {name: changes(top, name) for name in RANKS}
    assert found.keys() == own["one"].keys()
    for module, change in found.items():
        full = [
            s * (b @ a) for each in own.values() if module in each for b, a, s in [each[module]]
        ]
        assert np.abs(change - 0.7 * sum(full)).max() < 1e-6
        assert np.linalg.matrix_rank(change, tol=1e-5) == (6 if "q_proj" in module else 5)


def test_signs_are_elected_in_core_space(top, tmp_path):
    """TIES with density 1 and sums, written out from the definition for two adapters."""
    found = run(top, tmp_path / "out", "ties", "density=1", "merge=sum", experts=("one", "two"))
    own = [changes(top, name) for name in ("one", "two")]
    for module, change in found.items():
        pairs = [each[module] for each in own]
        u = np.linalg.svd(np.hstack([b for b, _, _ in pairs]), full_matrices=False)[0]
        v = np.linalg.svd(np.vstack([a for _, a, _ in pairs]), full_matrices=False)[2].T
        cores = [s * u.T @ b @ a @ v for b, a, s in pairs]
        sign = np.sign(sum(cores))
        merged = sum(np.where(np.sign(core) == sign, core, 0) for core in cores)
        assert np.abs(change - u @ merged @ v.T).max() < 1e-6
        assert not np.allclose(merged, sum(cores))


@pytest.mark.parametrize("method", ["linear", "dare_ties", "tsv_m", "iso_c", "slerp"])
def test_equal_adapters_and_other_methods(method, top, tmp_path):
    settings = {"dare_ties": ["density=1"], "slerp": ["t=0.3"]}.get(method, [])
    found = run(top, tmp_path / "out", method, *settings, experts=("one", "two"))
    assert all(np.isfinite(change).all() and change.any() for change in found.values())


def test_it_is_exact_in_float64():
    draw = torch.Generator().manual_seed(5)
    shapes = {"one": (40, 3, 30), "two": (40, 4, 30)}
    adapters = {
        name: {
            "m": Pair(
                *(torch.randn(s, generator=draw, dtype=torch.float64) for s in ((m, r), (r, n))),
                0.5 * r,
            )
        }
        for name, (m, r, n) in shapes.items()
    }
    pair = merge_factors(adapters, "task_arithmetic", {"scale": 1})["m"]
    expected = sum(p["m"].scale * p["m"].b @ p["m"].a for p in adapters.values())
    assert torch.allclose(pair.b @ pair.a, expected, rtol=0, atol=1e-12)


def test_peft_and_our_reader_fold_it_alike(top, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run(top, tmp_path / "out", "task_arithmetic")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(top / "base", trust_remote_code=False)
        theirs = PeftModel.from_pretrained(model, tmp_path / "out").merge_and_unload().state_dict()
    base = Checkpoint(top / "base")
    ours, plain = Adapter(tmp_path / "out", base).state_dict(), base.state_dict()
    changed = {name for name in ours if not torch.equal(ours[name], plain[name])}
    assert len(changed) == 4
    for name, values in ours.items():
        assert torch.allclose(values, theirs[name], rtol=0, atol=1e-6)
    # Folded adapters merged in full space: equal for a linear method.
    experts = [f"{name}={top / name}" for name in RANKS]
    given = ["--base", str(top / "base"), "--experts", *experts, "--out", str(tmp_path / "full")]
    main(["--method", "task_arithmetic", *given])
    full = load_file(tmp_path / "full" / "model.safetensors")
    assert all(torch.allclose(ours[n], full[n], rtol=0, atol=1e-6) for n in ours)
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert about["kind"] == "adapter" and len(about["inputs"]) == 4


def test_bad_input_is_one_line(top, tmp_path):
    base = Checkpoint(top / "base")
    write_adapter(tmp_path / "saved", base, 2, 9)
    path = tmp_path / "saved" / "adapter_model.safetensors"
    more = {"base_model.model.lm_head.weight": torch.ones(base.shape("lm_head.weight"))}
    save_file(load_file(path) | more, path, {"format": "pt"})
    write_adapter(tmp_path / "nan", base, 2, 9)
    path = tmp_path / "nan" / "adapter_model.safetensors"
    broken = load_file(path)
    next(iter(broken.values()))[0, 0] = torch.nan
    save_file(broken, path, {"format": "pt"})
    for method, experts, settings, message in (
        ("ties", {"a": top / "base"}, [], "no LoRA adapter with"),
        ("ties", {"a": tmp_path / "saved"}, [], r"lm_head.weight is no factor of a linear layer"),
        ("linear", {"a": tmp_path / "nan"}, [], "holds 1 NaN or infinite value"),
        ("adamerging", {"a": top / "one"}, [], "needs complete models"),
        ("regmean", {"a": top / "one"}, [], "needs complete models"),
        ("task_arithmetic", {"a": top / "one"}, ["--set", "scale=0"], "merge to no change"),
    ):
        given = [f"{name}={folder}" for name, folder in experts.items()]
        command = ["core-space", "--base", str(top / "base"), "--method", method, *settings]
        with pytest.raises(UserError, match=message) as error:
            main([*command, "--experts", *given, "--out", str(tmp_path / "out")])
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
