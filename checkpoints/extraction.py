"""A fine-tuned checkpoint as a LoRA adapter: truncated SVD of the change in each linear layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from checkpoints.adapter_settings import CONFIG
from checkpoints.adapters import PREFIX, WEIGHTS
from checkpoints.architecture import Architecture, architecture, says_quantised
from checkpoints.companions import copy_tokenizer
from checkpoints.names import is_head
from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.files import staged_directory, write_json, write_text
from common.manifest import NAME, read_manifest, write_manifest
from common.progress import Progress

if TYPE_CHECKING:
    import torch

_PIECE = 1 << 24  # values that are compared at a time
Others = Literal["refuse", "store", "drop"]


@dataclass(frozen=True)
class Layer:
    """What an adapter holds of a layer.

    Attributes:
        module: The layer's name.
        rank: The rank of its factors.
        squared: Squared Frobenius norm of the layer's change.
        left_out: The same of the part that the factors leave out: the sum of the squares of the
            singular values behind the first `rank`.
    """

    module: str
    rank: int
    squared: float
    left_out: float


def _differs(base: Checkpoint, model: Checkpoint, name: str) -> bool:
    for start in range(0, base.count(name), _PIECE):
        stop = min(start + _PIECE, base.count(name))
        if bool((base.read(name, start, stop) != model.read(name, start, stop)).any()):
            return True
    return False


def _changed(base: Checkpoint, model: Checkpoint) -> list[str]:
    """Return the names of the parameters that differ, after a check that the two models fit."""
    for checkpoint in (base, model):
        if says_quantised(checkpoint.config):
            raise UserError(f"{checkpoint.path}: quantised; give the model in full precision")
    if odd := sorted(set(base.names()) ^ set(model.names())):
        holder = base if odd[0] in base.names() else model
        raise UserError(
            f"{holder.path} alone has tensor {odd[0]}; give a model and the base that it was "
            "fine-tuned from"
        )
    for name in base.names():
        if base.shape(name) != model.shape(name):
            raise UserError(
                f"{model.path}: tensor {name} has shape {list(model.shape(name))}, the base's "
                f"({base.path}) has {list(base.shape(name))}; give the base that the model was "
                "fine-tuned from"
            )
    progress = Progress(len(base.names()), f"comparing {model.path.name}: tensors")
    found = []
    for name in base.names():
        if _differs(base, model, name):
            found.append(name)
        progress.step(1, name)
    if not found:
        raise UserError(f"{model.path}: equal to the base ({base.path}); give a fine-tuned model")
    return found


def _listed(names: Sequence[str]) -> str:
    """List parameters, those at the same place of different layers as one."""
    places = Counter(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names)
    return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in places.items())


def _rank(values: torch.Tensor, rank: int | None, energy: float) -> tuple[int, float, float]:
    """Return the rank to keep of singular values, their squared sum, and that of the others."""
    import torch

    # Summed from the smallest on: tails[r] is left out with r values kept.
    tails = torch.cat([values.square().flip(0).cumsum(0).flip(0), values.new_zeros(1)])
    total = float(tails[0])
    if rank is None:
        rank = int((tails > (1 - energy) * total).sum())
    return rank, total, float(tails[rank])


def _factors(
    base: Checkpoint, model: Checkpoint, name: str, turned: bool, rank: int | None, energy: float
) -> tuple[torch.Tensor, torch.Tensor, Layer]:
    """Decompose a layer's change in float64; return A, B (float32) and what they leave out."""
    import torch

    change = model.load(name).double() - base.load(name).double()
    if not bool(torch.isfinite(change).all()):
        raise UserError(f"{model.path}: {name} or the base's holds NaN or infinity; repair it")
    left, values, right = torch.linalg.svd(change.T if turned else change, full_matrices=False)
    kept, squared, left_out = _rank(values, rank, energy)
    roots = values[:kept].sqrt()  # half of each value for each factor, so that both round alike
    b = (left[:, :kept] * roots).float().contiguous()
    a = (right[:kept] * roots[:, None]).float().contiguous()
    return a, b, Layer(name.removesuffix(".weight"), kept, squared, left_out)


def _stored(
    names: Sequence[str], model: Checkpoint, built: Architecture, wrapped: set[str]
) -> tuple[dict[str, str], list[str]]:
    """Find how an adapter holds parameters themselves.

    Returns:
        The names in the model by those in the adapter's file, and the modules that are saved
        complete; biases of linear layers are saved alone.
    """
    keys, modules = {}, []
    for name in names:
        module, _, leaf = name.rpartition(".")
        inner = any(other.rpartition(".")[0].startswith(f"{module}.") for other in built.weights)
        if name not in built.weights or not module or inner:
            raise UserError(
                f"{model.path}: {name} has changed, and PEFT cannot hold it; give --others drop"
            )
        if module in built.linear and leaf == "bias" and not is_head(name):
            keys[f"{PREFIX}{module}{'.base_layer' * (module in wrapped)}.bias"] = name
        elif module not in modules:
            modules.append(module)
    for module in modules:
        own = [name for name in model.names() if name.rpartition(".")[0] == module]
        keys |= {f"{PREFIX}{name}": name for name in own}
    # A head that is tied to a stored embedding is written too: PEFT would untie the two.
    for copy, of in built.tied.items():
        if f"{PREFIX}{of}" in keys and copy not in model.names():
            keys[f"{PREFIX}{copy}"] = of
            modules.append(copy.rpartition(".")[0])
    return keys, modules


def _targets(changed: Collection[str], built: Architecture) -> list[str]:
    """Name the layers for PEFT: by the end of their names where all with this end have changed."""
    found = []
    for module in sorted(changed):
        end = module.rpartition(".")[2]
        alike = {m.rpartition(".")[0] for m in built.weights if f".{end}." in f".{m}"}
        found.append(end if alike <= set(changed) else module)
    return list(dict.fromkeys(found))


def peft_config(
    base: Path,
    ranks: Mapping[str, int],
    built: Architecture,
    modules: Sequence[str] = (),
    biases: bool = False,
) -> dict[str, Any]:
    """Write PEFT's configuration; alpha is the rank, so that the factors' product counts once.

    Args:
        base: The folder of the adapter's base.
        ranks: By layer, the rank of its factors.
        built: The base's class.
        modules: Those that the adapter holds complete.
        biases: Whether it holds biases of linear layers.
    """
    common = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {module: rank for module, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "lora_dropout": 0.0,
        "bias": "all" if biases else "none",
        "fan_in_fan_out": any(module in built.turned for module in ranks),
        "init_lora_weights": True,
        "target_modules": _targets(ranks, built),
        "modules_to_save": list(modules) or None,
    }


def _check_given(out: Path, inputs: Sequence[Path], rank: int | None, energy: float | None) -> None:
    if (rank is None) == (energy is None):
        raise UserError("give either a rank or a share of the energy")
    if rank is not None and rank < 1:
        raise UserError(f"rank {rank}: give a whole number from 1 on")
    if energy is not None and not 0 < energy <= 1:
        raise UserError(f"energy {energy}: give a share above 0 and at most 1")
    if any(out.resolve() in (path.resolve(), *path.resolve().parents) for path in inputs):
        raise UserError(f"{out}: is or holds a model that is read; give another folder")
    earlier = (out / NAME).is_file() and read_manifest(out).get("kind") == "adapter"
    if out.exists() and (out.is_file() or any(out.iterdir())) and not earlier:
        raise UserError(f"{out} holds something else; give another folder, or empty it")


def _divided(
    base: Checkpoint, model: Checkpoint, built: Architecture, rank: int | None, others: Others
) -> tuple[list[str], list[str]]:
    """Divide what has changed into matrices for factors and the rest, and check both."""
    changed = _changed(base, model)
    matrices = [
        name
        for name in changed
        if name.endswith(".weight")
        and name.removesuffix(".weight") in built.linear
        and not is_head(name)
    ]
    rest = [name for name in changed if name not in matrices]
    if rest and others == "refuse":
        raise UserError(
            f"{model.path}: the training also changed {_listed(rest)}, which a LoRA does not hold; "
            "give --others store, which saves them complete, or --others drop"
        )
    if not matrices:
        raise UserError(
            f"{model.path}: no linear layer has changed, so there is no LoRA to extract"
        )
    for name in matrices:
        if rank is not None and rank > min(base.shape(name)):
            raise UserError(
                f"rank {rank} is above the smaller side of {name} ({list(base.shape(name))}); "
                f"give at most {min(min(base.shape(n)) for n in matrices)}, or --energy 1"
            )
    return matrices, rest


def extract_lora(
    base: Path,
    model: Path,
    out: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    others: Others = "refuse",
    note: Callable[[str], object] = lambda text: None,
) -> list[Layer]:
    """Write what a training changed in the linear layers as a PEFT LoRA adapter.

    With U S V^T the singular value decomposition of W - W_0, computed in float64, the factors are
    B = U_r S_r^(1/2) and A = S_r^(1/2) V_r^T, each rounded once to float32, and the scale is 1: of
    all matrices of rank r, B A is nearest to the change. One tensor of each model is in memory at a
    time, and the adapter.

    Args:
        base: The folder of the model before the training.
        model: The folder of the model after it.
        out: The folder to make.
        rank: r of every layer; or else
        energy: the share, above 0 and at most 1, of the squared norm of each layer's change that
            its factors keep, with the smallest r that does.
        others: What becomes of changed parameters that factors do not hold (embeddings, norms,
            biases, output head): ``refuse``, ``store`` them complete, or ``drop`` them.
        note: Is called with what is dropped or stored.

    Returns:
        The layers, in the order of their names.

    Raises:
        UserError: The models do not fit, do not differ, or differ in what `others` refuses; the
            rank is above a layer's smaller side; a value is not finite; the output holds something
            else; the disk is full.

    Source:
        Eckart and Young, The approximation of one matrix by another of lower rank, 1936; Hu et al.
        2021, LoRA (arXiv 2106.09685), section 4.1.
    """
    _check_given(out, [base, model], rank, energy)
    first, second = Checkpoint(base), Checkpoint(model)
    if (built := architecture(first.config)) is None:
        raise UserError(
            f"{base}: transformers cannot build this model, so that its linear layers are unknown; "
            "give a model of transformers"
        )
    matrices, rest = _divided(first, second, built, rank, others)
    keys: Mapping[str, str] = {}
    modules: list[str] = []
    if rest:
        note(f"{'dropped' if others == 'drop' else 'stored complete'}: {_listed(rest)}")
    if others == "store":
        wrapped = {name.removesuffix(".weight") for name in matrices}
        keys, modules = _stored(rest, second, built, wrapped)
    # Factors stay in memory: with a share of the energy, their sizes are known only at the end.
    tensors, layers = {}, []
    progress = Progress(len(matrices), f"decomposing {model.name}: layers")
    for name in matrices:
        turned = name.removesuffix(".weight") in built.turned
        a, b, layer = _factors(first, second, name, turned, rank, energy or 0.0)
        tensors[f"{PREFIX}{layer.module}.lora_A.weight"] = a
        tensors[f"{PREFIX}{layer.module}.lora_B.weight"] = b
        layers.append(layer)
        progress.step(1, name)
    tensors |= {key: second.load(name) for key, name in keys.items()}
    biases = any(
        key.endswith(".bias") and name.rpartition(".")[0] not in modules
        for key, name in keys.items()
    )
    rows = [f"{x.module},{x.rank},{x.squared!r},{x.left_out!r}\n" for x in layers]
    ranks = {layer.module: layer.rank for layer in layers}
    write_adapter(
        out,
        tensors,
        peft_config(base, ranks, built, modules, biases),
        model,
        {"layers.csv": "module,rank,squared,left_out\n" + "".join(rows)},
        parameters={"rank": rank, "energy": energy, "others": others},
        inputs={"base": first.fingerprint, "model": second.fingerprint},
        code=("checkpoints/extraction.py",),
    )
    return layers


def write_adapter(
    out: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    tokenizer: Path,
    texts: Mapping[str, str],
    **about: Any,
) -> None:
    """Write a PEFT adapter's folder with a tokenizer and a manifest, all of it or nothing.

    Args:
        out: The folder to make.
        tensors: By PEFT's names, as they are stored.
        config: See `peft_config`.
        tokenizer: The model that the tokenizer is copied from.
        texts: Further files by name.
        about: What its manifest records; see `common.manifest.write_manifest`.

    Raises:
        UserError: The disk is full.
    """
    from safetensors.torch import save_file

    with staged_directory(out) as folder:
        save_file(dict(sorted(tensors.items())), folder / WEIGHTS, {"format": "pt"})
        write_json(folder / CONFIG, config)
        for name, text in texts.items():
            write_text(folder / name, text)
        copy_tokenizer(tokenizer, folder)
        files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
        write_manifest(folder / NAME, kind="adapter", outputs=files, **about)
