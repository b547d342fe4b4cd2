"""Readers of what others give us: a valid input to damage, and how to call them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hypothesis import strategies as st

from tests.faults.inputs import contents, documents, json_files
from tests.faults.laboratory import CASE, micro


class Reader(NamedTuple):
    """A reader.

    Attributes:
        inputs: What it is given.
        read: Reads one; raises a UserError or nothing.
    """

    inputs: st.SearchStrategy
    read: Callable[[Any], object]


def file_with(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a function that writes bytes to a file and reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def call(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return call


def each_of(*functions: Callable) -> Callable[[Any], None]:
    """Return a function that gives a value to several; one's refusal does not spare the others."""
    from common.errors import UserError

    def call(value: Any) -> None:
        refused = None
        for function in functions:
            try:
                function(value)
            except UserError as error:
                refused = error
        if refused:
            raise refused

    return call


def yaml_files(document: Any) -> st.SearchStrategy[bytes]:
    """Draw YAML files: of another document, or damaged as bytes."""
    text = yaml.safe_dump(document, allow_unicode=True).encode()
    # Half a surrogate, which JSON has, cannot be written as UTF-8.
    dump = documents(document).map(lambda value: json.dumps(value).encode())
    return st.one_of(dump, contents(text))


def configuration(top: Path) -> Reader:
    from workflow.configuration import load

    config = micro()
    short = ("soup", "ties_tuned")
    config["methods"] = {name: config["methods"][name] for name in short}
    del config["ablation"]
    # As short as it may be: the time goes into the parser of YAML.
    case = config["cases"][CASE]
    case["columns"] = case["columns"][-1:]
    case["experts"] = {"sql": case["experts"]["sql"]}
    for key in ("notes", "beside"):
        case.pop(key, None)
    return Reader(yaml_files(config), file_with(top / "c/config.yaml", load))


def layer_rules(top: Path) -> Reader:
    from merges.engine.layer_rules import read_rules

    rules = [
        {"match": "mlp", "set": {"density": 0.3}},
        {"layers": [0, 1], "set": {"scale": 0.5}, "gradient": {"density": [0.1, 0.5]}},
    ]
    return Reader(
        json_files(rules), file_with(top / "r/rules.json", lambda p: read_rules("ties", p))
    )


def recipe(top: Path, models: Path) -> Reader:
    from merges.mergekit.exporting import export_merge

    made = models / "merged"
    folder = top / "merged"
    folder.mkdir()
    for path in made.iterdir():
        if path.is_file() and path.name != "manifest.json":
            (folder / path.name).symlink_to(path)
    about = json.loads((made / "manifest.json").read_text())
    about["outputs"] = {}  # hashes of weights take most of the time, and are tried elsewhere
    del about["sha256"]  # it would show any change before the recipe is read
    read = lambda _: export_merge(folder, {}, top / "recipe.yml")  # noqa: E731
    return Reader(json_files(about), file_with(folder / "manifest.json", read))


def mergekit(top: Path, models: Path) -> Reader:
    from merges.mergekit.translation import translate

    models_ = [
        {"model": "ja", "parameters": {"weight": 0.5, "density": [0.1, 0.9]}},
        {"model": "math_a", "parameters": {"weight":
            [{"filter": "mlp", "value": 0.2}, {"value": 1}]}},
    ]  # fmt: skip
    ties = {"merge_method": "ties", "base_model": "base", "models": models_, "dtype": "float32",
            "parameters": {"normalize": True, "int8_mask": False},
            "tokenizer_source": "union"}  # fmt: skip
    stacked = {"merge_method": "passthrough", "dtype": "float32", "slices": [
        {"sources": [{"model": "ja", "layer_range": [0, 2]}]},
        {"sources": [{"model": "math_a", "layer_range": [1, 3]}]}]}  # fmt: skip
    located = {name: models / name for name in ("base", "ja", "math_a")}
    read = file_with(top / "k/merge.yml", lambda path: translate(path, located))
    return Reader(st.one_of(yaml_files(ties), yaml_files(stacked)), read)


def _header(document: Any) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text + bytes(48)


TENSORS = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.weight": {"dtype": "BF16", "shape": [12], "data_offsets": [24, 48]},
}


def header(top: Path) -> Reader:
    from checkpoints.headers import read_header

    ways = [json_files(TENSORS).map(_header), contents(_header(TENSORS))]
    return Reader(st.one_of(ways), file_with(top / "h/model.safetensors", read_header))


def index(top: Path) -> Reader:
    from checkpoints.layout import read_index

    (top / "i").mkdir()
    for name in ("one.safetensors", "two.safetensors"):
        (top / "i" / name).write_bytes(_header(TENSORS))
    about = {
        "metadata": {"total_size": 96},
        "weight_map": {"a": "one.safetensors", "b": "two.safetensors"},
    }
    read = file_with(top / "i/model.safetensors.index.json", read_index)
    return Reader(json_files(about), read)


def adapter(top: Path, models: Path) -> Reader:
    import torch
    from safetensors.torch import save_file

    from checkpoints.adapters import Adapter
    from checkpoints.reading import Checkpoint

    base = Checkpoint(models / "base")
    module = "model.layers.0.self_attn.q_proj"
    rows, columns = base.shape(f"{module}.weight")
    key = f"base_model.model.{module}"
    folder = top / "adapter"
    folder.mkdir()
    pair = {
        f"{key}.lora_A.weight": torch.ones(2, columns),
        f"{key}.lora_B.weight": torch.ones(rows, 2),
    }
    save_file(pair, folder / "adapter_model.safetensors")
    right = (folder / "adapter_model.safetensors").read_bytes()
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none",
             "target_modules": ["q_proj"], "rank_pattern": {"k_proj": 2}, "alpha_pattern": {},
             "use_rslora": False, "modules_to_save": None,
             "base_model_name_or_path": "base"}  # fmt: skip
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    valid = json.dumps(about).encode()
    both = st.one_of(
        st.tuples(json_files(about), st.just(right)), st.tuples(st.just(valid), contents(right))
    )

    def read(files: tuple[bytes, bytes]) -> object:
        config.write_bytes(files[0])
        weights.write_bytes(files[1])
        model = Adapter(folder, base)
        return [model.read(name, 0, 4) for name in model.names()[:3]]

    return Reader(both, read)


def gguf(top: Path) -> Reader:
    from checkpoints.gguf_file import read_gguf

    text = lambda value: struct.pack("<Q", len(value)) + value  # noqa: E731
    keys = [
        (b"general.architecture", 8, text(b"llama")),
        (b"general.alignment", 4, struct.pack("<I", 32)),
        (b"llama.block_count", 4, struct.pack("<I", 1)),
        (b"llama.rope.freq_base", 6, struct.pack("<f", 1e4)),
        (b"tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text(b"<s>") + text(b"a")),
        (b"tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 2) + bytes(8)),
    ]
    content = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys))
    content += b"".join(text(name) + struct.pack("<I", kind) + value for name, kind, value in keys)
    content += text(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 2, 0, 0)
    content += bytes(-len(content) % 32) + bytes(32)
    return Reader(contents(content), file_with(top / "g/model.gguf", read_gguf))
