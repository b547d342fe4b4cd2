"""A GGUF file of llama.cpp as an ordinary model folder.

transformers dequantises the weights and builds the configuration. It ignores what it has no place
for, so the file's keys and tensors are compared with what was built: all must be there, or the
file is refused.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.architecture import QUANTISED
from checkpoints.dtypes import FLOATS, torch_name
from checkpoints.gguf_claims import check_claims
from checkpoints.gguf_tokenizer import write_tokenizer
from checkpoints.loading import refuse_invented
from checkpoints.stored import TIE
from checkpoints.writing import write_weights
from common.errors import UserError, nearest, reason_of
from common.files import sha256_file, staged_directory, write_text
from common.manifest import NAME, write_manifest

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

# What transformers calls each key of an architecture. `None`: says nothing of the computation.
_KEYS: Mapping[str, str | None] = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "vocab_size": "vocab_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.dimension_count": "head_dim",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
}
# Architectures whose import was compared with transformers' own model, by their name in GGUF.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")
# Depths whose attention scale no key says, and which is not the one that transformers fills in.
_OTHER_SCALE = {"gemma2": 46, "gemma3": 62}


@dataclass(frozen=True)
class File:
    """What a GGUF file says of itself.

    Attributes:
        path: The file.
        said: Its keys with their values; of long lists too.
        types: The stored type of each tensor, by the tensor's name in GGUF.
    """

    path: Path
    said: Mapping[str, Any]
    types: Mapping[str, str]

    @property
    def architecture(self) -> str:
        """The architecture's name in GGUF."""
        return str(self.said.get("general.architecture", "none"))


def read_gguf(path: Path) -> File:
    """Read keys and tensors' types of a GGUF file.

    Raises:
        UserError: It is missing, no GGUF file, damaged, or of an architecture not imported here.
    """
    from gguf import GGUFReader

    if not path.is_file():
        raise UserError(f"{path}: no such file; give a GGUF file")
    try:
        with open(path, "rb") as stream:
            check_claims(stream, path.stat().st_size)
        reader = GGUFReader(path)
        said = {name: field.contents() for name, field in reader.fields.items()}
        types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    except Exception as error:  # whatever a damaged file makes of it
        raise UserError(
            f"{path}: no GGUF file, or a damaged one ({reason_of(error)}); get it again"
        ) from None
    found = File(path, said, types)
    if found.architecture not in ARCHITECTURES:
        raise UserError(
            f"{path}: the architecture {found.architecture!r} cannot be imported"
            f"{nearest(found.architecture, ARCHITECTURES)}; there are {', '.join(ARCHITECTURES)}: "
            "get the model as safetensors"
        )
    return found


def _built(config: PretrainedConfig, name: str) -> Any:
    """Return a value of a configuration; of rope bases by layer type, that of full attention."""
    rope = getattr(config, "rope_parameters", None) or {}
    if name == "rope_theta":
        return rope.get("full_attention", rope).get("rope_theta")
    if name == "rope_local_base_freq":
        return rope.get("sliding_attention", {}).get("rope_theta")
    if name == "head_dim" and getattr(config, "head_dim", None) is None:
        return config.hidden_size // config.num_attention_heads
    return getattr(config, name, None)


def _equal(said: Any, built: Any) -> bool:
    if isinstance(said, float) and isinstance(built, float | int):
        return abs(said - built) <= 1e-6 * abs(built)  # the file has 32 bits
    return bool(said == built)


def check_config(file: File, config: PretrainedConfig) -> None:
    """Refuse a configuration that is not what the file says.

    Raises:
        UserError: A key of the file's architecture has no place in it, or another value.
    """
    where, own = file.path, f"{file.architecture}."
    remedy = "the import would be another model: get it as safetensors"
    for key, said in file.said.items():
        if not key.startswith(own):
            continue
        name = key.removeprefix(own)
        if name not in _KEYS:
            raise UserError(f"{where}: {key} = {said!r} has no place in the import; {remedy}")
        place = _KEYS[name]
        if place is not None and not _equal(said, built := _built(config, place)):
            raise UserError(
                f"{where}: {key} is {said!r}, transformers makes {place} {built!r}; {remedy}"
            )
    window = getattr(config, "sliding_window", None)
    if window is not None and f"{own}attention.sliding_window" not in file.said:
        raise UserError(
            f"{where}: no key says how wide the sliding window is, and transformers makes it "
            f"{window}; {remedy}"
        )
    if config.num_hidden_layers == _OTHER_SCALE.get(file.architecture):
        raise UserError(
            f"{where}: no key says this size's query_pre_attn_scalar, and transformers makes it "
            f"{config.query_pre_attn_scalar}; {remedy}"
        )


def check_tensors(file: File, model: PreTrainedModel) -> None:
    """Refuse tensors of the file that the model has no place for, or lacks; see `check_config`."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == file.architecture)
    names = get_tensor_name_map(arch, model.config.num_hidden_layers)
    wanted = set()
    for name in own_weights(model):
        stem, _, end = name.rpartition(".")
        wanted.add(f"{names.get_name(stem) or stem}.{end}")
    refuse_invented(file.path, wanted - set(file.types), set(file.types) - wanted)


def own_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return a model's weights by name, without those that are tied to others."""
    weights = dict(model.state_dict())
    if getattr(model.config, TIE, False):
        for name in getattr(model, "_tied_weights_keys", None) or ():
            weights.pop(name, None)
    return weights


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep transformers' and tqdm's bars and tables off the screen."""
    import tqdm
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield tqdm
    finally:
        logging.set_verbosity(verbosity)


def _load(file: File) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    try:
        with _quiet():
            import torch

            model, info = AutoModelForCausalLM.from_pretrained(
                file.path.parent,
                gguf_file=file.path.name,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # of a type of quantisation that it does not know, for example
        types = ", ".join(sorted(set(file.types.values())))
        raise UserError(
            f"{file.path}: transformers cannot dequantise it ({reason_of(error)}; its tensors are "
            f"{types}); get the model as safetensors"
        ) from None
    missing = set(info["missing_keys"]) & set(own_weights(model))
    refuse_invented(file.path, missing, info["unexpected_keys"])
    return model


def _card(file: File, digest: str, dtype: str) -> str:
    said = file.said
    types = ", ".join(f"{count} {name}" for name, count in Counter(file.types.values()).items())
    licence = str(said.get("general.license", "not said in the file"))
    head = f"---\nlicense: {licence}\n---\n\n" if "general.license" in said else ""
    return (
        f"{head}# {said.get('general.name', file.path.stem)}\n\n"
        f"Imported from the GGUF file `{file.path.name}` (sha256 {digest}).\n\n"
        f"- Tensors in the file: {types}. The weights here are the dequantised ones in {dtype}: "
        "scores are this file's, not those of the model before it was quantised.\n"
        f"- Licence: {licence}.\n"
    )


def import_gguf(
    source: Path,
    out: Path,
    *,
    dtype: str = "bfloat16",
    tokenizer: Path | None = None,
    note: Callable[[str], object] = lambda text: None,
    extra: Mapping[str, str] | None = None,
) -> int:
    """Write a GGUF file as a model folder: safetensors, configuration, tokenizer, card, manifest.

    Args:
        source: The GGUF file; its model must fit into memory in float32.
        out: The folder to make.
        dtype: Type of the written weights by torch's name: bfloat16, float32, float16.
        tokenizer: A folder whose tokenizer is taken instead of the file's, if it has its tokens.
        note: Is called with what a reader should know of the result.
        extra: Texts of further files, by name, such as a licence.

    Returns:
        The number of parameters, tied ones counted once.

    Raises:
        UserError: The file cannot be imported as it is, `out` holds something else, or the type is
            unknown.
    """
    import torch

    kinds = {torch_name(kind) for kind in FLOATS}
    if dtype not in kinds:
        raise UserError(f"--dtype {dtype}: give {', '.join(sorted(kinds))}")
    if out.exists() and (out.is_file() or any(out.iterdir())) and not (out / NAME).exists():
        raise UserError(f"{out} holds something else; give another folder, or empty it")
    file = read_gguf(source)
    digest = sha256_file(source)
    with staged_directory(out) as folder:
        # First what is quick and may be refused.
        note(write_tokenizer(source, file.said, folder, tokenizer))
        model = _load(file)
        check_config(file, model.config)
        check_tensors(file, model)
        weights = {
            name: tensor.detach().to(getattr(torch, dtype))
            for name, tensor in own_weights(model).items()
        }
        config = model.config
        for left in (QUANTISED, "_model_name_or_path", "_sliding_window_pattern"):
            if hasattr(config, left):
                delattr(config, left)
        config.dtype = getattr(torch, dtype)
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        hashes = write_weights(folder, weights)
        for name, text in {"README.md": _card(file, digest, dtype), **(extra or {})}.items():
            write_text(folder / name, text)
        write_manifest(
            folder / NAME,
            kind="imported",
            parameters={"dtype": dtype, "architecture": file.architecture},
            inputs={"source": digest},
            outputs={
                str(path.relative_to(folder)): hashes.get(path.name, path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
            code=("checkpoints/gguf_file.py",),
        )
    return sum(tensor.numel() for tensor in weights.values())
