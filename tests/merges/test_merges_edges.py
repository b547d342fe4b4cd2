"""Edges of the engine: what is told before any byte is written, odd tensors, odd folders."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.adapters import open_model
from checkpoints.names import kind
from checkpoints.preflight import check_merge
from checkpoints.reading import Checkpoint
from checkpoints.writing import StreamedWeights, TensorSpec
from common.errors import UserError
from common.files import write_json
from merges import cli
from merges.engine import pieces, registry
from merges.engine import run as engine
from merges.engine.config import MergeConfig
from merges.engine.streaming import Collected, InMemory, Merge
from tests.merges.fake_statistics import drawn

ROOT = Path(cli.__file__).resolve().parent.parent
PER_TENSOR = [name for name, info in registry.describe().items() if not info.whole_model]
QUERY = "model.layers.0.self_attn.q_proj"


def read(top: Path, *names: str) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    return Checkpoint(top / "base"), {name: Checkpoint(top / name) for name in names}


def arguments(top: Path, out: Path, *more: str, method: str = "linear") -> list[str]:
    experts = [f"{name}={top / name}" for name in ("ja", "math")]
    return [
        *("--method", method, "--base", str(top / "base"), "--experts", *experts),
        *("--out", str(out), *more),
    ]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA adapter without configuration or tokenizer of a model."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    write_json(folder / "adapter_config.json", about)
    factors = {"A": torch.ones(2, 32), "B": torch.ones(32, 2)}
    save_file(
        {f"base_model.model.{QUERY}.lora_{k}.weight": v for k, v in factors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


@pytest.mark.parametrize("method", PER_TENSOR)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_a_tensor_without_values_passes(method: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"a": torch.zeros(shape), "b": torch.randn(4, 4, generator=generator)}
    experts = {
        f"e{number}": {"a": torch.zeros(shape), "b": torch.randn(4, 4, generator=generator)}
        for number in range(registry.info(method).experts or 3)
    }
    found = drawn(method, experts, {"a": shape, "b": (4, 4)})
    merged = engine.merge_tensors(method, base, experts, {}, statistics=found)
    assert merged["a"].shape == shape


def test_a_copied_value_that_is_too_large_for_the_type_is_refused(
    mistral: Path, tmp_path: Path
) -> None:
    shutil.copytree(mistral, top := tmp_path / "family")
    for name in ("base", "ja"):
        path = top / name / "model.safetensors"
        tensors = load_file(path)
        tensors["model.norm.weight"][3] = 1e6
        save_file(tensors, path, metadata={"format": "pt"})
    options = {"embeddings_and_norms": "base", "dtype": "float16"}
    with pytest.raises(UserError, match=r"model\.norm\.weight: the merge overflows float16"):
        engine.merge_to_disk(
            tmp_path / "out", MergeConfig("linear", *read(top, "ja"), {}, **options)
        )
    assert not (tmp_path / "out").exists()


def test_over_the_whole_model_one_type_decides_what_is_kept() -> None:
    # Eight differences that float64 tells apart and float32 does not.
    offsets = torch.arange(8, dtype=torch.float64) * 2.0**-40
    base = {"fine": torch.zeros(8, dtype=torch.float64), "coarse": offsets.float()}
    expert = {"fine": torch.zeros(8, dtype=torch.float64), "coarse": torch.ones(8)}
    settings = {"scope": "model", "density": 3 / 16}
    merged = engine.merge_tensors("ties", base, {"x": expert}, settings)
    assert (merged["coarse"] != base["coarse"]).tolist() == [True] * 3 + [False] * 5


def test_tensors_in_memory_may_be_transposed_and_trained() -> None:
    values = torch.arange(12.0).reshape(3, 4)
    base = {"a": torch.nn.Parameter(torch.zeros(4, 3))}
    merged = engine.merge_tensors("task_arithmetic", base, {"x": {"a": values.T}}, {"scale": 1})
    assert torch.equal(merged["a"], values.T) and not merged["a"].requires_grad


def test_integers_against_floats_and_unknown_types_are_refused() -> None:
    whole, real = {"a": torch.tensor([1, 2])}, {"a": torch.tensor([1.0, 2.0])}
    for base, expert in [(whole, real), (real, whole)]:
        with pytest.raises(UserError, match=r"expert x: tensor a is of type torch\.\w+, not"):
            engine.merge_tensors("linear", base, {"x": expert}, {})
    small = {"a": torch.ones(2).to(torch.float8_e4m3fn)}
    with pytest.raises(UserError, match="float8_e4m3fn cannot be stored"):
        engine.merge_tensors("linear", small, {"x": small}, {})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "slerp", "--experts", "a=ja"], "exactly 2 experts; 3 are given"),
        (["--set", "weights=[1,2,3]"], "3 numbers for 2 experts"),
        (["--donor", "mth"], r"donor: no model 'mth'"),
        (["--embeddings-and-norms", "bas"], "did you mean 'base'"),
        (["--out", "ja"], "holds the input"),
        (["--out", "base/config.json/x"], "is a file and no folder to write in"),
        (["--device", "cuda:77"], "--device cuda:77: not usable here"),
        (["--device", "gpu"], "--device gpu: not usable here"),
        (["--set-layers", "rules.json"], "3 numbers for 2 experts"),
        (["--experts", "a\nb=ja"], "unprintable"),
        (["--experts", "\udcff=ja"], "unprintable"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_dry_run_tells_what_the_merge_would_stop_at(
    dry: list[str], more: list[str], message: str, llama: Path, tmp_path: Path
) -> None:
    write_json(tmp_path / "rules.json", [{"layers": [1, 1], "set": {"weights": [1, 2, 3]}}])
    places = {"ja": str(llama / "ja"), "a=ja": f"a={llama / 'ja'}"}
    places |= {item: item.replace("ja", str(llama / "ja")) for item in ("a\nb=ja", "\udcff=ja")}
    places |= {"base/config.json/x": str(llama / "base" / "config.json" / "x")}
    places |= {"rules.json": str(tmp_path / "rules.json")}
    given = [places.get(item, item) for item in more]
    with pytest.raises(UserError, match=message) as error:
        cli.main([*arguments(llama, tmp_path / "out"), *given, *dry])
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["rules.json"]


@pytest.mark.parametrize("option", [{"dtype": "float16"}, {"compute_dtype": "float64"}])
def test_a_whole_model_method_refuses_what_it_does_not_follow(
    option: dict[str, str], llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("{}")
    with pytest.raises(UserError, match=r"dam merges whole models.*leave the"):
        engine.merge_to_disk(
            tmp_path / "out",
            MergeConfig(
                "dam",
                *read(llama, "ja"),
                {},
                calibration={"ja": tmp_path / "data"},
                **option,
            ),
        )


def test_an_adapter_as_donor_brings_its_bases_configuration(
    adapter: Path, mistral: Path, tmp_path: Path
) -> None:
    (adapter / "chat_template.jinja").write_text("its own")
    base = Checkpoint(mistral / "base")
    experts = {"lora": open_model(adapter, base), "ja": Checkpoint(mistral / "ja")}
    for out, root, donor in [("with", base, "lora"), ("without", None, None)]:
        engine.merge_to_disk(tmp_path / out, MergeConfig("linear", root, experts, {}, donor=donor))
        # Read in float32, where the adapter changes them, and stored in the base's type.
        tensors = load_file(tmp_path / out / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        config = json.loads((tmp_path / out / "config.json").read_text())
        assert config["hidden_size"] == 32 and config["dtype"] == "bfloat16"
        assert (tmp_path / out / "chat_template.jinja").read_text() == "its own"
        assert (tmp_path / out / "tokenizer.json").is_file()


def test_the_model_beneath_an_adapter_is_not_overwritten(
    adapter: Path, mistral: Path, tmp_path: Path
) -> None:
    beneath = shutil.copytree(mistral / "math", tmp_path / "beneath")
    base, experts = read(mistral, "ja")
    experts["lora"] = open_model(adapter, Checkpoint(beneath))
    with pytest.raises(UserError, match="beneath: holds the input"):
        engine.merge_to_disk(beneath, MergeConfig("linear", base, experts, {}))


def test_the_configuration_tells_the_stored_type_whoever_the_donor(
    llama: Path, tmp_path: Path
) -> None:
    half = shutil.copytree(llama / "math", tmp_path / "half")
    write_json(
        half / "config.json",
        {**json.loads((half / "config.json").read_text()), "dtype": "bfloat16"},
    )
    tensors = {k: v.bfloat16() for k, v in load_file(half / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors", metadata={"format": "pt"})
    base, experts = read(llama, "ja")
    experts["half"] = Checkpoint(half)
    engine.merge_to_disk(tmp_path / "out", MergeConfig("linear", base, experts, {}, donor="half"))
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        torch.float32
    }
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_as_output_leads_to_where_it_points(
    exists: bool, llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "large").mkdir()
    if exists:
        (tmp_path / "large" / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "large" / "out")
    engine.merge_to_disk(tmp_path / "link", MergeConfig("linear", *read(llama, "ja"), {}))
    assert (tmp_path / "link").is_symlink() and sorted(os.listdir(tmp_path)) == ["large", "link"]
    assert (tmp_path / "large" / "out" / "model.safetensors").is_file()


def _with_files(llama: Path, out: Path, soft: int, hard: int) -> subprocess.CompletedProcess:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return subprocess.run(
        [sys.executable, "-m", "merges", *arguments(llama, out, "--shard-size", "3KB")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )


def test_many_shards_need_many_open_files(llama: Path, tmp_path: Path) -> None:
    refused = _with_files(llama, tmp_path / "out", 20, 40)
    assert refused.returncode == 2 and "weight files are open at once" in refused.stderr
    assert refused.stderr.count("\n") == 1 and os.listdir(tmp_path) == []
    merged = _with_files(llama, tmp_path / "out", 20, 400)
    assert merged.returncode == 0, merged.stderr
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 15


def test_a_weight_file_that_is_cut_meanwhile_does_not_hang(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"model\.safetensors was cut"),
        StreamedWeights(tmp_path, {"a": TensorSpec("F32", (4096,))}) as weights,
    ):
        weights.write("a", 0, torch.zeros(4096))
        os.truncate(tmp_path / "model.safetensors", 4096)
        weights.done("a")


def test_a_failure_stops_the_other_threads_within_their_parameter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pieces, "CPU_SIZE", 1)
    tensors = {"a": torch.ones(1), "b": torch.ones(50_000)}
    merge = Merge(MergeConfig("linear", None, {"x": InMemory(tensors, "x")}, threads=2))
    begun, written = threading.Event(), []

    class Failing(Collected):
        def write(self, name: str, start: int, values: torch.Tensor) -> None:
            if name == "a":
                begun.wait(10)
                raise OSError("a broken disk")
            begun.set()
            written.append(start)

    with pytest.raises(OSError, match="a broken disk"):
        merge.run(Failing(merge.specs), ["a", "b"])
    assert 0 < len(written) < 50_000


def test_an_expert_without_a_tokenizer_is_noted(llama: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(llama / "ja", tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    report = check_merge(Checkpoint(llama / "base"), {"x": Checkpoint(bare)})
    assert not report.errors
    assert any("expert x has no tokenizer.json" in note for note in report.notes)


def test_a_folder_whose_name_is_no_text_can_be_merged(llama: Path, tmp_path: Path) -> None:
    odd = shutil.copytree(llama / "ja", tmp_path / "odd\udcff")
    experts = {"ja|x": Checkpoint(odd)}
    engine.merge_to_disk(
        tmp_path / "out", MergeConfig("linear", Checkpoint(llama / "base"), experts, {})
    )
    assert r"| ja\|x | `odd?` |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer.wte.weight", "embedding"),
        ("gpt_neox.embed_in.weight", "embedding"),
        ("transformer.h.0.ln_1.bias", "norm"),
        ("transformer.ln_f.weight", "norm"),
        ("gpt_neox.layers.0.input_layernorm.weight", "norm"),
        ("transformer.h.0.mlp.c_fc.weight", "other"),
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "linear"),
    ],
)
def test_embeddings_and_norms_of_older_families_are_known(name: str, expected: str) -> None:
    assert kind(name) == expected
